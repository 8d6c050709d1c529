"""What outlives a request: compiled steps, recorded ones and their room, counted over requests of
all kinds. On a CPU a recording is the step itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.speaking import GREEDY, decoded, dialogues, prompts
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from plugins.inference import HiggsAudioGenerator
from plugins.speaking import decoding, graphs
from plugins.speaking.decoding import Room, Stage
from plugins.speaking.sampling import Sampling
from plugins.speaking.voices import request

SAMPLED = Sampling(temperature=1.0, seed=7)
# Rows of `REQUESTS`, how they are drawn, and the limits at which they leave.
WORKLOAD: list[tuple[tuple[int, ...], Sampling, list[int]]] = [
    ((0, 1, 2, 3), SAMPLED, [300, 10, 25, 25]),
    ((1,), SAMPLED, [20]),
    ((0, 1, 2), Sampling(temperature=1.0, top_k=60, ras_window=5, seed=1), [30, 20, 12]),
    ((2, 3), SAMPLED, [15, 30]),
    ((0, 2, 3), GREEDY, [12, 14, 30]),
]
Frames = list[tuple[list[int], Any]]


@pytest.fixture(scope="module")
def generator(tiny: Path) -> HiggsAudioGenerator:
    return HiggsAudioGenerator.from_pretrained(str(tiny))


def spoken(
    generator: HiggsAudioGenerator, stage: Stage | None, workload: Any = WORKLOAD
) -> list[Frames]:
    said = []
    for rows, sampling, limits in workload:
        batch = prompts(generator, dialogues(generator, *rows))
        samplings = [sampling] * len(rows)
        steps = decoding.decode(
            generator.model, batch, generator.tokens, samplings, limits, stage=stage
        )
        said.append([(numbers, frames.tolist()) for numbers, frames in steps])
    return said


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """The steps that are recorded, in order."""
    steps: list[Callable[[], None]] = []

    def record(step: Callable[[], None], pool: Any) -> Callable[[], None]:
        steps.append(step)
        return step

    monkeypatch.setattr(graphs, "RECORDING", {"cpu"})
    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(graphs, "warm_up", lambda step: step())
    return steps


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "compiled", lambda function, varying: function)


def test_a_mixed_workload_compiles_four_times_and_records_each_size_once(
    generator: HiggsAudioGenerator,
    recorded: list[Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two functions, a layer and a choice, for one row and for more. It was five recompilations
    for one batch whose rows left, and a recording for every row that left every batch."""
    expected = spoken(generator, None)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")  # guards of tracing, too
    monkeypatch.setattr(decoding, "compiled", partial(graphs.as_one_graph, backend=counter))
    stage = Stage()
    assert spoken(generator, stage) == expected
    assert counter.frame_count == 4
    sizes = [step.args for step in recorded]  # type: ignore[attr-defined]
    # Drawn at random, and, without a choice, greedy. Three rows take the step of four.
    drawn = [(4, 256), (1, 256), (1, 512), (2, 256)]
    assert sizes == [*drawn, (4, 256), (2, 256), (1, 256)]
    assert spoken(generator, stage) == expected
    assert (counter.frame_count, len(recorded)) == (4, len(sizes)), "once for all requests"


def test_a_long_speech_looks_at_what_is_filled(
    generator: HiggsAudioGenerator, recorded: list[Callable[[], None]], uncompiled: None
) -> None:
    """In pieces: a step of each, not one over all that may come; and a shorter request has room in
    the same tensors."""
    work = [((0, 2), SAMPLED, [600, 300])]
    stage = Stage()
    assert spoken(generator, stage, work) == spoken(generator, None, work)
    sizes = [step.args for step in recorded]  # type: ignore[attr-defined]
    ends = {end: rows for rows, end in sizes}
    assert ends == {256: 2, 512: 1, 768: 1}
    room, num_recorded = stage._free.room, len(recorded)  # type: ignore[union-attr]
    assert room == Room(num_rows=2, length=768, window=8)
    assert spoken(generator, stage, WORKLOAD[1:2]) == spoken(generator, None, WORKLOAD[1:2])
    assert stage._free.room == room  # type: ignore[union-attr]
    assert len(recorded) == num_recorded + 1, "one row at the beginning"


def test_room_grows_with_requests_within_the_limit(
    generator: HiggsAudioGenerator, uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one long row after many short ones would ask for many long ones."""
    rooms = []
    for limit in (2**40, 1):
        monkeypatch.setattr(decoding, "_CACHE_BYTES", limit)
        stage = Stage()
        for work in (((0, 2, 3), GREEDY, [9, 9, 9]), ((0,), GREEDY, [400])):
            spoken(generator, stage, [work])
        rooms.append(stage._free.room)  # type: ignore[union-attr]
    assert rooms == [Room(4, 512, 8), Room(1, 512, 8)]


def test_speeches_that_take_turns_do_not_meet(
    generator: HiggsAudioGenerator, recorded: list[Callable[[], None]], uncompiled: None
) -> None:
    """A stream waits between its pieces: another request may come meanwhile, on the same stage."""
    stage = Stage()

    def steps(row: int, stage: Stage | None) -> Any:
        batch = prompts(generator, dialogues(generator, row))
        return decoding.decode(
            generator.model, batch, generator.tokens, [SAMPLED], [30], stage=stage
        )

    together = list(zip(steps(0, stage), steps(1, stage), strict=True))
    for row, said in enumerate(zip(*together, strict=True)):
        alone = [frames for _, frames in steps(row, None)]
        assert torch.equal(torch.cat([frames for _, frames in said]), torch.cat(alone))


def test_what_is_broken_off_leaves_nothing_behind(
    generator: HiggsAudioGenerator, recorded: list[Callable[[], None]], uncompiled: None
) -> None:
    """Neither codes nor numbers that are none: a masked NaN would spoil the next speech."""
    stage = Stage()
    batch = prompts(generator, dialogues(generator, 2, 3))
    steps = decoding.decode(
        generator.model, batch, generator.tokens, [SAMPLED] * 2, [50, 50], stage=stage
    )
    for _ in range(20):
        next(steps)
    steps.close()
    for cached in stage._free._model_step.keys:  # type: ignore[union-attr]
        with torch.inference_mode():
            cached.fill_(torch.nan)
    assert spoken(generator, stage) == spoken(generator, None)


def test_each_adapter_and_every_new_weight_has_recordings_of_its_own(
    tiny: Path, recorded: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay would speak with the weights that it was recorded with. Layers with adapters are
    compiled as one graph, too."""
    torch.manual_seed(0)
    plain = HiggsAudioGenerator.from_pretrained(str(tiny))
    targets = ["q_proj", "audio_mlp.down_proj"]
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    tuned = get_peft_model(plain.model, config, adapter_name="a")
    tuned.add_adapter("b", config)
    generator = HiggsAudioGenerator(tuned, plain.tokenizer)
    torch._dynamo.reset()
    monkeypatch.setattr(decoding, "compiled", partial(graphs.as_one_graph, backend="eager"))
    stage = Stage()

    def say(stage: Stage | None) -> Tensor:
        return decoded(generator, dialogues(generator, 0), 30, stage=stage)[0]

    heard, counts = {}, []
    for name in ("a", None, "b", "a", None):
        generator.use_adapter(name)
        heard[name] = say(stage)
        assert torch.equal(heard[name], say(None)), name
        counts.append(len(recorded))
    assert counts == [1, 2, 3, 3, 3]
    assert not torch.equal(heard["a"], heard["b"])
    weight = generator.model.audio_lm_head.weight
    weight.data = weight.data.flip(0)
    assert torch.equal(say(stage), say(None))
    assert len(recorded) == 4


def test_it_is_the_default_where_steps_are_recorded(
    generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = (generator.model, generator.tokenizer)

    def is_staged(**options: Any) -> bool:
        return HiggsAudioGenerator(*parts, **options).speaker._stage is not None

    assert [is_staged(), is_staged(cuda_graphs=True)] == [False, True]
    monkeypatch.setattr(graphs, "RECORDING", {"cpu"})
    assert [is_staged(), is_staged(cuda_graphs=False)] == [True, False]
    monkeypatch.setattr(generator.model, "is_quantized", True, raising=False)
    assert not is_staged()


def test_a_batch_is_split_where_its_cache_would_not_fit(
    generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was one of 64 rows, whatever their length; the speech is the same."""
    spoken_of = generator.speaker
    asked = [request(text, None, [], generator.settings) for text in ("Hi.", "Hello.", "A word.")]
    options: dict[str, Any] = {"samplings": [SAMPLED] * 3, "max_audio_s": 0.4}
    whole = spoken_of.speak(asked, **options)
    bytes_of_3b = 2 * 28 * 8 * 128 * 2  # keys and values, layers, heads, numbers, bfloat16
    assert 32 * 1280 * bytes_of_3b <= decoding._CACHE_BYTES < 64 * 1200 * bytes_of_3b
    sizes: list[int] = []
    real = decoding.decode

    def counted(model: Any, batch: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(batch["input_ids"]))
        return real(model, batch, *args, **kwargs)

    monkeypatch.setattr("plugins.speaking.speaker.decode", counted)
    length = max(len(spoken_of.prompt(dialogue).input_ids) for dialogue in asked) + 19
    per_row = decoding.bytes_per_position(generator.model) * length
    for limit, expected in ((2 * per_row, [2, 1]), (1, [1, 1, 1]), (4 * per_row, [3])):
        sizes.clear()
        monkeypatch.setattr(decoding, "_CACHE_BYTES", limit)
        for speech, alike in zip(spoken_of.speak(asked, **options), whole, strict=True):
            assert torch.equal(speech.codes, alike.codes)
        assert sizes == expected


def test_a_model_that_was_changed_as_it_stands_gets_room_of_its_own(
    tiny: Path, uncompiled: None
) -> None:
    """`model.to` keeps the object; the tensors of its stage would still be those of before."""
    generator = HiggsAudioGenerator.from_pretrained(str(tiny))
    stage, work = Stage(), WORKLOAD[1:2]
    spoken(generator, stage, work)
    generator.model.to(torch.float64)
    assert spoken(generator, stage, work) == spoken(generator, None, work)


def test_another_model_on_a_stage_is_the_one_that_speaks(
    generator: HiggsAudioGenerator, tiny: Path, uncompiled: None
) -> None:
    other = HiggsAudioGenerator.from_pretrained(str(tiny))
    torch.nn.init.normal_(other.model.audio_lm_head.weight)
    stage, work = Stage(), WORKLOAD[1:2]
    before = spoken(generator, stage, work)
    assert spoken(other, stage, work) == spoken(other, None, work) != before
