"""The files that a preparation writes, and whether they are its own (L4).

    x.jsonl                                rows; with --split also x_val.jsonl and x_test.jsonl
    x.rejected.jsonl                       always, and first: it tells that x.jsonl has been prepared here
    x.report.json, .png, .txt              with --validate
    .x.jsonl.journal                       while it runs, and after it was killed
    AUDIO_OUTPUT/.higgs_audio_copies.json  the output file whose rows name the copies in there

Two output files of one folder must not have a name in common (x.jsonl and x_train.jsonl both have
x_val.jsonl), and nothing is written over that somebody else has put there. Opens no audio."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from plugins.errors import problem
from plugins.files.disk import read_json, remove_strays, replace_when_done

_COPIES = ".higgs_audio_copies.json"
_REPORTS = (".json", ".png", ".txt")


def split_path(output: Path, name: str) -> Path:
    """Where the rows of a side go: ``x_train.jsonl`` -> ``x_val.jsonl``, ``x.jsonl`` ->
    ``x_val.jsonl``."""
    if name == "train":
        return output
    before, found, after = output.stem.rpartition("train")
    return output.with_stem(f"{before}{name}{after}" if found else f"{output.stem}_{name}")


def rejected_path(output: Path) -> Path:
    """Where the rejected utterances are listed: ``x.jsonl`` -> ``x.rejected.jsonl``."""
    return output.with_stem(f"{output.stem}.rejected")


def report_paths(output: Path) -> list[Path]:
    """As JSON, picture and text: ``x_train.jsonl`` -> ``x_train.report.json`` ..."""
    return [output.with_suffix(f".report{suffix}") for suffix in _REPORTS]


def journal_path(output: Path) -> Path:
    """Of a run that writes `output`, a file or a folder."""
    return output.with_name(f".{output.name}.journal")


def written_by(output: Path, *, sides: Iterable[str], reports: bool) -> list[Path]:
    """The files of a preparation. sides: train, val, test."""
    rows = [split_path(output, side) for side in sides]
    return [*rows, rejected_path(output), *(report_paths(output) if reports else [])]


def check_output(
    output: Path, written: Iterable[Path], *, inputs: Iterable[Path], corpus: Path
) -> None:
    """Raise UserError if one of `written`, the files of the preparation `output`, is not its own.

    inputs: files that are read. corpus: their folder, in which an output of the same name may be
    one of them."""
    read = {os.path.realpath(path) for path in inputs}
    others = {path: other for other in _others(output) for path in _all_files(other)}
    prepared_before = rejected_path(output).exists()
    for path in written:
        real = os.path.realpath(path)
        if other := others.get(path):
            reason = f"shares {path.name} with the preparation of {other.name} in the same folder"
        elif real in read or (not prepared_before and _is_below(path, corpus)):
            reason = f"would be written over {path}, a file of the corpus"
        elif path != output and path.exists() and not prepared_before:
            reason = (
                f"comes with {path.name}, which is there already and not from a preparation of it"
            )
        else:
            continue
        raise problem(
            source="--output_file",
            field="path",
            value=str(output),
            reason=reason,
            remedy="name another file or folder",
        )


def claim_audio_folder(
    folder: Path, copies: Sequence[Path], *, originals: Iterable[Path], output: Path
) -> None:
    """Note in `folder` that its copies belong to the preparation of `output`, and remove half
    written ones of a killed run; its lock must be held.

    Raises UserError if they belong to another one, or if a copy would take the place of another
    file: an original, or one that is there already in a folder without a note."""
    note, holder = folder / _COPIES, _relative(output, folder)
    if note.is_file():
        named = read_json(note, "name a new folder").get("output_file")
        if named != holder:
            reason = (
                f"holds the copies of another preparation ({os.path.normpath(folder / str(named))})"
            )
            raise problem(
                source="--audio_output",
                field="path",
                value=str(folder),
                reason=reason,
                remedy="name a folder of its own",
            )
    elif taken := next(filter(os.path.lexists, copies), None):
        reason = (
            f"holds {taken.relative_to(folder)} already, which no preparation has noted as its own"
        )
        raise problem(
            source="--audio_output",
            field="path",
            value=str(folder),
            reason=reason,
            remedy="name a new folder",
        )
    places = {os.path.realpath(path) for path in copies}
    if original := next((path for path in originals if os.path.realpath(path) in places), None):
        reason = f"would be written over {original}, a recording of the corpus"
        raise problem(
            source="--audio_output",
            field="path",
            value=str(folder),
            reason=reason,
            remedy="name another folder",
        )
    remove_strays([note, *copies])
    if not note.is_file():
        with replace_when_done(note) as temporary:
            temporary.write_text(json.dumps({"output_file": holder}) + "\n", encoding="utf-8")


def _others(output: Path) -> Iterator[Path]:
    """The other output files of the folder: prepared, in preparation, or begun by a run that was
    killed."""
    for path in sorted(output.parent.iterdir()):
        named = path.name
        if named.startswith(".") and named.endswith(".jsonl.journal"):
            path = path.with_name(named[1 : -len(".journal")])
        elif path.suffix != ".jsonl" or not rejected_path(path).exists():
            continue
        if path.name != output.name:
            yield path


def _all_files(output: Path) -> list[Path]:
    return written_by(output, sides=("train", "val", "test"), reports=True)


def _is_below(path: Path, folder: Path) -> bool:
    return path.exists() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _relative(output: Path, folder: Path) -> str:
    """They may move together."""
    return os.path.relpath(os.path.realpath(output), os.path.realpath(folder))
