"""The original's Whisper branch on a tiny random model -> tests/golden/audio_tower/ (its README
says what is in there).

In: tests/golden/tiny_original.safetensors and its config (the language model), random weights for
the tower made here, and samples of a toy vocabulary whose reference clips are
`waveform(num_samples, seed)`. Out: what the original's collator and model make of them, with the
gradient of the sum of both losses. Knows nothing of `plugins`: it runs in the venv that
tests/golden/make/prompts.py describes, from any folder:

    boson/bin/python tests/golden/make/audio_tower.py
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from boson_multimodal.data_collator.higgs_audio_collator import HiggsAudioSampleCollator
from boson_multimodal.dataset.chatml_dataset import ChatMLDatasetSample
from boson_multimodal.model.higgs_audio.configuration_higgs_audio import HiggsAudioConfig
from boson_multimodal.model.higgs_audio.modeling_higgs_audio import HiggsAudioModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import WhisperFeatureExtractor

GOLDEN = Path(__file__).resolve().parents[1]
OUT = GOLDEN / "audio_tower"
SAMPLE_RATE_HZ = 16_000
TOWER = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
TOWER_KEYS = ("audio_tower.", "audio_encoder_proj.")
CODE_STRIDE = 19  # of the 1026 logits of a codebook every 19th is kept: 54
# Around the steps of the frame count (160 samples), of the pooling (4 frames) and of the chunks (30
# s).
CLIP_SAMPLES = [
    1,
    160,
    320,
    321,
    640,
    641,
    960,
    961,
    16_000,
    479_840,
    480_000,
    480_001,
    480_321,
    960_000,
    1_000_000,
]

PAD, BEGIN, HEADER, HEADER_END, NEWLINE = (
    1,
    2,
    3,
    7,
    8,
)  # ids of the toy vocabulary (tests/golden/README.md)
SYSTEM, USER, ASSISTANT = 4, 5, 6
END_OF_TURN, REFERENCE_BOS, AUDIO_EOS, AUDIO_BOS, REFERENCE, AUDIO = 298, 299, 300, 301, 303, 304


@dataclass(frozen=True)
class Clip:
    """A reference in the system message: its waveform, and as many random codes."""

    num_samples: int
    seed: int
    num_frames: int


@dataclass(frozen=True)
class Row:
    """A system message with references, a text, and the target's random codes."""

    references: tuple[Clip, ...]
    num_target_frames: int
    seed: int


@dataclass(frozen=True)
class Case:
    """One batch. codes_too: `encode_audio_in_tokens`, the codes of a reference stand behind its
    Whisper positions."""

    rows: tuple[Row, ...]
    codes_too: bool
    position_stride: int = 1  # of the embeddings that are kept


# 2.006 s: 201 mel frames, an odd number of positions before the pooling.
ONE = (Row((Clip(32_100, seed=1, num_frames=6),), num_target_frames=5, seed=1),)
LONG = (Row((Clip(34 * SAMPLE_RATE_HZ + 77, seed=2, num_frames=6),), num_target_frames=5, seed=2),)
MIXED = (
    Row(
        (Clip(14_000, seed=3, num_frames=4), Clip(25_000, seed=4, num_frames=3)),
        num_target_frames=3,
        seed=3,
    ),
    Row((), num_target_frames=4, seed=4),
)
CASES = {
    "one": Case(ONE, codes_too=False),
    "one_with_codes": Case(ONE, codes_too=True),
    "long": Case(LONG, codes_too=False, position_stride=10),
    "mixed": Case(MIXED, codes_too=False),
    "mixed_with_codes": Case(MIXED, codes_too=True),
}


def waveform(num_samples: int, seed: int) -> np.ndarray:
    """A rising tone with vibrato in noise, float32 (N,). tests/helpers/models.py has the
    same formula."""
    t = np.arange(num_samples) / SAMPLE_RATE_HZ
    tone = np.sin(2 * np.pi * (150 + 40 * seed + 20 * t) * t + 3 * np.sin(2 * np.pi * 5 * t))
    noise = np.random.RandomState(seed).standard_normal(
        num_samples
    )  # the generator whose stream is frozen
    return ((0.3 + 0.2 * np.sin(2 * np.pi * 0.7 * t)) * tone + 0.02 * noise).astype(np.float32)


# Samples: before the collator a clip is one placeholder between its opening and closing token.


def turn(role: int, *content: int) -> list[int]:
    return [HEADER, role, HEADER_END, NEWLINE, *content, END_OF_TURN]


def sample_of(row: Row) -> tuple[dict[str, Any], ChatMLDatasetSample]:
    """The sample as it goes into the JSON file and as the original takes it."""
    random = np.random.RandomState(100 + row.seed)
    text = random.randint(20, 280, 24).tolist()
    system = text[:6]
    for _ in row.references:
        system += [text.pop(), REFERENCE_BOS, REFERENCE, AUDIO_EOS]
    target = [AUDIO_BOS, AUDIO, AUDIO_EOS]
    spoken = turn(ASSISTANT, *target)
    input_ids = [BEGIN, *turn(SYSTEM, *system, text[6]), *turn(USER, *text[7:14]), *spoken]
    num_trained = len(target) + 1
    label_ids = [-100] * (len(input_ids) - num_trained) + input_ids[-num_trained:]

    frames = [clip.num_frames for clip in row.references] + [row.num_target_frames]
    codes = [random.randint(0, 1024, (8, num)) for num in frames]
    waves = [torch.from_numpy(waveform(clip.num_samples, clip.seed)) for clip in row.references]
    described = {
        "input_ids": input_ids,
        "label_ids": label_ids,
        "references": [asdict(clip) for clip in row.references],
        "codes": [clip.tolist() for clip in codes],
    }
    return described, ChatMLDatasetSample(
        input_ids=torch.tensor(input_ids),
        label_ids=torch.tensor(label_ids),
        audio_ids_concat=torch.from_numpy(np.concatenate(codes, axis=1)),
        audio_ids_start=starts(frames),
        audio_waveforms_concat=torch.cat(waves) if waves else torch.zeros(0),
        audio_waveforms_start=starts([len(wave) for wave in waves]),
        audio_sample_rate=torch.tensor([SAMPLE_RATE_HZ] * len(waves)),
        audio_speaker_indices=torch.tensor([-1] * len(frames)),
    )


def starts(lengths: list[int]) -> Tensor:
    return torch.tensor(np.cumsum([0, *lengths])[: len(lengths)], dtype=torch.long)


def with_codes_per_chunk(sample: ChatMLDatasetSample) -> ChatMLDatasetSample:
    """Each chunk of the (only) reference as a code clip of its own.

    The collator repeats the placeholder of a clip longer than 30 s but not its codes, and then
    counts clips by placeholders: the target's codes are looked for one clip too far."""
    first, second = sample.audio_ids_start.tolist()
    sample.audio_ids_start = torch.tensor([first, (first + second) // 2, second])
    return sample


# The original.


def build_model(codes_too: bool) -> HiggsAudioModel:
    values = json.loads((GOLDEN / "tiny_original_config.json").read_text(encoding="utf-8"))
    values["audio_encoder_config"] |= {**TOWER, "num_hidden_layers": TOWER["encoder_layers"]}
    values |= {
        "skip_audio_tower": False,
        "encode_whisper_embed": True,
        "encode_audio_in_tokens": codes_too,
    }
    model = HiggsAudioModel(HiggsAudioConfig(**values))
    # Eager attention adds the boolean mask to the scores as 0 and 1. The original falls back to it
    # when it loads what it has saved: its config then claims that the implementation was chosen
    # already.
    assert model.audio_tower.config._attn_implementation == "sdpa", (
        model.audio_tower.config._attn_implementation
    )
    weights = load_file(GOLDEN / "tiny_original.safetensors") | tower_weights(model)
    model.load_state_dict(weights, strict=True)
    return model.train()


def tower_weights(model: HiggsAudioModel) -> dict[str, Tensor]:
    """Random, but large enough that attention is far from uniform: a wrong mask has to show."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, value in model.state_dict().items():
        if not key.startswith(TOWER_KEYS):
            continue
        if "norm" in key and key.endswith("weight"):
            mean, scale = 1.0, 0.2
        elif value.dim() == 1:
            mean, scale = 0.0, 0.2
        else:
            gain = 2.0 if "q_proj" in key or "k_proj" in key else 1.0
            mean, scale = 0.0, 0.5 if "embed_positions" in key else gain * value[0].numel() ** -0.5
        weights[key] = mean + scale * torch.randn(value.shape, generator=generator)
    return weights


def build_collator(codes_too: bool) -> HiggsAudioSampleCollator:
    return HiggsAudioSampleCollator(
        whisper_processor=SimpleNamespace(
            feature_extractor=WhisperFeatureExtractor(feature_size=128)
        ),
        audio_in_token_id=REFERENCE,
        audio_out_token_id=AUDIO,
        pad_token_id=PAD,
        audio_stream_bos_id=1024,
        audio_stream_eos_id=1025,
        encode_whisper_embed=True,
        return_audio_in_tokens=codes_too,
        audio_num_codebooks=8,
        use_delay_pattern=True,
    )


def losses(outputs: Any, label_audio_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Means: text over trained tokens, (8,) audio over trained entries of each codebook. The shift
    happens here."""
    text = cross_entropy(
        outputs.logits[:, :-1].flatten(0, 1), outputs.expanded_labels[:, 1:].flatten()
    )
    # One row for all clips of the batch is right: the first frame of a clip carries no label.
    audio = [cross_entropy(outputs.audio_logits[:-1, k], label_audio_ids[k, 1:]) for k in range(8)]
    return text, torch.stack(audio)


def run(case: Case) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    described, samples = zip(*map(sample_of, case.rows), strict=True)
    meta: dict[str, Any] = {"encode_audio_in_tokens": case.codes_too, "samples": described}
    collator = build_collator(case.codes_too)
    try:
        batch = collator(list(samples))
    except IndexError as error:  # two chunks
        meta["collator_error"] = str(error)
        batch = collator([with_codes_per_chunk(sample_of(row)[1]) for row in case.rows])

    model = build_model(case.codes_too)
    projected: list[Tensor] = []
    model.audio_encoder_proj.register_forward_hook(
        lambda module, inputs, output: projected.append(output)
    )
    outputs = model(**{key: value for key, value in asdict(batch).items() if key != "reward"})
    (embeddings,) = projected  # (A, 750, H)
    embeddings.retain_grad()
    text_loss, codebook_losses = losses(outputs, batch.label_audio_ids)
    (text_loss + codebook_losses.sum()).backward()
    meta["grad_norms"] = {
        name: float(parameter.grad.norm())
        for name, parameter in model.named_parameters()
        if name.startswith(TOWER_KEYS) and parameter.grad is not None
    }

    _, counts = model.audio_tower._get_feat_extract_output_lengths(
        batch.audio_feature_attention_mask.sum(-1)
    )
    used = torch.arange(embeddings.shape[1]) < counts[:, None]
    whisper = outputs.audio_in_mask & ~outputs.audio_in_discrete_codes_mask
    read = outputs.attention_mask.bool() & ~whisper
    arrays = {
        "input_ids": batch.input_ids,
        "label_ids": batch.label_ids,
        "audio_in_ids": batch.audio_in_ids
        if case.codes_too
        else torch.zeros(8, 0, dtype=torch.long),
        "audio_out_ids": batch.audio_out_ids,
        "label_audio_ids": batch.label_audio_ids,
        "num_mel_frames": batch.audio_feature_attention_mask.sum(-1),
        "mel_sums": batch.audio_features.double().sum((1, 2)),
        "mel_values": batch.audio_features[:, ::16, ::100],
        "num_positions": counts,
        "embeddings": embeddings[used][:: case.position_stride],
        "expanded_input_ids": outputs.expanded_input_ids,
        "expanded_labels": outputs.expanded_labels,
        "expanded_attention_mask": outputs.attention_mask,
        "whisper_mask": whisper,
        "audio_in_codes_mask": outputs.audio_in_discrete_codes_mask,
        "audio_out_mask": outputs.audio_out_mask,
        "text_logits": outputs.logits[read],
        "audio_logits": outputs.audio_logits[..., ::CODE_STRIDE],
        "text_loss": text_loss,
        "codebook_losses": codebook_losses,
    }
    if case.position_stride == 1:
        arrays["embedding_gradients"] = embeddings.grad[used]
    return meta, {key: value.detach().numpy() for key, value in arrays.items()}


def clip_positions(tower: Any) -> dict[int, list[int]]:
    """Number of samples -> positions of each chunk, from the extractor's mask."""
    extractor = WhisperFeatureExtractor(feature_size=128)
    result = {}
    for num_samples in CLIP_SAMPLES:
        chunks = [
            np.zeros(min(480_000, num_samples - start)) for start in range(0, num_samples, 480_000)
        ]
        mask = extractor(chunks, sampling_rate=SAMPLE_RATE_HZ, return_attention_mask=True)[
            "attention_mask"
        ]
        _, counts = tower._get_feat_extract_output_lengths(torch.from_numpy(mask).sum(-1))
        result[num_samples] = counts.tolist()
    return result


def main() -> None:
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    model = build_model(codes_too=False)
    (OUT / "config.json").write_text(model.config.to_json_string(), encoding="utf-8")
    weights = {
        key: value.contiguous()
        for key, value in model.state_dict().items()
        if key.startswith(TOWER_KEYS)
    }
    save_file(weights, OUT / "tower.safetensors", metadata={"format": "pt"})
    metas: dict[str, Any] = {}
    for name, case in CASES.items():
        metas[name], arrays = run(case)
        np.savez_compressed(OUT / f"{name}.npz", **arrays)
        print(
            name,
            metas[name].get("collator_error", ""),
            arrays["num_positions"],
            arrays["text_loss"],
        )
    clips = {"clip_positions": clip_positions(model.audio_tower)}
    lines = [
        f"{json.dumps(name)}: {json.dumps(value)}" for name, value in {**clips, **metas}.items()
    ]
    (OUT / "cases.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
