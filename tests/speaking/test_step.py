"""One step of the model: what it computes, what it leaves out, where it lies in memory, and the
same when it is compiled."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.speaking import GREEDY, REQUESTS, decoded, dialogues, prompts
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.model.dual_ffn import CACHE
from plugins.model.load import native_model
from plugins.speaking import decoding, graphs
from plugins.speaking.sampling import Sampler, Sampling
from plugins.speaking.step import AudioStep, linear

SAMPLED = Sampling(temperature=1.0, seed=7)


@pytest.fixture(scope="module")
def generator(tiny: Path) -> HiggsAudioGenerator:
    return HiggsAudioGenerator.from_pretrained(str(tiny))


def speaking(generator: HiggsAudioGenerator, num_steps: int, sampling: Sampling = GREEDY) -> Any:
    batch = prompts(generator, dialogues(generator))
    samplings = [sampling] * len(REQUESTS)
    sampler = Sampler(samplings, num_steps, generator.tokens.num_codebooks, "cpu")
    length = batch["input_ids"].shape[1] + num_steps - 1
    room = decoding.Room(len(REQUESTS), length, sampler.window)
    spoken = decoding.Speaking(generator.model, generator.tokens, room, None)
    spoken.begin(batch, sampler)
    return spoken


# --- compiled ---


_graph_without_breaks = partial(graphs.as_one_graph, backend="aot_eager")


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_the_compiled_step_is_one_graph_and_says_the_same(
    generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    """A step that asked for a value would break the graph, which is an error here. Rows leave, so
    sizes change."""
    monkeypatch.setattr(decoding, "compiled", _graph_without_breaks)
    # Of different lengths, by limits of their own: random weights never end.
    batch = prompts(generator, dialogues(generator))
    spoken = []
    for stage in (None, decoding.Stage()):
        steps = decoding.decode(
            generator.model,
            batch,
            generator.tokens,
            [sampling] * 4,
            [40, 10, 25, 25],
            stage=stage,
        )
        spoken.append([(rows, frames.tolist()) for rows, frames in steps])
    assert spoken[0] == spoken[1]
    assert {len(rows) for rows, _ in spoken[0]} == {4, 3, 1}


@pytest.mark.slow
@pytest.mark.parametrize("text", ["Hello.", "A longer word.", ["Hi.", "The harbour lights."]])
def test_speech_of_a_compiled_generator(generator: HiggsAudioGenerator, text: Any) -> None:
    """By torch's own compiler, for several lengths and a batch."""
    compiled = HiggsAudioGenerator(generator.model, generator.tokenizer, cuda_graphs=True)
    texts = [text] if isinstance(text, str) else text
    options: dict[str, Any] = {"sampling": GREEDY, "max_audio_s": 0.1 * len(texts[0])}
    plain, fast = generator.generate(texts, **options), compiled.generate(texts, **options)
    for speech, other in zip(plain, fast, strict=True):
        assert torch.equal(speech.codes, other.codes)


def test_quantised_models_are_not_captured(
    generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator.model, "is_quantized", True, raising=False)
    with pytest.raises(UserError, match="cuda_graphs: True is not available for quantised models"):
        HiggsAudioGenerator(generator.model, generator.tokenizer, cuda_graphs=True)


# --- what a step does not do ---


def test_after_the_prompt_nothing_of_the_text_is_computed(
    tiny: Path, generator: HiggsAudioGenerator
) -> None:
    model = native_model(str(tiny), text_head=True)
    calls: Counter[str] = Counter()

    def count(name: str, *args: Any) -> None:
        calls[name] += 1

    watched = ("mlp", "input_layernorm", "embed_tokens", "text_lm_head", "audio_mlp")
    for name, module in model.named_modules():
        last = name.rpartition(".")[-1]
        if last in watched:
            module.register_forward_hook(partial(count, last))
    with_head = HiggsAudioGenerator(model, generator.tokenizer)
    decoded(with_head, dialogues(with_head, 2), 20)
    num_layers = model.config.num_hidden_layers
    # The prompt takes one call of each; the audio FFN is called by its parts.
    assert calls == {
        "mlp": num_layers,
        "input_layernorm": num_layers,
        "embed_tokens": 1,
        "audio_mlp": num_layers,
    }


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: values, and shapes that hang on values."""

    NAMES = (
        "_local_scalar_dense",
        "item",
        "nonzero",
        "masked_select",
        "is_nonzero",
        "unique_dim",
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or name in self.NAMES:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_a_step_never_waits(generator: HiggsAudioGenerator, sampling: Sampling) -> None:
    with torch.inference_mode():
        rows = speaking(generator, 12, sampling)
        with Waits() as waits:
            for _ in range(11):
                rows.step(len(REQUESTS))
        assert waits.names == []
        with Waits() as waits:
            ones = torch.ones(2)
            bool(ones[0]), ones[ones > 0]
        assert len(waits.names) == 2, "they are seen"


def test_the_cache_has_its_final_size_at_once(generator: HiggsAudioGenerator) -> None:
    config, num_steps = generator.model.config, 30
    num_prompt = prompts(generator, dialogues(generator))["input_ids"].shape[1]
    per_position = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    bytes_per_row = (num_prompt + num_steps - 1) * per_position
    with torch.inference_mode():
        rows = speaking(generator, num_steps)
        step = rows._model_step
        assert step.num_bytes == len(REQUESTS) * bytes_per_row
        places = [cached.data_ptr() for cached in (*step.keys, *step.values)]
        for _ in range(num_steps - 1):
            rows.step(len(REQUESTS))
        assert [cached.data_ptr() for cached in (*step.keys, *step.values)] == places
        rows.keep(torch.tensor([0, 2]))
        assert step.num_bytes == 2 * bytes_per_row
        storages = [cached.untyped_storage() for cached in (*step.keys, *step.values)]
        assert sum(storage.nbytes() for storage in storages) == step.num_bytes


# --- what it computes ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_native(
    tiny: Path, generator: HiggsAudioGenerator, dtype: torch.dtype
) -> None:
    """The same frames through both: logits of ours lie no further from those in float32 than
    native's do."""
    model = native_model(str(tiny), text_head=False, dtype=dtype).eval()
    batch = prompts(generator, dialogues(generator, 2))
    frames = torch.randint(1024, (12, 1, 8), generator=torch.Generator().manual_seed(0))

    def after_the_prompt(model: Any) -> DynamicCache:
        cache = DynamicCache(config=model.config)
        model.hidden_states(**batch, cache=cache)
        return cache

    def native_logits(model: Any) -> Tensor:
        cache = after_the_prompt(model)
        logits = []
        for frame in frames:
            step = model(audio_input_ids=frame[:, None], use_cache=True, **{CACHE: cache})
            logits.append(step.logits[0])
        return torch.cat(logits).float()

    with torch.inference_mode():
        cache = after_the_prompt(model)
        num_prompt = batch["input_ids"].shape[1]
        step = AudioStep(model, 1, num_prompt + len(frames))
        step.begin(cache, batch["attention_mask"])
        ends = range(num_prompt + 1, num_prompt + 1 + len(frames))
        logits = torch.cat(list(map(step, frames, ends))).flatten(1)
        exact = native_logits(generator.model)
        error = (logits - exact).pow(2).mean().sqrt()
        native_error = (native_logits(model) - exact).pow(2).mean().sqrt()
    assert error <= 1.1 * native_error


def test_large_matrices_are_read_by_the_faster_library() -> None:
    """oneDNN and MKL add in different orders. What is more than a plain matrix is called as it
    is."""
    torch.manual_seed(0)
    large, x = torch.nn.Linear(1024, 1024), torch.randn(3, 1024)

    class Tuned(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    tuned = Tuned(1024, 1024)
    with torch.inference_mode():
        torch.testing.assert_close(linear(large, x), large(x), rtol=1e-5, atol=1e-5)
        assert torch.equal(linear(tuned, x), tuned(x))
        assert torch.equal(linear(large.bfloat16(), x.bfloat16()), large(x.bfloat16()))
