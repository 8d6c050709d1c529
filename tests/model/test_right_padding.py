"""Padding on the right needs no attention mask: what real positions compute, and whose mask
stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.models import AUDIO, DELAY, TOKENS, golden_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, masking_utils

from plugins.collator import collate
from plugins.data.dialogue import EncodedSample
from plugins.model.dual_ffn import Routes, use_index_once_layers

LENGTHS = (21, 5, 40)  # frames of three clips


@pytest.fixture(scope="module")
def model() -> Any:
    model = golden_model()
    use_index_once_layers(model)
    model.set_attn_implementation("sdpa")
    return model


def batch_of(**options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    samples = []
    for i, frames in enumerate(LENGTHS):
        ids = [2, *range(10, 14 + i), 301, *[AUDIO] * (frames + 2), *[DELAY] * 7, 300, 298]
        labels = [-100] * (len(ids) - 2) + [300, 298]
        clips = [torch.randint(0, 1024, (8, frames))]
        samples.append(EncodedSample(ids, labels, clips, [True], f"row {i}"))
    return collate(samples, TOKENS, **{"training": True, **options})


def step(model: Any, batch: dict[str, Any]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Sums of both losses, and gradients of their sum."""
    outputs = model(**batch)
    model.zero_grad()
    (outputs.text_loss + outputs.audio_loss.sum() + outputs.text_z + outputs.audio_z).backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    sums = [outputs.text_loss, outputs.audio_loss, outputs.text_count, outputs.audio_count]
    return [value.detach() for value in sums], gradients


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the kernel gets, once per layer: the mask, or "causal"."""
    given = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def noting(*args: Any, attn_mask: Any, is_causal: bool, **kwargs: Any) -> Tensor:
        given.append("causal" if is_causal else attn_mask)
        return attend(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    return given


def test_loss_and_gradients_are_those_with_a_mask(model: Any, masks: list[Any]) -> None:
    """To the bit, where the kernel does the same sums."""
    batch, look_up = batch_of(), Routes.of
    with sdpa_kernel(SDPBackend.MATH):
        ours = step(model, batch)
        assert set(masks) == {"causal"}
        masks.clear()
        with pytest.MonkeyPatch.context() as patch:
            of = lambda *args: look_up(*args)._replace(is_right_padded=False)  # noqa: E731
            patch.setattr(Routes, "of", of)
            expected = step(model, batch)
        assert {mask.shape[-2:] for mask in masks} == {(59, 59)}
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert max(gradient.abs().max() for gradient in ours[1].values()) > 1e-3


def test_the_causal_kernel_sees_all_layers(
    model: Any, masks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody asks whether rows are packed, which they are not."""
    refuse = pytest.fail
    monkeypatch.setattr(
        masking_utils, "find_packed_sequence_indices", lambda *_: refuse("looks packed")
    )
    sums, _ = step(model, batch_of())
    assert masks == ["causal"] * model.config.num_hidden_layers
    assert sums[3].tolist() == [sum(LENGTHS) + len(LENGTHS)] * 8


def test_padding_enters_neither_loss_nor_rows(model: Any) -> None:
    """Whatever stands there."""
    batch = batch_of()
    real, real_frames = batch["attention_mask"].bool(), batch["audio_input_ids_mask"]
    routes = Routes.of(batch["input_ids"] == AUDIO, batch["attention_mask"])
    assert sorted(routes.rows.tolist()) == real.flatten().nonzero().flatten().tolist()
    other = dict(batch)
    other["input_ids"] = batch["input_ids"].where(real, 77)
    frames = batch["audio_input_ids"]
    other["audio_input_ids"] = frames.where(real_frames[..., None], 5)
    torch.testing.assert_close(step(model, other), step(model, batch), rtol=0, atol=0)


def test_frames_must_fill_the_placeholders(model: Any) -> None:
    batch = batch_of()
    batch["audio_input_ids_mask"][2, -1] = False
    with pytest.raises(AssertionError, match="93 placeholders, 92 frames"):
        model(**batch)


# Whose mask stays.


def test_left_padding_keeps_its_mask(model: Any, masks: list[Any]) -> None:
    with torch.no_grad():
        model.hidden_states(**batch_of(training=False))
    assert all(isinstance(mask, Tensor) for mask in masks)


def test_padding_in_the_middle_keeps_its_mask(model: Any, masks: list[Any]) -> None:
    batch = batch_of()
    batch["attention_mask"][0, 3] = 0
    model(**batch)
    assert all(isinstance(mask, Tensor) for mask in masks)


def test_a_cache_keeps_its_mask(model: Any, masks: list[Any]) -> None:
    """Later positions are told by it which of the first ones are padding."""
    inputs = batch_of()
    inputs = {name: inputs[name] for name in inputs if "labels" not in name}
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model.hidden_states(cache=cache, **inputs)
        model.model(**inputs, use_cache=True)
    assert all(isinstance(mask, Tensor) for mask in masks)
    assert len(masks) == 2 * model.config.num_hidden_layers


def test_packed_rows_keep_theirs(model: Any, masks: list[Any]) -> None:
    """transformers makes it, from positions that begin anew."""
    expected, _ = step(model, batch_of())
    masks.clear()
    packed, _ = step(model, batch_of(packed=True))
    assert all(isinstance(mask, Tensor) for mask in masks)
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-5)


def test_other_kernels_keep_theirs(model: Any) -> None:
    """Eager attention knows of no `is_causal`; its loss is the same."""
    expected, _ = step(model, batch_of())
    model.set_attn_implementation("eager")
    try:
        ours, _ = step(model, batch_of())
    finally:
        model.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours, expected)
