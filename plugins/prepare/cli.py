"""The command line of ``prepare_dataset.py``: flags -> read, check, split, write, report (L4)."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from plugins.errors import UserError, problem
from plugins.prepare.corpora import Columns, Rejected, Utterance, read_custom, read_ljspeech, read_vctk
from plugins.prepare.rows import (
    Clip,
    check,
    rejected_path,
    rejected_row,
    split,
    validation_path,
    write_jsonl,
)

_EPILOG = """\
Rows hold absolute audio paths. Every utterance left out is listed in OUTPUT.rejected.jsonl with its reason.

examples:
  prepare_dataset.py --dataset_type ljspeech --input_dir LJSpeech-1.1 --output_file data/lj_train.jsonl \\
      --split --validate
  prepare_dataset.py --dataset_type custom --input_dir clips --csv_file clips.csv --audio_column filename \\
      --text_column transcript --speaker_column speaker_id --output_file data/clips_train.jsonl --split

exit codes: 0 rows written, 1 unusable input (said in one line, output untouched), 2 wrong usage
"""
_CUSTOM_FLAGS = ("csv_file", "text_column", "audio_column", "speaker_column")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own) and return its exit code."""
    args = _parse(argv)
    try:
        _prepare(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # disk full, no permission
        print(f"error: {error.filename or args.output_file}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _prepare(args: argparse.Namespace) -> None:
    output: Path = args.output_file
    if output.suffix != ".jsonl":
        raise problem("--output_file", "name", str(output), "does not end in .jsonl", "MS-SWIFT goes by the name")
    if not args.input_dir.is_dir():
        raise problem("--input_dir", "folder", str(args.input_dir), "not found", "name the folder of the corpus")
    clips, rejected = _check_all(list(_read(args)), validate=args.validate)
    files = {rejected_path(output): [rejected_row(each) for each in rejected]}
    if not clips:
        write_jsonl(files)
        raise _nothing_left(args, rejected)
    train, validation = split(clips, val_ratio=args.val_ratio, seed=args.seed) if args.split else (clips, [])
    if args.split and not validation:
        raise problem("--split", "recordings", 1, "cannot be divided", "add recordings or leave out --split")
    if args.split:
        files[validation_path(output)] = [clip.row for clip in validation]
    files[output] = [clip.row for clip in train]
    write_jsonl(files)
    print(_summary(train, validation, rejected, list(files)))


def _read(args: argparse.Namespace) -> Iterator[Utterance | Rejected]:
    if args.dataset_type == "ljspeech":
        return read_ljspeech(args.input_dir)
    if args.dataset_type == "vctk":
        return read_vctk(args.input_dir)
    columns = Columns(args.text_column or Columns.text, args.audio_column or Columns.audio, args.speaker_column)
    return read_custom(args.input_dir, args.csv_file, columns)


def _check_all(found: list[Utterance | Rejected], *, validate: bool) -> tuple[list[Clip], list[Rejected]]:
    clips: list[Clip] = []
    rejected: list[Rejected] = []
    for each in tqdm(found, desc="clips", unit="clip", disable=None):
        result = each if isinstance(each, Rejected) else check(each, validate=validate)
        if isinstance(result, Rejected):
            rejected.append(result)
        else:
            clips.append(result)
    return clips, rejected


def _nothing_left(args: argparse.Namespace, rejected: list[Rejected]) -> UserError:
    where, value = args.dataset_type, str(args.input_dir)
    if not rejected:
        return problem(where, "input_dir", value, "holds no utterance", "check --input_dir and the metadata")
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(each.kind for each in rejected).most_common())
    remedy = f"see {rejected_path(args.output_file)}"
    return problem(where, "input_dir", value, f"holds no usable clip (rejected: {kinds})", remedy)


def _summary(train: list[Clip], validation: list[Clip], rejected: list[Rejected], files: list[Path]) -> str:
    clips = train + validation
    durations_s = [clip.duration_s for clip in clips if clip.duration_s is not None]
    speakers = {clip.speaker for clip in clips} - {None}
    output = files[-1]
    command = ["./train_higgs_audio.sh", "--dataset", str(output)]
    if validation:
        command += ["--val_dataset", str(validation_path(output))]
    kinds = Counter(each.kind for each in rejected).most_common()
    lines = [
        f"rows      {len(train)} train, {len(validation)} validation",
        f"hours     {sum(durations_s) / 3600:.2f}" if durations_s else "hours     not measured (--validate does)",
        f"speakers  {len(speakers) or 'not named'}",
        f"rejected  {len(rejected)}",
        *(f"          {count} {kind}" for kind, count in kinds),
        *(f"written   {path}" for path in files),
        f"next      {shlex.join(command)}",
    ]
    return "\n".join(lines)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_args(argv)
    custom = args.dataset_type == "custom"
    if custom and args.csv_file is None:
        parser.error("--dataset_type custom needs --csv_file")
    for flag in _CUSTOM_FLAGS:
        if not custom and getattr(args, flag) is not None:
            parser.error(f"--{flag} belongs to --dataset_type custom")
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prepare_dataset.py",
        description="Turn a speech corpus into the JSONL rows that Higgs-Audio V2 is fine-tuned on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dataset_type", required=True, choices=("ljspeech", "vctk", "custom"), help="the layout of the corpus")
    add("--input_dir", required=True, type=Path, help="its folder; for custom, what audio paths are relative to")
    add("--output_file", required=True, type=Path, help="the JSONL to write, e.g. data/ljspeech_train.jsonl")
    add("--split", action="store_true", help="set validation rows apart in ..._val.jsonl, beside the output")
    add("--val_ratio", type=_ratio, default=0.05, help="share of the recordings for validation (default: %(default)s)")
    add("--seed", type=int, default=42, help="of the split; the same seed, the same split (default: %(default)s)")
    add("--validate", action="store_true", help="decode every clip: 1-30 s, 16 kHz or more, whole, not silent")
    custom = parser.add_argument_group("for --dataset_type custom")
    custom.add_argument("--csv_file", type=Path, help="CSV with a header, delimited by comma, semicolon, bar or tab")
    custom.add_argument("--text_column", help=f"the transcript (default: {Columns.text})")
    custom.add_argument("--audio_column", help=f"the audio file; may lack its extension (default: {Columns.audio})")
    custom.add_argument("--speaker_column", help="the speaker (default: speakers are not named)")
    return parser


def _ratio(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
