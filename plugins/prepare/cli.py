"""The command line of ``prepare_dataset.py``: flags -> read, check, split, pair, encode, write, report (L4)."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from plugins.corpora import (
    Columns,
    Rejected,
    Utterance,
    read_custom,
    read_folder,
    read_gpt_sovits,
    read_huggingface,
    read_jsonl,
    read_libritts,
    read_ljspeech,
    read_vctk,
)
from plugins.errors import UserError, problem
from plugins.prepare.clips import Level, Outcome, Work
from plugins.prepare.pairing import MIN_REFERENCE_S, add_references
from plugins.prepare.processing import Processing, check_installed
from plugins.prepare.quality import Limits
from plugins.prepare.references import check_references, within_sides
from plugins.prepare.report import Accepted, picture, summarise, table
from plugins.prepare.rows import (
    Clip,
    clips_of,
    drop_duplicates,
    rejected_path,
    rejected_row,
    report_path,
    split,
    split_path,
    write_files,
)
from plugins.prepare.run import Executor, journal_of, run_all

_EPILOG = """\
Rows hold absolute audio paths. Every utterance left out is listed in OUTPUT.rejected.jsonl with its reason. Kill the
command at any moment and start it again: finished clips are not done again, and the result is the same to the byte.

examples:
  prepare_dataset.py --dataset_type ljspeech --input_dir LJSpeech-1.1 --output_file data/lj_train.jsonl \\
      --split --validate --encode_codes
  prepare_dataset.py --dataset_type vctk --input_dir VCTK-Corpus --output_file data/vctk_train.jsonl \\
      --split --references --audio_output data/vctk_24k --trim energy --workers 8
  prepare_dataset.py --dataset_type custom --input_dir clips --csv_file clips.csv --audio_column filename \\
      --text_column transcript --speaker_column speaker_id --output_file data/clips_train.jsonl --split

exit codes: 0 rows written, 1 unusable input (said in one line, output untouched), 2 wrong usage,
3 rows written but clips were rejected (--strict)
"""
_LISTS = {"custom": "csv_file", "gpt_sovits": "list_file", "jsonl": "jsonl_file"}
_TYPES = ("ljspeech", "vctk", "libritts", "folder", "custom", "gpt_sovits", "jsonl", "huggingface")
_COLUMN_TYPES = ("custom", "huggingface")
_COLUMN_FLAGS = ("text_column", "audio_column", "speaker_column", "id_column", "language_column")
_REJECTED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own) and return its exit code."""
    args = _parse(argv)
    try:
        return _prepare(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # disk full, no permission
        print(f"error: {error.filename or args.output_file}: {error.strerror or error}", file=sys.stderr)
        return 1


def _prepare(args: argparse.Namespace) -> int:
    output: Path = args.output_file
    if output.suffix != ".jsonl":
        raise problem("--output_file", "name", str(output), "does not end in .jsonl", "MS-SWIFT goes by the name")
    if args.dataset_type != "huggingface" and not Path(args.input_dir).is_dir():
        raise problem("--input_dir", "folder", args.input_dir, "not found", "name the folder of the corpus")
    work = _work(args)
    with journal_of(output) as journal, _audio_folder(work.audio_dir):
        clips, rejected = _check_all(args, work, journal)
        files: dict[Path, bytes | list[dict[str, Any]]] = {rejected_path(output): [rejected_row(e) for e in rejected]}
        if not clips:
            write_files(files)
            raise _nothing_left(args, rejected)
        sides, num_crossing = {"train": clips}, 0
        if args.split:
            sides = split(
                clips,
                val_ratio=args.val_ratio,
                seed=args.seed,
                test_ratio=args.test_ratio,
                by_speaker=args.split_by_speaker,
            )
            sides, num_crossing = within_sides(sides)
            empty = [name for name, side in sides.items() if not side]
            if empty:
                reason = f"leave nothing for {empty[0]}"
                raise problem("--split", "recordings", len(clips), reason, "add recordings or leave out --split")
        if args.references:
            sides = {name: _with_references(args, side) for name, side in sides.items()}
        if args.encode_codes:
            _encode(args, [clip for side in sides.values() for clip in side])
        files |= _report_files(output, sides, rejected) if work.level != "none" else {}
        # The training rows come last: where they are, all the others are.
        files |= {split_path(output, name): [clip.row for clip in sides[name]] for name in reversed(sides)}
        write_files(files)
    print(_summary(output, sides, rejected, num_crossing, list(files)))
    return _REJECTED if args.strict and rejected else 0


@contextmanager
def _audio_folder(folder: Path | None) -> Iterator[None]:
    """Hold the folder of processed clips, without what a killed run left half written."""
    if folder is None:
        yield
        return
    with journal_of(folder, option="--audio_output"):
        for stray in folder.rglob(".*.tmp"):
            stray.unlink()
        yield


def _work(args: argparse.Namespace) -> Work:
    processing = _from_flags(Processing, args)
    if args.audio_output is None and processing != Processing():
        reason = "changes audio, but there is no folder to write it to"
        raise problem("command line", "--audio_output", None, reason, "name a folder; originals are never changed")
    check_installed(processing)
    # Codes, references and their lengths need at least the header of every clip.
    needed: Level = "header" if args.references or args.encode_codes else "none"
    return Work(
        level=args.validate or needed,
        limits=_from_flags(Limits, args),
        processing=processing,
        audio_dir=args.audio_output and args.audio_output.absolute(),
        seed=args.seed,
    )


def _read(args: argparse.Namespace) -> Iterator[Utterance | Rejected]:
    folder, kind, root = Path(args.input_dir), args.dataset_type, args.audio_root
    given = {flag.removesuffix("_column"): getattr(args, flag) for flag in _COLUMN_FLAGS}
    columns = Columns(**{name: value for name, value in given.items() if value is not None})
    if kind == "ljspeech":
        return read_ljspeech(folder, root=root)
    if kind == "vctk":
        return read_vctk(folder, mic=args.mic or 1)
    if kind == "libritts":
        return read_libritts(folder)
    if kind == "folder":
        return read_folder(folder)
    if kind == "gpt_sovits":
        return read_gpt_sovits(folder, args.list_file, root=root)
    if kind == "jsonl":
        return read_jsonl(folder, args.jsonl_file, root=root)
    if kind == "huggingface":
        audio_dir = args.output_file.absolute().parent / f"{args.output_file.stem}_audio"
        return read_huggingface(
            args.input_dir, columns, audio_dir=audio_dir, config=args.hf_config, split=args.hf_split, root=root
        )
    return read_custom(folder, args.csv_file, columns, delimiter=args.delimiter, quotes=not args.no_quotes, root=root)


def _check_all(args: argparse.Namespace, work: Work, journal: Path) -> tuple[list[Clip], list[Rejected]]:
    found = list(_read(args))
    if args.single_speaker is not None:
        found = [replace(each, speaker=args.single_speaker) if isinstance(each, Utterance) else each for each in found]
    utterances = [each for each in found if isinstance(each, Utterance)]
    rejected = [each for each in found if isinstance(each, Rejected)]
    ids: dict[str, str] = {}
    for each in utterances:
        if each.text and ids.setdefault(each.id, each.place) != each.place:
            rejected.append(Rejected(each.place, each.id, f"duplicate id (as {ids[each.id]})", each.id))
    utterances = [each for each in utterances if not each.text or ids[each.id] == each.place]
    outcomes = run_all(utterances, work, journal=journal, num_workers=args.workers, execute=_executor(args))
    fit: list[tuple[Utterance, Outcome]] = []
    unfit: set[str] = set()
    for utterance, outcome in zip(utterances, outcomes, strict=True):
        if outcome.fault is None:
            fit.append((utterance, outcome))
        else:
            unfit.add(str(utterance.audio))
            rejected.append(Rejected(utterance.place, utterance.id, *outcome.fault))
    fit, without_voice = check_references(fit, unfit, level=work.level, limits=work.limits)
    kept, duplicates = drop_duplicates(fit, level=work.level)
    place = {each.place: i for i, each in enumerate(found)}
    rejected = sorted([*rejected, *without_voice, *duplicates], key=lambda each: place[each.place])
    return [clip for utterance, outcome in kept for clip in clips_of(utterance, outcome)], rejected


def _executor(args: argparse.Namespace) -> Executor | None:
    if args.executor == "local":
        return None
    from plugins.prepare.ray_executor import execute

    return execute


def _with_references(args: argparse.Namespace, clips: list[Clip]) -> list[Clip]:
    is_similar = None
    if args.min_similarity is not None:
        from plugins.prepare.similarity import Similarity

        is_similar = Similarity(args.min_similarity)
    return add_references(clips, seed=args.seed, without_share=args.without_reference, is_similar=is_similar)


def _encode(args: argparse.Namespace, clips: list[Clip]) -> None:
    from plugins.prepare.encode import encode_rows
    from plugins.settings import DEFAULT_CODEC

    folder = args.codes_dir or args.output_file.absolute().parent / "codes"
    encode_rows(
        [clip.row for clip in clips],
        folder=folder,
        codec=args.codec or DEFAULT_CODEC,
        device=args.device,
        beside=args.output_file.absolute().parent,
    )


def _report_files(output: Path, sides: dict[str, list[Clip]], rejected: list[Rejected]) -> dict[Path, Any]:
    accepted = [Accepted(clip.duration_s or 0.0, clip.speaker, name) for name, side in sides.items() for clip in side]
    report = summarise(accepted, [each.kind for each in rejected])
    path = report_path(output)
    return {
        path: [report],
        path.with_suffix(".png"): picture(report),
        path.with_suffix(".txt"): (table(report) + "\n").encode(),
    }


def _nothing_left(args: argparse.Namespace, rejected: list[Rejected]) -> UserError:
    where, value = args.dataset_type, str(args.input_dir)
    if not rejected:
        return problem(where, "input_dir", value, "holds no utterance", "check --input_dir and the metadata")
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(each.kind for each in rejected).most_common())
    remedy = f"see {rejected_path(args.output_file)}"
    return problem(where, "input_dir", value, f"holds no usable clip (rejected: {kinds})", remedy)


def _summary(
    output: Path, sides: dict[str, list[Clip]], rejected: list[Rejected], num_crossing: int, files: list[Path]
) -> str:
    clips = [clip for side in sides.values() for clip in side]
    durations_s = [clip.duration_s for clip in clips if clip.duration_s is not None]
    speakers = {clip.speaker for clip in clips} - {None}
    command = ["./train_higgs_audio.sh", "--dataset", str(output)]
    if "val" in sides:
        command += ["--val_dataset", str(split_path(output, "val"))]
    kinds = Counter(each.kind for each in rejected).most_common()
    names = {"train": "train", "val": "validation", "test": "test"}
    counted = {
        "train": len(sides["train"]),
        "val": len(sides.get("val", [])),
        **({"test": len(sides["test"])} if "test" in sides else {}),
    }
    num_references = sum("reference_audio" in clip.row for clip in clips)
    lines = [
        "rows      " + ", ".join(f"{count} {names[name]}" for name, count in counted.items()),
        f"hours     {sum(durations_s) / 3600:.2f}" if durations_s else "hours     not measured (--validate does)",
        f"speakers  {len(speakers) or 'not named'}",
        *([f"cloning   {num_references} rows with a reference"] if num_references else []),
        *([f"          {num_crossing} left out: they lay on another side of the split"] if num_crossing else []),
        f"rejected  {len(rejected)}",
        *(f"          {count} {kind}" for kind, count in kinds),
        *(f"written   {path}" for path in files),
        f"next      {shlex.join(command)}",
    ]
    return "\n".join(lines)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_args(argv)
    kind = args.dataset_type
    if kind in _LISTS and getattr(args, _LISTS[kind]) is None:
        parser.error(f"--dataset_type {kind} needs --{_LISTS[kind]}")
    owners: dict[str, tuple[str, ...]] = {flag: (owner,) for owner, flag in _LISTS.items()}
    owners |= dict.fromkeys(_COLUMN_FLAGS, _COLUMN_TYPES)
    owners |= {"delimiter": ("custom",), "no_quotes": ("custom",), "mic": ("vctk",)}
    owners |= {"hf_config": ("huggingface",), "hf_split": ("huggingface",)}
    owners |= {"audio_root": ("ljspeech", "custom", "gpt_sovits", "jsonl", "huggingface")}  # whose lists name paths
    for flag, types in owners.items():
        if kind not in types and getattr(args, flag) is not None:
            parser.error(f"--{flag} belongs to --dataset_type {' or '.join(types)}")
    if args.references and kind == "ljspeech" and args.single_speaker is None:
        args.single_speaker = "LJ"  # one speaker read it all
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
    add("--dataset_type", required=True, choices=_TYPES, help="the layout of the corpus")
    add(
        "--input_dir", required=True, help="its folder, or the id of a Hugging Face dataset; paths in lists start there"
    )
    add("--output_file", required=True, type=Path, help="the JSONL to write, e.g. data/ljspeech_train.jsonl")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes that check clips (default: %(default)s)")
    add("--executor", choices=("local", "ray"), default="local", help="ray: the workers of a Ray cluster")
    add("--seed", type=int, default=42, help="of split, pairs and noise; the same seed, the same rows (default: 42)")
    add("--audio_root", type=Path, help="refuse paths of lists that lead out of this folder")
    add("--single_speaker", metavar="NAME", help="name every clip's speaker: they are all of one voice")
    _add_corpora(parser)
    checking = parser.add_argument_group("validation")
    checking.add_argument(
        "--validate",
        nargs="?",
        const="full",
        choices=("header", "full"),
        help="reject unfit clips, by their headers alone or (default) by every sample; writes a report",
    )
    checking.add_argument("--strict", action="store_true", help="exit with 3 if any clip was rejected")
    _add_knobs(checking, Limits)
    dividing = parser.add_argument_group("split")
    dividing.add_argument("--split", action="store_true", help="set validation rows apart in ..._val.jsonl")
    dividing.add_argument("--val_ratio", type=_ratio, default=0.05, help="their share (default: %(default)s)")
    dividing.add_argument("--test_ratio", type=_ratio, default=0.0, help="share of ..._test.jsonl (default: none)")
    dividing.add_argument("--split_by_speaker", action="store_true", help="validate on voices that are not trained")
    cloning = parser.add_argument_group("references to clone from")
    cloning.add_argument(
        "--references",
        action="store_true",
        help=f"give each clip another one of its speaker and side, of {MIN_REFERENCE_S:g} s or more, with transcript",
    )
    cloning.add_argument("--without_reference", type=_share, default=0.1, help="share without (default: %(default)s)")
    cloning.add_argument("--min_similarity", type=float, help="lowest speaker similarity, by resemblyzer")
    processing = parser.add_argument_group("processing, to 24 kHz mono")
    processing.add_argument("--audio_output", type=Path, help="folder for processed clips; originals stay as they are")
    _add_knobs(processing, Processing)
    encoding = parser.add_argument_group("codes")
    encoding.add_argument(
        "--encode_codes", action="store_true", help="encode every clip now, so that training does not"
    )
    encoding.add_argument("--codec", help="codec folder or Hub id (default: the published one)")
    encoding.add_argument("--codes_dir", type=Path, help="folder of the code cache (default: codes/ beside the output)")
    encoding.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: %(default)s)")
    return parser


def _add_corpora(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("for --dataset_type custom, gpt_sovits, jsonl, huggingface and vctk").add_argument
    add("--csv_file", type=Path, help="CSV or TSV with a header")
    add("--delimiter", help="any one character, or \\t (default: the best of comma, semicolon, bar and tab)")
    add("--no_quotes", action="store_const", const=True, help="quotes are text, as in Common Voice's TSV files")
    add("--list_file", type=Path, help="GPT-SoVITS list: path|speaker|language|text")
    add("--jsonl_file", type=Path, help="rows of our own, to be checked again")
    add("--text_column", help=f"the transcript (default: {Columns.text})")
    add("--audio_column", help=f"the audio file; may lack its extension (default: {Columns.audio})")
    add("--speaker_column", help="the speaker (default: speakers are not named)")
    add("--id_column", help="the clip's id (default: its path)")
    add("--language_column", help="the language (default: not named)")
    add("--hf_config", help="configuration of a Hugging Face dataset")
    add("--hf_split", help="split of a Hugging Face dataset")
    add("--mic", type=int, choices=(1, 2), help="microphone of VCTK (default: 1)")


def _add_knobs(group: Any, knobs: type) -> None:
    """A flag per field of a dataclass made with `plugins.prepare.quality.knob`."""
    for each in dataclasses.fields(knobs):
        about = each.metadata
        default = "" if each.default in (None, ()) else f"{each.default} {about['unit']}".strip()
        text = about["help"] + (f" (default: {default})" if default else "")
        group.add_argument(
            f"--{each.name}", type=about["parse"], default=each.default, choices=about["choices"], help=text
        )


def _from_flags(knobs: type, args: argparse.Namespace) -> Any:
    return knobs(**{each.name: getattr(args, each.name) for each in dataclasses.fields(knobs)})


def _ratio(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value
