"""`higgs-audio speak`: one text into a file or a pipe, or a list of texts into a folder. L4.

A list is JSONL, one request per line:

    {"id": "greeting", "text": "Hello.", "scene_description": "...", "voice_description": "...",
     "reference_audio": "voice.wav", "reference_text": "...", "seed": 1}

Only `text` is needed; the rest is the command's own flags, line by line. What has been spoken
stands in `results.jsonl` of the folder: the same command goes on where it was, and speaks again
what has changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from plugins.audio import waveforms as audio
from plugins.errors import UserError, did_you_mean, problem
from plugins.files import disk
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech
from plugins.speaking.voices import Script

TRUNCATED = 3
RESULTS = "results.jsonl"
_BEGINNING = b'{"id": "'  # of every line in it
_OPTIONS = ("scene_description", "voice_description", "reference_audio", "reference_text")
_FIELDS = ("id", "text", "seed", *_OPTIONS)


@dataclass(frozen=True)
class Line:
    """One request of a list."""

    place: str
    id: str
    text: str
    options: dict[str, Any]
    seed: int | None
    key: str  # of everything that the speech depends on


def run(options: Namespace) -> int:
    """The subcommand: its exit code."""
    if (options.text is None) == (options.input is None):
        raise problem(
            source="options",
            field="text",
            value=options.text,
            reason="is one of two",
            remedy="give --text or --input",
        )
    if options.input is not None and (options.output_dir is None or options.stream is not None):
        raise problem(
            source="options",
            field="input",
            value=str(options.input),
            reason="is a list",
            remedy="give --output_dir, not --stream",
        )
    generator = HiggsAudioGenerator.from_pretrained(
        options.model,
        adapters=options.adapters,
        codec=options.codec,
        device=options.device,
        quantization=options.quantization,
        cuda_graphs=options.cuda_graphs,
    )
    sampling = Sampling(options.temperature, options.top_k, options.top_p, seed=options.seed)
    if options.input is not None:
        return _speak_all(generator, options, sampling)
    wanted = {name: getattr(options, name) for name in _OPTIONS}
    wanted |= {
        "sampling": sampling,
        "max_audio_s": options.max_audio_s,
        "clean_text": _clean_text(options),
    }
    if options.stream is not None:
        stream = generator.stream(options.text, **wanted)
        _pipe(stream, options.stream)
        speech, name = stream.speech, options.stream
    else:
        speech, name = generator.generate(options.text, **wanted), options.output
        speech.save(name)
    # The samples may go to stdout.
    print(
        f"{name}: {_described(speech)}", file=sys.stdout if options.stream is None else sys.stderr
    )
    return 0 if speech.stopped else TRUNCATED


def _clean_text(options: Namespace) -> bool | None:
    """None: as the model was trained."""
    return False if options.raw_text else None


def _pipe(chunks: Iterable[np.ndarray], target: str) -> None:
    """16 bit little-endian PCM, each chunk as soon as it is spoken."""
    with sys.stdout.buffer if target == "-" else open(target, "wb") as file:
        for chunk in chunks:
            file.write((chunk.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
            file.flush()


def _described(speech: Speech) -> str:
    end = (
        "stopped by itself"
        if speech.stopped
        else "truncated: cut at the limit, it did not stop by itself"
    )
    frames, factor = speech.codes.shape[1], speech.real_time_factor
    return f"{speech.duration_s:.2f} s, {frames} frames, real-time factor {factor:.2f}, {end}"


def _speak_all(generator: HiggsAudioGenerator, options: Namespace, sampling: Sampling) -> int:
    lines = list(_lines(options.input, options, sampling.seed))
    folder: Path = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    spoken_before = _spoken_before(folder)
    waiting = [line for line in lines if not _is_done(line, folder, spoken_before.get(line.id))]
    for line in waiting:
        file = folder / f"{line.id}.wav"
        if line.id not in spoken_before and os.path.lexists(file):
            reason = f"would be written over {file}, which {RESULTS} there does not list"
            raise problem(
                source=line.place,
                field="id",
                value=line.id,
                reason=reason,
                remedy="name another --output_dir, or move the file",
            )
    failures: list[str] = []
    truncated = 0
    with (
        (folder / RESULTS).open("a", encoding="utf-8") as results,
        tqdm(
            total=len(lines),
            initial=len(lines) - len(waiting),
            desc="speech",
            unit="line",
            disable=None,
        ) as bar,
    ):
        for start in range(0, len(waiting), options.batch_size):
            batch = waiting[start : start + options.batch_size]
            for line, outcome in _spoken(generator, batch, sampling, options):
                bar.update()
                if isinstance(outcome, UserError):
                    failures.append(f"{line.place}: {outcome}")
                    continue
                truncated += outcome.truncated
                written: dict[str, Any] = {
                    "id": line.id,
                    "file": f"{line.id}.wav",
                    "text": outcome.text,
                }
                written |= {
                    "duration_s": round(outcome.duration_s, 3),
                    "stopped": outcome.stopped,
                    "key": line.key,
                }
                with disk.replace_when_done(folder / written["file"]) as temporary:
                    outcome.save(temporary)
                    # Listed before it is there: a file that is not listed is somebody else's.
                    written["sha256"] = disk.file_hash(temporary)
                    results.write(json.dumps(written, ensure_ascii=False) + "\n")
                    results.flush()
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    spoken = len(waiting) - len(failures)
    kept = len(lines) - len(waiting)
    print(
        f"{folder}: {spoken} spoken ({truncated} truncated), {kept} there already, {len(failures)} failed"
    )
    return 1 if failures else TRUNCATED if truncated else 0


def _spoken(
    generator: HiggsAudioGenerator, batch: list[Line], sampling: Sampling, options: Namespace
) -> Iterator[tuple[Line, Speech | UserError]]:
    """Together; if one of them fails, one by one."""
    scripts: list[tuple[Line, Script]] = []
    for line in batch:
        try:
            scripts.append(
                (line, generator.script(line.text, **line.options, clean_text=_clean_text(options)))
            )
        except UserError as error:
            yield line, error
    samplings = [replace(sampling, seed=line.seed) for line, _ in scripts]
    try:
        speeches = generator.perform(
            [s for _, s in scripts], samplings=samplings, max_audio_s=options.max_audio_s
        )
        yield from zip([line for line, _ in scripts], speeches, strict=True)
    except UserError as error:
        if len(scripts) == 1:
            yield scripts[0][0], error
            return
        for line, _ in scripts:
            yield from _spoken(generator, [line], sampling, options)


def _lines(path: Path, options: Namespace, seed: int | None) -> Iterator[Line]:
    """Raises UserError for the first line that is none: nothing has been spoken yet."""
    ids: set[str] = set()
    try:
        numbered = list(enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1))
    except (OSError, UnicodeDecodeError) as error:
        raise problem(
            source="options",
            field="input",
            value=str(path),
            reason=f"cannot be read ({error})",
            remedy="name a JSONL file",
        ) from None
    for number, text in numbered:
        place = f"{path}:{number}"
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise problem(
                source=place,
                field="line",
                value=text.strip(),
                reason=f"is no JSON ({error})",
                remedy="mend or delete the line",
            ) from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise problem(
                source=place,
                field="text",
                value=row,
                reason="is missing",
                remedy='write {"text": ...}',
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
        id_ = str(row.get("id", f"{number:05d}"))
        if Path(id_).name != id_ or id_ in ids or id_.startswith("."):
            raise problem(
                source=place,
                field="id",
                value=id_,
                reason="is no name for a file, or taken",
                remedy="give plain names, each once",
            )
        ids.add(id_)
        wanted = {name: row.get(name, getattr(options, name)) for name in _OPTIONS}
        if wanted["reference_audio"] is not None:
            try:
                found = audio.resolve(
                    wanted["reference_audio"], folders=[path.resolve().parent, Path.cwd()]
                )
            except audio.AudioError as error:
                raise problem(
                    source=place,
                    field="reference_audio",
                    value=error.path,
                    reason=error.reason,
                    remedy=error.remedy,
                ) from None
            wanted["reference_audio"] = str(found)
        flags = (
            options.model,
            options.adapters,
            options.temperature,
            options.top_k,
            options.top_p,
            options.raw_text,
        )
        said = json.dumps([row["text"], wanted, row.get("seed", seed), options.max_audio_s, *flags])
        key = hashlib.sha256(said.encode()).hexdigest()[:32]
        yield Line(place, id_, row["text"], wanted, row.get("seed", seed), key)


def _spoken_before(folder: Path) -> dict[str, dict[str, Any]]:
    """id -> its last line in RESULTS. Damaged lines are none; one that was being written when the
    run ended goes.

    Raises UserError if the file holds no line of ours: somebody else's is not written to.
    """
    path = folder / RESULTS
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    rows: dict[str, dict[str, Any]] = {}
    for line in whole.splitlines():
        with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError):
            row = json.loads(line)
            rows[str(row["id"])] = {"key": str(row["key"]), "sha256": row.get("sha256")}
    begins_like_ours = content[: len(_BEGINNING)] == _BEGINNING[: len(content)]
    if not rows and (whole or not begins_like_ours):
        reason = f"holds a {RESULTS} that is not from this command"
        raise problem(
            source="options",
            field="output_dir",
            value=str(folder),
            reason=reason,
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
