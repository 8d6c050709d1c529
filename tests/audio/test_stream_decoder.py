"""Decoding a stream of codes: exactly the samples of one decode, at a linear cost, as early as the
codec allows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel

from demo.tiny import SEMANTIC
from plugins.audio.codec import Codec
from plugins.audio.stream_decoder import StreamDecoder, receptive_field_frames
from plugins.errors import UserError

HOP = 960
PUBLISHED = {"upsampling_ratios": [8, 5, 4, 2, 3], "decoder_hidden_size": 1024, "hidden_size": 256}
# At a peak of 0.5. float32 sums in another order gave 5e-7, a window short of one frame 14e-6.
TOLERANCE = 5e-6


class CountingCodec(Codec):
    num_decoded = 0

    def decode(self, codes: Tensor) -> np.ndarray:
        self.num_decoded += codes.shape[1]
        return super().decode(codes)


def build_codec(folder: Path, **acoustic: Any) -> CountingCodec:
    """A codec with random codebooks and a decoder in which distant frames weigh, at a peak of 0.5;
    the encoder and HuBERT, which decoding does not run, are narrow."""
    acoustic = {"encoder_hidden_size": 4, "downsampling_ratios": [8, 5, 4, 2, 3], **acoustic}
    config = HiggsAudioV2TokenizerConfig(
        target_bandwidths=[0.5, 1, 1.5, 2],
        acoustic_model_config=acoustic,
        semantic_model_config=SEMANTIC,
    )
    torch.manual_seed(0)
    model: Any = HiggsAudioV2TokenizerModel(config).eval().requires_grad_(False)
    for quantizer in model.quantizer.quantizers:
        torch.nn.init.normal_(quantizer.codebook.embed)
    for layer in model.acoustic_decoder.modules():
        if isinstance(layer, torch.nn.Conv1d):
            fan_in = layer.in_channels * layer.kernel_size[0]
            torch.nn.init.normal_(layer.weight, std=0.8 / fan_in**0.5)
    peak = model.decode(random_codes(40)[None]).audio_values.abs().max()
    model.acoustic_decoder.conv2.weight /= 2 * peak
    model.save_pretrained(folder)
    return CountingCodec(str(folder))


def random_codes(num_frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_frames)
    return torch.randint(0, 1024, (8, num_frames), generator=generator)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> CountingCodec:
    return build_codec(
        tmp_path_factory.mktemp("codec"),
        **PUBLISHED | {"decoder_hidden_size": 64, "hidden_size": 32},
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> CountingCodec:
    """The decoder of the published codec at its full size."""
    return build_codec(tmp_path_factory.mktemp("published"), **PUBLISHED)


def stream(decoder: StreamDecoder, codes: Tensor, sizes: list[int]) -> list[np.ndarray]:
    pieces = list(map(decoder.push, codes.split(sizes, dim=1)))
    return [*pieces, decoder.finish()]


def random_sizes(num_frames: int, seed: int) -> list[int]:
    """1 to 30 frames each, together `num_frames`."""
    generator, sizes = np.random.default_rng(seed), [0]
    while sum(sizes) < num_frames:
        sizes.append(min(int(generator.integers(1, 31)), num_frames - sum(sizes)))
    return sizes


def affected_frames(codec: Codec) -> tuple[int, int]:
    """How many frames before and after a frame it takes part in, measured: a NaN goes wherever it
    can, whatever the weights are; nothing is lost to rounding."""
    codes, middle = torch.ones(8, 81, dtype=torch.int64), 40
    codes[0, middle] = 0
    entry = codec.model.quantizer.quantizers[0].codebook.embed[0]
    before = entry.clone()
    entry.fill_(torch.nan)
    (touched,) = np.isnan(codec.decode(codes)).nonzero()
    entry.copy_(before)
    assert len(touched) < 81 * HOP, "the decoder is global"
    return middle - touched[0] // HOP, touched[-1] // HOP - middle


# The receptive field.


def test_the_published_decoder_looks_10_frames_back_and_10_ahead(published: Codec) -> None:
    assert receptive_field_frames(published.model.acoustic_decoder) == (10, 10)
    assert affected_frames(published) == (10, 10)


@pytest.mark.parametrize("ratios", [[8, 5, 4, 2, 3], [2, 3, 4, 5, 8], [3, 5, 8, 8], [12, 10, 8]])
def test_the_receptive_field_is_what_a_nan_can_reach(tmp_path: Path, ratios: list[int]) -> None:
    """Frames touch the past exactly as far as frames look into the future, and the other way
    round."""
    codec = build_codec(tmp_path, upsampling_ratios=ratios, decoder_hidden_size=32, hidden_size=16)
    num_before, num_after = affected_frames(codec)
    assert receptive_field_frames(codec.model.acoustic_decoder) == (num_after, num_before)


# The same samples.


@pytest.mark.parametrize("chunk_frames", [1, 5, 25])
@pytest.mark.parametrize("num_frames", [1, 7, 8, 9, 10, 11, 12, 50, 123])
def test_the_pieces_are_one_decode(codec: Codec, num_frames: int, chunk_frames: int) -> None:
    """Including the first and the last samples, one frame, and a decoder that speaks again after
    `finish`."""
    codes = random_codes(num_frames)
    expected = codec.decode(codes)
    decoder = StreamDecoder(codec, chunk_frames=chunk_frames)
    for seed in range(3):
        pieces = stream(decoder, codes, random_sizes(num_frames, seed))
        joined = np.concatenate(pieces)
        assert joined.shape == expected.shape
        assert joined.dtype == np.float32
        assert np.abs(joined - expected).max() < TOLERANCE
        borders = np.cumsum([len(piece) for piece in pieces])
        borders = np.unique(borders[(borders > 0) & (borders < len(joined))])
        jumps = np.abs(joined[borders] - joined[borders - 1])
        allowed = np.abs(np.diff(expected)).max()
        assert jumps.max(initial=0) <= allowed + TOLERANCE


def test_the_published_size_frame_by_frame(published: Codec) -> None:
    codes = random_codes(50)
    pieces = stream(StreamDecoder(published), codes, [1] * 50)
    assert np.abs(np.concatenate(pieces) - published.decode(codes)).max() < TOLERANCE


@pytest.mark.parametrize(("num_left", "num_right"), [(9, 10), (10, 9), (0, 0)])
def test_with_less_around_a_piece_it_is_not(
    codec: Codec, monkeypatch: pytest.MonkeyPatch, num_left: int, num_right: int
) -> None:
    """The tests above would see a single frame too few on either side."""
    monkeypatch.setattr(
        "plugins.audio.stream_decoder.receptive_field_frames", lambda decoder: (num_left, num_right)
    )
    codes = random_codes(50)
    joined = np.concatenate(stream(StreamDecoder(codec), codes, [1] * 50))
    assert np.abs(joined - codec.decode(codes)).max() > TOLERANCE


# When, and at what cost.


def test_pieces_double_and_the_first_comes_with_frame_11(codec: Codec) -> None:
    pieces = stream(StreamDecoder(codec, chunk_frames=6), random_codes(40), [1] * 40)
    sizes = {i + 1: len(piece) / HOP for i, piece in enumerate(pieces) if len(piece)}
    assert sizes == {11: 1, 13: 2, 17: 4, 23: 6, 29: 6, 35: 6, 41: 15}  # 41: finish


def test_the_cost_is_linear(codec: CountingCodec) -> None:
    """20 frames around each piece of 25, and a few small pieces at the start."""
    num_decoded = {}
    for num_frames in (500, 1000, 2000):
        codec.num_decoded = 0
        stream(StreamDecoder(codec, chunk_frames=25), random_codes(num_frames), [1] * num_frames)
        num_decoded[num_frames] = codec.num_decoded
    assert num_decoded[1000] - num_decoded[500] == 500 * (25 + 20) / 25
    assert num_decoded[2000] - num_decoded[1000] == 1000 * (25 + 20) / 25
    assert num_decoded[500] < 500 * (25 + 20) / 25 + 5 * 20


# Nothing, and what is no code.


def test_a_stream_without_frames_has_no_samples(codec: Codec) -> None:
    decoder = StreamDecoder(codec)
    assert decoder.push(random_codes(0)).shape == (0,)
    assert decoder.finish().shape == (0,)


@pytest.mark.parametrize("shape", [(1, 8), (8,), (1, 8, 3), (9, 3)])
def test_codes_of_another_shape_are_refused(codec: Codec, shape: tuple[int, ...]) -> None:
    """(1, 8), a frame the wrong way round, would decode to eight frames of the first codebook
    alone."""
    with pytest.raises(ValueError, match=r"expected \(8, frames\)"):
        StreamDecoder(codec).push(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("chunk_frames", [0, -5])
def test_pieces_have_frames(codec: Codec, chunk_frames: int) -> None:
    with pytest.raises(UserError, match=f"chunk_frames: {chunk_frames} is not positive"):
        StreamDecoder(codec, chunk_frames=chunk_frames)
