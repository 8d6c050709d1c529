"""Kaldi's lists -> utterances; LibriSpeech writes its texts in the same way.

In: files of lines ``KEY VALUE``. Out: of a Kaldi folder its utterances; of a single list its lines.
A line that cannot be read takes nothing from the others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plugins.corpora.utterance import (
    Rejected,
    Utterance,
    collapse,
    is_utf8,
    keep_inside,
    locate,
    require_list,
)
from plugins.errors import problem
from plugins.files.lines import byte_lines

SCP, TEXT = "wav.scp", "text"
# Longer lines are no transcripts.
_MAX_LINE_BYTES = 1_000_000
# `x.ark:1234`, `x.wav[0:100]`: a place in a file.
_PART = re.compile(r"\.ark:\d+$|\[[\d:,]+\]$")


@dataclass(frozen=True)
class Line:
    """One line of such a list."""

    place: str  # file:line
    key: str
    value: str  # whitespace collapsed at its ends only; may be empty
    fault: str = ""  # why it cannot be relied on


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of `path` that are not blank. Raises UserError if it cannot be read."""
    for place, content in byte_lines(path):
        # Foreign bytes become lone surrogates, by which they are known.
        text = content.decode(errors="surrogateescape").strip()
        if not text:  # but for spaces of Unicode's
            continue
        fault = ""
        if len(content) > _MAX_LINE_BYTES:
            fault = f"line is longer than {_MAX_LINE_BYTES:,} bytes"
        elif not is_utf8(text):
            fault = "line is not UTF-8"
        key, *value = text.split(maxsplit=1)
        yield Line(place, key, "".join(value), fault)


def path_fault(recording: str) -> tuple[str, str] | None:
    """Why what stands in ``wav.scp`` is no path, and what to do; None if it is one."""
    if not recording:
        return "has no path", "write KEY PATH"
    # Kaldi runs such a line and takes its output for the recording.
    if recording.endswith("|"):
        return "is a command", "run it, and list the file that it makes"
    if _PART.search(recording):
        return "is a part of a file", "copy it out with wav-copy, then list that file"
    return None


def read_kaldi(input_dir: Path, *, root: Path | None = None) -> Iterator[Utterance | Rejected]:
    """``wav.scp`` and ``text``; speakers of ``utt2spk``, languages of ``utt2lang`` if they are
    there. In the order of `text`.

    Paths are absolute, or relative to `input_dir` or to the working folder, as recipes write them.
    Nothing is executed: a command in the place of a path is rejected. Raises UserError for a folder
    with ``segments``, whose recordings must be cut first."""
    for name in (SCP, TEXT):
        remedy = f"name the folder that holds {SCP} and {TEXT}"
        require_list(input_dir / name, "kaldi", "input_dir", remedy, input_dir, root)
    if (input_dir / "segments").exists():
        raise problem(
            source="kaldi",
            field="input_dir",
            value=str(input_dir),
            reason="cuts its recordings by segments, which is not done here",
            remedy="cut them into files (Kaldi: extract-segments), list these in wav.scp, and move"
            " segments away",
        )
    recordings, faulty = _values(input_dir / SCP, input_dir, root)
    texts, faulty_texts = _values(input_dir / TEXT, input_dir, root)
    speakers, faulty_speakers = _values(input_dir / "utt2spk", input_dir, root)
    languages, faulty_languages = _values(input_dir / "utt2lang", input_dir, root)
    told = {entry.id for entry in faulty}
    for key, line in texts.items():
        if key not in recordings:
            if key not in told:
                yield Rejected(line.place, key, "no recording", f"{key} in {SCP}")
            continue
        recording = recordings[key].value
        if fault := path_fault(recording):
            reason, remedy = fault
            yield Rejected(line.place, key, f"{reason} ({remedy})", recording)
            continue
        # As written first. With a root nothing outside of it is meant.
        names = [recording] if root else [recording, os.path.abspath(recording)]
        yield locate(
            line.place,
            names,
            folder=input_dir,
            root=root,
            text=collapse(line.value),
            id_=key,
            speaker=speakers[key].value or None if key in speakers else None,
            language=languages[key].value or None if key in languages else None,
        )
    told = {entry.id for entry in faulty_texts}
    for key, line in recordings.items():
        if key not in texts and key not in told:
            yield Rejected(line.place, key, "no transcript", f"{key} in {TEXT}")
    for entries in (faulty, faulty_texts, faulty_speakers, faulty_languages):
        yield from entries


def _values(
    path: Path, input_dir: Path, root: Path | None
) -> tuple[dict[str, Line], list[Rejected]]:
    """The lines of `path` by key, and those that are none. A file that is not there has none."""
    if not path.exists():
        return {}, []
    keep_inside(path, input_dir, root)
    lines: dict[str, Line] = {}
    faulty = []
    for line in read_lines(path):
        fault = line.fault
        if line.key in lines:
            fault = f"key is there twice (first at {lines[line.key].place})"
        if fault:
            faulty.append(Rejected(line.place, line.key, fault, f"{line.key} {line.value}"[:200]))
        else:
            lines[line.key] = line
    return lines, faulty
