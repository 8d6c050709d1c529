"""boson-multimodal's collator as a process: it collates when it is asked to. For
benchmarks/collate.py.

In, a line of JSON each: {"file": NPZ} reads rows (`ids{i}` and `labels{i}` (S,) with one
placeholder for the clip, `codes{i}` (K, F)) and writes the tensors of their batch to NPZ.out.npz;
{"file": NPZ, "batches": N} collates them N times; {} asks for the versions. Knows nothing of
`plugins`: it runs in a venv of its own."""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioSampleCollator
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample

AUDIO_OUT = 128016
COLLATOR = HiggsAudioSampleCollator(
    whisper_processor=None,
    audio_in_token_id=128015,
    audio_out_token_id=AUDIO_OUT,
    pad_token_id=128001,
    audio_stream_bos_id=1024,
    audio_stream_eos_id=1025,
    encode_whisper_embed=False,
    return_audio_in_tokens=True,
    audio_num_codebooks=8,
    use_delay_pattern=True,
)


@lru_cache
def samples_of(file: str) -> list[ChatMLDatasetSample]:
    with np.load(file) as arrays:
        count = sum(name.startswith("ids") for name in arrays)
        rows = [
            [torch.from_numpy(arrays[f"{name}{i}"]) for name in ("ids", "labels", "codes")]
            for i in range(count)
        ]
    nothing, no_index = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    return [
        ChatMLDatasetSample(
            input_ids=ids,
            label_ids=labels,
            audio_ids_concat=codes,
            audio_ids_start=torch.tensor([0]),
            audio_waveforms_concat=nothing,
            audio_waveforms_start=no_index,
            audio_sample_rate=nothing,
            audio_speaker_indices=nothing,
        )
        for ids, labels, codes in rows
    ]


def collate(samples: list[ChatMLDatasetSample]) -> Any:
    batch = COLLATOR(samples)
    for sample in samples:
        # It masks this label in the samples themselves, and takes the mask for "not trained" when
        # it sees them again.
        sample.label_ids[sample.input_ids == AUDIO_OUT] = AUDIO_OUT
    return batch


def answer(request: dict[str, Any]) -> Any:
    if not request:
        return {name: version(name) for name in ("boson-multimodal", "torch", "transformers")}
    samples = samples_of(request["file"])
    for _ in range(request.get("batches", 0)):
        collate(samples)
    if "batches" not in request:
        batch = collate(samples)
        names = ("input_ids", "attention_mask", "label_ids", "audio_out_ids", "label_audio_ids")
        np.savez(
            request["file"] + ".out.npz", **{name: getattr(batch, name).numpy() for name in names}
        )
    return len(samples)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
