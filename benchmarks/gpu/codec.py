"""The codec: its speed with the published shape, and the demo's trained one against a CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.cached import build_codec
from benchmarks.curves import CORPUS
from benchmarks.gpu.bench import Bench, relative_error
from benchmarks.measure import ROOT
from plugins.audio import waveforms as audio
from plugins.audio.codec import Codec

DEMO_CODEC = ROOT / "demo" / "codec"


def run(bench: Bench) -> None:
    bench.dtype = "float32"
    bench.attempt("agreement", lambda: _agreement(bench))
    bench.attempt("speed", lambda: _speed(bench), needs_s=15)


def random_codec(bench: Bench) -> Codec:
    """Of the published shape, as one that is loaded."""
    if bench.tiny:
        return Codec(str(DEMO_CODEC), device=bench.device)
    with tempfile.TemporaryDirectory() as folder:
        build_codec(Path(folder))
        codec = Codec(folder, device=bench.device)
        assert codec.model is not None, "loaded while its folder is there"
    return codec


def _speed(bench: Bench) -> None:
    codec, generator = random_codec(bench), np.random.default_rng(0)
    for seconds in (1,) if bench.tiny else (1, 10, 30):
        waveform = generator.normal(0, 0.1, seconds * codec.sample_rate_hz).astype(np.float32)
        codes = codec.encode(waveform)
        encode_s = bench.timed(lambda waveform=waveform: codec.encode(waveform))
        decode_s = bench.timed(lambda codes=codes: codec.decode(codes))
        bench.add(f"encode {seconds} s", seconds / encode_s, "x real time")
        bench.add(f"decode {seconds} s", seconds / decode_s, "x real time")


def _agreement(bench: Bench) -> None:
    """Real weights on real speech, as they are used and with TF32 off and on."""
    clips = sorted((CORPUS / "wavs").glob("*.flac"))[: 1 if bench.tiny else 6]
    waveforms = [audio.load(str(clip)) for clip in clips]
    on_cpu, codec = Codec(str(DEMO_CODEC)), Codec(str(DEMO_CODEC), device=bench.device)
    expected = list(map(on_cpu.encode, waveforms))
    sound = list(map(on_cpu.decode, expected))

    def share() -> float:
        equal = total = 0
        for waveform, codes in zip(waveforms, expected, strict=True):
            equal += int((codec.encode(waveform) == codes).sum())
            total += codes.numel()
        return equal / total

    as_used = share()
    bench.check("codes are those of a CPU", as_used == 1, share=as_used)
    errors = []
    for codes, waveform in zip(expected, sound, strict=True):
        decoded = torch.from_numpy(codec.decode(codes))
        errors.append(relative_error(decoded, torch.from_numpy(waveform)))
    bench.check("sound is that of a CPU", max(errors) < 1e-3, errors=errors)
    before = torch.backends.cudnn.allow_tf32
    for name, is_allowed in (("off", False), ("on", True)):
        torch.backends.cudnn.allow_tf32 = is_allowed
        bench.add(f"codes of a CPU, TF32 {name} around it", share(), "of all")
    torch.backends.cudnn.allow_tf32 = before
