"""Items and what was heard -> scores: arithmetic only, nothing is loaded and nothing drawn.

Of one clip, `None` where there is nothing to say:

| score               | meaning                                                                   |
|---------------------|---------------------------------------------------------------------------|
| `wer`, `cer`        | errors per word and character, Whisper-style, pooled over items           |
| `wer_seed`          | Seed-TTS-style, averaged over items; of Chinese by character              |
| `similarity`        | cosine of the voice and the reference's, else the speaker's other truths' |
| `similarity_others` | mean cosine of the voice and each other `speaker`'s mean                  |
| `dnsmos`            | predicted overall quality, 1 to 5                                         |
| `distillmos`        | predicted quality, 1 to 5                                                 |
| `duration_ratio`    | seconds per second of the truth                                           |
| `stopped`           | 1 if the model ended by itself, 0 if it was cut or failed                 |
| `silence`           | share of silent frames                                                    |

A failure has all words wrong and has not stopped; it has no voice and no quality.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plugins.evaluation.items import Item
from plugins.evaluation.run import Clip, Heard
from plugins.evaluation.statistics import Score
from plugins.hearing.scorers import cosine
from plugins.hearing.text import character_errors, seed_style, whisper_style, word_errors


@dataclass(frozen=True)
class Metric:
    """One score. scorer: which hears what it is made of. weight: the field that the mean is
    weighted by."""

    name: str
    title: str
    better: Literal["lower", "higher", "as the truth"]
    scorer: str
    weight: str | None = None


METRICS = (
    Metric("wer", "WER", "lower", "transcript", "words"),
    Metric("cer", "CER", "lower", "transcript", "characters"),
    Metric("wer_seed", "WER, Seed-TTS-style", "lower", "transcript"),
    Metric("similarity", "speaker similarity", "higher", "voice"),
    Metric("similarity_others", "similarity to other speakers", "lower", "voice"),
    Metric("dnsmos", "DNSMOS", "higher", "dnsmos"),
    Metric("distillmos", "DistillMOS", "higher", "distillmos"),
    Metric("duration_ratio", "duration / truth", "as the truth", "sound"),
    Metric("stopped", "stopped by itself", "higher", "sound"),
    Metric("silence", "silence share", "as the truth", "sound"),
)


def score(
    items: Sequence[Item],
    columns: Mapping[str, Sequence[Clip]],
    heard: Mapping[Path, Heard],
    *,
    language: str,
    transcribed: bool,
) -> list[dict[str, Any]]:
    """One row per item: `id`, `text`, `speaker`, and under `systems` the scores of each column's
    clip.

    transcribed: whether there was somebody to hear words; failures cost words only then.
    """
    voices = _Voices(items, heard)
    # An item has its row even if no system has said it: rows are paired by position.
    rows = []
    for number, item in enumerate(items):
        truth = {} if item.truth is None else heard.get(Path(item.truth), {})
        anchor, others = voices.anchor(item), voices.others(item)
        systems = {}
        for name, clips in columns.items():
            clip = clips[number]
            if clip.path is None and clip.error is None:
                continue  # there is no truth to have a column of
            sounds: Heard = {}
            if clip.path is not None:
                sounds = heard.get(clip.path, {})
            error = clip.error or sounds.get("error")
            scores = {"file": clip.path, "error": error}
            if transcribed:
                transcript = "" if error else sounds["transcript"]
                scores |= _word_scores(item.text, transcript, language)
            scores |= _voice_scores(sounds.get("voice"), anchor, others)
            for scorer in ("dnsmos", "distillmos"):
                scores[scorer] = sounds.get(scorer)
            scores |= _sound_scores(sounds.get("sound"), truth.get("sound"))
            scores["stopped"] = None if clip.stopped is None else float(clip.stopped and not error)
            if clip.takes:
                scores["takes"] = list(clip.takes)
            systems[name] = scores
        rows.append({"id": item.id, "text": item.text, "speaker": item.speaker, "systems": systems})
    return rows


def column(rows: Sequence[Mapping[str, Any]], system: str, metric: Metric) -> list[Score | None]:
    """Of one system, by item, as `plugins.evaluation.statistics` takes them."""
    scores: list[Score | None] = []
    for row in rows:
        said = row["systems"].get(system, {})
        value = said.get(metric.name)
        weight = 1.0
        if metric.weight is not None:
            weight = said.get(metric.weight, 0)
        # An item without a weight counts nothing in the mean: it has no score.
        scores.append((float(value), float(weight)) if value is not None and weight else None)
    return scores


def _word_scores(text: str, transcript: str, language: str) -> dict[str, Any]:
    scores: dict[str, Any] = {"transcript": transcript}
    asked, heard = whisper_style(text, language), whisper_style(transcript, language)
    errors, words = word_errors(asked, heard)
    wrong, characters = character_errors(asked, heard)
    if words:
        scores |= {"wer": errors / words, "words": words}
        scores |= {"cer": wrong / characters, "characters": characters}
    errors, units = word_errors(seed_style(text, language), seed_style(transcript, language))
    if units:
        scores["wer_seed"] = errors / units
    return scores


def _voice_scores(
    voice: list[int] | None, anchor: np.ndarray | None, others: list[np.ndarray]
) -> dict[str, Any]:
    if voice is None:
        return {}
    scores: dict[str, Any] = {"similarity": None, "similarity_others": None}
    if anchor is not None:
        scores["similarity"] = cosine(voice, anchor)
    if others:
        # Exact in any order, so that more speakers do not change the last digit by their order.
        total = math.fsum(cosine(voice, other) for other in others)
        scores["similarity_others"] = total / len(others)
    return scores


def _sound_scores(
    sound: Mapping[str, float] | None, truth: Mapping[str, float] | None
) -> dict[str, Any]:
    if sound is None:
        return {}
    ratio = None if truth is None else sound["duration_s"] / truth["duration_s"]
    return {"duration_s": sound["duration_s"], "duration_ratio": ratio, "silence": sound["silence"]}


class _Voices:
    """Embeddings of recordings, (dimensions,) int64: of references, and of truths by speaker."""

    def __init__(self, items: Sequence[Item], heard: Mapping[Path, Heard]) -> None:
        self._references: dict[str, np.ndarray | None] = {}
        self._truths: dict[str, np.ndarray | None] = {}
        # Without names there is one speaker, None.
        self._ids_of: dict[str | None, list[str]] = defaultdict(list)
        for item in items:
            self._references[item.id] = _voice(item.reference, heard)
            self._truths[item.id] = _voice(item.truth, heard)
            self._ids_of[item.speaker].append(item.id)

    def anchor(self, item: Item) -> np.ndarray | None:
        """What the item's voice is compared with."""
        reference = self._references[item.id]
        if reference is not None or item.reference is not None:
            return reference
        # Not the item's own: a copy of what is to be said is no voice to compare it with.
        ids = self._ids_of[item.speaker]
        return _mean([self._truths[id_] for id_ in ids if id_ != item.id])

    def others(self, item: Item) -> list[np.ndarray]:
        """The mean voice of each other speaker, if speakers are named."""
        if item.speaker is None:
            return []
        means = []
        for speaker, ids in self._ids_of.items():
            if speaker in (None, item.speaker):
                continue
            voices = []
            for id_ in ids:
                voices += [self._truths[id_], self._references[id_]]
            mean = _mean(voices)
            if mean is not None:
                means.append(mean)
        return means


def _voice(path: str | None, heard: Mapping[Path, Heard]) -> np.ndarray | None:
    if path is None:
        return None
    voice = heard.get(Path(path), {}).get("voice")
    return None if voice is None else np.array(voice, dtype=np.int64)


def _mean(voices: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [voice for voice in voices if voice is not None]
    if not known:
        return None
    # Whole numbers again, for the exact products of `cosine`.
    return np.rint(np.sum(known, axis=0) / len(known)).astype(np.int64)
