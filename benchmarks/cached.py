"""P10 and P6: codes out of the cache against codes in JSON rows, and against the codec itself.

In: durations, or the utterances of `benchmarks.prepare`. Out: arms, after what they give has been
asserted to be equal. Imports torch, so `benchmarks.prepare` imports it when its workers are done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel

from benchmarks.measure import Arm, count
from demo.tiny import build_config, build_tokenizer
from plugins.audio.code_cache import CacheWriter, CodeCache
from plugins.audio.codec import FRAMES_PER_S, NUM_CODEBOOKS, NUM_CODES, Codec
from plugins.corpora import Utterance
from plugins.corpora.canonical import canonical_row
from plugins.data.clips import check_clips, with_clips
from plugins.data.dialogue import EncodedSample
from plugins.data.prompt import encode
from plugins.data.rows import dialogue_from_row
from plugins.data.tokens import SpecialTokens
from plugins.prepare.encode import encode_rows
from plugins.settings import HiggsAudioSettings

_PASSES = 50  # over the clips from the cache: one takes a millisecond


# P10.


def code_arms(
    durations_s: Sequence[float], folder: Path
) -> tuple[dict[str, Arm], dict[str, float]]:
    """Random codes of clips of these lengths, in a cache and in JSON rows. Also what the cache
    takes on disk."""
    generator = np.random.default_rng(0)
    lengths = np.ceil(np.array(durations_s) * FRAMES_PER_S).astype(int)
    codes = [generator.integers(0, NUM_CODES, (NUM_CODEBOOKS, length)) for length in lengths]
    cache, inline = folder / "codes", folder / "inline.jsonl"
    keys = _write_cache(cache, codes)
    with inline.open("w", encoding="utf-8") as file:
        for codes_KxF in codes:
            file.write(json.dumps({"audio_codes": codes_KxF.T.tolist()}) + "\n")

    def cached() -> Iterator[np.ndarray]:
        opened = CodeCache(cache)
        return map(opened.__getitem__, keys)

    def lists() -> Iterator[list[list[int]]]:
        with inline.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["audio_codes"]

    def cached_tensor(codes_KxF: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(codes_KxF.astype("int64"))

    def listed_tensor(codes_FxK: list[list[int]]) -> torch.Tensor:
        return torch.tensor(codes_FxK).T.contiguous()

    for ours, listed, expected in zip(cached(), lists(), codes, strict=True):
        assert np.array_equal(ours, expected)
        assert np.array_equal(np.array(listed).T, expected)
    arms: dict[str, Arm] = {
        "cached codes": lambda i: count(cached()),
        "JSON lists": lambda i: count(lists()),
        "cached codes, tensors": lambda i: count(map(cached_tensor, cached())),
        "JSON lists, tensors": lambda i: count(map(listed_tensor, lists())),
    }
    num_bytes = sum(path.stat().st_size for path in cache.iterdir())
    return arms, {"bytes_per_s": num_bytes / sum(durations_s)}


def _write_cache(folder: Path, codes: Sequence[np.ndarray]) -> list[str]:
    """Returns the keys, in the order of `codes`."""
    keys = []
    with CacheWriter(folder, codec="random") as writer:
        for i, codes_KxF in enumerate(codes):
            keys.append(hashlib.sha256(str(i).encode()).hexdigest()[:32])
            writer.add(keys[-1], codes_KxF)
        writer.commit()
    return keys


# P6.


def build_codec(folder: Path) -> None:
    """A codec of the published shape. Its codebooks are random too: as they start, all zero, every
    code would be 0."""
    ratios = [8, 5, 4, 2, 3]
    acoustic = {"downsampling_ratios": ratios, "upsampling_ratios": ratios}
    config = HiggsAudioV2TokenizerConfig(
        target_bandwidths=[0.5, 1, 1.5, 2], acoustic_model_config=acoustic
    )
    torch.manual_seed(0)
    model: Any = HiggsAudioV2TokenizerModel(config)
    for quantizer in model.quantizer.quantizers:
        torch.nn.init.normal_(quantizer.codebook.embed)
    model.save_pretrained(folder)


def epoch_arms(utterances: Sequence[Utterance], codec_folder: Path, folder: Path) -> dict[str, Arm]:
    """The way of a row from a loaded dataset to its sample, as `HiggsAudioTemplate` goes it."""
    settings = HiggsAudioSettings()
    tokenizer = build_tokenizer(utterance.text for utterance in utterances)
    tokens = SpecialTokens.from_config(build_config(tokenizer), tokenizer)
    codec = Codec(str(codec_folder))
    cache = folder / "epoch_codes"
    # Filled in place: each row gets the path of its codes.
    coded = list(map(_row, utterances))
    encode_rows(coded, folder=cache, codec=str(codec_folder), device="cpu", beside=folder)

    def canonical(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for i, row in enumerate(rows):
            yield canonical_row(row, f"row {i}", settings, beside=folder)

    def sample(row: dict[str, Any]) -> EncodedSample:
        dialogue = dialogue_from_row(row, settings)
        check_clips(dialogue, settings)
        return encode(with_clips(dialogue, codec, tokens), tokenizer, tokens)

    # Rows of a loaded dataset are canonical: that is no work of the epoch.
    plain, coded = list(canonical(map(_row, utterances))), list(canonical(coded))
    for ours, expected in zip(map(sample, coded), map(sample, plain), strict=True):
        assert ours.input_ids == expected.input_ids
        assert ours.labels == expected.labels
        assert torch.equal(ours.clips[0], expected.clips[0])
        num_different = ours.clips[0].unique().numel()
        assert num_different > NUM_CODEBOOKS, "the codec says the same all the time"
    return {
        "codec in the epoch": lambda i: count(map(sample, plain)),
        "cached epoch": lambda i: count(map(sample, coded * _PASSES)),
    }


def _row(utterance: Utterance) -> dict[str, Any]:
    messages = [{"role": "user", "content": utterance.text}, {"role": "assistant", "content": ""}]
    return {"messages": messages, "audios": [str(utterance.audio)]}
