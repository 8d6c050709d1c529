"""Clips -> samples of training, drawn by seed and number.

A sample is what the kit makes of a row, to the token: a few phrases of a voice, joined as codes,
after a scene that names the voice or names nobody; or two turns of one voice without a word about
whose it is, which is how a reference with its transcript stands before what is asked for."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from demo.recipes.base import phrases
from demo.recipes.base.corpus import VOICES, Clip
from plugins.data.dialogue import AudioClip, Dialogue, Turn
from plugins.data.text import clean_transcript
from plugins.data.wording import INSTRUCTION

_SHORT_PAUSE = 2  # frames that a comma has less than a point
_FRAMES = 240  # of a turn, at most
_NAMELESS = 0.5  # share of the samples in voices that only a reference can show


@dataclass(frozen=True)
class Sample:
    """A dialogue, and what its turns say."""

    dialogue: Dialogue
    turns: tuple[Clip, ...]

    @property
    def length(self) -> int:
        """Positions, about."""
        return sum(turn.codes.shape[1] + len(turn.text.split()) + 24 for turn in self.turns)


class Draw:
    """Samples of several voices. clips: by voice, those of VOICES and others without a name."""

    def __init__(self, clips: Mapping[str, Sequence[Clip]]) -> None:
        self._clips, self._short = clips, {}
        for voice, of_voice in clips.items():
            self._short[voice] = [clip for clip in of_voice if len(clip.text.split()) <= 3]
        self._named = [voice for voice in clips if voice in VOICES]
        self._others = [voice for voice in clips if voice not in VOICES]

    def sample(self, random: random.Random, *, short: bool = False) -> Sample:
        """short: of phrases of up to three words, so that there are many beginnings and ends."""
        nameless = bool(self._others) and random.random() < _NAMELESS
        voice = random.choice(self._others if nameless else self._named)
        clips = (self._short if short else self._clips)[voice]
        counts = (2, 3, 4) if short else (1, 1, 2, 2, 3)

        def turn() -> Clip:
            while True:
                joined = join(random.choices(clips, k=random.choice(counts)), random)
                # Where two phrases meet, too.
                if not phrases.gives_away(joined.text):
                    return joined

        form = random.random()
        if nameless or form < 0.45:
            return sample(turn(), turn(), instruction=None)
        if form < 0.55:
            # The model may choose.
            return sample(turn())
        return sample(turn(), scene=voice)


def sample(*turns: Clip, scene: str | None = None, instruction: str | None = INSTRUCTION) -> Sample:
    parts = []
    for turn in turns:
        clip = AudioClip(codes=torch.from_numpy(turn.codes.astype("i8")))
        parts += [Turn("user", (turn.text,)), Turn("assistant", (clip,), trained=True)]
    return Sample(Dialogue(tuple(parts), scene=scene, instruction=instruction), turns)


def join(clips: Sequence[Clip], random: random.Random) -> Clip:
    """Phrases one after the other, as sentences or with commas between them."""
    texts, codes, tokens, num_frames, num_tokens = [], [], [], 0, 0
    for i, clip in enumerate(clips):
        if num_frames + clip.codes.shape[1] > _FRAMES:
            break
        text, end = clip.text, clip.codes.shape[1]
        if i + 1 < len(clips) and text.endswith(".") and random.random() < 0.5:
            text, end = f"{text[:-1]},", end - _SHORT_PAUSE
        texts.append(text)
        codes.append(clip.codes[:, :end])
        tokens.append(num_tokens + clip.tokens[:end])
        num_frames += end
        num_tokens = tokens[-1][-1] + 1
    # A comma at the end: the phrase that it was for is too long.
    text = " ".join(texts).removesuffix(",")
    text = text if text[-1] in ".?" else f"{text}."
    text = clean_transcript(text[0].upper() + text[1:])
    return Clip(text, np.concatenate(codes, axis=1), np.concatenate(tokens))
