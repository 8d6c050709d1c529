"""`higgs-audio`: one command, a subcommand per job. Words of a command line in, an exit code out.
Starts fast: nothing heavy is imported before it is needed.

Exit codes: 0 done, 1 an error that the user can mend (one line on stderr), 2 wrong usage, 3 a
speech was cut at `--max_audio_s`, 75 a training was stopped by a signal and is saved."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from plugins import __version__
from plugins.commands import flags, preference_flags, serve_flags
from plugins.errors import UserError
from plugins.files.hub import MODELS_3B
from plugins.files.installation import explained, require_device
from plugins.training import launcher, sft_help, signals, start, terminal
from plugins.training.arguments import command_of, single_words, translate
from plugins.training.config_file import config_first


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        # A package that is missing or broken becomes one line as well.
        with explained():
            return _run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(arguments: list[str]) -> int:
    if arguments[:1] in (["sft"], ["rlhf"]):
        # Their flags are MS-SWIFT's: argparse here knows none of them.
        if {"-h", "--help"} & set(arguments):
            print(sft_help.text(arguments[0]))
            return 0
        _train(*arguments)
    if arguments[:1] == ["prepare"]:
        from plugins.prepare.cli import main as prepare

        return prepare(arguments[1:], program="higgs-audio prepare")
    options = _parser().parse_args(arguments)
    if (device := getattr(options, "device", None)) is not None:
        require_device(device)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    exit_codes = (__doc__ or "").partition("\n\n")[2]  # no docstrings under python -OO
    parser = argparse.ArgumentParser("higgs-audio", description=exit_codes)
    parser.add_argument("--version", action="version", version=f"higgs-audio-swift {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    # They take the words after their name before this parser sees them.
    commands.add_parser(
        "prepare", help="turn a corpus into rows: what prepare_dataset.py does, by the same flags"
    )
    commands.add_parser(
        "sft", help="fine-tune: every flag of `swift sft`, our settings, or a YAML file"
    )
    commands.add_parser(
        "rlhf", help="train on pairs of a better and a worse clip (DPO): as `swift rlhf`"
    )
    for add in (
        _add_speak,
        _add_new_voice,
        _add_evaluate,
        _add_preferences,
        _add_app,
        serve_flags.add,
        _add_inspect,
        _add_export,
        _add_doctor,
        _add_convert,
    ):
        add(commands)
    return parser


def _add_speak(commands: Any) -> None:
    command = commands.add_parser(
        "speak", help="speak a text, or a list of them, with a base, merged or LoRA checkpoint"
    )
    flags.model_flags(command, required=True)
    flags.scale_flag(command)
    command.add_argument("--text")
    command.add_argument(
        "--output",
        default="speech.wav",
        help=".wav, .flac, .ogg or .mp3 file to write (default: %(default)s)",
    )
    command.add_argument(
        "--stream", metavar="PATH", help="write raw 16 bit PCM of 24 kHz as it speaks, - for stdout"
    )
    command.add_argument(
        "--input", type=Path, help='JSONL of requests ({"text": ...}) instead of --text'
    )
    command.add_argument(
        "--output_dir", type=Path, help="folder of their WAV files; the same command goes on in it"
    )
    command.add_argument("--scene_description", help='for example "Indoor quiet"')
    command.add_argument(
        "--voice_description", help='a voice in words, for example "warm, unhurried"'
    )
    command.add_argument("--reference_audio", help="voice to clone, any audio file")
    command.add_argument(
        "--reference_text", help="what the reference says; cloning is better with it"
    )
    command.add_argument(
        "--raw_text",
        action="store_true",
        help="speak the text as it is written, however the model was trained",
    )
    flags.speaking_flags(command, batch_size=1)
    command.add_argument("--seed", type=int, help="the same command and seed: the same speech")
    flags.best_of_flag(command)
    flags.hearing_flags(command)
    flags.marks_flag(command)
    command.add_argument(
        "--deterministic",
        action="store_true",
        help="the same seed gives the same speech in any list and batch, on a GPU in bf16 too:"
        " texts are spoken one after the other",
    )
    command.add_argument(
        "--cuda_graphs",
        action=argparse.BooleanOptionalAction,
        help="compile the step: faster once it is compiled (default: on a GPU)",
    )
    command.set_defaults(run=_of("speak"))


def _add_new_voice(commands: Any) -> None:
    command = commands.add_parser(
        "new-voice",
        help="recordings of one voice -> rows, checks, LoRA, evaluation: all in one command",
        description="Prepare, doctor, sft and evaluate, one after the other, with what"
        " docs/recipe.md has for that much speech; each line is shown. Killed or stopped, the same"
        " command goes on.",
    )
    add = command.add_argument
    add("recordings", metavar="RECORDINGS", help="folder of recordings of any length and format")
    add("--name", required=True, help="of the voice")
    add("--output", type=Path, metavar="FOLDER", help="where all goes (default: ./NAME)")
    add(
        "--model",
        default=MODELS_3B[0],
        help="base: checkpoint folder or Hub id (default: %(default)s)",
    )
    add("--codec", help="codec folder or Hub id (default: the one beside the model)")
    add("--language", help="what is spoken, for example de (default: English)")
    add("--asr", help="who hears the recordings: faster-whisper's folder or Hub id (as prepare's)")
    add("--evaluation_asr", help="who judges the speech: folder or Hub id (as evaluate's --asr)")
    add(
        "--one_voice",
        action="store_true",
        help="it is all one speaker: do not look for others",
    )
    add(
        "--min_minutes",
        type=float,
        default=5.0,
        help="fewer minutes of fit speech are refused (default: %(default)s)",
    )
    add(
        "--hours",
        type=float,
        help="time of the training: as many steps as fit, by the speed of the first ones (default:"
        " as many as the recipe has)",
    )
    add("--max_steps", type=flags.positive, help="most steps of the training")
    add(
        "--device",
        choices=("cpu", "cuda"),
        help="(default: the first GPU if there is one; another by CUDA_VISIBLE_DEVICES)",
    )
    add(
        "--redo",
        action="store_true",
        help="train anew if recordings or options have changed; what is there is kept beside",
    )
    command.set_defaults(run=_of("new_voice"))


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate",
        help="score a model's speech beside its base, the codec's ceiling and the recordings",
    )
    flags.model_flags(
        command, model=", compared with its base", adapters=", compared with the model without it"
    )
    flags.scale_flag(command)
    command.add_argument("--base", help="what a fully fine-tuned --model is compared with")
    command.add_argument(
        "--dataset", required=True, help="JSONL, folder, Seed-TTS-eval .lst, or wav.scp and text"
    )
    command.add_argument(
        "--output", type=Path, required=True, help="folder; the same command goes on in it"
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="write into a folder that holds other files: over those of the same names;"
        " none is removed",
    )
    command.add_argument(
        "--generated",
        type=Path,
        help="recordings to score: folder of ID.wav, wav.scp, or JSONL of id and audio",
    )
    command.add_argument("--limit", type=flags.positive, help="only the first rows")
    flags.hearing_flags(command)
    flags.best_of_flag(command)
    command.add_argument(
        "--best_of_asr", help="who hears the takes of --best_of (default: as --asr)"
    )
    flags.speaking_flags(command, batch_size=4)
    flags.marks_flag(command)
    command.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    command.set_defaults(run=_of("evaluate"))


def _add_preferences(commands: Any) -> None:
    preference_flags.add_command(commands).set_defaults(run=_of("preferences"))


def _add_app(commands: Any) -> None:
    command = commands.add_parser(
        "app",
        help="a page in the browser, on this machine only: prepare, train, listen, compare, export",
    )
    flags.model_flags(command, adapters="; the page compares it with the base")
    flags.scale_flag(command)
    command.add_argument(
        "--workspace",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="all that the page reads and writes by path lies in it (default: the current folder)",
    )
    command.add_argument(
        "--host", default="127.0.0.1", help="others are reached by everybody (default: %(default)s)"
    )
    command.add_argument(
        "--password",
        help="asked for before anything is shown; in the environment, as HIGGS_AUDIO_PASSWORD, no"
        " other user of the machine sees it",
    )
    command.add_argument(
        "--port", type=int, default=7860, help="0: a free one (default: %(default)s)"
    )
    command.add_argument(
        "--max_upload_mb",
        type=flags.positive,
        default=1024,
        help="largest recording, MiB (default: %(default)s)",
    )
    flags.max_audio_flag(command)
    flags.marks_flag(command)
    flags.device_flag(command)
    command.set_defaults(run=_of("app"))


def _add_export(commands: Any) -> None:
    command = commands.add_parser(
        "export", help="merge base and LoRA into one folder that vLLM-Omni serves"
    )
    flags.model_flags(command, adapters=", whose base is --model's default")
    command.add_argument("--output", type=Path, required=True, help="new folder")
    command.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="(default: that of the base's weights)",
    )
    command.set_defaults(run=_of("export"))


def _add_doctor(commands: Any) -> None:
    command = commands.add_parser(
        "doctor",
        help="prove checkpoint, codec, rows, labels and prompts before training; train nothing",
    )
    command.add_argument(
        "--config",
        type=Path,
        help="YAML file of a run: memory is estimated, model and dataset taken",
    )
    flags.model_flags(command)
    command.add_argument("--dataset", nargs="+", metavar="FILE.jsonl")
    command.add_argument("--val_dataset", nargs="+", metavar="FILE.jsonl")
    command.add_argument(
        "--rlhf_type", choices=("dpo",), help="rows are pairs, as `higgs-audio rlhf` takes them"
    )
    command.add_argument(
        "--rows",
        type=flags.positive,
        default=4,
        help="rows that the model is tried on (default: %(default)s)",
    )
    command.add_argument(
        "--dry_run", action="store_true", help="show one row as the model sees it, with its labels"
    )
    command.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: %(default)s)"
    )
    command.set_defaults(run=_doctor)


def _add_convert(commands: Any) -> None:
    command = commands.add_parser(
        "convert",
        help="rewrite a model or a codec from boson-multimodal's format to transformers' native"
        " one, or back",
    )
    command.add_argument("source", type=Path, help="folder of a model or a codec")
    command.add_argument("target", type=Path, help="new folder")
    command.add_argument(
        "--to", choices=("native", "original"), default="native", help="(default: %(default)s)"
    )
    command.set_defaults(run=_convert)


def _add_inspect(commands: Any) -> None:
    command = commands.add_parser(
        "inspect", help="whether audio files say that they are synthetic, and what made them"
    )
    command.add_argument("files", nargs="+", type=Path, metavar="FILE")
    command.set_defaults(run=_of("inspect_files"))


def _train(command: str, *arguments: str) -> NoReturn:
    """As `swift sft` or `swift rlhf`, with YAML files and NPROC_PER_NODE, but with our training
    file and our launcher."""
    words = config_first(arguments)
    signals.end_cleanly()  # first: MS-SWIFT's import takes seconds in which Ctrl-C may come
    from swift.cli.main import get_torchrun_args, parse_yaml_args

    root = Path(__file__).resolve().parents[1]
    # A checkout that is not installed must be importable in the ranks too.
    folders = [str(root)]
    if "PYTHONPATH" in os.environ:
        folders.append(os.environ["PYTHONPATH"])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    parse_yaml_args(words)  # first: its `ENV:` may say how many processes there are
    if command == "rlhf" and command_of(words) != "rlhf":
        words += ["--rlhf_type", "dpo"]
    # Here, where it is said once and at once; the training itself starts seconds later.
    start.check(translate(single_words(words)))
    torchrun = get_torchrun_args()
    ranks = [] if torchrun is None else [*launcher.TORCHRUN, *torchrun]
    # Does not return: the training takes the place of this process, or ends it with its exit code.
    launcher.launch([sys.executable, *ranks, str(root / "plugins" / "train.py"), *words])


def _of(command: str) -> Callable[[argparse.Namespace], int]:
    """`run` of a file of `plugins.commands`, imported when it is called: torch takes seconds."""

    def run(options: argparse.Namespace) -> int:
        return int(import_module(f"plugins.commands.{command}").run(options))

    return run


def _doctor(options: argparse.Namespace) -> int:
    from plugins.training.preflight.environment import check_environment
    from plugins.training.preflight.report import Report

    report = Report(print)
    with terminal.quiet():  # MS-SWIFT is imported, and speaks while it loads
        if not check_environment(report):  # the next line would fail
            return 1
        from plugins.commands.doctor import run

        return run(options, report)


def _convert(options: argparse.Namespace) -> int:
    from plugins.model.convert import convert

    convert(options.source, options.target, to=options.to)
    num_bytes = sum(file.stat().st_size for file in options.target.rglob("*") if file.is_file())
    print(f"{options.target}: {options.to} format, {num_bytes / 1e6:,.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
