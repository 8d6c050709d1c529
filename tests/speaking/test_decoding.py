"""The loop that speaks, against transformers' own `generate`: greedy codes, batches, early ends,
seeds, streams, the loop that runs ahead."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.speaking import GREEDY, REQUESTS, VOICE, decoded, dialogues, prompts
from torch import Tensor
from transformers import GenerationConfig

from plugins.data.dialogue import Dialogue
from plugins.inference import HiggsAudioGenerator
from plugins.speaking import decoding
from plugins.speaking.sampling import Sampling

MAX_STEPS = 60


@pytest.fixture(scope="module")
def generator(tiny: Path) -> HiggsAudioGenerator:
    """Random weights that end: in each codebook another request's code is outdone by the stream
    EOS."""
    generator = HiggsAudioGenerator.from_pretrained(str(tiny))
    tokens, head = generator.tokens, generator.model.audio_lm_head.weight
    frames = decoded(generator, dialogues(generator), MAX_STEPS)
    with torch.no_grad():
        for k, (spoken, step) in enumerate(zip(frames, (50, 20, 35, 12), strict=True)):
            start = k * tokens.codebook_size
            head[start + tokens.stream_eos] = 1.01 * head[start + spoken[step, k]]
    return generator


def native(generator: HiggsAudioGenerator, spoken: Dialogue) -> Tensor:
    """Delayed frames (T, K) of transformers' generate, for one prompt."""
    batch = prompts(generator, [spoken])
    num_given = batch["audio_input_ids"].shape[1]
    if not num_given:
        del batch["audio_input_ids"], batch["audio_input_ids_mask"]
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=MAX_STEPS,
        eos_token_id=generator.tokens.end_of_turn,
        pad_token_id=generator.tokens.pad,
    )
    generator.model.generation_config = config
    return generator.model.generate(**batch, generation_config=config)[0][num_given:]


@pytest.fixture(scope="module")
def expected(generator: HiggsAudioGenerator) -> list[Tensor]:
    """That the rows end at different steps, and one at the limit, is what the tests below are
    about."""
    frames = [native(generator, dialogue) for dialogue in dialogues(generator)]
    lengths = set(map(len, frames))
    assert len(lengths) > 2, lengths
    assert min(lengths) < MAX_STEPS, lengths
    return frames


@pytest.mark.parametrize("row", range(len(REQUESTS)))
def test_greedy_frames_are_those_of_transformers(
    generator: HiggsAudioGenerator, expected: list[Tensor], row: int
) -> None:
    (frames,) = decoded(generator, dialogues(generator, row), MAX_STEPS)
    assert torch.equal(frames, expected[row])


@pytest.mark.parametrize("max_steps", [MAX_STEPS, 15])
@pytest.mark.parametrize("steps_ahead", [0, 1, 3])
def test_a_mixed_batch_is_its_rows_alone(
    generator: HiggsAudioGenerator,
    expected: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
    steps_ahead: int,
    max_steps: int,
) -> None:
    """With and without clips, and rows that leave the batch early; also if, as on a GPU, the next
    steps are computed before the host knows who has ended with the last."""
    monkeypatch.setattr(decoding, "STEPS_AHEAD", {"cpu": steps_ahead})
    together = decoded(generator, dialogues(generator), max_steps)
    for frames, alone in zip(together, expected, strict=True):
        assert torch.equal(frames, alone[:max_steps])


def test_a_seed_is_a_rows_own(generator: HiggsAudioGenerator) -> None:
    """The same speech alone and in a batch, whatever the other rows do; and the global state
    stays."""
    sampling, other = Sampling(temperature=1.0, seed=7), Sampling(temperature=1.0, seed=8)
    spoken = dialogues(generator)
    before = torch.get_rng_state()
    together = decoded(generator, spoken, 30, sampling)
    assert torch.equal(torch.get_rng_state(), before)
    for row, frames in enumerate(together):
        assert torch.equal(frames, decoded(generator, [spoken[row]], 30, sampling)[0])
    assert not torch.equal(together[0], decoded(generator, spoken[:1], 30, other)[0])


def test_without_a_seed_the_global_state_decides(generator: HiggsAudioGenerator) -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn += decoded(generator, dialogues(generator, 0), 30, Sampling(temperature=1.0))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_delay_pattern_holds_whatever_is_drawn(generator: HiggsAudioGenerator) -> None:
    tokens = generator.tokens
    wild = Sampling(temperature=5.0, top_k=1026, seed=1)
    (frames,) = decoded(generator, dialogues(generator, 0), 600, wild)
    for k in range(8):
        assert (frames[: k + 1, k] == tokens.stream_bos).all()
    first = int((frames == tokens.stream_eos).any(dim=-1).nonzero()[0])
    assert len(frames) <= first + 9
    for k in range(7):
        assert (frames[first + 1 + k :, k] == tokens.stream_eos).all()


def test_the_cache_is_a_multiple_of_eight_positions(
    generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of attention want masks that are aligned."""
    lengths: list[int] = []

    class Watched(decoding.AudioStep):
        def __init__(self, model: Any, num_rows: int, length: int, **options: Any) -> None:
            super().__init__(model, num_rows, length, **options)
            lengths.append(length)

    monkeypatch.setattr(decoding, "AudioStep", Watched)
    num_prompt = prompts(generator, dialogues(generator, 0))["input_ids"].shape[1]
    for max_steps in range(2, 11):
        decoded(generator, dialogues(generator, 0), max_steps)
    for length, max_steps in zip(lengths, range(2, 11), strict=True):
        assert length % 8 == 0
        assert 0 <= length - (num_prompt + max_steps - 1) < 8


@pytest.mark.parametrize("is_staged", [False, True])
def test_the_cache_goes_with_the_last_step_or_its_stage(
    generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch, is_staged: bool
) -> None:
    """Of a batch it is gigabytes: it must not wait for the garbage collector."""
    monkeypatch.setattr(decoding, "compiled", lambda function, varying: function)
    steps: list[weakref.ref[Any]] = []

    class Watched(decoding.AudioStep):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            steps.append(weakref.ref(self))

    monkeypatch.setattr(decoding, "AudioStep", Watched)
    gc.collect()
    gc.disable()
    try:
        stage = decoding.Stage() if is_staged else None
        decoded(generator, dialogues(generator), MAX_STEPS, stage=stage)
        del stage
        assert [step() for step in steps] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("chunk_frames", [1, 4, 25])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_stream_is_the_whole_in_pieces(
    generator: HiggsAudioGenerator, row: int, chunk_frames: int
) -> None:
    text, scene, voices = REQUESTS[row]
    options: dict[str, Any] = {
        "scene_description": scene,
        "sampling": GREEDY,
        "max_audio_s": 2.0,
    }
    if voices:
        options |= {"reference_audio": VOICE, "reference_text": "Glue the sheet."}
    whole = generator.generate(text, **options)
    stream = generator.stream(text, chunk_frames=chunk_frames, **options)
    chunks = list(stream)
    assert len(chunks) > 1 or whole.codes.shape[1] <= 10, "the last frames wait for ten more"
    joined = np.concatenate(chunks)
    np.testing.assert_allclose(joined, whole.audio, rtol=0, atol=1e-4)
    assert np.abs(np.diff(joined)).max() <= np.abs(np.diff(whole.audio)).max() + 1e-4, "no click"
    assert torch.equal(stream.speech.codes, whole.codes)
    assert stream.speech.stopped == whole.stopped
    assert stream.speech.audio is not None
    assert stream.sample_rate == whole.sample_rate
