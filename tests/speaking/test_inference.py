"""The generator: typed results, references, limits, and errors in one line. Weights are random
here."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from helpers.speaking import GREEDY, VOICE

from plugins.cli import main
from plugins.data.dialogue import Dialogue, Turn
from plugins.delay_pattern import apply_delay
from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.settings import HiggsAudioSettings
from plugins.speaking.speech import Speech

SHORT: dict[str, Any] = {"max_audio_s": 0.4}
HELLO = Dialogue((Turn("user", ("Hello.",)),))


@pytest.fixture(scope="module")
def generator(tiny: Path) -> HiggsAudioGenerator:
    return HiggsAudioGenerator.from_pretrained(str(tiny))


def test_result_is_typed_and_indexable(generator: HiggsAudioGenerator, tmp_path: Path) -> None:
    result = generator.generate("Hello.", sampling=GREEDY, **SHORT)
    assert isinstance(result, Speech)
    assert result["audio"] is result.audio
    assert result.audio.dtype == np.float32
    assert result.sample_rate == 24_000
    assert result.codes.shape == (8, 10), "0.4 s at 25 frames per second"
    assert result.audio.shape == (9600,)
    assert not result.stopped, "cut at the limit"
    result.save(tmp_path / "a.wav")
    assert soundfile.info(tmp_path / "a.wav").frames == 9600


def test_model_and_tokenizer_of_ms_swift(tiny: Path) -> None:
    """The constructor of the seed document, with what today's MS-SWIFT loads."""
    from swift.model import get_model_processor

    from plugins.register import register_higgs_audio_all

    register_higgs_audio_all()
    model, tokenizer = get_model_processor(
        str(tiny), model_type="higgs-audio-v2-3b", torch_dtype=torch.float32
    )
    result = HiggsAudioGenerator(model, tokenizer).generate(
        "Hello.", scene_description="Indoor quiet", **SHORT
    )
    assert result.codes.shape[0] == 8


def test_a_reference_changes_the_speech_with_and_without_transcript(
    generator: HiggsAudioGenerator,
) -> None:
    plain = generator.generate("Hello.", sampling=GREEDY, **SHORT)
    in_scene = generator.generate("Hello.", sampling=GREEDY, reference_audio=VOICE, **SHORT)
    as_turn = generator.generate(
        "Hello.", sampling=GREEDY, reference_audio=VOICE, reference_text="Glue.", **SHORT
    )
    assert plain.codes.shape == in_scene.codes.shape == as_turn.codes.shape
    assert not torch.equal(plain.codes, in_scene.codes)
    assert not torch.equal(in_scene.codes, as_turn.codes)


def test_the_models_own_generation_config_does_not_leak_in(tiny: Path) -> None:
    """transformers' conversion script puts repetition-aware sampling there, and `generate` merges
    it in: greedy decoding would draw at random."""
    generator = HiggsAudioGenerator.from_pretrained(str(tiny))
    own = generator.model.generation_config
    own.ras_win_len, own.ras_win_max_num_repeat, own.temperature = 7, 1, 2.0
    first = generator.generate("Hello.", sampling=GREEDY, **SHORT)
    second = generator.generate("Hello.", sampling=GREEDY, **SHORT)
    assert torch.equal(first.codes, second.codes)
    assert generator.model.generation_config is own


def test_codec_and_raw_prompt_of_the_training_are_kept(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    HiggsAudioSettings(codec=str(tiny / "audio_tokenizer"), raw_prompt=True).save(
        tmp_path / "model"
    )
    generator = HiggsAudioGenerator.from_pretrained(str(tmp_path / "model"))
    assert generator.codec.path == str(tiny / "audio_tokenizer")
    assert generator.settings.raw_prompt
    asked = HiggsAudioGenerator.from_pretrained(str(tmp_path / "model"), codec="another")
    assert asked.codec.path == "another"


def test_speech_ends_at_the_first_eos_of_any_codebook(generator: HiggsAudioGenerator) -> None:
    codes = torch.zeros(8, 30, dtype=torch.long)
    codes[5, 10], codes[2, 20] = 1024, 1025  # a stray BOS does not end it
    frames = apply_delay(codes, bos_id=1024, eos_id=1025)
    kept = generator.speaker.codes_of(list(frames), HELLO)
    assert kept.shape == (8, 20)
    assert kept[5, 10] == 1023


def test_requests_that_cannot_be_spoken_are_one_line(generator: HiggsAudioGenerator) -> None:
    """Texts without words and bad references: tests/commands/test_speaking.py."""
    with pytest.raises(UserError, match="request: max_audio_s: 0 is not positive"):
        generator.generate("Hello.", max_audio_s=0)
    with pytest.raises(UserError, match="has scene tags or text out of place"):
        generator.generate("Hello.", scene_description="x <|scene_desc_end|> y")
    with pytest.raises(UserError, match="leaves no room in 2048; shorten text or reference"):
        generator.generate("word " * 3000, max_chars=20_000)


def test_a_limit_beyond_the_models_positions_is_their_end(generator: HiggsAudioGenerator) -> None:
    """Nothing has been spoken that could be forgotten to make room: it was an IndexError."""
    script = generator.script("Hello.")
    prompt = generator.speaker.next_line(script, [], max_audio_s=100.0)
    assert prompt.turns == script.whole.turns


def test_a_stop_at_once_is_an_error_not_an_empty_file(generator: HiggsAudioGenerator) -> None:
    frames = torch.full((9, 8), 1025)
    with pytest.raises(UserError, match="gave no audio: the model stopped at once"):
        generator.speaker.codes_of(list(frames), HELLO)


def test_speak_command(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out" / "hello.wav"
    command = ["speak", "--model", str(tiny), "--text", "Hello.", "--max_audio_s", "0.4"]
    command += ["--output", str(output)]
    assert main([*command, "--temperature", "0"]) == 3, "cut at the limit"
    assert soundfile.info(output).frames == 9600
    assert "0.40 s, 10 frames, real-time factor" in (said := capsys.readouterr().out)
    assert "truncated: cut at the limit, it did not stop by itself" in said
    assert main([*command, "--reference_audio", "gone.wav"]) == 1
    assert "\nerror: request: reference_audio: 'gone.wav' not found" in capsys.readouterr().err


def test_speak_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speak", "--model", str(tmp_path / "gone"), "--text", "Hello."]) == 1
    assert "is neither a folder nor a Hub id that can be downloaded" in capsys.readouterr().err
