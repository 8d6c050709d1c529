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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import soundfile as sf
from tqdm import tqdm

from plugins.audio import waveforms
from plugins.errors import UserError, did_you_mean, problem
from plugins.files import disk
from plugins.files.checkpoints import checkpoint_in
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


@dataclass(frozen=True)
class Plan:
    """The requests of a list, and what of them an earlier run has spoken."""

    folder: Path
    waiting: list[Line]
    num_there: int
    num_there_cut: int


def plan(options: Namespace, seed: int | None) -> Plan:
    """What is to be spoken of `options.input` into `options.output_dir`.

    Raises UserError for a line that is no request, after all such lines have been printed, and for
    a folder that is not ours to use: nothing is spoken then."""
    # A training's folder is another model as soon as it has trained on.
    options.model = checkpoint_in(options.model, option="model")
    if options.adapters is not None:
        options.adapters = checkpoint_in(options.adapters, option="adapters")
    lines = _read(options.input, options, seed)
    folder: Path = options.output_dir
    disk.require_writable(folder / RESULTS, field="output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    before = _spoken_before(folder)
    waiting: list[Line] = []
    num_cut = 0
    for line in lines:
        if _is_done(line, folder, before.get(line.id)):
            num_cut += not before[line.id]["stopped"]
            continue
        if line.id not in before:
            _refuse_to_overwrite(line, folder)
        waiting.append(line)
    return Plan(folder, waiting, len(lines) - len(waiting), num_cut)


def speak_all(
    generator: HiggsAudioGenerator,
    requests: Plan,
    options: Namespace,
    sampling: Sampling,
    clean_text: bool | None,
) -> tuple[int, int]:
    """Speak what is waiting: how many lines failed; how many speeches there are that were cut,
    those of earlier runs among them. Prints both."""
    folder, waiting, num_there = requests.folder, requests.waiting, requests.num_there
    failures: list[str] = []
    num_cut = 0
    progress = tqdm(
        total=len(waiting) + num_there,
        initial=num_there,
        desc="speech",
        unit="line",
        disable=None,
    )
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
    spoken_now = f"{len(waiting) - len(failures)} spoken ({num_cut} truncated)"
    there = f"{num_there} there already ({requests.num_there_cut} truncated)"
    print(f"{folder}: {spoken_now}, {there}, {len(failures)} failed")
    return len(failures), num_cut + requests.num_there_cut


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
    # Seeds of their own: a line sounds the same in any batch, in bf16 if deterministic.
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
    row: dict[str, Any] = {
        "id": line.id,
        "file": f"{line.id}.wav",
        "text": speech.text,
        "duration_s": round(speech.duration_s, 3),
        "stopped": speech.stopped,
        "key": line.key,
    }
    if speech.takes:
        row["takes"] = [asdict(take) for take in speech.takes]
    file = folder / f"{line.id}.wav"
    try:
        with disk.replace_when_done(file) as temporary:
            speech.write(temporary)
            # Listed before it is there: a file that is not listed is somebody else's.
            row["sha256"] = disk.file_hash(temporary)
            results.write(json.dumps(row, ensure_ascii=False) + "\n")
            results.flush()
    except (OSError, sf.SoundFileError) as error:
        raise problem(
            source=line.place,
            field="id",
            value=line.id,
            reason=f"cannot be written to {file} ({getattr(error, 'strerror', None) or error})",
            remedy="mend that and give the same command again: it goes on",
        ) from None


def _read(path: Path, options: Namespace, seed: int | None) -> list[Line]:
    """Raises UserError for lines that are no requests: all are named, the last as the error."""
    lines: dict[str, Line] = {}
    faults: list[UserError] = []
    for place, text in text_lines(path):
        try:
            line = _line(text, place, options, seed)
            if line.id in lines:
                raise problem(
                    source=place,
                    field="id",
                    value=line.id,
                    reason=f"is that of {lines[line.id].place} too",
                    remedy="give each line its own",
                )
            lines[line.id] = line
        except UserError as error:
            faults.append(error)
    for fault in faults[:-1]:
        print(f"refused: {fault}", file=sys.stderr)
    if faults:
        raise faults[-1]
    return list(lines.values())


def _line(text: str, place: str, options: Namespace, seed: int | None) -> Line:
    row = _row(text, place)
    number = place.rpartition(":")[2]
    name = _name(row.get("id", f"{number:0>5}"), place)
    wanted = {option: row.get(option, getattr(options, option)) for option in OPTIONS}
    if wanted["reference_audio"] is not None:
        folders = [options.input.resolve().parent, Path.cwd()]
        wanted["reference_audio"] = _recording(wanted["reference_audio"], folders, place)
    line_seed = row.get("seed", seed)
    try:
        Sampling(seed=line_seed)
    except UserError:
        raise problem(
            source=place,
            field="seed",
            value=line_seed,
            reason="is no seed",
            remedy="give a whole number below 2**63, or leave it out",
        ) from None
    key = _key([row["text"], wanted, line_seed, options.max_audio_s], options)
    return Line(place, name, row["text"], wanted, line_seed, key)


def _name(value: Any, place: str) -> str:
    """The name of a file. It comes from a file that others may have written: no folder, no hidden
    file, nothing that a terminal obeys."""
    name = value
    if isinstance(value, int) and not isinstance(value, bool):
        name = str(value)
    is_name = isinstance(name, str) and name.isprintable() and not name.startswith((".", " "))
    # Bytes, as file systems count; with room for what is put around it.
    if not is_name or not name or Path(name).name != name or len(name.encode()) > 200:
        raise problem(
            source=place,
            field="id",
            value=value,
            reason="is no name for a file",
            remedy="give a plain, short name",
        )
    return str(name)


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
    if not isinstance(row, dict) or "text" not in row:
        raise problem(
            source=place, field="text", value=row, reason="is missing", remedy='write {"text": ...}'
        )
    for name, value in row.items():
        if name not in _FIELDS:
            raise problem(
                source=place,
                field="column",
                value=name,
                reason="is unknown",
                remedy=did_you_mean(name, _FIELDS),
            )
        if name not in ("id", "seed"):
            _require_text(name, value, place)
    return row


def _require_text(name: str, value: Any, place: str) -> None:
    if value is None and name != "text":
        return
    is_text = isinstance(value, str)
    # JSON can spell half a character, which no file can hold.
    if not is_text or (not value.isascii() and value != value.encode(errors="ignore").decode()):
        reason = "holds half a character (a lone surrogate)" if is_text else "is no text"
        raise problem(
            source=place, field=name, value=value, reason=reason, remedy="write a text, or nothing"
        )


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
    model = [options.model, options.adapters, options.codec, options.quantization]
    drawing = [options.temperature, options.top_k, options.top_p]
    if options.deterministic:  # without it, as lists were spoken before it was there
        drawing.append("deterministic")
    if options.best_of > 1:
        judge = [options.language, options.asr, options.speaker_model]
        drawing.append(["best_of", options.best_of, *judge])
    if options.adapter_scale != 1:
        drawing.append(["adapter_scale", options.adapter_scale])
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
            spoken = {"key": str(row["key"]), "sha256": row.get("sha256")}
            # Else the rerun of a list that was cut would end as if all were whole.
            rows[str(row["id"])] = {**spoken, "stopped": row.get("stopped", True)}
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
