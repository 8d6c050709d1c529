"""Requests of all kinds, and the delayed frames that decoding gives for them."""

from __future__ import annotations

from typing import Any

import torch
from conftest import CORPUS
from torch import Tensor

from plugins.collator import collate
from plugins.data.dialogue import Dialogue
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.decoding import decode
from plugins.speaking.sampling import Sampling
from plugins.speaking.voices import Voice, request

VOICE = str(CORPUS / "wavs" / "DEMO-0002.flac")
GREEDY = Sampling(temperature=0)
# Of different lengths, with and without clips in the prompt, in turns and in the system message.
REQUESTS: list[tuple[str, str | None, list[Voice]]] = [
    ("Hello.", None, []),
    ("The harbour lights went out one by one.", "Indoor quiet", []),
    ("Hi.", None, [Voice(VOICE, "Glue the sheet.")]),
    ("A word.", None, [Voice(VOICE)]),
]


def dialogues(generator: HiggsAudioGenerator, *rows: int) -> list[Dialogue]:
    """Those `REQUESTS`, or all."""
    chosen = [REQUESTS[row] for row in rows or range(len(REQUESTS))]
    return [request(*parts, generator.settings) for parts in chosen]


def prompts(generator: HiggsAudioGenerator, spoken: list[Dialogue]) -> dict[str, Tensor]:
    """The batch that `decode` takes."""
    samples = list(map(generator.speaker.prompt, spoken))
    return collate(samples, generator.tokens, training=False)


def decoded(
    generator: HiggsAudioGenerator,
    spoken: list[Dialogue],
    max_steps: int,
    sampling: Sampling = GREEDY,
    **options: Any,
) -> list[Tensor]:
    """Delayed frames (T, K) of each dialogue, in one batch."""
    num_rows = len(spoken)
    frames: list[list[Tensor]] = [[] for _ in spoken]
    steps = decode(
        generator.model,
        prompts(generator, spoken),
        generator.tokens,
        [sampling] * num_rows,
        [max_steps] * num_rows,
        **options,
    )
    for rows, step in steps:
        for row, frame in zip(rows, step, strict=True):
            frames[row].append(frame)
    return list(map(torch.stack, frames))
