"""What is the same in bf16, a GPU's default, where sums of another order are other numbers
(docs/guarantees.md)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.speaking import GREEDY, REQUESTS, decoded, dialogues, prompts
from torch import Tensor
from transformers import DynamicCache

from plugins.cli import main
from plugins.errors import UserError
from plugins.evaluation.statistics import Estimate, Score, difference
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling
from plugins.speaking.step import AudioStep

NUM_STEPS = 16
NUM_SEEDS = 24
SAMPLED = Sampling(temperature=1.0, seed=7)
TEXTS = ["Hello.", "The harbour lights went out one by one.", "Hi.", "A word."]


@pytest.fixture(scope="module")
def half(tiny: Path) -> HiggsAudioGenerator:
    return HiggsAudioGenerator.from_pretrained(str(tiny), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def exact(tiny: Path) -> HiggsAudioGenerator:
    return HiggsAudioGenerator.from_pretrained(str(tiny))


# --- deterministic ---


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_deterministic_is_the_same_in_any_batch(
    half: HiggsAudioGenerator, sampling: Sampling
) -> None:
    """To the code, where a batch as such is not: alone, in another order, and streamed."""
    options: dict[str, Any] = {"sampling": sampling, "max_audio_s": 1.0}
    model, tokenizer = half.model, half.tokenizer
    generator = HiggsAudioGenerator(model, tokenizer, codec=half.codec, deterministic=True)
    together = generator.generate(TEXTS, **options)
    backwards = generator.generate(TEXTS[::-1], **options)[::-1]
    for text, speech, other in zip(TEXTS, together, backwards, strict=True):
        alone = generator.generate(text, **options)
        stream = generator.stream(text, **options)
        list(stream)
        for again in (other, alone, stream.speech):
            assert torch.equal(again.codes, speech.codes)
        assert (alone.audio == speech.audio).all()
        # A single text is spoken as ever.
        assert torch.equal(half.generate(text, **options).codes, speech.codes)
    as_a_batch = half.generate(TEXTS, **options)
    is_same = [torch.equal(a.codes, b.codes) for a, b in zip(as_a_batch, together, strict=True)]
    assert not all(is_same), "nothing is shown if bf16 does not differ here"


def test_rows_of_one_batch_keep_their_own_limits_and_seeds(half: HiggsAudioGenerator) -> None:
    generator = HiggsAudioGenerator(
        half.model, half.tokenizer, codec=half.codec, deterministic=True
    )
    scripts = [generator.script(text) for text in TEXTS]
    samplings = [Sampling(temperature=1.0, seed=seed) for seed in range(len(TEXTS))]
    spoken = generator.perform(scripts, samplings=samplings, max_audio_s=0.6)
    for script, sampling, speech in zip(scripts, samplings, spoken, strict=True):
        (alone,) = generator.perform([script], samplings=[sampling], max_audio_s=0.6)
        assert torch.equal(alone.codes, speech.codes)
        assert alone.text == speech.text
    assert generator.perform([], samplings=[]) == []


def test_a_compiled_step_is_not_deterministic(
    exact: HiggsAudioGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="cuda_graphs: True is not available with deterministic"):
        HiggsAudioGenerator(
            exact.model, exact.tokenizer, codec=exact.codec, cuda_graphs=True, deterministic=True
        )
    # Before a model is looked for.
    words = ["--model", "nowhere", "--text", "Hello.", "--cuda_graphs", "--deterministic"]
    assert main(["speak", *words]) == 1
    assert "cuda_graphs: True is not available with --deterministic" in capsys.readouterr().err


# --- not deterministic: the same distribution ---


def chances(generator: HiggsAudioGenerator, batch: dict[str, Tensor], frames: Tensor) -> Tensor:
    """Log-probabilities (R, T - 1, K, C) of what follows each of the given frames (R, T, K)."""
    model = generator.model
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        positions = (batch["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)
        model.hidden_states(**batch, position_ids=positions, cache=cache)
        num_rows, num_prompt = batch["attention_mask"].shape
        num_steps = frames.shape[1] - 1
        step = AudioStep(model, num_rows, num_prompt + num_steps)
        step.begin(cache, batch["attention_mask"])
        logits = []
        for number in range(num_steps):
            logits.append(step(frames[:, number], num_prompt + number + 1))
    return torch.stack(logits, dim=1).log_softmax(dim=-1)


def test_in_a_batch_chances_are_as_near_to_fp32_as_alone(
    half: HiggsAudioGenerator, exact: HiggsAudioGenerator
) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(1024, (len(REQUESTS), NUM_STEPS, 8), generator=generator)
    together = chances(half, prompts(half, dialogues(half)), frames)
    squares = {"alone": 0.0, "together": 0.0}
    for row in range(len(REQUESTS)):
        batch, given = prompts(exact, dialogues(exact, row)), frames[row : row + 1]
        right = chances(exact, batch, given)[0]
        squares["alone"] += float((chances(half, batch, given)[0] - right).pow(2).sum())
        squares["together"] += float((together[row] - right).pow(2).sum())
    assert squares["together"] == pytest.approx(squares["alone"], rel=0.1)
    assert squares["alone"] > 0


def scores(exact: HiggsAudioGenerator, spoken: list[Tensor]) -> list[Score]:
    """Of each speech (T, K) of request 1: the mean log-probability of its codes, in fp32."""
    ended = exact.tokens.stream_eos
    frames = torch.nn.utils.rnn.pad_sequence(spoken, batch_first=True, padding_value=ended)
    batch = prompts(exact, dialogues(exact, 1) * len(spoken))
    following = frames[:, 1:].unsqueeze(-1)
    taken = chances(exact, batch, frames).gather(-1, following).squeeze(-1)
    is_code = frames[:, 1:] < exact.tokens.num_codes
    means = (taken * is_code).sum(dim=(1, 2)) / is_code.sum(dim=(1, 2))
    return [(mean, 1.0) for mean in means.tolist()]


def holds_zero(interval: Estimate | None) -> bool:
    """With a margin: of intervals that hold 95 % one in twenty does not."""
    assert interval is not None
    assert interval.low is not None
    assert interval.high is not None
    margin = (interval.high - interval.low) / 2
    return interval.low - margin < 0 < interval.high + margin


@pytest.mark.slow
def test_in_a_batch_other_codes_of_the_same_likelihood(
    half: HiggsAudioGenerator, exact: HiggsAudioGenerator
) -> None:
    """Request 1, alone and beside one with a longer prompt; at another temperature the same scores
    tell."""
    alone, together, colder = [], [], []
    for seed in range(NUM_SEEDS):
        sampling = Sampling(temperature=1.0, top_k=1026, top_p=1.0, seed=seed)
        alone += decoded(half, dialogues(half, 1), NUM_STEPS, sampling)
        together += decoded(half, dialogues(half, 1, 2), NUM_STEPS, sampling)[:1]
        sampling = replace(sampling, temperature=0.8)
        colder += decoded(half, dialogues(half, 1), NUM_STEPS, sampling)
    differing = 0
    for frames, others in zip(alone, together, strict=True):
        differing += not torch.equal(frames, others)
    assert differing > NUM_SEEDS / 2, "nothing is shown if bf16 does not differ here"
    scored = scores(exact, alone)
    assert holds_zero(difference(scores(exact, together), scored))
    assert not holds_zero(difference(scores(exact, colder), scored))
