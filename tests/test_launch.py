"""The promised launches as a user types them, in real processes over gloo: each has the losses of
one process.

And the start-up hook: plain `swift sft` in environments with an editable and with a wheel
installation of their own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, corpus_rows, write_jsonl
from helpers.sft import BIN, flags, log_of, run
from test_installation import OSERROR, break_torchaudio

SCRIPT = "train_higgs_audio.sh"
TIMEOUT_S = 300  # DeepSpeed compiles an operator on its first start
# What this machine needs and a user's does not, and two steps without chance.
HERE = {"use_cpu": "true", "torch_dtype": "float32", "fp16": "false", "check_model": "false", "max_steps": 2,
        "logging_steps": 1, "warmup_ratio": 0, "lora_dropout": 0, "save_strategy": "no", "report_to": "none",
        "add_version": "false", "preflight": "false"}  # fmt: skip
# On GPUs accelerate starts DeepSpeed's process group before the model loads; told to use the CPU,
# it does not.
DEEPSPEED_ON_CPU = "import deepspeed; deepspeed.init_distributed(dist_backend='gloo')\n"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(*command: str, **env: str) -> subprocess.Popen[str]:
    """In a process group of its own, so that whatever it starts can be ended with it."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # of this interpreter, as in a user's active environment
    variables = {
        **os.environ,
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "PYTHON": sys.executable,
        **env,
    }
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str]) -> None:
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"hangs: still busy after {TIMEOUT_S} s\n{process.communicate()[0][-3000:]}")
    assert process.returncode == 0, output[-5000:]


Launch = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def launch(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """The log of two steps of four rows; with `nodes`, the command is started once for each of
    them."""
    dataset = write_jsonl(tmp_path_factory.mktemp("rows") / "train.jsonl", corpus_rows(4))
    # In the user's folder it waits for whoever compiles there, for ever if that was killed.
    common = {"MODEL": str(tiny), "USE_HF": "false", "DATASET": str(dataset), "GRADIENT_ACCUMULATION": "1",
              "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(tmp_path_factory.mktemp("built"))}  # fmt: skip

    def launch(*command: str, ranks: int = 2, nodes: int = 1, **env: str) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("run") / "out"
        options = {**HERE, **({"ddp_backend": "gloo"} if ranks > 1 else {})}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        env = {**common, "OUTPUT_DIR": str(folder), "BATCH_SIZE": str(4 // ranks), **env}
        at = command.index(SCRIPT if SCRIPT in command else f"./{SCRIPT}") + 1
        words = [*command[:at], *words, *command[at:]]
        started = [
            start(*words, **env, **({"NODE_RANK": str(i)} if nodes > 1 else {}))
            for i in range(nodes)
        ]
        for process in reversed(started):  # the first one only tells that it has lost the other
            finish(process)
        return [record for record in log_of(folder) if "grad_norm" in record]

    return launch


@pytest.fixture(scope="module")
def alone(launch: Launch) -> list[dict[str, Any]]:
    return launch(f"./{SCRIPT}", ranks=1)


def check(records: list[dict[str, Any]], alone: list[dict[str, Any]]) -> None:
    assert len(records) == len(alone) == 2
    assert alone[1]["loss"] < alone[0]["loss"]
    for record, expected in zip(records, alone, strict=True):
        for name in ("loss", "loss_text", "loss_audio", "grad_norm"):
            assert record[name] == pytest.approx(expected[name], rel=1e-5), name


@pytest.mark.slow
def test_torchrun(launch: Launch, alone: list[dict[str, Any]]) -> None:
    check(launch("torchrun", "--nproc_per_node", "2", SCRIPT, PET_MASTER_PORT=free_port()), alone)


@pytest.mark.slow
def test_two_processes_through_bash(launch: Launch, alone: list[dict[str, Any]]) -> None:
    check(launch(f"./{SCRIPT}", NPROC_PER_NODE="2", MASTER_PORT=free_port()), alone)


@pytest.mark.slow
@pytest.mark.xfail(
    reason="once in three runs the second node ended while it connected: cause not found yet"
)
def test_two_nodes_through_bash(launch: Launch, alone: list[dict[str, Any]]) -> None:
    nodes = {
        "NNODES": "2",
        "NPROC_PER_NODE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    check(launch(f"./{SCRIPT}", nodes=2, **nodes), alone)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(stage: int, launch: Launch, alone: list[dict[str, Any]], tmp_path: Path) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: pip install deepspeed")
    (tmp_path / "cpu.py").write_text(DEEPSPEED_ON_CPU, encoding="utf-8")
    command = [
        "deepspeed",
        "--num_gpus",
        "2",
        "--master_port",
        free_port(),
        SCRIPT,
        "--deepspeed",
        f"zero{stage}",
    ]
    check(launch(*command, "--external_plugins", str(tmp_path / "cpu.py")), alone)


def test_a_usage_error_ends_every_rank_with_one_line(tmp_path: Path) -> None:
    """Through the whole chain: the launcher's Python, bash, our Python."""
    done = run(
        sys.executable,
        SCRIPT,
        "--learnign_rate",
        "1",
        LOCAL_RANK="0",
        OUTPUT_DIR=str(tmp_path / "out"),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "did you mean 'learning_rate'" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module", params=["editable", "wheel"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with this project in it and the packages of ours below.
    Slow: builds it."""
    if int(importlib.metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("needs setuptools >= 77 to build the project")
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "source"
    source.mkdir()
    for name in (
        "pyproject.toml",
        "setup.py",
        "higgs_audio_swift_autoload.py",
        "README.md",
        "LICENSE",
    ):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "plugins", source / "plugins", ignore=shutil.ignore_patterns("__pycache__")
    )
    build = f"from setuptools import build_meta; build_meta.build_{request.param}({str(folder)!r})"
    built = run(sys.executable, "-c", build, cwd=source)
    assert built.returncode == 0, built.stderr
    made = run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    assert made.returncode == 0, made.stderr
    packages = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(
            packages
        )  # all that an installer does with such a wheel, but for its record
    below = [entry for entry in sys.path if entry.endswith("-packages")]
    (packages / "zz_below.pth").write_text("\n".join(below), encoding="utf-8")
    return folder / "venv" / "bin" / "python"


@pytest.mark.slow
def test_plain_swift_sft_finds_the_plugin(installed: Path, tiny: Path, tmp_path: Path) -> None:
    """Without `--external_plugins`; spawned data workers have it too, and `args.json` has its
    absolute path."""
    dataset = write_jsonl(tmp_path / "train.jsonl", corpus_rows(2))
    workers = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn"}
    command = flags(
        tiny,
        dataset,
        tmp_path / "out",
        external_plugins=None,
        max_steps=1,
        save_strategy="no",
        **workers,
    )
    done = run(str(installed), str(BIN / "swift"), "sft", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "loss_audio" in log_of(tmp_path / "out")[0]
    args = json.loads((tmp_path / "out" / "args.json").read_text(encoding="utf-8"))
    (plugin,) = args["external_plugins"]
    assert Path(plugin).is_absolute()
    assert Path(plugin).is_file()
    assert installed.parents[2] in Path(plugin).parents
    if "source" not in plugin:  # once is enough
        done = run(
            str(installed),
            str(BIN / "swift"),
            "sft",
            *command,
            cwd=tmp_path,
            HIGGS_AUDIO_AUTOLOAD="0",
        )
        assert "model_type: 'higgs-audio-v2-3b' not in" in done.stderr
        # A stranger's adapter: the README's own line refuses it (the variants:
        # tests/security/test_stranger_arguments.py).
        (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
        (tmp_path / "hostile.py").write_text("open('executed', 'w')", encoding="utf-8")
        (tmp_path / "args.json").write_text(
            '{"external_plugins": ["hostile.py"]}', encoding="utf-8"
        )
        adapter = ("export", "--adapters", str(tmp_path), "--merge_lora", "true")
        done = run(str(installed), str(BIN / "swift"), *adapter, cwd=tmp_path)
        assert (
            f"{tmp_path}/args.json: external_plugins: 'hostile.py' would be imported"
            in done.stderr.splitlines()[-1]
        )
        assert not (tmp_path / "executed").exists()


@pytest.mark.slow
def test_plain_swift_sft_says_what_does_not_load(installed: Path, tmp_path: Path) -> None:
    """Below its traceback, and only where the installation is at fault."""
    line = break_torchaudio(tmp_path)
    command = [str(installed), str(BIN / "swift"), "sft"]
    model = ["--model_type", "higgs-audio-v2-3b", "--model", "none"]
    assert run(*command, *model, PYTHONPATH=str(tmp_path)).stderr.endswith(
        f"\nerror: installation: package: {line}\n"
    )
    off = run(*command, *model, PYTHONPATH=str(tmp_path), HIGGS_AUDIO_AUTOLOAD="0")
    assert off.stderr.endswith(f"OSError: {OSERROR}\n")
    assert (
        "No such file or directory: 'none.yaml'"
        in run(*command, "none.yaml").stderr.splitlines()[-1]
    )


@pytest.mark.slow
def test_other_interpreters_hardly_notice(installed: Path) -> None:
    """Under a millisecond, nothing of ours imported, nothing at all if switched off, no word if
    half deleted."""
    watch = (
        "import sys; print({'plugins', 'swift', 'higgs_audio_swift_autoload'} & set(sys.modules))"
    )
    finders = "import sys; print([getattr(f, '__name__', '') for f in sys.meta_path].count('HiggsAudioSwiftAutoload'))"
    packages = next(installed.parents[1].glob("lib/python*/site-packages"))
    cost = (
        "import site, time; start = time.perf_counter(); "
        f"site.addpackage({str(packages)!r}, 'higgs_audio_swift_autoload.pth', set()); "
        "print(1e3 * (time.perf_counter() - start))"
    )
    assert run(str(installed), "-c", watch).stdout == "set()\n"
    assert run(str(installed), "-c", finders).stdout == "1\n"
    assert run(str(installed), "-c", finders, HIGGS_AUDIO_AUTOLOAD="0").stdout == "0\n"
    times_ms = [float(run(str(installed), "-S", "-c", cost).stdout) for _ in range(10)]
    assert min(times_ms) < 1, times_ms
    broken = "import sys; sys.modules['higgs_audio_swift_autoload'] = None; import swift.arguments; print('loaded')"
    done = run(str(installed), "-c", broken)
    assert done.stdout.splitlines()[-1] == "loaded", done.stderr


OURS = str(ROOT / "plugins" / "register.py")


@pytest.mark.parametrize(
    ("model_type", "named", "expected"),
    [
        ("higgs-audio-v2-3b", [], [OURS]),
        ("higgs-audio-v2-7b", "mine.py", [OURS, "mine.py"]),
        ("higgs-audio-v2-3b", ["plugins/register.py"], ["plugins/register.py"]),
        (
            "higgs-audio-v2-3b",
            ["/other/checkout/plugins/register.py"],
            ["/other/checkout/plugins/register.py"],
        ),
        ("qwen3", [], []),
        (None, ["mine.py"], ["mine.py"]),
    ],
)
def test_which_runs_get_the_plugin(model_type: str | None, named: Any, expected: list[str]) -> None:
    from higgs_audio_swift_autoload import _patch_arguments

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
        (["--model_type", "higgs-audio-v2-3b", "--model", "x"], True),
        (["--model", "x", "--model_type=higgs-audio-v2-7b"], True),
        (["--model", "x", "--external_plugins", OURS], True),
        (["ours.yaml", "--lora_rank", "8"], True),
        (["ours.json"], True),
        (["--adapters", "saved"], True),
        (
            [
                "--model_type",
                "qwen3",
                "--output_dir",
                "higgs-audio-compared",
                "--adapters",
                "saved",
            ],
            False,
        ),
        (["theirs.yaml"], False),
        (["--model", "higgs-audio-v2-3b", "--model_kwargs", "x" * 5000], False),
        ([], False),
    ],
)
def test_which_runs_are_launched_by_us(
    words: list[str], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from higgs_audio_swift_autoload import _is_ours

    (tmp_path / "ours.yaml").write_text(
        "# For all\nmodel_type: higgs-audio-v2-3b\n", encoding="utf-8"
    )
    (tmp_path / "ours.json").write_text('{"model_type": "higgs-audio-v2-3b"}', encoding="utf-8")
    (tmp_path / "theirs.yaml").write_text(
        "model_type: qwen3\noutput_dir: higgs-audio-compared\n", encoding="utf-8"
    )
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "args.json").write_text(
        '{\n  "model_type": "higgs-audio-v2-3b"\n}', encoding="utf-8"
    )
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
    assert "exec_module" in vars(autoload.find_spec(name, package.__path__, None).loader)  # type: ignore[union-attr]
    monkeypatch.setattr(autoload, "REGISTER_FILE", tmp_path / "plugins" / "register.py")
    assert autoload.find_spec(name, package.__path__, None) is None, "for those who search after us"
