"""Takes of one prompt: what was said, what was heard in it, and which is the best.

In: the speech of each take, or why there is none, and a `Judge`. It speaks nothing itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from plugins.data.dialogue import Dialogue
from plugins.data.text import SPEAKER_TAG
from plugins.errors import UserError
from plugins.hearing.takes import Judge, Take, best_first, failed_take
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech
from plugins.speaking.voices import last_text


@dataclass(frozen=True)
class Takes:
    """All takes of one prompt, in the order of their seeds."""

    speeches: list[Speech | UserError]
    heard: list[Take]
    order: list[int]  # their numbers, the best first

    @property
    def best(self) -> Speech | UserError:
        """With what was heard in all of them; why there is none if none says anything."""
        speech = self.speeches[self.order[0]]
        if isinstance(speech, UserError):
            return speech
        return replace(speech, takes=tuple(self.heard))


def judged(
    dialogue: Dialogue,
    speeches: Sequence[Speech | UserError],
    samplings: Sequence[Sampling],
    judge: Judge,
    *,
    reference: str | None = None,
) -> Takes:
    """reference: what the voices are compared with where `dialogue` does not clone one."""
    text, reference = last_text(dialogue), _voice_in(dialogue) or reference
    heard: list[Take] = []
    for speech, sampling in zip(speeches, samplings, strict=True):
        if isinstance(speech, UserError):
            heard.append(failed_take(sampling.seed))
            continue
        take = judge.hear(
            text,
            speech.audio,
            speech.sample_rate,
            stopped=speech.stopped,
            seed=sampling.seed,
            reference=reference,
        )
        heard.append(take)
    order = best_first(heard)
    heard[order[0]] = replace(heard[order[0]], is_best=True)
    return Takes(list(speeches), heard, order)


def _voice_in(dialogue: Dialogue) -> str | None:
    """The recording of whoever speaks next; None if that cannot be told."""
    paths = [reference.clip.path for reference in dialogue.references]
    if len(paths) < 2:
        return paths[0] if paths else None
    tag = SPEAKER_TAG.match(last_text(dialogue))
    if tag is None:
        return None  # of several voices any may be meant
    number = int(re.sub(r"\D", "", tag[0]))
    return paths[number] if number < len(paths) else None
