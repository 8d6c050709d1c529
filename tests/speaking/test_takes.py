"""`Sampling(best_of=N)`: takes with seeds of their own, of which the best is returned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.speaking import VOICE
from helpers.takes import Ears

from plugins.data.dialogue import AudioClip, Dialogue, Reference, Turn
from plugins.errors import UserError
from plugins.hearing.takes import Take
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling
from plugins.speaking.takes import _voice_in

TAKES = Sampling(temperature=1.0, seed=5, best_of=3)


@pytest.fixture(scope="module")
def generator(tiny: Path) -> HiggsAudioGenerator:
    generator = HiggsAudioGenerator.from_pretrained(str(tiny))
    generator.judge = Ears()
    return generator


class Fan(Ears):
    """Hears wrong words in all takes but that of one seed."""

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self.seed = seed

    def hear(self, text: str, samples: np.ndarray, rate_hz: int, **about: Any) -> Take:
        take = super().hear(text, samples, rate_hz, **about)
        return replace(take, wer=float(take.seed != self.seed))


def test_each_take_is_what_its_seed_says_alone(generator: HiggsAudioGenerator) -> None:
    """In float32 a seed says the same in any batch; the first take is the speech without takes."""
    seeds = [take.seed for take in TAKES.takes()]
    assert seeds[0] == TAKES.seed
    for number, seed in enumerate(seeds):
        generator.judge = Fan(seed)
        speech = generator.generate("Hello.", sampling=TAKES, max_audio_s=0.4)
        assert [take.seed for take in speech.takes] == seeds
        assert [take.is_best for take in speech.takes] == [number == n for n in range(3)]
        alone = Sampling(temperature=1.0, seed=seed)
        again = generator.generate("Hello.", sampling=alone, max_audio_s=0.4)
        assert torch.equal(again.codes, speech.codes)
        assert again.takes == ()


def test_seeds_of_takes() -> None:
    seeds = [take.seed for take in TAKES.takes()]
    assert seeds == [take.seed for take in TAKES.takes()], "the same in every run"
    assert seeds[:2] == [take.seed for take in Sampling(seed=5, best_of=2).takes()]
    assert len(set(seeds)) == 3
    drawn = [Sampling(best_of=2).takes()[0].seed for _ in range(2)]
    assert drawn[0] != drawn[1]
    (alone,) = Sampling().takes()
    assert alone.seed is None
    # Journals of evaluations hold it: those of before go on.
    assert repr(Sampling(best_of=1)) == repr(Sampling(best_of=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best_of": 0}, "best_of: 0 is below 1; give a number of takes"),
        ({"best_of": 2.0}, "best_of: 2.0 is no whole number"),
        ({"best_of": True}, "best_of: True is no whole number"),
        ({"best_of": 4, "temperature": 0}, "best_of: 4 takes are all the same at temperature 0"),
    ],
)
def test_what_are_no_takes(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**options)  # type: ignore[arg-type]


def test_takes_are_not_streamed(generator: HiggsAudioGenerator) -> None:
    with pytest.raises(UserError, match="best_of: 3 takes cannot be streamed"):
        generator.stream("Hello.", sampling=TAKES)


def test_each_piece_of_a_text_has_its_takes(generator: HiggsAudioGenerator) -> None:
    ears = generator.judge = Ears()
    texts = ["Hello there. Good bye now.", "Hi."]
    first, second = generator.generate(texts, sampling=TAKES, max_audio_s=0.4, max_chars=15)
    assert len(first.takes) == 6
    assert [take.is_best for take in first.takes].count(True) == 2
    assert len(second.takes) == 3
    assert [text for text, _ in ears.asked] == ["Hello there."] * 3 + ["Hi."] * 3 + [
        "Good bye now."
    ] * 3


def test_a_take_that_says_nothing_is_the_worst(
    generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = generator.speaker.codes_of
    calls = []

    def codes_of(delayed: object, dialogue: Dialogue) -> torch.Tensor:
        calls.append(None)
        if len(calls) != 2:
            raise UserError("request: text: gave no audio")
        return original(delayed, dialogue)  # type: ignore[arg-type]

    monkeypatch.setattr(generator.speaker, "codes_of", codes_of)
    speech = generator.generate("Hello.", sampling=TAKES, max_audio_s=0.4)
    assert [take.duration_s > 0 for take in speech.takes] == [False, True, False]
    assert [take.is_best for take in speech.takes] == [False, True, False]
    with pytest.raises(UserError, match="gave no audio"):
        generator.generate("Hello.", sampling=TAKES, max_audio_s=0.4)


def test_the_voice_that_takes_are_compared_with(generator: HiggsAudioGenerator) -> None:
    ears = generator.judge = Ears()
    generator.generate("Hi.", reference_audio=VOICE, sampling=TAKES, max_audio_s=0.2)
    assert {reference for _, reference in ears.asked} == {VOICE}

    def voice(text: str, *paths: str | None) -> str | None:
        references = tuple(Reference(AudioClip(path)) for path in paths)
        return _voice_in(Dialogue((Turn("user", (text,)),), references))

    assert voice("Hi.") is None
    assert voice("Hi.", "a") == "a"
    assert voice("[SPEAKER1] Hi.", "a", "b") == "b"
    assert voice("[SPEAKER2] Hi.", "a", "b") is None
    assert voice("Hi.", "a", "b") is None
