"""What is spoken in company is what the generator speaks alone; who leaves is spoken no more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.serving import MAX_AUDIO_S, engine_of, heard, lora_folders, order_of

from plugins.commands.serving import engine as engine_module
from plugins.commands.serving.engine import Busy, Closed, Engine, Order, TooLate
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.running import RunningBatch
from plugins.speaking.sampling import Sampling

LONG = "One sentence that is spoken. " * 24  # three lines
TEXTS = ("Hello.", "The harbour lights went out one by one.", LONG, "A word.", "Who is there?")


@pytest.fixture(scope="module")
def generator(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> HiggsAudioGenerator:
    adapters = lora_folders(tiny, tmp_path_factory.mktemp("loras"), "ann", "bob")
    # In float64, as tests/speaking/test_running.py says; test_openai.py speaks in float32.
    options: dict[str, Any] = {"adapters": adapters, "dtype": torch.float64}
    generator = HiggsAudioGenerator.from_pretrained(str(tiny), **options)
    generator.use_adapter(None)
    return generator


@pytest.fixture
def engine(generator: HiggsAudioGenerator) -> Iterator[Engine]:
    engine = engine_of(generator, num_rows=3)
    yield engine
    engine.close()


def alone(generator: HiggsAudioGenerator, text: str, order: Order) -> np.ndarray:
    """By the generator, while no engine runs."""
    options: dict[str, Any] = {"sampling": order.sampling, "max_audio_s": order.max_audio_s}
    generator.use_adapter(order.adapter)
    if order.in_pieces:
        return np.concatenate(list(generator.stream(text, **options)))
    return generator.generate(text, **options).audio


async def all_heard(engine: Engine, orders: list[Order]) -> list[np.ndarray]:
    return await asyncio.gather(*[heard(engine, order) for order in orders])


def test_each_gets_what_it_gets_alone(generator: HiggsAudioGenerator) -> None:
    """To the bit: whole and in pieces, long and short, base and adapters, five on three rows."""
    texts, orders = [], []
    for seed, text in enumerate(TEXTS):
        for adapter, in_pieces in ((None, False), ("ann", True), ("bob", False)):
            texts.append(text)
            order = order_of(generator, text, seed, adapter=adapter, in_pieces=in_pieces)
            orders.append(order)
    engine = engine_of(generator, num_rows=3)
    try:
        together = asyncio.run(all_heard(engine, orders))
    finally:
        engine.close()
    assert len(orders[6].script.lines) > 2
    for text, order, samples in zip(texts, orders, together, strict=True):
        assert np.array_equal(samples, alone(generator, text, order)), order


def test_adapters_are_switched_when_the_batch_is_empty(
    generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders for the one that speaks overtake the others, for a moment."""
    switches: list[str | None] = []
    use = generator.use_adapter
    generator.use_adapter("ann")
    monkeypatch.setattr(generator, "use_adapter", lambda name: (switches.append(name), use(name)))
    engine = engine_of(generator, num_rows=8)
    adapters = ["ann", "bob", "ann", "bob", "ann", "bob"]
    orders = [order_of(generator, "A word.", i, adapter=name) for i, name in enumerate(adapters)]
    try:
        asyncio.run(all_heard(engine, orders))
    finally:
        engine.close()
    assert switches == ["bob"] or switches == ["ann", "bob"]


def test_an_order_for_another_adapter_is_not_overtaken_for_ever(
    generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_PATIENCE_S", 0.0)
    engine = engine_of(generator, num_rows=2)
    ended: list[str] = []

    async def speak(name: str, adapter: str | None, seed: int) -> None:
        await heard(engine, order_of(generator, "A word.", seed, adapter=adapter))
        ended.append(name)

    async def run() -> None:
        first = [speak(f"first {i}", None, i) for i in range(2)]
        rest = [speak(f"later {i}", None, i) for i in range(6)]
        await asyncio.gather(*first, speak("other", "bob", 0), *rest)

    try:
        asyncio.run(run())
    finally:
        engine.close()
    assert ended.index("other") == 2, ended


def test_a_short_order_waits_for_a_line_of_a_long_one(generator: HiggsAudioGenerator) -> None:
    engine = engine_of(generator, num_rows=1)
    ended: list[str] = []

    async def speak(text: str) -> None:
        await heard(engine, order_of(generator, text, 0))
        ended.append(text)

    async def run() -> None:
        await asyncio.gather(speak(LONG), speak("A word."), speak("Hello."))

    try:
        asyncio.run(run())
    finally:
        engine.close()
    assert ended == ["A word.", "Hello.", LONG]


def test_who_leaves_is_spoken_no_more(generator: HiggsAudioGenerator) -> None:
    """Counted: of 500 frames some that were under way when it left, and no other."""
    engine = engine_of(generator, max_audio_s=20.0)
    before = engine.num_computed
    counts: list[int] = []

    async def leave() -> None:
        order = order_of(generator, "Hello.", 0, in_pieces=True, max_audio_s=20.0)
        async with aclosing(engine.speak(order, engine.first_line(order))) as items:
            async for _ in items:
                break
        await asyncio.sleep(0)
        while engine.num_speaking:
            await asyncio.sleep(0.01)
        counts.append(engine.num_computed - before)
        await asyncio.sleep(0.3)
        counts.append(engine.num_computed - before)
        await heard(engine, order_of(generator, "A word.", 0))

    try:
        asyncio.run(leave())
    finally:
        engine.close()
    assert 18 <= counts[0] < 400
    assert counts[1] == counts[0]


def test_places_are_bounded(generator: HiggsAudioGenerator) -> None:
    engine = engine_of(generator, num_rows=2, max_waiting=1)
    try:
        with engine.place(), engine.place(), engine.place():
            with pytest.raises(Busy) as busy, engine.place():
                pass
            assert 1 <= busy.value.retry_after_s <= 60
        with engine.place():
            pass
    finally:
        engine.close()
    with pytest.raises(Closed), engine.place():
        pass


def test_an_order_has_a_time(generator: HiggsAudioGenerator) -> None:
    engine = engine_of(generator, time_limit_s=0.0)
    try:
        with pytest.raises(TooLate):
            asyncio.run(heard(engine, order_of(generator, "Hello.", 0)))
        assert engine.num_speaking == engine.num_waiting == 0
    finally:
        engine.close()


def test_a_fault_ends_what_is_spoken_and_nothing_else(
    generator: HiggsAudioGenerator, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory, say: the next order finds a new batch."""
    step = RunningBatch.step
    faults = iter([True])

    def fail_once(batch: RunningBatch) -> Any:
        if next(faults, False):
            raise RuntimeError("CUDA out of memory")
        return step(batch)

    monkeypatch.setattr(RunningBatch, "step", fail_once)
    order = order_of(generator, "Hello.", 0)
    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(heard(engine, order))
    samples = asyncio.run(heard(engine, order))
    assert len(samples) > 0
    assert engine.is_alive


def test_an_engine_that_only_fails_is_not_alive(
    generator: HiggsAudioGenerator, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is lost fails each order: who watches /health has to know. One that speaks again
    is well."""
    order = order_of(generator, "Hello.", 0)
    with monkeypatch.context() as patch:
        patch.setattr(RunningBatch, "step", lambda _: 1 / 0)
        for number in range(3):
            assert engine.is_alive, number
            with pytest.raises(ZeroDivisionError):
                asyncio.run(heard(engine, order))
        assert not engine.is_alive
    assert len(asyncio.run(heard(engine, order))) > 0
    assert engine.is_alive


def test_a_fault_between_two_lines_is_one_orders_own(
    generator: HiggsAudioGenerator, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference that is gone, say: all others ended with it, and it waited for ever."""
    line = generator.speaker.line

    def fail(script: Any, said: Any, max_audio_s: float) -> Any:
        if said:
            raise OSError("the file is gone")
        return line(script, said, max_audio_s)

    monkeypatch.setattr(generator.speaker, "line", fail)
    orders = [order_of(generator, LONG, 0), order_of(generator, "Hello.", 1, max_audio_s=4.0)]

    async def run() -> list[Any]:
        speaking = [heard(engine, order) for order in orders]
        both = asyncio.gather(*speaking, return_exceptions=True)
        return await asyncio.wait_for(both, timeout=60)

    fault, samples = asyncio.run(run())
    assert isinstance(fault, OSError)
    assert len(samples) > 2 * MAX_AUDIO_S * 24_000
    assert engine.is_alive


def test_what_closes_ends_who_waits(generator: HiggsAudioGenerator) -> None:
    engine = engine_of(generator, num_rows=1, max_audio_s=60.0)

    async def run() -> list[Any]:
        orders = [order_of(generator, "Hello.", i, max_audio_s=60.0) for i in range(3)]
        speaking = [asyncio.ensure_future(heard(engine, order)) for order in orders]
        while not engine.num_speaking:
            await asyncio.sleep(0.01)
        engine.close()
        return await asyncio.gather(*speaking, return_exceptions=True)

    assert all(isinstance(error, Closed) for error in asyncio.run(run()))
    assert not engine.is_alive


def test_a_seed_of_torch_is_not_touched(generator: HiggsAudioGenerator, engine: Engine) -> None:
    before = torch.get_rng_state()
    order = order_of(generator, "Hello.", 3)
    assert order.sampling == Sampling(temperature=1.0, seed=3)
    asyncio.run(heard(engine, order))
    assert torch.equal(torch.get_rng_state(), before)
    assert order.max_audio_s == MAX_AUDIO_S
