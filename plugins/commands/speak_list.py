"""A list of texts, spoken into a folder: the part of `higgs-audio speak` behind `--input`.

A list is JSONL, one request per line:

    {"id": "greeting", "text": "Hello.", "scene_description": "...", "voice_description": "...",
     "reference_audio": "voice.wav", "reference_text": "...", "seed": 1}

Only `text` is needed; the rest is the command's own flags, line by line. Out come ID.wav for each
line and `results.jsonl`, which says what has been spoken: the same command goes on where it was,
and speaks again what has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plugins.audio import waveforms
from plugins.errors import UserError, did_you_mean, problem
from plugins.files import disk
from plugins.files.lines import NoJson, parse_json, text_lines
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech
from plugins.speaking.voices import Script

RESULTS = "results.jsonl"
OPTIONS = ("scene_description", "voice_description", "reference_audio", "reference_text")
_FIELDS = ("id", "text", "seed", *OPTIONS)
_BEGINNING = b'{"id": "'  # of every line of RESULTS


@dataclass(frozen=True)
class Line:
    """One request of a list."""

    place: str  # file:line
    id: str
    text: str
    options: dict[str, Any]
    seed: int | None
    key: str  # of everything that the speech depends on


def speak_all(
    generator: HiggsAudioGenerator, options: Namespace, sampling: Sampling, clean_text: bool | None
) -> tuple[int, int]:
    """Speak `options.input` into `options.output_dir`: how many lines failed, how many were cut.

    Prints both. Raises UserError for a list or a folder that is not ours to use; nothing has been
    spoken then."""
    lines = list(_read(options.input, options, sampling.seed))
    folder: Path = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    before = _spoken_before(folder)
    waiting = [line for line in lines if not _is_done(line, folder, before.get(line.id))]
    for line in waiting:
        if line.id not in before:
            _refuse_to_overwrite(line, folder)
    failures: list[str] = []
    num_cut, num_there = 0, len(lines) - len(waiting)
    progress = tqdm(total=len(lines), initial=num_there, desc="speech", unit="line", disable=None)
    # Appended line by line: whatever a kill leaves, what was spoken before stays listed.
    with (folder / RESULTS).open("a", encoding="utf-8") as results, progress:
        for start in range(0, len(waiting), options.batch_size):
            batch = waiting[start : start + options.batch_size]
            scripts, refused = _scripts(generator, batch, clean_text)
            spoken = _spoken(generator, scripts, sampling, options.max_audio_s)
            for line, outcome in [*refused, *spoken]:
                progress.update()
                if isinstance(outcome, UserError):
                    failures.append(f"{line.place}: {outcome}")
                else:
                    num_cut += outcome.truncated
                    _keep(line, outcome, folder, results)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    num_spoken = len(waiting) - len(failures)
    counts = f"{num_spoken} spoken ({num_cut} truncated), {num_there} there already"
    print(f"{folder}: {counts}, {len(failures)} failed")
    return len(failures), num_cut


def _refuse_to_overwrite(line: Line, folder: Path) -> None:
    """A file that is not listed is somebody else's."""
    file = folder / f"{line.id}.wav"
    if os.path.lexists(file):
        raise problem(
            source=line.place,
            field="id",
            value=line.id,
            reason=f"would be written over {file}, which {RESULTS} there does not list",
            remedy="name another --output_dir, or move the file",
        )


def _scripts(
    generator: HiggsAudioGenerator, lines: list[Line], clean_text: bool | None
) -> tuple[list[tuple[Line, Script]], list[tuple[Line, UserError]]]:
    """What is to be spoken, and the lines of which nothing can be."""
    scripts: list[tuple[Line, Script]] = []
    refused: list[tuple[Line, UserError]] = []
    for line in lines:
        try:
            script = generator.script(line.text, **line.options, clean_text=clean_text)
            scripts.append((line, script))
        except UserError as error:
            refused.append((line, error))
    return scripts, refused


def _spoken(
    generator: HiggsAudioGenerator,
    scripts: list[tuple[Line, Script]],
    sampling: Sampling,
    max_audio_s: float,
) -> Iterator[tuple[Line, Speech | UserError]]:
    """Together; if one of them fails, one by one."""
    # Seeds of their own: a line sounds the same in any batch.
    samplings = [replace(sampling, seed=line.seed) for line, _ in scripts]
    try:
        speeches = generator.perform(
            [script for _, script in scripts], samplings=samplings, max_audio_s=max_audio_s
        )
    except UserError as error:
        if len(scripts) == 1:  # the one that fails, named
            yield scripts[0][0], error
            return
        for pair in scripts:
            yield from _spoken(generator, [pair], sampling, max_audio_s)
        return
    for (line, _), speech in zip(scripts, speeches, strict=True):
        yield line, speech


def _keep(line: Line, speech: Speech, folder: Path, results: Any) -> None:
    """Write ID.wav and its line of RESULTS."""
    row = {
        "id": line.id,
        "file": f"{line.id}.wav",
        "text": speech.text,
        "duration_s": round(speech.duration_s, 3),
        "stopped": speech.stopped,
        "key": line.key,
    }
    with disk.replace_when_done(folder / f"{line.id}.wav") as temporary:
        speech.save(temporary)
        # Listed before it is there: a file that is not listed is somebody else's.
        row["sha256"] = disk.file_hash(temporary)
        results.write(json.dumps(row, ensure_ascii=False) + "\n")
        results.flush()


def _read(path: Path, options: Namespace, seed: int | None) -> Iterator[Line]:
    """Raises UserError for the first line that is none: nothing has been spoken yet."""
    ids: set[str] = set()
    for place, text in text_lines(path):
        row = _row(text, place)
        number = place.rpartition(":")[2]
        name = str(row.get("id", f"{number:0>5}"))
        # No folder, no hidden file: the name comes from a file that others may have written.
        if Path(name).name != name or name in ids or name.startswith("."):
            raise problem(
                source=place,
                field="id",
                value=name,
                reason="is no name for a file, or taken",
                remedy="give plain names, each once",
            )
        ids.add(name)
        wanted = {option: row.get(option, getattr(options, option)) for option in OPTIONS}
        if wanted["reference_audio"] is not None:
            folders = [path.resolve().parent, Path.cwd()]
            wanted["reference_audio"] = _recording(wanted["reference_audio"], folders, place)
        line_seed = row.get("seed", seed)
        key = _key([row["text"], wanted, line_seed, options.max_audio_s], options)
        yield Line(place, name, row["text"], wanted, line_seed, key)


def _row(text: str, place: str) -> dict[str, Any]:
    """The request in one line of a list."""
    try:
        row = parse_json(text)
    except NoJson as error:
        raise problem(
            source=place,
            field="line",
            value=text.strip(),
            reason=error.reason,
            remedy=error.remedy,
        ) from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise problem(
            source=place, field="text", value=row, reason="is missing", remedy='write {"text": ...}'
        )
    for name in row:
        if name not in _FIELDS:
            raise problem(
                source=place,
                field="column",
                value=name,
                reason="is unknown",
                remedy=did_you_mean(name, _FIELDS),
            )
    return row


def _recording(name: str, folders: list[Path], place: str) -> str:
    """The file of a reference, named beside the list or from the working folder."""
    try:
        return str(waveforms.resolve(name, folders=folders))
    except waveforms.AudioError as error:
        raise problem(
            source=place,
            field="reference_audio",
            value=error.path,
            reason=error.reason,
            remedy=error.remedy,
        ) from None


def _key(request: list[Any], options: Namespace) -> str:
    """Another key, another speech: of what the line asks for, the model and how it draws."""
    model = [options.model, options.adapters]
    drawing = [options.temperature, options.top_k, options.top_p]
    everything = json.dumps([*request, *model, *drawing, options.raw_text])
    return hashlib.sha256(everything.encode()).hexdigest()[:32]


def _spoken_before(folder: Path) -> dict[str, dict[str, Any]]:
    """id -> its last line in RESULTS. Damaged lines are none; one that was being written when the
    run ended goes.

    Raises UserError if the file holds no line of ours: somebody else's is not written to.
    """
    path = folder / RESULTS
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    rows: dict[str, dict[str, Any]] = {}
    for line in whole.split(b"\n"):
        # A power cut leaves zeros, a kill half a line.
        with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError):
            row = json.loads(line)
            rows[str(row["id"])] = {"key": str(row["key"]), "sha256": row.get("sha256")}
    begins_like_ours = content[: len(_BEGINNING)] == _BEGINNING[: len(content)]
    if not rows and (whole or not begins_like_ours):
        raise problem(
            source="options",
            field="output_dir",
            value=str(folder),
            reason=f"holds a {RESULTS} that is not from this command",
            remedy="name another folder",
        )
    if whole != content:
        os.truncate(path, len(whole))
    return rows


def _is_done(line: Line, folder: Path, row: dict[str, Any] | None) -> bool:
    """Whether `line` has been spoken as it is asked for, and its file is what was written."""
    if row is None or row["key"] != line.key:
        return False
    file = folder / f"{line.id}.wav"
    return file.is_file() and disk.file_hash(file) == row["sha256"]
