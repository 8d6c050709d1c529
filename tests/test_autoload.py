"""The start-up hook: plain `swift sft` in environments of their own, with an editable and with a
wheel installation, and what it leaves alone."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, corpus_rows, write_jsonl
from helpers.installation import OSERROR, break_torchaudio
from helpers.sft import BIN, flags, log_of, run

import higgs_audio_swift_autoload as hook

TYPE = "higgs-audio-v2-3b"
SWIFT = str(BIN / "swift")
OURS = str(ROOT / "plugins" / "register.py")
NEEDED = (
    "pyproject.toml",
    "setup.py",
    "higgs_audio_swift_autoload.py",
    "README.md",
    "LICENSE",
)


@pytest.fixture(scope="module", params=["editable", "wheel"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with this project in it and the packages of ours below.
    Slow: builds it."""
    if int(importlib.metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("needs setuptools >= 77 to build the project")
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "source"
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "plugins", source / "plugins", ignore=without_caches)
    for name in NEEDED:
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_{request.param}({str(folder)!r})"
    built = run(sys.executable, "-c", build, cwd=source)
    assert built.returncode == 0, built.stderr
    made = run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    assert made.returncode == 0, made.stderr
    packages = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    # All that an installer does with such a wheel, but for its record.
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(packages)
    below = [entry for entry in sys.path if entry.endswith("-packages")]
    (packages / "zz_below.pth").write_text("\n".join(below), encoding="utf-8")
    return folder / "venv" / "bin" / "python"


@pytest.mark.slow
def test_plain_swift_sft_finds_the_plugin(installed: Path, tiny: Path, tmp_path: Path) -> None:
    """Without `--external_plugins`; spawned data workers have it too, and `args.json` has its
    absolute path."""
    dataset = write_jsonl(tmp_path / "train.jsonl", corpus_rows(2))
    options = {"external_plugins": None, "max_steps": 1, "save_strategy": "no"}
    options |= {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn"}
    command = [str(installed), SWIFT, "sft", *flags(tiny, dataset, tmp_path / "out", **options)]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "loss_audio" in log_of(tmp_path / "out")[0]
    args = json.loads((tmp_path / "out" / "args.json").read_text(encoding="utf-8"))
    (plugin,) = args["external_plugins"]
    assert Path(plugin).is_absolute()
    assert Path(plugin).is_file()
    assert installed.parents[2] in Path(plugin).parents
    if "source" not in plugin:  # once is enough: each of the rest is a start of its own
        done = run(*command, cwd=tmp_path, HIGGS_AUDIO_AUTOLOAD="0")
        assert f"model_type: '{TYPE}' not in" in done.stderr
        check_a_strangers_adapter_is_refused(installed, tmp_path)


def check_a_strangers_adapter_is_refused(installed: Path, folder: Path) -> None:
    """By the README's own line; tests/security/test_stranger_arguments.py has the variants."""
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "hostile.py").write_text("open('executed', 'w')", encoding="utf-8")
    (folder / "args.json").write_text('{"external_plugins": ["hostile.py"]}', encoding="utf-8")
    adapter = ("export", "--adapters", str(folder), "--merge_lora", "true")
    done = run(str(installed), SWIFT, *adapter, cwd=folder)
    refused = f"{folder}/args.json: external_plugins: 'hostile.py' would be imported"
    assert refused in done.stderr.splitlines()[-1]
    assert not (folder / "executed").exists()


@pytest.mark.slow
def test_files_that_are_no_modules_come_along(installed: Path) -> None:
    where = run(str(installed), "-c", "import plugins; print(plugins.__path__[0])")
    for path in (ROOT / "plugins").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            name = path.relative_to(ROOT / "plugins")
            assert (Path(where.stdout.strip()) / name).is_file(), name


@pytest.mark.slow
def test_plain_swift_sft_says_what_does_not_load(installed: Path, tmp_path: Path) -> None:
    """Below its traceback, and only where the installation is at fault."""
    line = break_torchaudio(tmp_path)
    command = [str(installed), SWIFT, "sft"]
    model = ["--model_type", TYPE, "--model", "none"]
    broken = run(*command, *model, PYTHONPATH=str(tmp_path))
    assert broken.stderr.endswith(f"\nerror: installation: package: {line}\n")
    off = run(*command, *model, PYTHONPATH=str(tmp_path), HIGGS_AUDIO_AUTOLOAD="0")
    assert off.stderr.endswith(f"OSError: {OSERROR}\n")
    whole = run(*command, "none.yaml")
    assert "No such file or directory: 'none.yaml'" in whole.stderr.splitlines()[-1]


@pytest.mark.slow
def test_other_interpreters_hardly_notice(installed: Path) -> None:
    """Under a millisecond, nothing of ours imported, nothing at all if switched off, no word if
    half deleted."""
    names = {"plugins", "swift", "higgs_audio_swift_autoload"}
    watch = f"import sys; print({names} & set(sys.modules))"
    finders = (
        "import sys; names = [getattr(finder, '__name__', '') for finder in sys.meta_path]; "
        "print(names.count('HiggsAudioSwiftAutoload'))"
    )
    packages = next(installed.parents[1].glob("lib/python*/site-packages"))
    cost = (
        "import site, time; start = time.perf_counter(); "
        f"site.addpackage({str(packages)!r}, 'higgs_audio_swift_autoload.pth', set()); "
        "print(1e3 * (time.perf_counter() - start))"
    )
    assert run(str(installed), "-c", watch).stdout == "set()\n"
    assert run(str(installed), "-c", finders).stdout == "1\n"
    assert run(str(installed), "-c", finders, HIGGS_AUDIO_AUTOLOAD="0").stdout == "0\n"
    # The least of ten: what a busy machine adds is not ours.
    times_ms = [float(run(str(installed), "-S", "-c", cost).stdout) for _ in range(10)]
    assert min(times_ms) < 1, times_ms
    half_deleted = "import sys; sys.modules['higgs_audio_swift_autoload'] = None"
    done = run(str(installed), "-c", f"{half_deleted}; import swift.arguments; print('loaded')")
    assert done.stdout.splitlines()[-1] == "loaded", done.stderr


@pytest.mark.parametrize(
    ("model_type", "named", "expected"),
    [
        (TYPE, [], [OURS]),
        ("higgs-audio-v2-7b", "mine.py", [OURS, "mine.py"]),
        # Of another checkout: whoever names one wants that one.
        (TYPE, ["plugins/register.py"], ["plugins/register.py"]),
        (TYPE, ["/other/plugins/register.py"], ["/other/plugins/register.py"]),
        ("qwen3", [], []),
        (None, ["mine.py"], ["mine.py"]),
    ],
)
def test_which_runs_get_the_plugin(model_type: str | None, named: Any, expected: list[str]) -> None:
    from higgs_audio_swift_autoload import _patch_arguments

    # What the hook needs of MS-SWIFT's class, without its hundreds of fields.
    class Arguments:
        def __init__(self) -> None:
            self.model_type, self.external_plugins = model_type, named

        def load_args_from_ckpt(self) -> None: ...

        def _import_external_plugins(self) -> Any:
            return self.external_plugins

    _patch_arguments(Arguments)
    assert Arguments()._import_external_plugins() == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model_type", TYPE, "--model", "x"], True),
        (["--model", "x", "--model_type=higgs-audio-v2-7b"], True),
        (["--model", "x", "--external_plugins", OURS], True),
        (["ours.yaml", "--lora_rank", "8"], True),
        (["ours.json"], True),
        (["--adapters", "saved"], True),
        # The type decides, whatever else is named like ours.
        (["--model_type", "qwen3", "--output_dir", "higgs-audio", "--adapters", "saved"], False),
        (["theirs.yaml"], False),
        # Longer than the name of any file: the question for it must not fail.
        (["--model", TYPE, "--model_kwargs", "x" * 5000], False),
        ([], False),
    ],
)
def test_which_runs_are_launched_by_us(
    words: list[str], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from higgs_audio_swift_autoload import _is_ours

    files = {
        "ours.yaml": f"# For all\nmodel_type: {TYPE}\n",
        "ours.json": f'{{"model_type": "{TYPE}"}}',
        "theirs.yaml": "model_type: qwen3\noutput_dir: higgs-audio-compared\n",
        "saved/args.json": f'{{\n  "model_type": "{TYPE}"\n}}',
    }
    (tmp_path / "saved").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert _is_ours(words) == expected


def test_the_launcher_of_other_models_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """MS-SWIFT's own `cli_main`, which starts the trainer as its child."""
    from swift.cli import main

    import higgs_audio_swift_autoload as autoload
    from plugins.training import launcher

    started: list[list[str]] = []

    def start_child(command: list[str]) -> SimpleNamespace:
        started.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", start_child)
    monkeypatch.setattr(main, "subprocess", subprocess)
    autoload._patch_launcher(main)
    monkeypatch.setattr(launcher, "launch", lambda command: pytest.fail(f"ours: {command}"))
    monkeypatch.setattr(sys, "argv", ["swift", "sft", "--model_type", "qwen3"])
    main.cli_main()
    assert [command[2:] for command in started] == [["--model_type", "qwen3"]]


def test_an_unknown_swift_and_missing_plugins_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import swift.arguments.base_args as package

    import higgs_audio_swift_autoload as autoload

    name = f"{package.__name__}.base_args"
    autoload._patch_arguments(None)
    autoload._patch_arguments(type("BaseArguments", (), {}))
    spec = autoload.find_spec(name, package.__path__, None)
    assert spec is not None
    assert "exec_module" in vars(spec.loader)
    monkeypatch.setattr(autoload, "REGISTER_FILE", tmp_path / "plugins" / "register.py")
    assert autoload.find_spec(name, package.__path__, None) is None, "for those who search after us"


@pytest.mark.parametrize("command", ["sft", "infer", "export"])
def test_a_model_without_its_type_is_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`swift sft --model DIR`: 386 lines. What has a type, a plugin or another model goes on."""
    model, other, saved = (tmp_path / name for name in ("model", "other", "saved"))
    for folder, kind in ((model, "higgs_audio_v2"), (other, "qwen3"), (saved, "higgs_audio_v2")):
        folder.mkdir()
        (folder / "config.json").write_text(f'{{"model_type": "{kind}"}}', encoding="utf-8")
    (saved / "args.json").write_text(f'{{"model_type": "{TYPE}"}}', encoding="utf-8")
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {model}\n", encoding="utf-8")
    hub_id = "bosonai/higgs-audio-v2-generation-3B-base"
    for words in (
        ["--model", str(model)],
        [f"--model={model}"],
        [str(config)],
        ["--model", hub_id],
    ):
        with pytest.raises(SystemExit, match=f"has no --model_type; add --model_type {TYPE}"):
            hook._require_type(Path("/bin/swift"), [command, *words])
    for words in (
        ["--model", str(model), "--model_type", TYPE],
        ["--model", str(model), "--external_plugins", OURS],
        ["--model", str(other)],
        ["--model", str(saved)],
        ["--adapters", str(saved)],
        [],
    ):
        hook._require_type(Path("/bin/swift"), [command, *words])
    hook._require_type(Path("/bin/other"), [command, "--model", str(model)])
