"""The files that a preparation writes, and whether they are its own.

x.jsonl                    rows; with --split also x_val.jsonl and x_test.jsonl
x.rejected.jsonl           always, and first: it tells that x.jsonl has been prepared here
x.report.json, .html ...   with --validate
x.transcripts.jsonl        with --check_transcripts: what is written and what is heard, by clip
x_clips/                   with --dataset_type recordings: the clips cut from them
.x.jsonl.journal           while it runs, and after it was killed
.higgs_audio_copies.json   in the folder of --audio_output: the output file whose rows name
                           the copies in there

Two output files of one folder must not have a name in common (x.jsonl and x_train.jsonl both have
x_val.jsonl), and nothing is written over that somebody else has put there. Opens no audio."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from plugins.errors import UserError, problem
from plugins.files.disk import read_json, remove_strays, replace_when_done

_COPIES = ".higgs_audio_copies.json"
_REPORTS = (".json", ".png", ".txt", ".html")


def split_path(output: Path, name: str) -> Path:
    """Where the rows of a side go: ``x_train.jsonl`` -> ``x_val.jsonl``, ``x.jsonl`` ->
    ``x_val.jsonl``."""
    if name == "train":
        return output
    before, train, after = output.stem.rpartition("train")
    if not train:
        return output.with_stem(f"{output.stem}_{name}")
    return output.with_stem(f"{before}{name}{after}")


def rejected_path(output: Path) -> Path:
    """Where the rejected utterances are listed: ``x.jsonl`` -> ``x.rejected.jsonl``."""
    return output.with_stem(f"{output.stem}.rejected")


def transcripts_path(output: Path) -> Path:
    """Where both texts of each clip stand: ``x.jsonl`` -> ``x.transcripts.jsonl``."""
    return output.with_stem(f"{output.stem}.transcripts")


def report_paths(output: Path) -> list[Path]:
    """As JSON, picture, text and page: ``x_train.jsonl`` -> ``x_train.report.json`` ..."""
    return [output.with_suffix(f".report{suffix}") for suffix in _REPORTS]


def journal_path(output: Path) -> Path:
    """Of a run that writes `output`, a file or a folder."""
    return output.with_name(f".{output.name}.journal")


def written_by(
    output: Path, *, sides: Iterable[str], reports: bool, transcripts: bool
) -> list[Path]:
    """The files of a preparation. sides: train, val, test."""
    paths = [split_path(output, side) for side in sides]
    paths.append(rejected_path(output))
    if reports:
        paths += report_paths(output)
    if transcripts:
        paths.append(transcripts_path(output))
    return paths


def check_output(
    output: Path, written: Iterable[Path], *, inputs: Iterable[Path], corpus: Path
) -> None:
    """Raise UserError if one of `written`, the files of the preparation `output`, is not its own.

    inputs: files that are read. corpus: their folder, in which an output of the same name may be
    one of them."""
    read = set(map(os.path.realpath, inputs))
    owners: dict[Path, Path] = {}  # file -> the output file of its preparation
    for other in _others(output):
        owners |= dict.fromkeys(_all_files(other), other)
    # The list of rejections is written by every preparation, and by nobody else.
    prepared_before = rejected_path(output).exists()
    for path in written:
        # A link to a file that is read is that file.
        real = os.path.realpath(path)
        if owner := owners.get(path):
            reason = f"shares {path.name} with the preparation of {owner.name} in the same folder"
        elif real in read or (not prepared_before and _is_below(path, corpus)):
            reason = f"would be written over {path}, a file of the corpus"
        elif path != output and path.exists() and not prepared_before:
            # The output itself was named by the user; these names were not.
            reason = f"comes with {path.name}, which is there already and not from a preparation"
            reason += " of it"
        else:
            continue
        raise problem(
            source="--output_file",
            field="path",
            value=str(output),
            reason=reason,
            remedy="name another file or folder",
        )


def clips_folder(output: Path) -> Path:
    """Where the clips go that recordings are cut into: ``x.jsonl`` -> ``x_clips/``, absolute."""
    return output.absolute().parent / f"{output.stem}_clips"


def claim_audio_folder(
    folder: Path,
    copies: Sequence[Path],
    *,
    originals: Iterable[Path],
    output: Path,
    option: str = "--audio_output",
) -> None:
    """Note in `folder` that its copies belong to the preparation of `output`, and remove half
    written ones of a killed run; its lock must be held. option: what named the folder.

    Raises UserError if they belong to another one, or if a copy would take the place of another
    file: an original, or one that is there already in a folder without a note."""
    note, holder = folder / _COPIES, _relative(output, folder)
    if note.is_file():
        named = read_json(note, "name a new folder").get("output_file")
        if named != holder:
            other = os.path.normpath(folder / str(named))
            reason = f"holds the copies of another preparation ({other})"
            raise _folder_problem(option, folder, reason, "name a folder of its own")
    # Without the note, whatever lies there is somebody else's.
    elif taken := next(filter(os.path.lexists, copies), None):
        name = taken.relative_to(folder)
        reason = f"holds {name} already, which no preparation has noted as its own"
        raise _folder_problem(option, folder, reason, "name a new folder")
    places = set(map(os.path.realpath, copies))
    for original in originals:
        if os.path.realpath(original) in places:
            reason = f"would be written over {original}, a recording of the corpus"
            raise _folder_problem(option, folder, reason, "name another folder")
    remove_strays([note, *copies])
    if not note.is_file():
        with replace_when_done(note) as temporary:
            temporary.write_text(json.dumps({"output_file": holder}) + "\n", encoding="utf-8")


def _folder_problem(option: str, folder: Path, reason: str, remedy: str) -> UserError:
    return problem(source=option, field="path", value=str(folder), reason=reason, remedy=remedy)


def _others(output: Path) -> Iterator[Path]:
    """The other output files of the folder: prepared, in preparation, or begun by a run that was
    killed."""
    for path in sorted(output.parent.iterdir()):
        name = path.name
        # .x.jsonl.journal says that x.jsonl will be written, as soon as that run goes on.
        if name.startswith(".") and name.endswith(".jsonl.journal"):
            path = path.with_name(name[1 : -len(".journal")])
        elif path.suffix != ".jsonl" or not rejected_path(path).exists():
            continue
        if path.name != output.name:
            yield path


def _all_files(output: Path) -> list[Path]:
    return written_by(output, sides=("train", "val", "test"), reports=True, transcripts=True)


def _is_below(path: Path, folder: Path) -> bool:
    return path.exists() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _relative(output: Path, folder: Path) -> str:
    """They may move together."""
    return os.path.relpath(os.path.realpath(output), os.path.realpath(folder))
