"""How a process was started -> the shell's line that resumes its run, or trains after its dry run.
L2."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from swift.cli.main import parse_yaml_args

from plugins.settings import KNOBS


def resume_command(argv: list[str], checkpoint: Path) -> str:
    """The shell's line that goes on from `checkpoint` in its own folder, for a process that was
    started with `argv`."""
    go_on = ["--resume_from_checkpoint", str(checkpoint), "--output_dir", str(checkpoint.parent)]
    return _command(argv, {"--resume_from_checkpoint", "--output_dir", "--add_version"},
                    [*go_on, "--add_version", "false"])  # fmt: skip


def real_command(argv: list[str]) -> str:
    """The shell's line that trains, for a process that was started with `argv` for a dry run."""
    words = _without(argv[1:], {"--dry_run"})
    for i, word in enumerate(words[1:], start=1):
        if words[i - 1] == "--model_kwargs" and '"dry_run"' in word:
            kept = {name: value for name, value in json.loads(word).items() if name != "dry_run"}
            words[i] = json.dumps(kept)
    return _command([argv[0], *words], {"--dry_run"}, [])


def _without(words: list[str], flags: set[str]) -> list[str]:
    kept: list[str] = []
    keep = True
    for word in words:
        if word.startswith("--"):
            keep = word.partition("=")[0] not in flags
        if keep:
            kept.append(word)
    return kept


def _command(argv: list[str], dropped: set[str], added: list[str]) -> str:
    program, arguments = Path(argv[0]), _with_yaml(argv[1:])
    if program.name == "sft.py" and program.parent.name == "cli":
        command = [_typed("swift"), "sft"]
    elif program == Path(__file__).resolve().parent / "train.py":
        command = [_typed("higgs-audio"), "sft"]
    else:
        command = [sys.executable, *argv[:1]]
    kept = _without(arguments, dropped | {"--local_rank", "--local-rank"})
    typed = " ".join(argv).lower()  # as flags or in --model_kwargs
    env = {
        knob.upper(): os.environ[knob.upper()]
        for knob in KNOBS
        if knob.upper() in os.environ
        and not {f"--{knob}"} & {*argv, *dropped}
        and f'"{knob}"' not in typed
    }
    here = os.environ
    if int(here.get("WORLD_SIZE", "1")) > 1:
        # torchrun's and DeepSpeed's name for the same number
        env["NPROC_PER_NODE"] = (
            here.get("LOCAL_WORLD_SIZE") or here.get("LOCAL_SIZE") or here["WORLD_SIZE"]
        )
    if int(here.get("GROUP_WORLD_SIZE", "1")) > 1:
        env |= {"NNODES": here["GROUP_WORLD_SIZE"], "NODE_RANK": here["GROUP_RANK"]}
        env |= {name: here[name] for name in ("MASTER_ADDR", "MASTER_PORT")}
    return shlex.join(
        [*(f"{name}={value}" for name, value in env.items()), *command, *kept, *added]
    )


def _typed(name: str) -> str:
    """A program of this environment, by its name if that is what a shell finds first, else by its
    path."""
    ours = Path(sys.executable).with_name(name)
    first = shutil.which(name)
    is_other = ours.is_file() and (first is None or not ours.samefile(first))
    return str(ours) if is_other else name


def _with_yaml(arguments: list[str]) -> list[str]:
    """MS-SWIFT starts its processes with the flags of a YAML file in its place; back to the file,
    if they lead."""
    file = os.environ.get("SWIFT_CONFIG_FILE")
    if file is None or not Path(file).is_file():
        return arguments
    expanded = [file]
    parse_yaml_args(expanded)
    return (
        [file, *arguments[len(expanded) :]] if arguments[: len(expanded)] == expanded else arguments
    )
