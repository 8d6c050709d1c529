"""Installations that are broken in fact: every way in says what is at fault and the line that mends
it."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.installation import PAIR, break_torchaudio, install_line

# Each way in ends with one line: a command prints it, the rest raise it.
START = """
import sys
import plugins
from plugins.cli import main

def codec():
    from plugins.audio.codec import Codec
    Codec("demo/codec").model

def train():
    from plugins.train import main
    main([])

ways = {
    "speak": lambda: main(["speak", "--model", "m", "--text", "x"]),
    "evaluate": lambda: main(["evaluate", "--dataset", "d", "--output", "o"]),
    "app": lambda: main(["app", "--model", "m"]),
    "export": lambda: main(["export", "--model", "m", "--output", "o"]),
    "convert": lambda: main(["convert", "a", "b"]),
    "doctor": lambda: main(["doctor", "--model", "m", "--dataset", "d"]),
    "sft": lambda: main(["sft", "--model", "m"]),
    "train": train,
    "generator": lambda: plugins.HiggsAudioGenerator,
    "register": plugins.register_higgs_audio_all,
    "codec": codec,
}
for name in sys.argv[1:]:
    print("way in:", name, flush=True)
    try:
        code = ways[name]()
        assert code == 1, code
    except plugins.UserError as error:
        print(error, flush=True)
"""

WAYS = (
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
)


def ways_in(*names: str, path: Path, flags: tuple[str, ...] = ()) -> dict[str, str]:
    """What each of `names` says in one process with `path` before all other packages."""
    env = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    command = [sys.executable, *flags, "-c", START, *names]
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    # One process for all: a start takes seconds.
    said = {}
    for part in done.stdout.split("way in: ")[1:]:
        name, _, said[name] = part.partition("\n")
    return said


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


# The one of these that the fast suite has: it needs no import that takes long.
def test_without_torch(tmp_path: Path) -> None:
    said = said_without("torch", "speak", "doctor", "generator", folder=tmp_path)
    assert said["doctor"].startswith("failed  environment: Python")
    assert_said(f"'torch' is not installed; run: {install_line(*PAIR)}", said)


@pytest.mark.slow
def test_a_torchaudio_for_another_cuda(tmp_path: Path) -> None:
    line = break_torchaudio(tmp_path)
    assert_said(line, ways_in(*WAYS, path=tmp_path))


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
        f"'transformers {version}' cannot be imported (AttributeError: module transformers has no "
        "attribute HiggsAudioV2ForConditionalGeneration); "
        f"run: {install_line('transformers')}"
    )
    assert_said(line, said_without("transformers/models/higgs_audio", *WAYS, folder=tmp_path))


def test_no_message_sends_to_an_index_that_does_not_have_us() -> None:
    files = [*(ROOT / "plugins").rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    for file in files:
        assert 'install "higgs-audio-swift' not in file.read_text(encoding="utf-8"), file
