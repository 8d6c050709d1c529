"""Waveform <-> codes through `HiggsAudioV2TokenizerModel`: 24 kHz mono, hop 960, 25 frames/s, 8
codebooks of 1024.

The codec is a lazy proxy: it holds a path, builds the model on first use and never pickles it, so
it travels into forked and spawned workers. It is never a submodule of the language model:
optimizers, DDP and ZeRO must not see it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plugins.audio import waveforms as audio
from plugins.errors import UserError, problem
from plugins.files.disk import read_json
from plugins.files.hub import DEFAULT_CODEC, local_folder
from plugins.files.installation import explained
from plugins.files.sizes import MAX_LAYERS
from plugins.files.untrusted import NamedByCheckpoint, check_codec

_IMPORTING_PID = os.getpid()
_RAM_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # of accelerate
CODEC_FOLDER = "audio_tokenizer"
# Of the published codec and of every codec the model can be used with: rows are checked before a
# codec is loaded.
FRAMES_PER_S = 25
NUM_CODEBOOKS = 8
NUM_CODES = 1024


class Codec:
    """Codes of waveforms and waveforms of codes. `path` is a folder or a Hub id, `device` as in
    torch."""

    def __init__(self, path: str, *, device: str = "cpu") -> None:
        self.path = path
        self.device = device
        self._model: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}

    @property
    def model(self) -> Any:
        """The transformers model: fp32, eval mode. Raises UserError if it is missing or
        incomplete."""
        if os.getpid() != _IMPORTING_PID and torch.get_num_threads() > 1:
            # Forked (by a data loader or `datasets.map`): torch's thread pool did not come along,
            # and with more than one thread the first convolution waits for it for ever.
            torch.set_num_threads(1)
        if self._model is None:
            self._model = _load_codec(self.path).to(self.device)
        return self._model

    @contextmanager
    def on(self, device: str) -> Iterator[None]:
        """Inside, it works on that device."""
        before = self.device
        self._move(device)
        try:
            yield
        finally:
            self._move(before)

    def _move(self, device: str) -> None:
        self.device = device
        if self._model is not None:
            self._model.to(device)

    @property
    def sample_rate_hz(self) -> int:
        return int(self.model.config.sample_rate)

    @torch.inference_mode()
    def encode(self, waveform: np.ndarray) -> Tensor:
        """waveform (N,) float32 at `sample_rate_hz` -> codes (K, F) int64 on the CPU, F = ceil(N /
        hop).

        The clip is zero-padded on the right to a whole number of frames, as the original does;
        unpadded clips shift the decoded signal by half a hop. One clip at a time: padding inside a
        batch changes the codes."""
        hop = self.model.config.hop_length
        samples = torch.as_tensor(waveform, dtype=torch.float32, device=self.device)
        samples = torch.nn.functional.pad(samples, (0, -len(samples) % hop))
        model = self.model
        with _full_precision():
            codes = model.encode(samples[None, None]).audio_codes[0]
        num_frames = codes.shape[1]
        assert num_frames == len(samples) // hop, f"{num_frames} frames, {len(samples)} samples"
        return codes.to("cpu", torch.int64)

    def encode_file(self, path: str) -> Tensor:
        """The codes (K, F) of an audio file of any sample rate and channel count."""
        return self.encode(audio.load(path, sample_rate_hz=self.sample_rate_hz))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> np.ndarray:
        """codes (K, F) -> waveform (F * hop,) float32 in [-1, 1]. The class has no output tanh,
        hence the clip."""
        waveform = self.model.decode(codes[None].to(self.device)).audio_values[0, 0]
        return waveform.clamp(-1, 1).float().cpu().numpy()


def find_codec(model_dirs: list[str], chosen: str | None = None) -> str:
    """The codec that belongs to a model: `chosen`, else the folder beside its weights, else the one
    that its processor names, else the published one."""
    if chosen:
        return chosen
    for folder in map(Path, model_dirs):
        if (folder / CODEC_FOLDER / "config.json").is_file():
            return str(folder / CODEC_FOLDER)
        processor = folder / "processor_config.json"
        if processor.is_file():
            named = read_json(processor, "download the file again").get("audio_tokenizer")
            if isinstance(named, dict) and named.get("audio_tokenizer_name_or_path"):
                return NamedByCheckpoint(named["audio_tokenizer_name_or_path"])
    return DEFAULT_CODEC


@contextmanager
def _full_precision() -> Iterator[None]:
    """Inside, a GPU multiplies fp32 as such: with TF32, torch's default for convolutions, it finds
    other codes than the CPU."""
    # Not `allow_tf32`, which torch lets nobody read once these have been set.
    cudnn: Any = torch.backends.cudnn  # `conv` is not in its types
    kinds = (cudnn.conv, torch.backends.cuda.matmul)
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


@contextmanager
def _undivided() -> Iterator[None]:
    """Inside, models are built and loaded by this process alone, with every weight.

    It takes each model for the one that is trained: under ZeRO-3 it divides the weights among the
    ranks, under FSDP2 (`cpu_ram_efficient_loading`) only rank 0 gets any, and all others would
    train on codes of an empty codec."""
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    efficient = os.environ.pop(_RAM_EFFICIENT, None)
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
        if efficient is not None:
            os.environ[_RAM_EFFICIENT] = efficient


@explained()
def _load_codec(path: str) -> Any:
    from plugins.audio.original_codec import is_original

    folder = Path(local_folder(path, option="codec"))
    # All of it: even a model that is only built, for its sizes, would wait for the other ranks.
    with _undivided():
        model = _load_original(folder) if is_original(folder) else _load_native(folder, path)
    _check_finite(model, path)
    # Train mode would switch HuBERT's dropout on: random codes.
    return model.eval().requires_grad_(False)


def _load_original(folder: Path) -> Any:
    from transformers import HiggsAudioV2TokenizerModel

    from plugins.audio.original_codec import to_native

    config, weights = to_native(folder)
    with torch.device("meta"):
        model = HiggsAudioV2TokenizerModel(config)
    model.load_state_dict(weights, strict=True, assign=True)
    return model


def _load_native(folder: Path, path: str) -> Any:
    """path: what the user gave, folder or Hub id."""
    from transformers import HiggsAudioV2TokenizerModel

    from plugins.audio.original_codec import other_model

    again = "give a codec folder, or download the published one"
    file = folder / "config.json"
    model_type = read_json(file, again).get("model_type") if file.is_file() else None
    if model_type not in (None, HiggsAudioV2TokenizerModel.config_class.model_type):
        reason = f"is the folder of {other_model(model_type, ())}, not of a codec"
        raise _wrong_codec(path, reason, again)
    # Before transformers reads the config, and does what it says.
    check_codec(folder)
    try:
        _check_size(folder)
        loaded: Any = HiggsAudioV2TokenizerModel.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (ImportError, UserError):
        raise
    except Exception as error:  # what transformers raises depends on the field, and where it breaks
        reason = f"is not a codec that can be loaded ({' '.join(str(error).split())[:200]})"
        raise _wrong_codec(path, reason, again) from error
    model, report = loaded
    _check_complete(report, path)
    return model


def _check_size(folder: Path) -> None:
    """Raise UserError for a config that asks for more weights than the files can hold: transformers
    fills those that it misses with random numbers, however many."""
    from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel

    config = HiggsAudioV2TokenizerConfig.from_pretrained(folder)
    file = folder / "config.json"
    number = config.num_quantizers
    if not 1 <= number <= MAX_LAYERS:
        raise problem(
            source=str(file),
            field="target_bandwidths",
            value=config.target_bandwidths,
            reason=f"asks for {number} codebooks",
            remedy="download the codec again",
        )
    # Of the semantic model's frames one is taken in so many.
    if config.semantic_downsample_factor < 1:
        raise ValueError("the sample rates and downsample_factor leave no frames")
    with torch.device("meta"):
        model = HiggsAudioV2TokenizerModel(config)
    asked = sum(tensor.numel() for tensor in model.state_dict().values())
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if held and asked > held:
        raise problem(
            source=str(file),
            field="content",
            value=asked,
            reason=f"weights are asked for, more than the {held} bytes of *.safetensors can hold",
            remedy="download the codec again",
        )


def _check_finite(model: Any, path: str) -> None:
    """Raise UserError for weights that would make all speech NaN."""
    for key, weights in model.state_dict().items():
        if weights.is_floating_point() and not bool(torch.isfinite(weights).all()):
            raise _wrong_codec(path, f"holds NaN or infinite {key}", "download the codec again")


def _check_complete(report: Mapping[str, Any], path: str) -> None:
    """report: of transformers, which starts at random what it misses."""
    from plugins.audio.original_codec import other_model

    remedy = "download the codec again"
    missing = sorted(report["missing_keys"])
    unexpected = sorted(report["unexpected_keys"])
    if missing:
        other = other_model(None, unexpected)
        reason = f"lacks {', '.join(missing[:3])}"
        if other:
            reason += f": it holds the weights of {other}"
        raise _wrong_codec(path, reason, remedy)
    if report["mismatched_keys"]:
        key, shape, needed = min(report["mismatched_keys"])
        reason = f"holds {key} of shape {list(shape)}, its config.json asks for {list(needed)}"
        raise _wrong_codec(path, reason, remedy)
    if unexpected:
        keys = ", ".join(unexpected[:3])
        reason = f"holds {keys}, no key of the codec ({len(unexpected)} such keys)"
        raise _wrong_codec(path, reason, remedy)


def _wrong_codec(path: str, reason: str, remedy: str) -> UserError:
    return problem(source="settings", field="codec", value=path, reason=reason, remedy=remedy)
