"""Who speaks when: the speech of all recordings -> speakers. Needs the package resemblyzer, and
with it torch: imported only where `--diarize` asks for it.

In: sound at 16 kHz. Out: embeddings (`SIZE`,) of length 1 of each span of speech; of all spans
together the speaker of each, how surely, and whether two share it. Speech of one voice has a cosine
of 0.7 to 0.95 with its own in spans of two seconds and more, with another's 0.5 to 0.7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugins.errors import problem
from plugins.prepare.slicing.tape import HEARING_HZ, Span

SIZE = 256
_MARGIN_S = 0.1  # around speech
_CLEAR_S = 1.5  # shorter speech hardly tells whose it is: it is compared with those that do
# One less the cosine, of groups of spans: measured 0.32 and more between two voices, 0.24 and less
# within one.
_TWO_VOICES = 0.28
_FEWEST = 0.02  # share of the spans; fewer are laughter and noise, not another speaker
_MOST_COMPARED = 3000  # spans that are compared with all others; more of them would take hours
_SPREAD = 0.04  # cosine: what spans of one voice differ by


class VoiceMeter:
    """Raises UserError if resemblyzer is missing."""

    def __init__(self) -> None:
        try:
            from resemblyzer import VoiceEncoder
        except ImportError:
            remedy = "run: pip install --no-deps resemblyzer==0.1.4 webrtcvad-wheels librosa"
            raise problem(
                source="--diarize",
                field="package",
                value="resemblyzer",
                reason="is not installed",
                remedy=remedy,
            ) from None
        self._encoder: Any = VoiceEncoder("cpu", verbose=False)

    def voices(self, heard: np.ndarray, speech: Sequence[Span]) -> np.ndarray:
        """Of each span of `speech` in `heard` (N,), (spans, 3, `SIZE`): the whole, and its first
        and its last 1.6 s, which are the same in shorter ones."""
        embeddings = np.zeros((len(speech), 3, SIZE), np.float32)
        for i, (start_s, end_s) in enumerate(speech):
            start = max(0, round((start_s - _MARGIN_S) * HEARING_HZ))
            end = round((end_s + _MARGIN_S) * HEARING_HZ)
            whole, parts, _ = self._encoder.embed_utterance(heard[start:end], return_partials=True)
            embeddings[i] = whole, parts[0], parts[-1]
        return embeddings


@dataclass(frozen=True)
class Speakers:
    """Of each span: indices, 0 for the one who speaks first; sureness, 0 to 1; shared: whether one
    begins it and another ends it."""

    indices: list[int]
    sureness: list[float]
    shared: list[bool]
    expected_purity: float  # share of the time that is under the right speaker

    @property
    def count(self) -> int:
        return max(self.indices, default=-1) + 1


def speakers_of(voices: np.ndarray, durations_s: Sequence[float], number: int | None) -> Speakers:
    """Of spans with `voices` (spans, 3, `SIZE`), as `VoiceMeter` measures them. number: how many
    there are; None: as many as can be told apart."""
    if not len(voices):
        return Speakers([], [], [], 1.0)
    edges, voices = voices[:, 1:], voices[:, 0]
    sample = np.flatnonzero(np.asarray(durations_s) >= _CLEAR_S)
    if len(sample) < 2:
        sample = np.arange(len(voices))
    if len(sample) > _MOST_COMPARED:
        sample = np.sort(np.random.default_rng(0).choice(sample, _MOST_COMPARED, replace=False))
    labels = _clustered(voices[sample], number)
    centres = _centres(voices[sample], labels, 0.0 if number else _FEWEST)
    for _ in range(10):
        owners = np.argmax(voices @ centres.T, axis=1)
        kept = sorted(set(owners.tolist()), key=owners.tolist().index)  # in order of appearance
        centres = np.stack([_unit(voices[owners == owner].sum(0)) for owner in kept])
    cosines = voices @ centres.T
    indices = np.argmax(cosines, axis=1)
    # As if each voice were spread evenly around its centre.
    likely = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / _SPREAD)
    sureness = 1 / likely.sum(axis=1)
    purity = float(np.average(sureness, weights=np.maximum(durations_s, 1e-3)))
    shared = _shared(edges, centres)
    return Speakers(indices.tolist(), sureness.round(4).tolist(), shared, round(purity, 4))


def _shared(edges: np.ndarray, centres: np.ndarray) -> list[bool]:
    """Of the `edges` (spans, 2, `SIZE`) of each span, whether they are of two voices.

    Of Asterisk's and flite's sentences, one after the other without a pause, each edge is nearer to
    its own voice by 0.13 and more; of a sentence of one voice both are so by 0.11 and more."""
    cosines = edges @ centres.T
    first, last = np.argmax(cosines, axis=2).T
    shared = []
    for i, (a, b) in enumerate(zip(first, last, strict=True)):
        margins = cosines[i, 0, a] - cosines[i, 0, b], cosines[i, 1, b] - cosines[i, 1, a]
        shared.append(bool(min(margins) > _SPREAD))
    return shared


def _centres(voices: np.ndarray, labels: np.ndarray, fewest: float) -> np.ndarray:
    """Of the clusters that hold a share of `fewest` or more, (clusters, `SIZE`)."""
    names, counts = np.unique(labels, return_counts=True)
    large = names[(counts >= fewest * len(labels)) | (counts == counts.max())]
    return np.stack([_unit(voices[labels == name].sum(axis=0)) for name in large])


def _clustered(voices: np.ndarray, number: int | None) -> np.ndarray:
    """A label for each of `voices`: average linkage by cosine."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    if len(voices) < 2 or number == 1:
        return np.zeros(len(voices), np.int64)
    distances = np.maximum(pdist(voices, "cosine"), 0)
    tree = linkage(distances, "average")
    if number is not None:
        return np.asarray(fcluster(tree, number, "maxclust"))
    return np.asarray(fcluster(tree, _TWO_VOICES, "distance"))


def _unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-6))
