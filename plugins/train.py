"""Our own training entry: MS-SWIFT's, plus typed flags for our settings and the seed document's old
names.

    from plugins.train import main
    main(["--model_type", "higgs-audio-v2-3b", "--model", "...", "--dataset", "data/train.jsonl"])

`higgs-audio sft` runs this file through MS-SWIFT's launcher, so YAML files and `NPROC_PER_NODE`
work as there; `higgs-audio rlhf` adds `--rlhf_type dpo`, which makes it `swift rlhf`. What the
words mean is `plugins.training.arguments`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from plugins.files.installation import explained
from plugins.settings import KNOBS
from plugins.training import arguments as words
from plugins.training import launcher, signals, start, terminal
from plugins.training.config_file import config_first


@explained()
def main(argv: Sequence[str] | None = None) -> Any:
    """Train with MS-SWIFT flags, our settings as flags, or a YAML file first. Returns MS-SWIFT's
    result dictionary.

    Raises UserError on unknown flags, settings of the wrong kind, missing or faulty rows and
    checkpoints, and if MS-SWIFT or what it and we stand on cannot be imported.
    """
    arguments = config_first(sys.argv[1:] if argv is None else argv)
    with _own_environment(argv), terminal.quiet() as log:
        from swift.cli.main import parse_yaml_args
        from swift.pipelines import SwiftSft
        from swift.pipelines.train.rlhf import SwiftRLHF

        from plugins.register import register_higgs_audio_all
        from plugins.training import run_lock

        terminal.settle(log)
        parse_yaml_args(arguments)  # puts the flags of a file in its place
        launcher.let_memory_grow()  # a file may have chosen otherwise
        rest = words.settled(arguments)
        register_higgs_audio_all()
        rest = words.resolve_resume(rest)
        start.check(rest)  # `auto` stands for a model only if it has found one
        with run_lock.released():
            folder = words.final_output_dir(rest)
            # One that is not there is nobody's, and stays so if the model is none.
            if folder is not None and Path(folder).is_dir():
                run_lock.hold(folder)  # before a model is loaded for nothing
            with start.explained_start(rest):
                pipeline = SwiftRLHF if words.command_of(rest) == "rlhf" else SwiftSft
                training = pipeline(rest)
            run_lock.hold(training.args.output_dir)  # before anything is written there
            if os.environ.get("RANK", "0") == "0":
                _say_where(log.into(Path(training.args.output_dir)))
            return training.main()


def _say_where(log: Path) -> None:
    from swift.utils import get_logger

    get_logger().info(f"run     {log.parent}; what MS-SWIFT says beside this: {log.name} there")


@contextmanager
def _own_environment(argv: Sequence[str] | None) -> Iterator[None]:
    """A second run in this process must not inherit the variables of this one; nor is what started
    the process what trains, if its Python code gave `argv`."""
    # Settings travel as such, and MS-SWIFT leaves its own folder of events there for good.
    names = [*map(str.upper, KNOBS), "TENSORBOARD_LOGGING_DIR", launcher.ALLOCATOR]
    before = {name: os.environ.get(name) for name in names}
    started_with = sys.argv
    if argv is not None:
        # The lines that resume or repeat a run are made of it.
        sys.argv = [str(words.TRAIN_FILE), *argv]
    try:
        yield
    finally:
        sys.argv = started_with
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _leave_import_path() -> None:
    """Started by its path (MS-SWIFT's launcher, torchrun), the folder of this file is an import
    root: it must not be."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]


if __name__ == "__main__":
    _leave_import_path()
    # From here on a signal is one line; a training takes over.
    signals.end_cleanly()
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
