"""Rows that join and leave while others speak say what they say alone.

In float64, where what is added in another order does not show. In float32, at temperature 1, the
untrained model, to which many codes are equally likely, once in some ten thousand codes chose
another one of two whose logits differ in the seventh digit; `tests/commands/serving` tries it at
Boson's temperature."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.speaking import GREEDY, REQUESTS, decoded, dialogues
from torch import Tensor

from plugins.inference import HiggsAudioGenerator
from plugins.speaking import decoding, running
from plugins.speaking.running import Row, RunningBatch
from plugins.speaking.sampling import Sampling

LIMITS = (25, 300, 12, 40, 9, 60)


@pytest.fixture(scope="module")
def generator(tiny: Path) -> HiggsAudioGenerator:
    return HiggsAudioGenerator.from_pretrained(str(tiny), dtype=torch.float64)


def samplings() -> list[Sampling]:
    drawn = [Sampling(temperature=1.0, seed=seed) for seed in range(len(LIMITS) - 1)]
    return [*drawn, GREEDY]


def row_of(generator: HiggsAudioGenerator, number: int) -> Row:
    (spoken,) = dialogues(generator, number % len(REQUESTS))
    sample = generator.speaker.prompt(spoken)
    return Row(sample, samplings()[number], LIMITS[number])


@pytest.fixture(scope="module")
def alone(generator: HiggsAudioGenerator) -> list[Tensor]:
    """Delayed frames (T, K) of each."""
    frames = []
    for number, sampling in enumerate(samplings()):
        spoken = dialogues(generator, number % len(REQUESTS))
        frames += decoded(generator, spoken, LIMITS[number], sampling)
    assert len(set(map(len, frames))) > 3
    return frames


def run(
    batch: RunningBatch, rows: list[Row], joins: Callable[[int], bool], gone: Row | None = None
) -> list[Tensor]:
    """Frames (T, K) of each row, without the first. joins: whether some do at this step. gone: who
    leaves after five frames."""
    said: dict[Row, list[Tensor]] = {row: [] for row in rows}
    waiting, step = list(rows), 0
    while waiting or batch.rows:
        step += 1
        joining: list[Row] = []
        while waiting and (joins(step) or not (batch.rows or joining)):
            longest = max(row.length for row in [*joining, waiting[0]])
            if batch.num_free(longest) <= len(joining):
                break
            joining.append(waiting.pop(0))
        if joining:
            batch.join(joining)
        for row, frame in batch.step():
            said[row].append(frame)
            if row is gone and len(said[row]) == 5:
                batch.leave(row)
    return [torch.stack(said[row]) for row in rows]


def assert_as_alone(frames: list[Tensor], alone: list[Tensor]) -> None:
    for number, (together, expected) in enumerate(zip(frames, alone, strict=True)):
        assert torch.equal(together, expected[1:]), number


@pytest.mark.parametrize("num_rows", [1, 2, 4, 8])
@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_a_row_says_what_it_says_alone(
    generator: HiggsAudioGenerator,
    alone: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
    num_rows: int,
    steps_ahead: int,
) -> None:
    monkeypatch.setattr(running, "STEPS_AHEAD", {"cpu": steps_ahead})
    chance = random.Random(num_rows)
    for _ in range(2):
        order = list(range(len(LIMITS)))
        chance.shuffle(order)
        batch = RunningBatch(generator.model, generator.tokens, num_rows=num_rows, length=8)
        rows = [row_of(generator, number) for number in order]
        frames = run(batch, rows, lambda _: chance.random() < 0.2)
        assert_as_alone(frames, [alone[number] for number in order])


def test_the_cache_moves_when_it_is_full_and_when_half_of_it_is_nobodys(
    generator: HiggsAudioGenerator, alone: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for an empty batch: a new one joins as soon as one ends. The room is that of the
    longest."""
    monkeypatch.setattr(running, "PIECE", 8)
    shifts: list[int] = []

    class Watched(decoding.AudioStep):
        def shift(self, num_rows: int, by: int) -> None:
            super().shift(num_rows, by)
            shifts.append(by)

    monkeypatch.setattr(decoding, "AudioStep", Watched)
    batch = RunningBatch(generator.model, generator.tokens, num_rows=2, length=8)
    numbers = [0, 4, 3, 1, 2, 5, 0, 3, 2, 1, 0, 5]
    rows = [row_of(generator, number) for number in numbers]
    frames = run(batch, rows, lambda _: True)
    assert_as_alone(frames, [alone[number] for number in numbers])
    assert min(shifts) < 0 < max(shifts), "to the left, and to the right for a longer prompt"


def test_who_leaves_is_computed_no_more(
    generator: HiggsAudioGenerator, alone: list[Tensor]
) -> None:
    batch = RunningBatch(generator.model, generator.tokens, num_rows=4, length=8)
    rows = [row_of(generator, number) for number in (1, 3, 5)]
    frames = run(batch, rows, lambda _: True, gone=rows[0])
    assert torch.equal(frames[0], alone[1][1:6])
    assert_as_alone(frames[1:], [alone[3], alone[5]])
    assert batch.num_computed == sum(map(len, frames)), "of each row the frames that it said"


def test_on_a_gpu_one_frame_more_is_computed(
    generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "STEPS_AHEAD", {"cpu": 1})
    batch = RunningBatch(generator.model, generator.tokens, num_rows=4, length=8)
    rows = [row_of(generator, number) for number in (1, 3)]
    frames = run(batch, rows, lambda _: True, gone=rows[0])
    assert len(frames[0]) == 5
    assert batch.num_computed == sum(map(len, frames)) + len(frames)


def test_rows_that_are_too_long_for_so_many_wait_for_an_empty_batch(
    generator: HiggsAudioGenerator, alone: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    position = decoding.bytes_per_position(generator.model)
    monkeypatch.setattr(decoding, "_CACHE_BYTES", 4 * 256 * position)
    batch = RunningBatch(generator.model, generator.tokens, num_rows=4, length=8)
    short, long = row_of(generator, 0), row_of(generator, 1)
    assert (batch.num_free(short.length), batch.num_free(long.length)) == (4, 2)
    batch.join([short])
    assert (batch.num_free(short.length), batch.num_free(long.length)) == (3, 0)
    numbers = [0, 1, 0, 4]
    rows = [row_of(generator, number) for number in numbers]
    batch.leave(short)
    assert_as_alone(run(batch, rows, lambda _: True), [alone[number] for number in numbers])


def test_recorded_steps_say_the_same(
    generator: HiggsAudioGenerator, alone: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a power of two of rows, and always on the same tensors: that is what a graph needs."""
    monkeypatch.setattr(decoding, "compiled", lambda function, varying: function)
    addresses: set[int] = set()

    class Watched(decoding.AudioStep):
        def __call__(self, frames: Tensor, end: int) -> Tensor:
            assert len(frames) in (1, 2, 4)
            assert end % decoding.PIECE == 0
            addresses.update(tensor.data_ptr() for tensor in (*self.keys, frames))
            return super().__call__(frames, end)

    monkeypatch.setattr(decoding, "AudioStep", Watched)
    batch: Any = RunningBatch(
        generator.model, generator.tokens, num_rows=4, length=512, is_recorded=True
    )
    chance = random.Random(0)
    rows = [row_of(generator, number) for number in range(len(LIMITS))]
    assert_as_alone(run(batch, rows, lambda _: chance.random() < 0.3), alone)
    assert len(addresses) == generator.model.config.num_hidden_layers + 1


def test_who_has_ended_is_not_computed_beyond_the_room(
    generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows take the step of four: the fourth, which nobody is, was counted on for ever."""
    monkeypatch.setattr(decoding, "compiled", lambda function, varying: function)
    steps: list[Any] = []

    class Watched(decoding.AudioStep):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            steps.append(self)

    monkeypatch.setattr(decoding, "AudioStep", Watched)
    batch = RunningBatch(
        generator.model, generator.tokens, num_rows=4, length=256, is_recorded=True
    )
    rows = [row_of(generator, 3) for _ in range(40)]
    waiting, num_steps = rows[3:], 0
    batch.join(rows[:3])
    while batch.rows:
        said = batch.step()
        num_steps += 1
        if len(said) > len(batch.rows) and waiting:
            batch.join([waiting.pop() for _ in range(min(3 - len(batch.rows), len(waiting)))])
        assert int(steps[0]._positions.max()) <= 256
    assert num_steps > 2 * 256
