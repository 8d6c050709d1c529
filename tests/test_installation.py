"""Installations that are broken in fact: every way in says what is at fault and the line that mends
it."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PAIR = ("torch", "torchaudio")
# What a wheel for another CUDA than torch's does.
OSERROR = "libcudart.so.13: cannot open shared object file: No such file or directory"
WAYS_IN = """
import sys
import plugins
from plugins.cli import main

def codec():
    from plugins.audio.codec import Codec
    Codec("demo/codec").model

def train():
    from plugins.train import main
    main([])

commands = [["speak", "--model", "m", "--text", "x"], ["evaluate", "--dataset", "d", "--output", "o"],
            ["app", "--model", "m"], ["export", "--model", "m", "--output", "o"], ["convert", "a", "b"],
            ["doctor", "--model", "m", "--dataset", "d"]]
ways = {words[0]: lambda words=words: main(words) for words in commands}
ways |= {"generator": lambda: plugins.HiggsAudioGenerator, "register": plugins.register_higgs_audio_all, "codec": codec}
ways |= {"train": train, "sft": lambda: main(["sft", "--model", "m"])}
for name in sys.argv[1:]:
    print("way in:", name, flush=True)
    try:
        code = ways[name]()
        assert code == 1, code
    except plugins.UserError as error:
        print(error, flush=True)
"""


def ways_in(*names: str, path: Path, flags: tuple[str, ...] = ()) -> dict[str, str]:
    """What each of `names` says in one process with `path` before all other packages."""
    env = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    command = [sys.executable, *flags, "-c", WAYS_IN, *names]
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    parts = done.stdout.split("way in: ")[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def install_line(*packages: str) -> str:
    wanted = [
        line
        for line in importlib.metadata.requires("higgs-audio-swift") or []
        if line.startswith(packages)
    ]
    assert wanted
    return "pip install " + " ".join(f"'{line}'" for line in wanted)


def break_torchaudio(folder: Path) -> str:
    """A torchaudio in `folder`, for PYTHONPATH, that does not load; what is to be said of it."""
    (folder / "torchaudio").mkdir()
    (folder / "torchaudio" / "__init__.py").write_text(f"raise OSError({OSERROR!r})\n")
    torch, torchaudio = (importlib.metadata.version(name) for name in PAIR)
    return (
        f"'torchaudio {torchaudio}' cannot be imported beside torch {torch} (OSError: {OSERROR})"
        f"; run: pip uninstall -y torch torchaudio && {install_line(*PAIR)}"
    )


def link(source: Path, target: Path, gone: str) -> None:
    """The folder `source` once more, as links, without what lies at `gone` in it and begins like
    that."""
    target.mkdir()
    first, _, rest = gone.partition("/")
    for entry in source.iterdir():
        if rest and entry.name == first:
            link(entry, target / first, rest)
        elif rest or not entry.name.startswith(first):
            (target / entry.name).symlink_to(entry)


def said_without(gone: str, *ways: str, folder: Path) -> dict[str, str]:
    source = next(Path(entry) for entry in sys.path if (Path(entry) / "transformers").is_dir())
    link(source, folder / "packages", gone)
    # -S: the true site-packages are left out.
    return ways_in(*ways, path=folder / "packages", flags=("-S",))


def assert_said(line: str, said: dict[str, str]) -> None:
    for text in said.values():
        assert text.endswith(f"installation: package: {line}\n"), text
        assert "Traceback" not in text


def test_without_torch(tmp_path: Path) -> None:
    said = said_without("torch", "speak", "doctor", "generator", folder=tmp_path)
    assert said["doctor"].startswith("failed  environment: Python")
    assert_said(f"'torch' is not installed; run: {install_line(*PAIR)}", said)


@pytest.mark.slow
def test_a_torchaudio_for_another_cuda(tmp_path: Path) -> None:
    line = break_torchaudio(tmp_path)
    ways = [
        "speak",
        "evaluate",
        "app",
        "export",
        "convert",
        "doctor",
        "generator",
        "register",
        "codec",
        "train",
    ]
    assert_said(line, ways_in(*ways, path=tmp_path))


@pytest.mark.slow
def test_without_torchaudio(tmp_path: Path) -> None:
    line = f"'torchaudio' is not installed; run: {install_line(*PAIR)}"
    assert_said(line, said_without("torchaudio", "doctor", "codec", folder=tmp_path))


@pytest.mark.slow
def test_without_ms_swift(tmp_path: Path) -> None:
    line = f"'ms-swift' is not installed; run: {install_line('ms-swift')}"
    assert_said(line, said_without("swift", "doctor", "register", "train", "sft", folder=tmp_path))


@pytest.mark.slow
def test_a_transformers_without_our_classes(tmp_path: Path) -> None:
    version = importlib.metadata.version("transformers")
    line = (
        f"'transformers {version}' cannot be imported (AttributeError: module transformers has no attribute "
        f"HiggsAudioV2ForConditionalGeneration); run: {install_line('transformers')}"
    )
    ways = [
        "speak",
        "evaluate",
        "app",
        "export",
        "convert",
        "doctor",
        "generator",
        "register",
        "codec",
        "train",
    ]
    assert_said(line, said_without("transformers/models/higgs_audio", *ways, folder=tmp_path))


def test_no_message_sends_to_an_index_that_does_not_have_us() -> None:
    files = [*(ROOT / "plugins").rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert [
        file for file in files if 'install "higgs-audio-swift' in file.read_text(encoding="utf-8")
    ] == []
