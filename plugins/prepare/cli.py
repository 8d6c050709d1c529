"""What ``prepare_dataset.py`` does: flags -> read, check, split, pair, encode, write, report
(L4)."""

from __future__ import annotations

import argparse
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
from plugins.files.installation import explained
from plugins.prepare.clips import Level, Outcome, Work
from plugins.prepare.flags import COLUMN_FLAGS, from_flags, parse
from plugins.prepare.outputs import (
    check_output,
    claim_audio_folder,
    rejected_path,
    report_paths,
    split_path,
    written_by,
)
from plugins.prepare.pairing import add_references
from plugins.prepare.processing import Processing, check_installed, variant_ids
from plugins.prepare.quality import Limits
from plugins.prepare.references import check_references, within_sides
from plugins.prepare.report import Accepted, picture, summarise, table
from plugins.prepare.rows import (
    Clip,
    clips_of,
    drop_duplicates,
    rejected_row,
    split,
    write_files,
)
from plugins.prepare.run import Executor, journal_of, run_all

_REJECTED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own) and return its exit code."""
    args = parse(argv)
    try:
        with explained():
            return _prepare(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # disk full, no permission
        print(
            f"error: {error.filename or args.output_file}: {error.strerror or error}",
            file=sys.stderr,
        )
        return 1


def _prepare(args: argparse.Namespace) -> int:
    output: Path = args.output_file
    if output.suffix != ".jsonl":
        raise problem(
            source="--output_file",
            field="name",
            value=str(output),
            reason="does not end in .jsonl",
            remedy="MS-SWIFT goes by the name",
        )
    if args.dataset_type != "huggingface" and not Path(args.input_dir).is_dir():
        raise problem(
            source="--input_dir",
            field="folder",
            value=args.input_dir,
            reason="not found",
            remedy="name the folder of the corpus",
        )
    work = _work(args)
    with journal_of(output) as journal, _audio_folder(work.audio_dir):
        # With the journal there: of two runs that start at once, one sees the other.
        _check_output(args, work)
        clips, rejected = _check_all(args, work, journal)
        files: dict[Path, bytes | list[dict[str, Any]]] = {
            rejected_path(output): [rejected_row(e) for e in rejected]
        }
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
                raise problem(
                    source="--split",
                    field="recordings",
                    value=len(clips),
                    reason=reason,
                    remedy="add recordings or leave out --split",
                )
        if args.references:
            sides = {name: _with_references(args, side) for name, side in sides.items()}
        if args.encode_codes:
            _encode(args, [clip for side in sides.values() for clip in side])
        files |= _report_files(output, sides, rejected) if work.level != "none" else {}
        # The training rows come last: where they are, all the others are.
        files |= {
            split_path(output, name): [clip.row for clip in sides[name]] for name in reversed(sides)
        }
        write_files(files)
    print(_summary(output, sides, rejected, num_crossing, list(files)))
    return _REJECTED if args.strict and rejected else 0


@contextmanager
def _audio_folder(folder: Path | None) -> Iterator[None]:
    """Hold the folder of processed clips."""
    if folder is None:
        yield
        return
    with journal_of(folder, option="--audio_output"):
        yield


def _check_output(args: argparse.Namespace, work: Work) -> None:
    sides = [
        "train",
        *(["val"] if args.split else []),
        *(["test"] if args.split and args.test_ratio else []),
    ]
    check_output(
        args.output_file,
        written_by(args.output_file, sides=sides, reports=work.level != "none"),
        inputs=filter(None, (args.csv_file, args.list_file, args.jsonl_file)),
        corpus=Path(args.input_dir),
    )


def _work(args: argparse.Namespace) -> Work:
    processing = from_flags(Processing, args)
    if args.audio_output is None and processing != Processing():
        reason = "changes audio, but there is no folder to write it to"
        raise problem(
            source="command line",
            field="--audio_output",
            value=None,
            reason=reason,
            remedy="name a folder; originals are never changed",
        )
    check_installed(processing)
    # Codes, references and their lengths need at least the header of every clip.
    needed: Level = "header" if args.references or args.encode_codes else "none"
    return Work(
        level=args.validate or needed,
        limits=from_flags(Limits, args),
        processing=processing,
        audio_dir=args.audio_output and args.audio_output.absolute(),
        seed=args.seed,
    )


def _read(args: argparse.Namespace) -> Iterator[Utterance | Rejected]:
    folder, kind, root = Path(args.input_dir), args.dataset_type, args.audio_root
    given = {flag.removesuffix("_column"): getattr(args, flag) for flag in COLUMN_FLAGS}
    columns = Columns(**{name: value for name, value in given.items() if value is not None})
    if kind == "ljspeech":
        return read_ljspeech(folder, root=root)
    if kind == "vctk":
        return read_vctk(folder, mic=args.mic or 1, root=root)
    if kind == "libritts":
        return read_libritts(folder, root=root)
    if kind == "folder":
        return read_folder(folder, root=root)
    if kind == "gpt_sovits":
        return read_gpt_sovits(folder, args.list_file, root=root)
    if kind == "jsonl":
        return read_jsonl(folder, args.jsonl_file, root=root)
    if kind == "huggingface":
        audio_dir = args.output_file.absolute().parent / f"{args.output_file.stem}_audio"
        return read_huggingface(
            args.input_dir,
            columns,
            audio_dir=audio_dir,
            config=args.hf_config,
            split=args.hf_split,
            root=root,
        )
    return read_custom(
        folder,
        args.csv_file,
        columns,
        delimiter=args.delimiter,
        quotes=not args.no_quotes,
        root=root,
    )


def _check_all(
    args: argparse.Namespace, work: Work, journal: Path
) -> tuple[list[Clip], list[Rejected]]:
    found = list(_read(args))
    if args.single_speaker is not None:
        found = [
            replace(each, speaker=args.single_speaker) if isinstance(each, Utterance) else each
            for each in found
        ]
    utterances = [each for each in found if isinstance(each, Utterance)]
    rejected = [each for each in found if isinstance(each, Rejected)]
    ids: dict[str, str] = {}
    for each in utterances:
        if each.text and ids.setdefault(each.id, each.place) != each.place:
            rejected.append(
                Rejected(each.place, each.id, f"duplicate id (as {ids[each.id]})", each.id)
            )
    utterances = [each for each in utterances if not each.text or ids[each.id] == each.place]
    if work.audio_dir is not None:
        ids_of_copies = [
            id_ for each in utterances for id_ in (each.id, *variant_ids(each.id, work.processing))
        ]
        claim_audio_folder(
            work.audio_dir,
            [work.path_of(id_) for id_ in ids_of_copies],
            originals=[each.audio for each in utterances],
            output=args.output_file,
        )
    outcomes = run_all(
        utterances, work, journal=journal, num_workers=args.workers, execute=_executor(args)
    )
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
    return add_references(
        clips, seed=args.seed, without_share=args.without_reference, is_similar=is_similar
    )


def _encode(args: argparse.Namespace, clips: list[Clip]) -> None:
    from plugins.files.hub import DEFAULT_CODEC
    from plugins.prepare.encode import encode_rows

    folder = args.codes_dir or args.output_file.absolute().parent / "codes"
    encode_rows(
        [clip.row for clip in clips],
        folder=folder,
        codec=args.codec or DEFAULT_CODEC,
        device=args.device,
        beside=args.output_file.absolute().parent,
    )


def _report_files(
    output: Path, sides: dict[str, list[Clip]], rejected: list[Rejected]
) -> dict[Path, Any]:
    accepted = [
        Accepted(clip.duration_s or 0.0, clip.speaker, name)
        for name, side in sides.items()
        for clip in side
    ]
    report = summarise(accepted, [each.kind for each in rejected])
    contents = [[report], picture(report), (table(report) + "\n").encode()]
    return dict(zip(report_paths(output), contents, strict=True))


def _nothing_left(args: argparse.Namespace, rejected: list[Rejected]) -> UserError:
    where, value = args.dataset_type, str(args.input_dir)
    if not rejected:
        return problem(
            source=where,
            field="input_dir",
            value=value,
            reason="holds no utterance",
            remedy="check --input_dir and the metadata",
        )
    kinds = ", ".join(
        f"{count} {kind}" for kind, count in Counter(each.kind for each in rejected).most_common()
    )
    remedy = f"see {rejected_path(args.output_file)}"
    return problem(
        source=where,
        field="input_dir",
        value=value,
        reason=f"holds no usable clip (rejected: {kinds})",
        remedy=remedy,
    )


def _summary(
    output: Path,
    sides: dict[str, list[Clip]],
    rejected: list[Rejected],
    num_crossing: int,
    files: list[Path],
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
        f"hours     {sum(durations_s) / 3600:.2f}"
        if durations_s
        else "hours     not measured (--validate does)",
        f"speakers  {len(speakers) or 'not named'}",
        *([f"cloning   {num_references} rows with a reference"] if num_references else []),
        *(
            [f"          {num_crossing} left out: they lay on another side of the split"]
            if num_crossing
            else []
        ),
        f"rejected  {len(rejected)}",
        *(f"          {count} {kind}" for kind, count in kinds),
        *(f"written   {path}" for path in files),
        f"next      {shlex.join(command)}",
    ]
    return "\n".join(lines)
