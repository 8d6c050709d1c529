"""The embedded codec: its corpus, targets and training, on a handful of seconds; the weights in
demo/codec/."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from demo.recipes.codec import corpus, network, sentences, targets, training
from demo.recipes.codec.evaluate import evaluate, perplexity
from demo.recipes.codec.losses import SpectralLoss
from demo.run import CODEC
from demo.run import CORPUS as SENTENCES
from plugins.audio import waveforms as audio
from plugins.audio.codec import NUM_CODEBOOKS, NUM_CODES, Codec

TINY = training.Recipe(
    encoder_steps=4, solo_steps=4, joint_steps=4, batch=2, segment_frames=5, warmup_steps=2
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 40 s of speech-like noise: codebooks need 1024 frames."""
    path = tmp_path_factory.mktemp("codec") / "samples.npy"
    frames = 1200
    loudness = 0.1 * np.random.default_rng(0).uniform(0, 1, frames).repeat(corpus.HOP)
    noise = loudness * np.random.default_rng(1).standard_normal(len(loudness))
    np.save(path, audio.to_pcm16(noise.astype("f4")))
    return path


def test_sentences_are_many_different_and_never_those_of_the_test() -> None:
    drawn = sentences.training(1400, seed=0)
    assert len(set(drawn)) == 1400
    assert not set(drawn) & set(sentences.held_out())
    assert len(sentences.held_out()) >= 20
    assert drawn[:700] == sentences.training(700, seed=0)
    assert "{" not in "".join(drawn)


def test_log_mel_frames_lie_over_their_samples() -> None:
    """A click in the middle of frame 3 is heard in frame 3 and nowhere two frames away."""
    waveform = torch.zeros(8 * corpus.HOP)
    waveform[3 * corpus.HOP + 480] = 1.0
    energy = targets.log_mel(waveform).mean(dim=1)
    assert energy.shape == (8,)
    assert energy.argmax() == 3
    assert energy[[0, 1, 5, 6, 7]].max() == pytest.approx(math.log(1e-3), abs=1e-4)


def test_log_mel_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = torch.randn(10 * corpus.HOP)
    whole = targets.log_mel(waveform)
    monkeypatch.setattr(targets, "_CHUNK", 3)
    torch.testing.assert_close(targets.log_mel(waveform), whole)


def test_codebooks_explain_more_and_more() -> None:
    torch.manual_seed(0)
    latents = targets.principal(torch.randn(4000, 64) @ torch.randn(64, 256))
    assert latents.shape == (4000, targets.LATENT)
    assert latents.std() == pytest.approx(1, abs=1e-3)
    books = targets.fit_codebooks(latents, seed=0, rounds=3)
    assert books.shape == (NUM_CODEBOOKS, NUM_CODES, targets.LATENT)
    errors = []
    for k in range(1, 9):
        _, quantised = targets.quantise(latents, books[:k])
        errors.append((latents - quantised).square().mean())
    assert errors == sorted(errors, reverse=True)


def test_the_public_path_is_the_trained_path(tmp_path: Path) -> None:
    """encode and decode of the saved codec give what encoder, codebooks and decoder give by
    themselves."""
    codec = network.build(seed=0)
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
    np.testing.assert_allclose(loaded.decode(codes), wanted.numpy(), atol=1e-5)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 4e6


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes longer than these steps."""
    monkeypatch.setattr(torch, "compile", lambda part: part)


def test_a_killed_run_ends_with_the_same_weights(
    samples: Path, tmp_path: Path, eager: None
) -> None:
    def trained(work: Path, stops: tuple[int, ...]) -> dict[str, torch.Tensor]:
        latents = torch.randn(1200, targets.LATENT, generator=torch.manual_seed(0))
        data = training.Data(np.load(samples), latents)
        for stop in stops:
            run, loss_of = training._decoder_run(TINY, data, work)
            run.until(stop, loss_of)
        return run.part.state_dict()

    whole, parts = trained(tmp_path / "whole", (4,)), trained(tmp_path / "parts", (2, 4))
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)


@pytest.mark.slow
def test_training_from_samples_to_weights(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All phases, in two processes; run again it has nothing left to do and gives the same
    codec."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling takes longer than these steps
    codec = training.train(TINY, samples, tmp_path)
    again = training.train(TINY, samples, tmp_path)
    torch.testing.assert_close(again.state_dict(), codec.state_dict(), rtol=0, atol=0)
    untrained = network.build(seed=TINY.seed).state_dict()
    for part in (
        "acoustic_encoder.conv1.weight",
        "acoustic_decoder.conv1.weight",
        # So little trained, the first codebook leaves nothing to the others.
        "quantizer.quantizers.0.codebook.embed",
    ):
        assert not torch.equal(codec.state_dict()[part], untrained[part])


def test_averaged_gradients_are_those_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    part = torch.nn.Linear(2, 1)
    part.weight.grad, part.bias.grad = torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])
    # The other rank has twice ours.
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.mul_(3))
    training._average_gradients(part, 2)
    assert part.weight.grad.tolist() == [[1.5, 3.0]]
    assert part.bias.grad.tolist() == [4.5]


def test_perplexity() -> None:
    assert perplexity(torch.arange(NUM_CODES)) == pytest.approx(NUM_CODES, rel=1e-4)
    assert perplexity(torch.zeros(10, dtype=torch.long)) == pytest.approx(1)


def test_the_shipped_codec_gives_back_what_was_said() -> None:
    """Not only some speech: nearer to the clip that went in than another one of that voice is."""
    codec, difference = Codec(str(CODEC)), SpectralLoss()
    length = 60 * corpus.HOP  # the same of both: they are compared

    def batch(waveform: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(waveform[:length])[None]

    given = batch(audio.load(SENTENCES / "wavs" / "slt-01.flac"))
    other = batch(audio.load(SENTENCES / "wavs" / "slt-02.flac"))
    decoded = batch(codec.decode(codec.encode(given[0].numpy())))
    assert difference(decoded, given) < 0.5 * difference(other, given)
    assert sum(file.stat().st_size for file in CODEC.glob("*.safetensors")) <= 4e6


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("flite") is None, reason="needs flite: apt-get install flite")
def test_the_shipped_codec_is_understood(tmp_path: Path) -> None:
    """On sentences that it never heard."""
    shutil.copytree(CODEC, tmp_path / "codec")
    figures = evaluate(tmp_path / "codec")
    assert figures["sentences"] >= 20
    for voice in corpus.VOICES:
        assert figures[f"wer_{voice}_round_trip"] <= 0.10
    assert min(figures["perplexity"]) > 400
    for name in ("spectrogram_slt.png", "spectrogram_rms.png", "loss.png", "evaluation.json"):
        assert (tmp_path / "codec" / name).stat().st_size > 0
