"""Clips that are fit otherwise -> what is heard in each, in parallel and restartable.

In: utterances with their outcomes. Out: the same without those whose transcript is not what is
said, which are `Rejected`, and a `Finding` for each clip. One model serves `num_workers` threads,
so that memory holds its weights once, and a clip for each.

What was heard depends on recording, recogniser and language alone: it goes into the journal of the
run as soon as it is there, and from the finished run into ``x.transcripts.jsonl``. Another limit,
or a corrected text, is judged without listening again."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from plugins.audio.waveforms import AudioError, load
from plugins.corpora import Rejected, Utterance
from plugins.errors import problem
from plugins.hearing import recogniser as recognisers
from plugins.prepare.clips import File, Outcome
from plugins.prepare.run import journal_line, read_journal
from plugins.prepare.transcripts import (
    MAX_CER,
    Finding,
    Hearing,
    best_of,
    fault_of,
    is_doubtful,
    name_swapped,
    rejected,
)

_OPTION = "--check_transcripts"
_MAX_ON_GPU = 4  # threads: each has buffers of its own on the device
_MAX_LINE = 1 << 24  # bytes
Fit = Sequence[tuple[Utterance, Outcome]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Clip:
    """One recording to be heard. owner: the number of its utterance."""

    owner: int
    utterance: Utterance  # or a turn of one
    file: File
    language: str
    key: str


class Listener:
    """What `--check_transcripts` does; afterwards `findings` has all clips, in their order.

    asr: folder or Hub id of a faster-whisper model; None: the English one of the package. language:
    that of all clips; None: what each names. beam: of the second hearing of what is in doubt.
    Raises UserError if a package or the model is not there: before anything is read."""

    def __init__(
        self,
        *,
        max_cer: float,
        asr: str | None,
        language: str | None,
        beam: int,
        device: str,
        workers: int,
    ) -> None:
        recognisers.require_packages(_OPTION, shipped=asr is None)
        self.max_cer, self._language, self._device = max_cer, language, device
        self._beam = beam
        self._workers = max(1, workers if device == "cpu" else min(workers, _MAX_ON_GPU))
        self._folder = recognisers.shipped_model() if asr is None else recognisers.model_folder(asr)
        self.findings: list[Finding] = []

    def check(
        self, fit: Fit, *, journal: Path, before: Path
    ) -> tuple[list[tuple[Utterance, Outcome]], list[Rejected]]:
        """Those whose transcript is what is said, and the others.

        before: the findings of an earlier run, if there are any. Raises UserError for a language
        that the model does not know, or none where it knows many."""
        recogniser = recognisers.Recogniser(
            self._folder, device=self._device, num_workers=self._workers
        )
        clips = self._clips(fit, recogniser)
        known = _earlier(before) | _hearings(read_journal(journal))
        findings: list[Finding] = []
        unreadable: dict[int, AudioError] = {}

        def hear(clip: _Clip) -> Finding | AudioError:
            try:
                return self._finding(clip, known.get(clip.key, Hearing()), recogniser)
            except AudioError as error:
                return error

        with (
            journal.open("ab") as file,
            tqdm(total=len(clips), desc="listening", unit="clip", disable=None) as bar,
        ):
            for clip, finding in _in_threads(hear, clips, self._workers):
                bar.update()
                if isinstance(finding, AudioError):
                    unreadable[clip.owner] = finding
                    continue
                findings.append(finding)
                if finding.hearing != known.get(clip.key):
                    file.write(journal_line(clip.key, finding.hearing.to_json()))
                    file.flush()  # to the kernel, which a killed process leaves behind
        self.findings = name_swapped(findings, self.max_cer)
        return self._divided(fit, unreadable)

    def _clips(self, fit: Fit, recogniser: recognisers.Recogniser) -> list[_Clip]:
        identity = f"{recogniser.identity()}, beam {self._beam}"
        clips = []
        for number, (utterance, outcome) in enumerate(fit):
            # A clip has its augmented copies behind it, which say the same.
            for turn, file in zip(utterance.turns or (utterance,), outcome.files, strict=False):
                language = self._language_of(turn, recogniser)
                key = _key(file, identity, language)
                clips.append(_Clip(number, turn, file, language, key))
        return clips

    def _language_of(self, utterance: Utterance, recogniser: recognisers.Recogniser) -> str:
        language, source = self._language, "--language"
        if language is None and utterance.language is not None:
            source, language = utterance.place, utterance.language
        if language is None:
            if not recogniser.is_multilingual:
                return "en"
            reason = "is named neither by the corpus nor by --language"
            raise problem(
                source=utterance.place,
                field="language",
                value=None,
                reason=reason,
                remedy="name it, e.g. --language de",
            )
        return recognisers.known_code(language, recogniser, source=source)

    def _finding(
        self, clip: _Clip, hearing: Hearing, recogniser: recognisers.Recogniser
    ) -> Finding:
        """Listens only for what `hearing`, an earlier one, has not. Raises AudioError."""
        text, language = clip.utterance.text, clip.language
        samples: np.ndarray | None = None

        def heard(beam_size: int) -> Hearing:
            nonlocal samples
            if samples is None:
                samples = load(clip.file.audio, sample_rate_hz=recognisers.RATE_HZ)
            words = recogniser.hear(samples, language, beam_size=beam_size)
            return replace(hearing, texts=(*hearing.texts, words))

        if not hearing.texts:
            hearing = heard(1)
        words, comparison = best_of(text, hearing.texts, language)
        if is_doubtful(comparison) and len(hearing.texts) == 1 and self._beam > 1:
            hearing = heard(self._beam)
            words, comparison = best_of(text, hearing.texts, language)
        if comparison.cer > MAX_CER and hearing.spoken is None and recogniser.is_multilingual:
            if samples is None:
                samples = load(clip.file.audio, sample_rate_hz=recognisers.RATE_HZ)
            hearing = replace(hearing, spoken=recogniser.language_of(samples))
        fault = fault_of(comparison, self.max_cer, language, hearing)
        return Finding(
            owner=clip.owner,
            utterance=clip.utterance,
            audio=clip.file.audio,
            language=language,
            heard=words,
            comparison=comparison,
            hearing=hearing,
            key=clip.key,
            fault=fault,
        )

    def _divided(
        self, fit: Fit, unreadable: dict[int, AudioError]
    ) -> tuple[list[tuple[Utterance, Outcome]], list[Rejected]]:
        wrong: dict[int, Finding] = {}
        for finding in self.findings:
            if finding.fault is not None:
                wrong.setdefault(finding.owner, finding)
        kept, refused = [], []
        for number, (utterance, outcome) in enumerate(fit):
            if error := unreadable.get(number):
                refused.append(
                    Rejected(utterance.place, utterance.id, error.reason, str(error.path))
                )
            elif number in wrong:
                refused.append(rejected(utterance, wrong[number], self.max_cer))
            else:
                kept.append((utterance, outcome))
        return kept, refused


def _key(file: File, identity: str, language: str) -> str:
    """Of everything that a hearing depends on."""
    recording: list[Any] = [file.bytes_hash]
    if file.bytes_hash is None:
        # An original that has vanished since is found out when it is its turn.
        with suppress(OSError):
            status = os.stat(file.audio)
            recording = [file.audio, status.st_size, status.st_mtime_ns]
    parts = [recording, identity, language]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _earlier(path: Path) -> dict[str, Hearing]:
    """Key -> hearing of the findings in `path`, without damaged lines."""
    values: dict[str, Any] = {}
    if path.is_file():
        with path.open("rb") as file:
            while line := file.readline(_MAX_LINE):
                with suppress(LookupError, TypeError, ValueError, RecursionError):
                    row = json.loads(line)
                    values[row["key"]] = row["hearing"]
    return _hearings(values)


def _hearings(values: dict[str, Any]) -> dict[str, Hearing]:
    """Those of the `values` by key that are hearings: a journal has outcomes too."""
    hearings = {}
    for key, value in values.items():
        with suppress(LookupError, TypeError, ValueError):
            hearings[key] = Hearing.from_json(value)
    return hearings


def _in_threads(
    work: Callable[[_Clip], Result], clips: Sequence[_Clip], num_workers: int
) -> Iterator[tuple[_Clip, Result]]:
    """Each clip with what `work` makes of it, in order."""
    pending: deque[tuple[_Clip, Future[Result]]] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for clip in clips:
                pending.append((clip, pool.submit(work, clip)))
                if len(pending) > 4 * num_workers:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
