"""Index-once layers against transformers' own: numbers, gradients, hosts, and what makes a GPU wait
for the CPU."""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.waits import Waits
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import DynamicCache
from transformers import HiggsAudioV2ForConditionalGeneration as Native
from transformers.models.higgs_audio_v2 import modeling_higgs_audio_v2 as native_module

from plugins.model import dual_ffn
from plugins.model.config import HiggsAudioV2Config
from plugins.model.dual_ffn import CACHE, Routes, use_index_once_layers
from plugins.model.load import native_model
from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration

AUDIO, DELAY, PAD, K = 304, 302, 1, 8
BATCHES = {  # t text, a audio, d delay, . padding
    "mixed": ["tttaaaddtt", "taaaaaaaad", "atatatatat"],
    "text": ["tttttt", "tttttt"],
    "audio": ["aaaaad", "aaaaaa"],
    "right": ["tttaaadt..", "tta.......", "ttttaaaaad"],
    "left": ["..tttaaadt", ".......tta", "ttttaaaaad"],
    "text, padded": ["ttt...", "tttttt"],
}


def make_config(num_layers: int = 2, **overrides: Any) -> HiggsAudioV2Config:
    return HiggsAudioV2Config(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        codebook_size=34,
        num_codebooks=K,
        pad_token_id=PAD,
        audio_token_id=AUDIO,
        audio_bos_token_id=301,
        audio_delay_token_id=DELAY,
        audio_stream_bos_id=32,
        audio_stream_eos_id=33,
        **overrides,
    )


def pair(config: HiggsAudioV2Config, **options: Any) -> tuple[Any, Any]:
    """transformers' model, and the same with index-once layers. Weights are large: FFNs must
    matter."""
    torch.manual_seed(0)
    # Each layer of attention and FFN has to matter, at random weights of 0.02 none does.
    native = Native(config, use_text_head=True, **options).train()
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 1))
    ours = copy.deepcopy(native)
    use_index_once_layers(ours)
    return native, ours


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def models(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return pair(make_config(attn_implementation=request.param))


def make_inputs(rows: list[str]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(5, 300, (len(rows), len(rows[0])))
    for kind, token in {"a": AUDIO, "d": DELAY, ".": PAD}.items():
        ids[torch.tensor([[letter == kind for letter in row] for row in rows])] = token
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    num_frames = ((ids == AUDIO) | (ids == DELAY)).sum(dim=1)
    most = int(num_frames.max())
    if most:
        inputs["audio_input_ids"] = torch.randint(0, 34, (len(rows), most, K))
        inputs["audio_input_ids_mask"] = torch.arange(most) < num_frames[:, None]
    return inputs


def hidden_and_gradients(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states that are no padding, and gradients of a loss of them."""
    real = inputs["attention_mask"].bool()
    body = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
    hidden = body(**inputs, use_cache=False).last_hidden_state[real]
    model.zero_grad()
    torch.manual_seed(2)
    (hidden.float() * torch.randn(hidden.shape)).mean().backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.clone()
    return hidden.detach(), gradients


def assert_same(models: tuple[Any, Any], inputs: dict[str, Tensor], **bounds: float) -> None:
    atol = {"hidden": 1e-6, "gradients": 1e-5, **bounds}
    expected, expected_gradients = hidden_and_gradients(models[0], inputs)
    hidden, gradients = hidden_and_gradients(models[1], inputs)
    # Relative to the largest: sums of rows in another order round otherwise.
    largest = expected.abs().max().item()
    torch.testing.assert_close(hidden, expected, rtol=0, atol=atol["hidden"] * largest)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=atol["gradients"])
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3


# The same numbers.


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
def test_hidden_states_and_gradients_are_the_native_ones(
    models: tuple[Any, Any], rows: list[str]
) -> None:
    assert_same(models, make_inputs(rows))


@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
def test_every_parameter_of_the_layers_gets_a_gradient(
    models: tuple[Any, Any], rows: list[str]
) -> None:
    """Also those of an FFN without rows: a rank without a gradient, or without a call, leaves the
    others waiting."""
    ours, called = models[1], Counter[str]()
    hooks = []
    for name, module in ours.model.layers.named_modules():
        count = partial(called.update, [name])
        hooks.append(module.register_forward_hook(lambda *_, count=count: count()))
    _, gradients = hidden_and_gradients(ours, make_inputs(rows))
    for hook in hooks:
        hook.remove()
    for name, _ in ours.model.layers.named_parameters():
        assert f"model.layers.{name}" in gradients
        module, _, _ = name.rpartition(".")
        assert called[module] == 1, module


def test_padding_reaches_nothing(models: tuple[Any, Any]) -> None:
    """Whatever ids stand there."""
    inputs = make_inputs(BATCHES["left"])
    other = {**inputs, "input_ids": inputs["input_ids"].where(inputs["attention_mask"].bool(), 77)}
    before, after = hidden_and_gradients(models[1], inputs), hidden_and_gradients(models[1], other)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    hidden = models[1].model(**inputs, use_cache=False).last_hidden_state
    assert hidden[inputs["attention_mask"] == 0].abs().max() == 0


# Inside the hosts that change a model: checkpoints, checkpointing, LoRA, autocast, a cache.


def test_names_of_weights_stay(models: tuple[Any, Any]) -> None:
    native, ours = models
    assert list(native.state_dict()) == list(ours.state_dict())
    for module, other in zip(native.modules(), ours.modules(), strict=True):
        assert type(module).__name__ == type(other).__name__


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant: bool) -> None:
    models = pair(make_config())
    for model in models:
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": use_reentrant}
        )
        model.enable_input_require_grads()
    for rows in BATCHES.values():
        assert_same(models, make_inputs(rows))


def test_lora() -> None:
    targets = [
        "q_proj",
        "o_proj",
        "mlp.up_proj",
        "mlp.down_proj",
        "audio_mlp.gate_proj",
        "audio_mlp.down_proj",
    ]
    native, ours = pair(make_config())
    native = get_peft_model(
        native, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    )
    ours = get_peft_model(ours, LoraConfig(r=4, target_modules=targets))
    # Both get the same random adapter.
    ours.load_state_dict(native.state_dict())
    for rows in BATCHES.values():
        assert_same((native, ours), make_inputs(rows))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_autocast(weights: torch.dtype) -> None:
    """Rounded alike, where as many rows are multiplied at a time: without padding to the bit."""
    native, ours = pair(make_config())
    models = (native.to(weights), ours.to(weights))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(models, make_inputs(BATCHES["mixed"]), hidden=0, gradients=1e-5)
        hidden, _ = hidden_and_gradients(ours, make_inputs(BATCHES["right"]))
        expected, _ = hidden_and_gradients(native, make_inputs(BATCHES["right"]))
    assert hidden.dtype == expected.dtype
    torch.testing.assert_close(hidden, expected, rtol=0.05, atol=0.05)


def test_cache_after_a_padded_prompt(models: tuple[Any, Any]) -> None:
    """Prompt, a step of audio alone (no ids: the native path), a step of text ids on a longer
    mask."""
    prompt = make_inputs(BATCHES["left"])
    frames = {"audio_input_ids": torch.randint(0, 34, (3, 1, K))}
    text = {"input_ids": torch.full((3, 1), 9)}
    hidden_of_steps = []
    for model in models:
        options = {CACHE: DynamicCache(config=model.config), "use_cache": True}
        mask = prompt["attention_mask"]
        with torch.no_grad():
            hidden = model.model(**prompt, **options).last_hidden_state
            steps = [hidden[mask.bool()]]
            for step in (frames, text):
                mask = torch.cat([mask, mask.new_ones(3, 1)], dim=1)
                where = {"attention_mask": mask, "position_ids": mask.cumsum(-1)[:, -1:] - 1}
                steps.append(model.model(**step, **where, **options).last_hidden_state)
        hidden_of_steps.append(steps)
    expected, ours = hidden_of_steps
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_generate_of_transformers(models: tuple[Any, Any]) -> None:
    """Greedy frames for prompts of different lengths, with a clip in each."""
    inputs = make_inputs(["..tttaadt", "ttttaaadt"])
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 3, "pad_token_id": PAD}
    spoken = [model.eval().generate(**inputs, **options) for model in models]
    for model in models:
        model.train()
    assert torch.equal(spoken[0], spoken[1])
    assert spoken[0].shape[1] > 8


# Routes, and what makes a GPU wait.


def test_rows_are_sorted_by_kind() -> None:
    is_audio = torch.tensor([[False, True, True, False], [True, False, False, True]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    routes = Routes.of(is_audio, mask)
    assert routes.rows.tolist() == [0, 5, 6, 1, 2, 7]
    assert routes[1:] == (3, 3, (2, 4), False)
    batch = torch.randn(2, 4, 3)
    assert torch.equal(routes.put(routes.take(batch)), batch * mask.unsqueeze(-1))
    # Masks of another shape, (B, past + S) or (B, 1, S, S), say nothing about these positions.
    for other in (None, torch.zeros(2, 9), torch.zeros(2, 1, 4, 4)):
        assert Routes.of(is_audio, other)[1:3] == (4, 4)


def waits(model: Any, inputs: dict[str, Tensor]) -> Counter[str]:
    with Waits() as counting:
        hidden_and_gradients(model, inputs)
    return counting.counts


def test_layers_do_not_make_the_device_wait() -> None:
    """However many layers: what a step waits for stands outside them."""
    few, many = pair(make_config(1)), pair(make_config(4))
    inputs = make_inputs(BATCHES["right"])
    assert waits(many[1], inputs) == waits(few[1], inputs)
    per_layer = (waits(many[0], inputs) - waits(few[0], inputs)).total() / 3
    assert per_layer >= 10, (
        "transformers no longer looks up rows in each layer: our layers may be needless"
    )
    # The one look-up. A mask that is not handed on is not looked at either.
    assert waits(many[1], inputs) - waits(few[0], inputs) == {"tolist": 1}


def test_heads_see_only_rows_with_labels() -> None:
    model = HiggsAudioV2ForConditionalGeneration(make_config(), use_text_head=True)
    inputs, num_rows = make_inputs(BATCHES["right"]), {}
    for name in ("text_lm_head", "audio_lm_head"):
        head = getattr(model, name)
        head.register_forward_hook(
            lambda _, args, out, name=name: num_rows.update({name: out.shape[0]})
        )
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 1] = labels[2, 9] = 7
    frames = inputs["audio_input_ids"]
    audio_labels = torch.full_like(frames, -100)
    audio_labels[0, 1, :2] = audio_labels[2, 3, 4] = 5
    model(**inputs, labels=labels, audio_labels=audio_labels)
    assert num_rows == {"text_lm_head": 2, "audio_lm_head": 2}


# Which model has them.


def is_ours(model: Any) -> bool:
    classes = {type(layer) for layer in model.model.layers}
    return native_module.HiggsAudioV2DecoderLayer not in classes


def test_our_model_has_them_unless_its_loader_says_otherwise(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting is the loader's to read: a constructor reads no environment."""
    monkeypatch.setenv("NATIVE_LAYERS", "true")
    assert is_ours(HiggsAudioV2ForConditionalGeneration(make_config()))
    assert not is_ours(native_model(str(tiny)))
    monkeypatch.delenv("NATIVE_LAYERS")
    assert is_ours(native_model(str(tiny)))


@pytest.mark.parametrize("version", ["5.19.0", "5.20.2", "5.24.0", "5.24.1.dev0"])
def test_every_tested_transformers_gets_them(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual_ffn, "TRANSFORMERS", version)
    model: Any = Native(make_config())
    use_index_once_layers(model)
    assert is_ours(model)


def test_the_old_name_of_the_cache_is_never_used() -> None:
    """transformers 5.24 warns of it at each layer, and of both names at once."""
    model = HiggsAudioV2ForConditionalGeneration(make_config()).eval()
    inputs = make_inputs(["..tttaadt", "ttttaaadt"])
    cache = DynamicCache(config=model.config)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model(**inputs)
        model.hidden_states(**inputs, cache=cache)
        model.generate(**inputs, max_new_tokens=3, eos_token_id=3, pad_token_id=PAD)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


def test_twice_is_once_and_another_transformers_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = Native(make_config())
    # In our file, not in transformers: its processing_utils, which peft imports, puts a second
    # module of that name into sys.modules, and who has the first does not see what is set there.
    monkeypatch.setattr(dual_ffn, "TRANSFORMERS", "5.25.0")
    with caplog.at_level(logging.WARNING, "plugins.model.dual_ffn"):
        use_index_once_layers(model)
    assert "untested with 5.25.0" in caplog.text
    assert not is_ours(model)
    monkeypatch.undo()
    use_index_once_layers(model)
    use_index_once_layers(model)
    assert is_ours(model)
    assert len(model.model._forward_pre_hooks) == 1
