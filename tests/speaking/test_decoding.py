"""The loop that speaks, against transformers' own `generate`: greedy codes, batches, early ends,
seeds, streams; what a step computes and what it leaves out; how codes are drawn."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CORPUS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, GenerationConfig
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from plugins.collator import collate
from plugins.data.prompt import Dialogue
from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.model.load import load_model
from plugins.speaking import decoding
from plugins.speaking.decoding import decode
from plugins.speaking.sampling import Sampler, Sampling, _quantile
from plugins.speaking.speech import Speech
from plugins.speaking.step import AudioStep, linear
from plugins.speaking.voices import Voice, request

VOICE = str(CORPUS / "wavs" / "DEMO-0002.flac")
GREEDY = Sampling(temperature=0)
# Of different lengths, with and without clips in the prompt, in turns and in the system message.
REQUESTS: list[dict[str, Any]] = [
    {"text": "Hello."},
    {"text": "The harbour lights went out one by one.", "scene": "Indoor quiet"},
    {"text": "Hi.", "voices": [Voice(VOICE, "Glue the sheet.")]},
    {"text": "A word.", "voices": [Voice(VOICE)]},
]


@pytest.fixture(scope="module")
def generator(tiny: Path) -> HiggsAudioGenerator:
    """Random weights that end: in each codebook another request's code is outdone by the stream
    EOS."""
    generator = HiggsAudioGenerator.from_pretrained(str(tiny))
    tokens, head = generator.tokens, generator.model.audio_lm_head.weight
    frames = ours(generator, [dialogue(generator, **each) for each in REQUESTS], 60)
    with torch.no_grad():
        for k, (said, step) in enumerate(zip(frames, (50, 20, 35, 12), strict=True)):
            start = k * tokens.codebook_size
            head[start + tokens.stream_eos] = 1.01 * head[start + said[step, k]]
    return generator


def dialogue(
    generator: HiggsAudioGenerator, *, text: str, scene: str | None = None, voices: Any = ()
) -> Dialogue:
    return request(text, scene, voices, generator.settings)


def native(generator: HiggsAudioGenerator, one: Dialogue, max_steps: int) -> Tensor:
    """Delayed frames (T, K) of transformers' generate, for one prompt."""
    batch = collate([generator.speaker.prompt(one)], generator.tokens, training=False)
    num_given = batch["audio_input_ids"].shape[1]
    if not num_given:
        del batch["audio_input_ids"], batch["audio_input_ids_mask"]
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_steps,
        eos_token_id=generator.tokens.end_of_turn,
        pad_token_id=generator.tokens.pad,
    )
    generator.model.generation_config = config
    return generator.model.generate(**batch, generation_config=config)[0][num_given:]


def ours(
    generator: HiggsAudioGenerator,
    dialogues: list[Dialogue],
    max_steps: int,
    sampling: Sampling = GREEDY,
    **options: Any,
) -> list[Tensor]:
    batch = collate(
        [generator.speaker.prompt(each) for each in dialogues], generator.tokens, training=False
    )
    frames: list[list[Tensor]] = [[] for _ in dialogues]
    samplings = [sampling] * len(dialogues)
    limits = [max_steps] * len(dialogues)
    for rows, step in decode(
        generator.model, batch, generator.tokens, samplings, limits, **options
    ):
        for row, frame in zip(rows, step, strict=True):
            frames[row].append(frame)
    return [torch.stack(each) for each in frames]


@pytest.fixture(scope="module")
def expected(generator: HiggsAudioGenerator) -> list[Tensor]:
    return [native(generator, dialogue(generator, **each), 60) for each in REQUESTS]


def test_the_rows_end_at_different_steps(expected: list[Tensor]) -> None:
    """Else the tests below would prove little."""
    lengths = [len(frames) for frames in expected]
    assert len(set(lengths)) > 2, lengths
    assert min(lengths) < 60, lengths


@pytest.mark.parametrize("row", range(len(REQUESTS)))
def test_greedy_frames_are_those_of_transformers(
    generator: HiggsAudioGenerator, expected: list[Tensor], row: int
) -> None:
    (found,) = ours(generator, [dialogue(generator, **REQUESTS[row])], 60)
    assert torch.equal(found, expected[row])


def test_a_mixed_batch_is_its_rows_alone(
    generator: HiggsAudioGenerator, expected: list[Tensor]
) -> None:
    """With and without clips, and rows that leave the batch early."""
    found = ours(generator, [dialogue(generator, **each) for each in REQUESTS], 60)
    for frames, alone in zip(found, expected, strict=True):
        assert torch.equal(frames, alone)


def test_a_seed_is_a_rows_own(generator: HiggsAudioGenerator) -> None:
    """The same speech alone and in a batch, whatever the other rows do; and the global state
    stays."""
    sampling = Sampling(temperature=1.0, seed=7)
    dialogues = [dialogue(generator, **each) for each in REQUESTS]
    before = torch.get_rng_state()
    together = ours(generator, dialogues, 30, sampling)
    assert torch.equal(torch.get_rng_state(), before)
    for frames, one in zip(together, dialogues, strict=True):
        assert torch.equal(frames, ours(generator, [one], 30, sampling)[0])
    assert not torch.equal(
        together[0], ours(generator, dialogues[:1], 30, Sampling(temperature=1.0, seed=8))[0]
    )
    torch.manual_seed(0)
    drawn = ours(generator, dialogues[:1], 30, Sampling(temperature=1.0))[0]
    torch.manual_seed(0)
    assert torch.equal(drawn, ours(generator, dialogues[:1], 30, Sampling(temperature=1.0))[0])


def test_the_delay_pattern_holds_whatever_is_drawn(generator: HiggsAudioGenerator) -> None:
    tokens = generator.tokens
    wild = Sampling(temperature=5.0, top_k=1026, seed=1)
    (frames,) = ours(generator, [dialogue(generator, **REQUESTS[0])], 600, wild)
    for k in range(8):
        assert (frames[: k + 1, k] == tokens.stream_bos).all()
    first = int((frames == tokens.stream_eos).any(dim=-1).nonzero()[0])
    assert len(frames) <= first + 9
    for k in range(7):
        assert (frames[first + 1 + k :, k] == tokens.stream_eos).all()


@pytest.mark.parametrize("chunk_frames", [1, 4, 25])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_stream_is_the_whole_in_pieces(
    generator: HiggsAudioGenerator, row: int, chunk_frames: int
) -> None:
    wanted = REQUESTS[row]
    options: dict[str, Any] = {
        "scene_description": wanted.get("scene"),
        "sampling": GREEDY,
        "max_audio_s": 2.0,
    }
    if "voices" in wanted:
        options |= {"reference_audio": VOICE, "reference_text": "Glue the sheet."}
    whole = generator.generate(wanted["text"], **options)
    stream = generator.stream(wanted["text"], chunk_frames=chunk_frames, **options)
    chunks = list(stream)
    assert len(chunks) > 1 or whole.codes.shape[1] <= 10, "the last frames wait for ten more"
    joined = np.concatenate(chunks)
    np.testing.assert_allclose(joined, whole.audio, rtol=0, atol=1e-4)
    assert np.abs(np.diff(joined)).max() <= np.abs(np.diff(whole.audio)).max() + 1e-4, "no click"
    assert torch.equal(stream.speech.codes, whole.codes)
    assert stream.speech.stopped == whole.stopped
    assert stream.speech.audio is not None
    assert stream.sample_rate == whole.sample_rate


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_host_that_reads_late_hears_the_same(
    generator: HiggsAudioGenerator,
    expected: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
    ahead: int,
) -> None:
    """As on a GPU: the next step is computed before the host knows who has ended with the last."""
    monkeypatch.setattr(decoding, "STEPS_AHEAD", {"cpu": ahead})
    found = ours(generator, [dialogue(generator, **each) for each in REQUESTS], 60)
    for frames, alone in zip(found, expected, strict=True):
        assert torch.equal(frames, alone)
    found = ours(generator, [dialogue(generator, **each) for each in REQUESTS], 15)
    assert [len(frames) for frames in found] == [min(15, len(alone)) for alone in expected]


def _graph_without_breaks(function: Any) -> Any:
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=7)])
def test_the_compiled_step_is_one_graph_and_says_the_same(
    generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch, sampling: Sampling
) -> None:
    """A step that asked for a value would break the graph, which is an error here. Rows leave, so
    sizes change."""
    monkeypatch.setattr(decoding, "compiled", _graph_without_breaks)
    dialogues = [dialogue(generator, **each) for each in REQUESTS]
    found = ours(generator, dialogues, 40, sampling, cuda_graphs=True)
    for frames, plain in zip(found, ours(generator, dialogues, 40, sampling), strict=True):
        assert torch.equal(frames, plain)


@pytest.mark.slow
def test_speech_of_a_compiled_generator(generator: HiggsAudioGenerator) -> None:
    """By torch's own compiler, for two lengths and a batch."""
    compiled = HiggsAudioGenerator(generator.model, generator.tokenizer, cuda_graphs=True)
    for text, max_audio_s in (
        ("Hello.", 0.6),
        ("A word.", 0.9),
        (["Hi.", "The harbour lights."], 0.6),
    ):
        spoken = [
            each.generate(text, sampling=GREEDY, max_audio_s=max_audio_s)
            for each in (generator, compiled)
        ]
        plain, fast = ([each] if isinstance(each, Speech) else each for each in spoken)
        for one, other in zip(plain, fast, strict=True):
            assert torch.equal(one.codes, other.codes)


def test_quantised_models_are_not_captured(
    generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator.model, "is_quantized", True, raising=False)
    with pytest.raises(UserError, match="cuda_graphs: True is not available for quantised models"):
        HiggsAudioGenerator(generator.model, generator.tokenizer, cuda_graphs=True)


# --- what a step does not do ---


def speaking(generator: HiggsAudioGenerator, num_steps: int, sampling: Sampling = GREEDY) -> Any:
    prompts = [generator.speaker.prompt(dialogue(generator, **each)) for each in REQUESTS]
    batch = collate(prompts, generator.tokens, training=False)
    samplings = [sampling] * len(REQUESTS)
    return decoding._Speaking(
        generator.model, batch, generator.tokens, samplings, num_steps, whole=False
    )


def test_after_the_prompt_nothing_of_the_text_is_computed(
    tiny: Path, generator: HiggsAudioGenerator
) -> None:
    model = load_model(str(tiny), text_head=True)
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():
        if name.endswith((".mlp", ".input_layernorm", "embed_tokens", "text_lm_head", "audio_mlp")):
            module.register_forward_hook(
                partial(lambda name, *args: calls.update([name]), name.split(".")[-1])
            )
    with_head = HiggsAudioGenerator(model, generator.tokenizer)
    ours(with_head, [dialogue(with_head, **REQUESTS[2])], 20)
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

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if by_mask or name in (
            "_local_scalar_dense",
            "item",
            "nonzero",
            "masked_select",
            "is_nonzero",
            "unique_dim",
        ):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=1)])
def test_a_step_never_waits(generator: HiggsAudioGenerator, sampling: Sampling) -> None:
    with torch.inference_mode():
        rows = speaking(generator, 12, sampling)
        with Waits() as waits:
            for _ in range(11):
                rows.advance()
        assert waits.names == []
        with Waits() as waits:
            ones = torch.ones(2)
            bool(ones[0]), ones[ones > 0]
        assert len(waits.names) == 2, "they are seen"


def test_the_cache_has_its_final_size_at_once(generator: HiggsAudioGenerator) -> None:
    config, num_steps = generator.model.config, 30
    with torch.inference_mode():
        rows = speaking(generator, num_steps)
        step = rows._model_step
        num_positions = max(
            len(generator.speaker.prompt(dialogue(generator, **each)).input_ids)
            for each in REQUESTS
        ) + (num_steps - 1)
        per_position = (
            2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
        )
        assert step.num_bytes == len(REQUESTS) * num_positions * per_position
        places = [each.data_ptr() for each in (*step.keys, *step.values)]
        for _ in range(num_steps - 1):
            rows.advance()
        assert [each.data_ptr() for each in (*step.keys, *step.values)] == places
        rows.keep(torch.tensor([0, 2]))
        assert step.num_bytes == 2 * num_positions * per_position
        assert (
            sum(each.untyped_storage().nbytes() for each in (*step.keys, *step.values))
            == step.num_bytes
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_native(
    tiny: Path, generator: HiggsAudioGenerator, dtype: torch.dtype
) -> None:
    """The same frames through both: logits of ours lie no further from those in float32 than
    native's do."""
    model = load_model(str(tiny), text_head=False, dtype=dtype).eval()
    batch = collate(
        [generator.speaker.prompt(dialogue(generator, **REQUESTS[2]))],
        generator.tokens,
        training=False,
    )
    frames = torch.randint(1024, (12, 1, 8), generator=torch.Generator().manual_seed(0))

    def native_logits(model: Any) -> Tensor:
        cache = DynamicCache(config=model.config)
        model.hidden_states(**batch, past_key_values=cache, use_cache=True)
        steps = [
            model(audio_input_ids=frame[:, None], past_key_values=cache, use_cache=True)
            for frame in frames
        ]
        return torch.cat([step.logits[0] for step in steps]).float()

    with torch.inference_mode():
        cache, mask = DynamicCache(config=model.config), batch["attention_mask"]
        model.hidden_states(**batch, past_key_values=cache, use_cache=True)
        step = AudioStep(model, cache, mask, len(frames), whole=False)
        found = torch.cat([step(frame) for frame in frames]).flatten(1)
        exact = native_logits(load_model(str(tiny), text_head=False).eval())
        error, of_native = (
            (each - exact).pow(2).mean().sqrt() for each in (found, native_logits(model))
        )
    assert error <= 1.1 * of_native


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


# --- choosing ---


def draw(logits: Tensor, samplings: list[Sampling], recent: Tensor | None = None) -> Tensor:
    """One step of logits (K, C) for rows of these settings -> codes (R, K)."""
    sampler = Sampler(samplings, 1, len(logits), "cpu")
    if recent is None:
        recent = torch.full((7, len(logits)), -1)
    rows = len(samplings)
    return sampler.draw(
        logits.expand(rows, -1, -1), recent.expand(rows, -1, -1), torch.zeros(1, dtype=torch.long)
    )


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 1026, 1.0), (0.5, 5, 1.0), (2.0, 1026, 0.6), (0.7, 6, 0.8)],
)
def test_codes_are_drawn_as_often_as_transformers_warpers_say(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 2
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    scores = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, scores))
    expected = scores.softmax(dim=-1)[0]
    num_drawn = 4000
    drawn = draw(
        logits,
        [Sampling(temperature, top_k, top_p, ras_window=0, seed=i) for i in range(num_drawn)],
    )
    counts = drawn.flatten().bincount(minlength=12).float()
    assert (counts[expected == 0] == 0).all()
    assert ((counts - num_drawn * expected).abs() <= 5 * (num_drawn * expected).sqrt() + 1e-6).all()


def test_rows_of_one_batch_have_settings_of_their_own() -> None:
    logits = torch.randn(8, 1026, generator=torch.Generator().manual_seed(0))
    many = [
        GREEDY,
        Sampling(temperature=2.0, top_k=3, seed=1),
        Sampling(temperature=0.5, top_p=0.3, seed=2),
        GREEDY,
    ]
    together = draw(logits, many)
    for row, sampling in zip(together, many, strict=True):
        assert torch.equal(row, draw(logits, [sampling])[0])
    assert torch.equal(together[0], logits.argmax(dim=-1))


def test_random_numbers_do_not_hang_on_the_longest_speech() -> None:
    """Else the same seed would say another thing for another `max_audio_s`."""
    sampling = [Sampling(seed=3)]
    short, long = (Sampler(sampling, num_steps, 8, "cpu")._uniform for num_steps in (10, 1009))
    assert torch.equal(short, long[:, :10])


def test_no_rounding_draws_what_has_no_chance() -> None:
    chances = torch.rand(1000, 1, 50, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    chances[..., 40:] = 0
    index = _quantile(chances, torch.full((1000, 1), 1 - 2**-24))
    assert index.max() == 39


def test_repetitions_are_drawn_again_without_temperature() -> None:
    """Of a code that stands twice among the last seven frames; the others keep what was drawn."""
    logits = torch.zeros(2, 1026)
    logits[:, 5] = 4.0  # certain at temperature 0.01, a few percent without
    recent = torch.full((7, 2), -1)
    recent[2:4, 0] = 5
    drawn = draw(logits, [Sampling(temperature=0.01, seed=seed) for seed in range(50)], recent)
    assert (drawn[:, 1] == 5).all()
    assert (drawn[:, 0] == 5).sum() < 15
    for off in (
        Sampling(temperature=0.01, ras_window=0),
        Sampling(temperature=0.01, ras_max_repeats=0),
    ):
        assert draw(logits, [off], recent).tolist() == [[5, 5]]
    # A row's own window is shorter than that of its batch.
    drawn = draw(
        logits, [Sampling(temperature=0.01, ras_window=3, seed=0), Sampling(seed=0)], recent
    )
    assert drawn[0].tolist() == [5, 5]
