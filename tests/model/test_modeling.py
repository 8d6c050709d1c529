"""The model against the original implementation: logits, both losses, gradients
(tests/golden/README.md)."""

import numpy as np
import pytest
import torch
from helpers.models import (
    AUDIO,
    DELAY,
    TOKENS,
    golden_batch,
    golden_model,
    native_key,
    without_labels,
)

from plugins.collator import collate
from plugins.data.dialogue import EncodedSample
from plugins.model.config import HiggsAudioV2Config
from plugins.model.loss import LossWeights, combine
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration


@pytest.fixture(scope="module")
def model() -> HiggsAudioV2ForConditionalGeneration:
    return golden_model()


@pytest.mark.parametrize("name", ["golden_single", "golden_clone"])
def test_logits_equal_the_original(model: HiggsAudioV2ForConditionalGeneration, name: str) -> None:
    batch, _, golden = golden_batch(name)
    with torch.no_grad():
        hidden = model.hidden_states(**without_labels(batch))
    real = batch["attention_mask"].bool()
    there = golden["expanded_attention_mask"].astype(bool)
    text = model.text_lm_head(hidden)[real].detach().numpy()
    np.testing.assert_allclose(text, golden["text_logits"][there], atol=1e-5, rtol=0)
    # The original keeps audio logits of placeholders only, delay included.
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
    from plugins.training.optimizer import is_audio_parameter

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
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        codebook_size=1026,
        pad_token_id=1,
        audio_token_id=AUDIO,
        audio_bos_token_id=301,
        audio_delay_token_id=DELAY,
    )
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
