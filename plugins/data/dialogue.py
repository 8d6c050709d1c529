"""The nouns between a row and a batch: who says what, with which clips, and what the model reads.

    row --rows--> Dialogue --clips--> Dialogue with codes --prompt--> EncodedSample --> collator

Dimensions: K codebooks, F codec frames of a clip, N samples of a waveform, S sequence positions. It
knows neither files nor tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from plugins.audio.waveforms import AudioInfo
from plugins.data.wording import INSTRUCTION


@dataclass(frozen=True)
class AudioClip:
    """One clip: where it comes from and, once they are known, its codes."""

    path: str | None = None
    codes: Tensor | None = None  # (K, F) int64
    # (N,) float32 at 16 kHz: only of clips that an audio tower hears.
    waveform: Tensor | None = None
    # Of the file at `path`, once it was opened: so no check opens it again.
    header: AudioInfo | None = None
    # Of codes that come from the cache:
    key: str | None = None
    codec: str | None = None  # the fingerprint of the one that made them
    encoded_ns: int = 0  # when the cache was written (ns since the epoch)


@dataclass(frozen=True)
class Turn:
    """What one speaker of the conversation says."""

    role: Literal["user", "assistant"]
    parts: tuple[str | AudioClip, ...]  # texts and clips in order
    trained: bool = False

    def clips(self) -> Iterator[AudioClip]:
        for part in self.parts:
            if isinstance(part, AudioClip):
                yield part

    def map_clips(self, change: Callable[[AudioClip], AudioClip]) -> Turn:
        parts: list[str | AudioClip] = []
        for part in self.parts:
            parts.append(change(part) if isinstance(part, AudioClip) else part)
        return replace(self, parts=tuple(parts))


@dataclass(frozen=True)
class Reference:
    """A voice to clone."""

    clip: AudioClip
    # Its transcript, which makes it a finished turn pair. Without, it stands in the scene.
    text: str | None = None

    def map_clip(self, change: Callable[[AudioClip], AudioClip]) -> Reference:
        return replace(self, clip=change(self.clip))


@dataclass(frozen=True)
class Dialogue:
    """One training row or one request, in the model's own terms."""

    turns: tuple[Turn, ...]
    references: tuple[Reference, ...] = ()
    instruction: str | None = INSTRUCTION  # None: no system turn at all
    scene: str | None = None
    source: str = "request"  # `file:line` of the row, for error messages

    def clips(self) -> Iterator[AudioClip]:
        """Every clip, references first."""
        for reference in self.references:
            yield reference.clip
        for turn in self.turns:
            yield from turn.clips()

    def targets(self) -> Iterator[AudioClip]:
        """The clips that are trained."""
        for turn in self.turns:
            if turn.trained:
                yield from turn.clips()

    def map_clips(self, change: Callable[[AudioClip], AudioClip]) -> Dialogue:
        """The same dialogue with every clip replaced by `change(clip)`."""
        turns = tuple(turn.map_clips(change) for turn in self.turns)
        references = tuple(reference.map_clip(change) for reference in self.references)
        return replace(self, turns=turns, references=references)

    def map_heard(self, change: Callable[[AudioClip], AudioClip]) -> Dialogue:
        """The same dialogue with every clip that stands in the system message replaced by
        `change(clip)`."""
        references = list(self.references)
        for i, reference in enumerate(references):
            if reference.text is None:
                references[i] = reference.map_clip(change)
        return replace(self, references=tuple(references))


@dataclass(frozen=True)
class EncodedSample:
    """One sequence before collation. Clips are not delayed yet: the collator does that."""

    input_ids: list[int]  # (S,)
    labels: list[int]  # (S,), -100 where not trained; not shifted
    clips: list[Tensor] = field(default_factory=list)  # (K, F) each, as their placeholders stand
    clips_trained: list[bool] = field(default_factory=list)  # one per clip
    source: str = "request"
    # (N,) each, for the audio tower, in the order of the system message.
    heard: list[Tensor] = field(default_factory=list)
