"""Which language is heard, and told, by a recogniser that knows several."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from plugins.errors import UserError
from plugins.hearing.recogniser import known_code
from plugins.prepare.slicing import hearing
from plugins.prepare.slicing.hearing import WordRecogniser

SAMPLES = np.zeros(16_000, np.float32)


class Model:
    """As faster-whisper's: hears `language` with that certainty, and writes in the asked one."""

    def __init__(self, language: str, certainty: float, *, multilingual: bool = True) -> None:
        self.model = SimpleNamespace(is_multilingual=multilingual)
        self.asked: list[str | None] = []
        self._heard, self._certainty = language, certainty

    def transcribe(self, samples: np.ndarray, *, language: str | None, **_: Any) -> Any:
        self.asked.append(language)
        if self._certainty < 0:
            raise RuntimeError("CUDA failed with error out of memory")
        spoken = language or self._heard
        word = SimpleNamespace(word=f" {spoken}", start=0.0, end=0.5, probability=0.9)
        info = SimpleNamespace(language=spoken, language_probability=self._certainty)
        return iter([SimpleNamespace(words=[word]), SimpleNamespace(words=None)]), info


def recogniser(model: Model, language: str, *, is_told: bool) -> WordRecogniser:
    made = WordRecogniser.__new__(WordRecogniser)
    made._model, made._beam_size, made._device = model, 1, "cuda"
    made.language, made.is_told = language, is_told
    return made


@pytest.mark.parametrize(
    ("heard", "certainty", "told", "words", "language", "asked"),
    [
        ("de", 0.99, "de", " de", "de", [None]),
        ("fr", 0.99, "de", " fr", "fr", [None]),  # another one, surely: named, in its own words
        ("nl", 0.4, "de", " de", "de", [None, "de"]),  # who knows: what the user said
        ("de", 0.4, "de", " de", "de", [None, "de"]),
        ("fr", 0.99, None, " fr", "fr", [None]),
        ("fr", 0.4, None, " fr", None, [None]),
    ],
)
def test_languages(
    heard: str,
    certainty: float,
    told: str | None,
    words: str,
    language: str | None,
    asked: list[str | None],
) -> None:
    model = Model(heard, certainty)
    found = recogniser(model, told or "en", is_told=told is not None).words(SAMPLES)
    assert [word.text for word in found.words] == [words]
    assert found.language == language
    assert model.asked == asked


def test_who_knows_one_language_is_not_asked_which() -> None:
    model = Model("en", 1.0, multilingual=False)
    assert recogniser(model, "en", is_told=True).words(SAMPLES).language == "en"
    assert model.asked == ["en"]


def test_a_device_that_fails_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"'cuda' failed while it listened \(CUDA.*smaller --asr"):
        recogniser(Model("en", -1.0), "en", is_told=True).words(SAMPLES)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("de", "de"),
        ("DE", "de"),
        ("de_AT", "de"),
        ("de-DE ", "de"),
        ("cn", "zh"),
        ("English", "en"),
    ],
)
def test_a_language_goes_by_its_code(said: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that no recogniser has would make every clip one of another language."""
    monkeypatch.setattr(hearing, "require_packages", lambda option, shipped: None)
    monkeypatch.setattr(hearing, "model_folder", Path)
    monkeypatch.setattr(hearing, "identity_of", str)
    listener = hearing.listener(asr="large", language=said, beam=5, device="cpu")
    assert listener.language == code


def test_a_language_that_is_not_known_is_told() -> None:
    made = recogniser(Model("en", 1.0), "en", is_told=True)
    made._model.supported_languages = ["en", "de"]
    assert known_code("de_DE", made, source="--language") == "de"
    with pytest.raises(UserError, match="--language: language: 'klingon' is no language that"):
        known_code("klingon", made, source="--language")
