"""What ``prepare_dataset.py`` does: flags -> read, check, split, pair, encode, write, report.

In: the arguments of the command. Out: its exit code, the files that `plugins.prepare.outputs`
names, and a summary. The steps live in the other files; here stand their order and what the flags
tell each of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from plugins.corpora import Rejected, Utterance
from plugins.errors import UserError, problem
from plugins.files.installation import explained, require_device
from plugins.prepare.checking import check_corpus
from plugins.prepare.clips import Level, Work
from plugins.prepare.dialogues import dialogues_of
from plugins.prepare.flags import from_flags, limits_of, needs_headers, parse
from plugins.prepare.listening import Listener
from plugins.prepare.outputs import (
    check_output,
    rejected_path,
    report_paths,
    split_path,
    transcripts_path,
    written_by,
)
from plugins.prepare.page import clips_to_show, page
from plugins.prepare.pairing import add_references, add_voices
from plugins.prepare.processing import Processing, check_installed
from plugins.prepare.reading import entries_of
from plugins.prepare.references import within_sides
from plugins.prepare.report import Accepted, picture, require_plots, summarise, table
from plugins.prepare.rows import Clip, rejected_row, split, write_files
from plugins.prepare.run import Executor, journal_of
from plugins.prepare.summary import naming_of, no_references, nothing_left, num_references, summary
from plugins.prepare.transcripts import heard_totals

_EXIT_UNUSABLE = 1
_EXIT_REJECTED = 3  # 2 is argparse's own, for wrong usage

Sides = dict[str, list[Clip]]  # train, val and test -> their clips


def main(argv: Sequence[str] | None = None, *, program: str = "prepare_dataset.py") -> int:
    """Run the command with `argv` (default: the process's own) and return its exit code.

    program: what was typed before them."""
    args = parse(argv, program=program)
    try:
        with explained():
            return _prepare(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:  # disk full, no permission
        path = error.filename or args.output_file
        print(f"error: {path}: {error.strerror or error}", file=sys.stderr)
    return _EXIT_UNUSABLE


def _prepare(args: argparse.Namespace) -> int:
    output: Path = args.output_file
    _check_paths(args)
    listens = args.dataset_type == "recordings" or args.check_transcripts is not None
    if args.encode_codes or listens:
        require_device(args.device)
    work = _work(args)
    if work.level != "none":
        require_plots()
    listener = _listener(args)
    with journal_of(output) as journal, _audio_folder(work.audio_dir):
        # With the journal there: of two runs that start at once, one sees the other.
        _check_output(args, work)
        entries = list(entries_of(args, journal))
        clips, rejected = check_corpus(
            entries,
            work,
            output=output,
            journal=journal,
            num_workers=args.workers,
            execute=_executor(args),
            listener=listener,
        )
        files: dict[Path, bytes | list[dict[str, Any]]] = {}
        files[rejected_path(output)] = list(map(rejected_row, rejected))
        if listener is not None:
            files[transcripts_path(output)] = [one.to_json() for one in listener.findings]
        if not clips:
            write_files(files)  # where the user looks for the reasons
            raise nothing_left(args.dataset_type, args.input_dir, rejected, output=output)
        dialogues = dialogues_of(entries, clips) if args.dialogues else None
        if dialogues is not None:
            dialogues.require_any()
            clips = dialogues.rows
        sides, num_crossing = _completed(args, clips)
        totals = None
        if dialogues is not None:
            totals = dialogues.totals(list(chain.from_iterable(sides.values())))
        if work.level != "none":
            report = _report(sides, rejected, listener, totals)
            files |= _report_files(output, report, rejected, entries, listener)
        # The training rows come last: where they are, all the others are.
        for name in reversed(sides):
            files[split_path(output, name)] = [clip.row for clip in sides[name]]
        write_files(files)
    print(
        summary(
            output,
            sides,
            rejected,
            num_crossing=num_crossing,
            files=files,
            dialogues=totals,
        )
    )
    return _EXIT_REJECTED if args.strict and rejected else 0


def _completed(args: argparse.Namespace, clips: list[Clip]) -> tuple[Sides, int]:
    """The sides of the split with all that their rows shall have, as `_divided`."""
    sides, num_crossing = _divided(args, clips)
    if args.dialogues:
        sides = {name: add_voices(side, seed=args.seed) for name, side in sides.items()}
    if args.references:
        sides = _with_references(args, sides)
    if args.encode_codes:
        _encode(args, sides)
    return sides, num_crossing


# --- before anything is read ---


def _check_paths(args: argparse.Namespace) -> None:
    if args.output_file.suffix != ".jsonl":
        raise problem(
            source="--output_file",
            field="name",
            value=str(args.output_file),
            reason="does not end in .jsonl",
            remedy="MS-SWIFT goes by the name",
        )
    if Path(args.input_dir).is_file():
        raise problem(
            source="--input_dir",
            field="folder",
            value=args.input_dir,
            reason="is a file",
            remedy="name the folder of the corpus; an archive must be unpacked first (tar -xf)",
        )
    # A dataset of the Hub has an id where the others have a folder.
    if args.dataset_type != "huggingface" and not Path(args.input_dir).is_dir():
        raise problem(
            source="--input_dir",
            field="folder",
            value=args.input_dir,
            reason="not found",
            remedy="name the folder of the corpus",
        )


def _work(args: argparse.Namespace) -> Work:
    processing = from_flags(Processing, args)
    if args.audio_output is None and processing != Processing():
        # Name a flag that was given, not the one that was not.
        plain = vars(Processing())
        given = [name for name, value in vars(processing).items() if value != plain[name]]
        raise problem(
            source="command line",
            field=f"--{given[0]}",
            value=getattr(processing, given[0]),
            reason="changes audio, and originals are never changed",
            remedy="name a folder for the changed clips with --audio_output",
        )
    check_installed(processing)
    # Codes, references, hearings and reports need at least the header of every clip.
    needed: Level = "header" if needs_headers(args) else "none"
    # The folder absolute, for it stands in the rows.
    return Work(
        level=args.validate or needed,
        limits=limits_of(args),
        processing=processing,
        audio_dir=args.audio_output and args.audio_output.absolute(),
        seed=args.seed,
    )


def _listener(args: argparse.Namespace) -> Listener | None:
    if args.check_transcripts is None:
        return None
    return Listener(
        max_cer=args.check_transcripts,
        asr=args.asr,
        language=args.language,
        beam=args.beam,
        device=args.device,
        workers=args.workers,
    )


@contextmanager
def _audio_folder(folder: Path | None) -> Iterator[None]:
    """Hold the folder of processed clips."""
    if folder is None:
        yield
        return
    with journal_of(folder, option="--audio_output"):
        yield


def _check_output(args: argparse.Namespace, work: Work) -> None:
    sides = ["train"]
    if args.split:
        sides.append("val")
    if args.split and args.test_ratio:
        sides.append("test")
    check_output(
        args.output_file,
        written_by(
            args.output_file,
            sides=sides,
            reports=work.level != "none",
            transcripts=args.check_transcripts is not None,
        ),
        inputs=filter(None, (args.csv_file, args.list_file, args.jsonl_file)),
        corpus=Path(args.input_dir),
    )


# --- reading and checking ---


def _executor(args: argparse.Namespace) -> Executor | None:
    if args.executor == "local":
        return None
    from plugins.prepare.ray_executor import execute

    return execute


# --- rows ---


def _divided(args: argparse.Namespace, clips: list[Clip]) -> tuple[Sides, int]:
    """The sides, and how many references were left out because they lay on another one."""
    if not args.split:
        return {"train": clips}, 0
    if args.split_by_speaker and not any(clip.speakers for clip in clips):
        raise problem(
            source="--split_by_speaker",
            field="speakers",
            value=0,
            reason="are named",
            remedy=naming_of(args.dataset_type),
        )
    sides = split(
        clips,
        val_ratio=args.val_ratio,
        seed=args.seed,
        test_ratio=args.test_ratio,
        by_speaker=args.split_by_speaker,
    )
    for name, side in sides.items():
        if not side:
            what, flag, count = "recordings", "--split", len(clips)
            if args.split_by_speaker:
                what, flag = "speakers", "--split_by_speaker"
                count = len(set().union(*(clip.speakers for clip in clips)))
            raise problem(
                source=flag,
                field=what,
                value=count,
                reason=f"leave nothing for {name}",
                remedy=f"add {what} or leave out {flag}",
            )
    return within_sides(sides)


def _with_references(args: argparse.Namespace, sides: Sides) -> Sides:
    is_similar = None
    if args.min_similarity is not None:
        from plugins.prepare.similarity import Similarity

        is_similar = Similarity(args.min_similarity)
    result = {}
    for name, clips in sides.items():
        result[name] = add_references(
            clips, seed=args.seed, without_share=args.without_reference, is_similar=is_similar
        )
    # Who asks for none at all gets none.
    if args.without_reference < 1 and not num_references(result["train"]):
        raise no_references(args.dataset_type, result["train"], args.min_similarity)
    return result


def _encode(args: argparse.Namespace, sides: Sides) -> None:
    # Only here is torch needed, and only for this flag.
    from plugins.files.hub import DEFAULT_CODEC
    from plugins.prepare.encode import encode_rows

    beside = args.output_file.absolute().parent
    encode_rows(
        [clip.row for clip in chain.from_iterable(sides.values())],
        folder=args.codes_dir or beside / "codes",
        codec=args.codec or DEFAULT_CODEC,
        device=args.device,
        beside=beside,
    )


def _report(
    sides: Sides,
    rejected: list[Rejected],
    listener: Listener | None,
    dialogues: dict[str, Any] | None,
) -> dict[str, Any]:
    accepted = []
    for name, rows in sides.items():
        for row in rows:
            for clip in row.turns or (row,):
                accepted.append(Accepted(clip.duration_s or 0.0, clip.speaker, name))
    report = summarise(accepted, [entry.kind for entry in rejected])
    if dialogues is not None:
        report["dialogues"] = dialogues
    if listener is not None:
        report["transcripts"] = heard_totals(listener.findings, listener.max_cer)
    return report


def _report_files(
    output: Path,
    report: dict[str, Any],
    rejected: list[Rejected],
    entries: list[Utterance | Rejected],
    listener: Listener | None,
) -> dict[Path, Any]:
    findings, errors = [], None
    if listener is not None:
        findings = listener.findings
        errors = [finding.cer for finding in findings]
    html = page(
        report,
        clips_to_show(entries, rejected, findings),
        errors,
        beside=output.absolute().parent,
        title=output.stem,
    )
    contents = [[report], picture(report), (table(report) + "\n").encode(), html.encode()]
    return dict(zip(report_paths(output), contents, strict=True))
