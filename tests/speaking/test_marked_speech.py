"""Whatever writes generated speech into a file says so in it, by whom, and leaves the samples as
they are. Other writers: tests of the commands, of samples, of the page and of MS-SWIFT."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from helpers.serving import lora_folders

from plugins.audio.marks import Maker, Mark, mark_in, wav_of
from plugins.inference import HiggsAudioGenerator
from plugins.model import makers
from plugins.model.makers import name_of
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import FORMATS, Speech

SAMPLING = Sampling(seed=1)


@pytest.fixture(scope="module")
def generator(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> HiggsAudioGenerator:
    adapters = lora_folders(tiny, tmp_path_factory.mktemp("loras"), "ann", "bob")
    return HiggsAudioGenerator.from_pretrained(str(tiny), adapters=adapters)


def say(generator: HiggsAudioGenerator) -> Speech:
    return generator.generate("Hello.", sampling=SAMPLING, max_audio_s=0.4)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_marked_and_its_samples_stay(
    generator: HiggsAudioGenerator, tmp_path: Path, suffix: str
) -> None:
    generator.use_adapter("bob")
    speech = say(generator)
    file, plain = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    speech.save(file)
    replace(speech, mark=None).save(plain)
    assert mark_in(file) == Mark.of_today("model", "bob")
    assert mark_in(plain) is None
    assert np.array_equal(sf.read(file)[0], sf.read(plain)[0])


def test_it_is_the_mark_of_who_speaks(generator: HiggsAudioGenerator, tmp_path: Path) -> None:
    for adapter in ("ann", None, "bob"):
        generator.use_adapter(adapter)
        stream = generator.stream("Hello.", sampling=SAMPLING, max_audio_s=0.4)
        list(stream)
        dialogue = [{"speaker": "A", "text": "Hi."}, {"speaker": "B", "text": "Hello."}]
        joined = generator.synthesize_multi_speaker(
            dialogue, sampling=SAMPLING, max_audio_s=0.4, output_path=tmp_path / "a.wav"
        )
        for speech in (say(generator), stream.speech, joined):
            assert speech.mark == Mark.of_today("model", adapter)
        assert mark_in(tmp_path / "a.wav") == joined.mark
        assert mark_in(io.BytesIO(joined.wav())) == joined.mark


def test_marks_are_turned_off_and_the_log_says_so(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the caller, or by the settings."""
    makers._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        generator = HiggsAudioGenerator.from_pretrained(str(tiny), marks=False)
    assert say(generator).mark is None
    assert caplog.text.count("marks are off") == 1
    monkeypatch.setenv("MARKS", "false")
    settings = HiggsAudioSettings.from_env()
    parts = (generator.model, generator.tokenizer)
    assert HiggsAudioGenerator(*parts, codec=generator.codec, settings=settings).maker(None) is None
    marked = HiggsAudioGenerator(*parts, codec=generator.codec, settings=settings, marks=True)
    assert marked.maker(None) == Maker("model")


def test_names_hold_no_place_of_this_machine(tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "models--org--a-model" / "snapshots" / ("0" * 40)
    for folder, name in (
        (tmp_path / "my-voice", "my-voice"),
        (tmp_path / "v0-2026" / "checkpoint-500", "v0-2026/checkpoint-500"),
        (hub, "org/a-model"),
    ):
        folder.mkdir(parents=True)
        assert name_of(str(folder)) == name
        assert name_of(f"{folder}/") == name
    (tmp_path / "last").symlink_to(tmp_path / "v0-2026" / "checkpoint-500")
    assert name_of(str(tmp_path / "last")) == "v0-2026/checkpoint-500"
    assert name_of("") == "?"


def test_a_copy_for_listeners_is_marked_as_its_file_is(
    generator: HiggsAudioGenerator, tmp_path: Path
) -> None:
    """Without names for a blind comparison: who listens is not to read which is which."""
    speech = say(generator)
    speech.save(tmp_path / "a.wav")
    replace(speech, mark=None).save(tmp_path / "b.wav")
    assert speech.mark is not None
    copy = io.BytesIO(wav_of(tmp_path / "a.wav"))
    assert mark_in(copy) == speech.mark
    blind = mark_in(io.BytesIO(wav_of(tmp_path / "a.wav", is_named=False)))
    assert blind is not None
    assert (blind.model, blind.adapter) == ("?", None)
    assert mark_in(io.BytesIO(wav_of(tmp_path / "b.wav", is_named=False))) is None
    copy.seek(0)
    assert np.array_equal(sf.read(copy)[0], sf.read(tmp_path / "a.wav")[0])
