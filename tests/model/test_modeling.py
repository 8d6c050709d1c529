"""The model against the original implementation: logits, both losses, gradients
(tests/golden/README.md)."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from plugins.collator import collate
from plugins.data.dialogue import EncodedSample
from plugins.data.tokens import SpecialTokens
from plugins.model.config import HiggsAudioV2Config
from plugins.model.loss import LossWeights, combine
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration

AUDIO, DELAY = 304, 302
TOKENS = SpecialTokens(
    begin_of_text=2, header_start=3, header_end=7, end_of_turn=298, end_of_message=-1, scene_start=-1, scene_end=-1,
    audio_bos=301, reference_bos=299, audio_eos=300, audio=AUDIO, audio_delay=DELAY, pad=1, stream_bos=1024,
    stream_eos=1025, num_codebooks=8, codebook_size=1026,
)  # fmt: skip
NATIVE_KEYS = (
    (r"^audio_codebook_embeddings\.", "model.embed_audio_tokens.embed_audio_tokens."),
    (r"^(embed_tokens|norm|layers)\.", r"model.\1."),
    (r"^audio_decoder_proj\.(audio|text)_lm_head\.", r"\1_lm_head."),
)


def native_key(key: str) -> str:
    for pattern, replacement in NATIVE_KEYS:
        key = re.sub(pattern, replacement, key)
    return key


@pytest.fixture(scope="module")
def model() -> HiggsAudioV2ForConditionalGeneration:
    original = json.loads((GOLDEN / "tiny_original_config.json").read_text(encoding="utf-8"))[
        "text_config"
    ]
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings")  # fmt: skip
    config = HiggsAudioV2Config(
        **{name: original[name] for name in shape},
        rope_parameters={**original["rope_scaling"], "rope_theta": original["rope_theta"]},
        codebook_size=1026, pad_token_id=1, bos_token_id=2, eos_token_id=298,
        audio_token_id=AUDIO, audio_bos_token_id=301, audio_delay_token_id=DELAY,
        attn_implementation="eager",
    )  # fmt: skip
    model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    weights = {
        native_key(key): value
        for key, value in load_file(GOLDEN / "tiny_original.safetensors").items()
    }
    weights = {
        key: value
        for key, value in weights.items()
        if "rotary" not in key and key != "audio_codebook_weights"
    }
    model.load_state_dict(weights, strict=True)
    return model.train()


def golden_batch(name: str) -> tuple[dict[str, torch.Tensor], Any, Any]:
    """The golden sample through our collator: each `<|AUDIO_OUT|>` becomes F + 2 + 7
    placeholders."""
    meta = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    samples = []
    for case in meta["samples"]:
        ids: list[int] = []
        labels: list[int] = []
        clips = [torch.tensor(codes) for codes in case["codes"]]
        waiting = iter(clips)
        for token, label in zip(case["input_ids"], case["label_ids"], strict=True):
            run = (
                [token] if token != AUDIO else [AUDIO] * (next(waiting).shape[1] + 2) + [DELAY] * 7
            )
            ids += run
            labels += [label if token != AUDIO else -100] * len(run)
        trained = [False] * (len(clips) - 1) + [True]
        samples.append(EncodedSample(ids, labels, clips, trained, name))
    return collate(samples, TOKENS, training=True), meta, np.load(GOLDEN / f"{name}.npz")


@pytest.mark.parametrize("name", ["golden_single", "golden_clone"])
def test_logits_equal_the_original(model: HiggsAudioV2ForConditionalGeneration, name: str) -> None:
    batch, _, golden = golden_batch(name)
    inputs = {key: value for key, value in batch.items() if "labels" not in key}
    with torch.no_grad():
        hidden = model.model(**inputs).last_hidden_state
    real = batch["attention_mask"].bool()
    there = golden["expanded_attention_mask"].astype(bool)
    text = model.text_lm_head(hidden)[real].detach().numpy()
    np.testing.assert_allclose(text, golden["text_logits"][there], atol=1e-5, rtol=0)
    placeholders = (batch["input_ids"] == AUDIO) | (batch["input_ids"] == DELAY)
    audio = model.audio_lm_head(hidden)[placeholders].detach().view(-1, 8, 1026).numpy()
    np.testing.assert_allclose(audio, golden["audio_logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["golden_single", "golden_clone"])
def test_losses_and_gradients_equal_the_original(
    model: HiggsAudioV2ForConditionalGeneration, name: str
) -> None:
    batch, meta, golden = golden_batch(name)
    outputs = model(**batch)
    assert outputs.text_count == golden["text_count"]
    assert outputs.audio_count.tolist() == golden["codebook_counts"].tolist()
    np.testing.assert_allclose(
        float(outputs.text_loss.detach() / outputs.text_count), golden["text_loss"], atol=1e-5
    )
    per_codebook = (outputs.audio_loss / outputs.audio_count).detach().numpy()
    np.testing.assert_allclose(per_codebook, golden["codebook_losses"], atol=1e-5)

    weights = LossWeights(1.0, 1.0, 0.0, (1.0,) * 8, sum_codebooks=True)
    counts = {"num_text": outputs.text_count, "num_frames": outputs.audio_count[0]}
    model.zero_grad()
    combine(outputs.text, outputs.audio, weights=weights, **counts).backward()
    gradients = {name: float(parameter.grad.norm()) for name, parameter in model.named_parameters()}
    for key, norm in meta["grad_norms"].items():
        assert gradients[native_key(key)] == pytest.approx(norm, rel=1e-4), key


def test_text_only_batch_touches_every_parameter(
    model: HiggsAudioV2ForConditionalGeneration,
) -> None:
    """A rank whose batch has no audio must still give each audio parameter a (zero) gradient, or
    DDP hangs."""
    batch = collate([EncodedSample([2, 50, 298], [-100, 50, 298])], TOKENS, training=True)
    outputs = model(**batch)
    model.zero_grad()
    weights = LossWeights(1.0, 1.0, 0.001, (1.0,) * 8)
    combine(
        outputs.text,
        outputs.audio,
        num_text=torch.tensor(2),
        num_frames=torch.tensor(0),
        weights=weights,
    ).backward()
    untouched = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert untouched == []
    assert model.audio_lm_head.weight.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("shape", "billions", "audio_billions"),
    [
        ({}, 5.77, 2.16),
        (
            {
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
            },
            13.7,
            5.7,
        ),
    ],
    ids=["3b", "7b"],
)
def test_real_shapes_have_the_known_sizes(
    shape: dict[str, int], billions: float, audio_billions: float
) -> None:
    """Without weights, on the meta device: the published 3B configuration, and a
    Llama-3.1-8B-shaped one."""
    from plugins.trainer import is_audio_parameter

    with torch.device("meta"):
        config = HiggsAudioV2Config(codebook_size=1026, **shape)
        model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(sizes.values()) / 1e9 == pytest.approx(billions, abs=0.05)
    audio = sum(size for name, size in sizes.items() if is_audio_parameter(name))
    assert audio / 1e9 == pytest.approx(audio_billions, abs=0.05)


def test_the_body_stays_in_bf16_under_the_autocast_of_cuda() -> None:
    """Every bf16 run without DeepSpeed raised in its first forward: unlike a CPU's, CUDA's autocast
    sums in fp32.

    Fake tensors follow CUDA's rules without a GPU.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    config = HiggsAudioV2Config(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, codebook_size=1026, pad_token_id=1, audio_token_id=AUDIO,
        audio_bos_token_id=301, audio_delay_token_id=DELAY,
    )  # fmt: skip
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True), torch.device("cuda"):
        model = HiggsAudioV2ForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
        frames = torch.zeros(2, 5, 8, dtype=torch.long)
        inputs = {"input_ids": torch.zeros(2, 9, dtype=torch.long), "audio_input_ids": frames}
        inputs["audio_input_ids_mask"] = torch.zeros(2, 5, dtype=torch.bool)
        # `torch.autocast` switches itself off where there is no GPU.
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        try:
            hidden = model.hidden_states(**inputs, use_cache=False)
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert hidden.dtype == torch.bfloat16
