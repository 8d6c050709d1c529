"""Prepared clips of two voices -> the rows that a model learns by heart, and those that it is asked
for.

Every sentence is there in both voices, so a row says which one is meant:

    plain      the text alone: the first half of the sentences are hers, the second half his
    cloned     a reference, another sentence of the voice that is meant
    dialogue   [SPEAKER0] for her, [SPEAKER1] for him

A reference is the sentence that stands STEPS further on in the list; a partner of a dialogue, as
many. What is asked for has a step that was never trained, so that to know the row by heart is not
enough: the reference must be heard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

TRAINED_STEPS = (1, 3, 6)
DIALOGUE_STEPS = (2, 5)
ASKED_STEP = 4

Row = Mapping[str, Any]


def by_voice(clips: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows of prepare_dataset.py -> hers and his, the same sentences in the same order."""
    first = clips[0]["speaker"]
    hers: list[Row] = []
    his: list[Row] = []
    for clip in clips:
        voice = hers if clip["speaker"] == first else his
        voice.append(clip)
    # The rows pair the voices by place.
    assert list(map(text_of, hers)) == list(map(text_of, his)), "both voices read the same list"
    return hers, his


def text_of(clip: Row) -> str:
    """What is said in it."""
    return str(clip["messages"][0]["content"])


def trained(clips: Sequence[Row]) -> Iterator[Row]:
    """All training rows."""
    hers, his = by_voice(clips)
    yield from plain(clips)
    for step, voice in product(TRAINED_STEPS, (hers, his)):
        for i in range(len(voice)):
            yield _after(voice, i, step)
    for step in DIALOGUE_STEPS:
        for i, clip in enumerate(hers):
            yield _dialogue(clip, his[(i + step) % len(his)])


def plain(clips: Sequence[Row]) -> list[Row]:
    """Each sentence in the voice that it has when nobody is named."""
    hers, his = by_voice(clips)
    half = len(hers) // 2
    return list(map(_named, (*hers[:half], *his[half:])))


def cloned(clips: Sequence[Row]) -> list[Row]:
    """Each sentence in the *other* voice, after a reference that it was never trained with."""
    hers, his = by_voice(clips)
    half = len(hers) // 2
    # The first half is hers when nobody is named: see `plain`.
    voices = [his] * half + [hers] * (len(hers) - half)
    return [_after(voice, i, ASKED_STEP) for i, voice in enumerate(voices)]


def lines(clips: Sequence[Row]) -> list[dict[str, str]]:
    """A dialogue of two sentences that were never trained together."""
    hers, his = by_voice(clips)
    pair = (hers[0], his[ASKED_STEP])
    return [{"speaker": str(clip["speaker"]), "text": text_of(clip)} for clip in pair]


def _named(clip: Row) -> Row:
    """With an id that a reader of reports knows: the stem of its file."""
    return {**clip, "id": Path(clip["audios"][0]).stem}


def _after(voice: Sequence[Row], i: int, step: int) -> Row:
    # Past the end of the list its beginning follows.
    clip, reference = _named(voice[i]), _named(voice[(i + step) % len(voice)])
    return {
        **clip,
        "id": f"{clip['id']}_after_{reference['id']}",
        "reference_audio": reference["audios"],
        "reference_text": [text_of(reference)],
        "reference_codes": reference["audio_codes"],
    }


def _dialogue(*clips: Row) -> Row:
    messages = []
    for i, clip in enumerate(clips):
        messages += [
            {"role": "user", "content": f"[SPEAKER{i}] {text_of(clip)}"},
            {"role": "assistant", "content": ""},
        ]
    # No column `speaker`: there are two.
    return {
        "id": "_then_".join(_named(clip)["id"] for clip in clips),
        "messages": messages,
        "audios": list(chain.from_iterable(clip["audios"] for clip in clips)),
        "audio_codes": list(chain.from_iterable(clip["audio_codes"] for clip in clips)),
    }
