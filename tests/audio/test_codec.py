"""The codec proxy: frame counts, laziness, pickling, and which codec belongs to a model."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CORPUS

from plugins.audio import waveforms as audio
from plugins.audio.codec import Codec, find_codec
from plugins.errors import UserError
from plugins.files.hub import DEFAULT_CODEC

CLIP = str(CORPUS / "wavs" / "DEMO-0001.flac")


@pytest.fixture(scope="module")
def codec(tiny: Path) -> Codec:
    return Codec(str(tiny / "audio_tokenizer"))


@pytest.mark.parametrize(
    ("num_samples", "num_frames"), [(960, 1), (961, 2), (24000, 25), (24959, 26)]
)
def test_a_clip_of_n_samples_has_n_over_960_frames_rounded_up(
    codec: Codec, num_samples: int, num_frames: int
) -> None:
    """Unpadded clips would be padded by half a hop inside the class, which shifts the decoded
    signal."""
    codes = codec.encode(np.random.default_rng(0).normal(0, 0.1, num_samples).astype(np.float32))
    assert codes.shape == (8, num_frames)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < 1024
    assert codec.decode(codes).shape == (960 * num_frames,)


def test_codes_of_a_file_are_those_of_its_24_khz_waveform(codec: Codec) -> None:
    waveform = audio.load(CLIP, sample_rate_hz=24_000)
    assert torch.equal(codec.encode_file(CLIP), codec.encode(waveform))
    assert torch.equal(codec.encode_file(CLIP), codec.encode_file(CLIP)), (
        "eval mode: no dropout in the codes"
    )


def test_it_works_on_another_device_for_a_while() -> None:
    """Loaded or not, and whatever happens there."""
    moves: list[str] = []
    codec = Codec("unused")

    def fail() -> None:
        with codec.on("cuda:1"):
            assert codec.device == "cuda:1"
            raise RuntimeError("out of memory")

    for model in (None, SimpleNamespace(to=moves.append)):
        codec._model = model
        with pytest.raises(RuntimeError, match="out of memory"):
            fail()
        assert codec.device == "cpu"
    assert moves == ["cuda:1", "cpu"]


def test_it_travels_into_workers_without_its_model(codec: Codec) -> None:
    codec.encode_file(CLIP)
    copy = pickle.loads(pickle.dumps(codec))
    assert len(pickle.dumps(codec)) < 1000
    assert torch.equal(copy.encode_file(CLIP), codec.encode_file(CLIP))


def test_which_codec_belongs_to_a_model(tiny: Path, tmp_path: Path) -> None:
    assert find_codec([str(tiny)], "chosen") == "chosen"
    assert find_codec([str(tiny)]) == str(tiny / "audio_tokenizer")
    assert find_codec([str(tmp_path)]) == DEFAULT_CODEC
    named = {"audio_tokenizer": {"audio_tokenizer_name_or_path": "someone/codec"}}
    (tmp_path / "processor_config.json").write_text(json.dumps(named))
    assert find_codec([str(tmp_path)]) == "someone/codec"


def test_an_incomplete_codec_is_refused(tiny: Path, tmp_path: Path) -> None:
    """transformers would start the missing weights at random and every code would be wrong."""
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "codec"
    shutil.copytree(tiny / "audio_tokenizer", broken)
    weights = load_file(broken / "model.safetensors")
    del weights["fc.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"codec: .* lacks fc\.weight; download the codec again"):
        Codec(str(broken)).encode_file(CLIP)


def test_a_path_that_is_no_codec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a codec that can be loaded"):
        Codec(str(tmp_path)).encode_file(CLIP)


CHOICES = {
    "torch's own": lambda: None,
    "tf32 for matrices": lambda: torch.set_float32_matmul_precision("high"),
    "no tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
}


@pytest.fixture
def _precisions() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.usefixtures("_precisions")
def test_no_tf32_while_it_encodes(
    codec: Codec, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU torch's convolutions cut 13 of the 23 bits of fp32, and the nearest entry of a
    codebook is another one. What a user has chosen is back at the end, also of a failure."""

    def flags() -> list[str]:
        backends = torch.backends
        return [backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision]

    CHOICES[choice]()
    before, seen = flags(), []
    encode, decode = codec.model.encode, codec.model.decode
    monkeypatch.setattr(codec.model, "encode", lambda x: (seen.append(flags()), encode(x))[1])
    monkeypatch.setattr(codec.model, "decode", lambda x: (seen.append(flags()), decode(x))[1])
    codec.decode(codec.encode(np.zeros(2000, np.float32)))
    assert seen == [["ieee", "ieee"], before]
    monkeypatch.setattr(codec.model, "encode", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        codec.encode(np.zeros(2000, np.float32))
    assert flags() == before
    assert isinstance(torch.backends.cudnn.allow_tf32, bool), "torch's older names can be read"
