"""The memory estimate against what the real class keeps on a CPU, storage by storage."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import pytest
import torch
from helpers.memory import RANK, tiny_config, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from plugins.model.config import HiggsAudioV2Config
from plugins.model.loss import LossWeights, combine
from plugins.training import adamw
from plugins.training.preflight.memory import estimate
from plugins.training.preflight.plan import TrainingPlan

NUM_TEXT = 8


def make_batch(
    plan: TrainingPlan, *, num_labelled: int, num_trained: int = 1, num_text: int = NUM_TEXT
) -> dict[str, torch.Tensor]:
    """Text tokens, the last `num_trained` of them with a label, then audio up to max_length; of
    several rows all but the first end in padding."""
    batch, length, num_frames = plan.batch_size, plan.max_length, plan.max_length - num_text
    input_ids = torch.full((batch, length), 304)
    input_ids[:, :num_text] = 5
    input_ids[1:, -1] = 1
    is_frame = input_ids[:, num_text:] == 304
    labels = torch.full((batch, length), -100)
    labels[:, num_text - num_trained : num_text] = 7
    audio_labels = torch.randint(0, 1026, (batch, num_frames, 8)).masked_fill(
        ~is_frame.unsqueeze(-1), -100
    )
    audio_labels[:, num_labelled:] = -100
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != 1).long(),
        "audio_input_ids": torch.randint(0, 1026, (batch, num_frames, 8)),
        "audio_input_ids_mask": is_frame,
        "labels": labels,
        "audio_labels": audio_labels,
    }


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that operators have made and nobody has dropped yet.

    More than `saved_tensors_hooks` would see: those miss the input that non-reentrant checkpointing
    keeps, and all that is made and dropped within the backward pass."""

    def __init__(self, outside: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        # Parameters, their gradients, the batch; held, so that no storage takes their place.
        self._outside = outside
        self._seen: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in outside}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, result)
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def forget(reference: Any) -> None:
            self.now -= size
            del self._seen[key]

        self.now += size
        self._seen[key] = weakref.ref(storage, forget)


def measure(
    config: HiggsAudioV2Config,
    plan: TrainingPlan,
    *,
    use_reentrant: bool = True,
    num_labelled: int = 4,
    **of_text: int,
) -> tuple[int, int]:
    """Bytes kept after the forward pass, and at the peak of both passes. Gradients exist before and
    are not counted."""
    torch.manual_seed(0)
    model = tiny_model(config, plan)
    if plan.gradient_checkpointing:
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": use_reentrant}
        )
        model.enable_input_require_grads()
    batch = make_batch(plan, num_labelled=num_labelled, **of_text)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    is_half = plan.dtype == "bfloat16"
    autocast = torch.autocast("cpu", torch.bfloat16) if is_half else contextlib.nullcontext()
    live = LiveBytes([*model.parameters(), *model.buffers(), *gradients, *batch.values()])
    with live:
        with autocast:
            outputs = model(**batch)
        counts = {"num_text": outputs.text_count, "num_frames": outputs.audio_count[0]}
        weights = LossWeights(1.0, 1.0, 0.001, (1.0,) * 8)
        loss = combine(outputs.text, outputs.audio, weights=weights, **counts)
        del outputs
        kept = live.now
        loss.backward()
    return kept, live.peak


@pytest.fixture
def _dropout_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's dropout keeps a mask of one byte; the CPU's keeps noise in the dtype of its input."""

    def dropout(input: torch.Tensor, p: float, training: bool, inplace: bool) -> torch.Tensor:
        return torch.native_dropout(input, p, training)[0]

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)


@pytest.mark.usefixtures("_dropout_of_cuda")
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_layers_keep_what_is_estimated(tuner: Any, dtype: Any, batch_size: int) -> None:
    """Two layers more: what embeddings and heads keep falls out. One position of 768 is padding and
    keeps nothing."""
    plan = TrainingPlan(
        tuner,
        RANK,
        dtype=dtype,
        batch_size=batch_size,
        max_length=384,
        gradient_checkpointing=False,
    )
    few, many = tiny_config(num_layers=1), tiny_config(num_layers=3)
    measured = measure(many, plan)[0] - measure(few, plan)[0]
    estimates = estimate(many, plan), estimate(few, plan)
    estimated = estimates[0].activations - estimates[1].activations
    if dtype == "float32":
        # The half-precision copies that fp16 autocast makes on a GPU; here float32 runs without
        # autocast.
        more, less = estimates[0].sizes, estimates[1].sizes
        cast = more.linear - less.linear
        if tuner == "lora":
            cast += more.trained - less.trained
        estimated -= 2 * cast
    assert estimated == pytest.approx(measured, rel=2e-3)


@pytest.mark.usefixtures("_dropout_of_cuda")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_checkpointed_layers_keep_their_input(tuner: Any, use_reentrant: bool) -> None:
    plan = TrainingPlan(tuner, RANK, batch_size=2, max_length=384)
    few, many = tiny_config(num_layers=1), tiny_config(num_layers=3)
    measured = measure(many, plan, use_reentrant=use_reentrant)[0]
    measured -= measure(few, plan, use_reentrant=use_reentrant)[0]
    estimated = estimate(many, plan).activations - estimate(few, plan).activations
    assert estimated == pytest.approx(measured, rel=0.01)


@pytest.mark.usefixtures("_dropout_of_cuda")
@pytest.mark.parametrize(
    ("hidden", "intermediate"), [(128, 344), (128, 448)], ids=["as 3b", "as 7b"]
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_the_peak_of_the_layers_is_as_estimated(
    tuner: Any, dtype: Any, hidden: int, intermediate: int
) -> None:
    """Next to no labels: the heads do not matter."""
    plan = TrainingPlan(tuner, RANK, dtype=dtype, batch_size=2, max_length=768)
    config = tiny_config(hidden=hidden, intermediate=intermediate)
    estimated = estimate(config, plan)
    assert estimated.activations + estimated.backward == pytest.approx(
        measure(config, plan)[1], rel=0.15
    )


@pytest.mark.usefixtures("_dropout_of_cuda")
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_the_peak_of_the_heads_is_as_estimated(tuner: Any) -> None:
    """All frames labelled and narrow layers: the logits are all that matters."""
    plan = TrainingPlan(tuner, RANK, batch_size=2, max_length=128)
    config = tiny_config(hidden=64, intermediate=128)
    estimated = estimate(config, plan)
    assert estimated.logits > 3 * estimated.backward
    peak = measure(config, plan, num_labelled=128)[1]
    assert estimated.activations + estimated.logits == pytest.approx(peak, rel=0.15)


@pytest.mark.usefixtures("_dropout_of_cuda")
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_the_peak_of_trained_text_is_as_estimated(tuner: Any) -> None:
    """Rows that are half an answer in writing, with a vocabulary whose logits are all that matters.
    Counted with three trained tokens, half of it would be missing."""
    plan = TrainingPlan(tuner, RANK, batch_size=2, max_length=128)
    config = tiny_config(hidden=64, intermediate=128)
    config.vocab_size = 32_000
    estimated = estimate(config, plan, text_tokens=64)
    assert estimated.logits > 3 * estimated.backward
    peak = measure(config, plan, num_labelled=128, num_trained=64, num_text=65)[1]
    assert estimated.activations + estimated.logits == pytest.approx(peak, rel=0.15)
    few = estimate(config, plan)
    assert few.activations + few.logits < 0.8 * peak


def test_the_step_of_bf16_weights_works_on_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw, "PIECE", 2**13)
    plan = TrainingPlan("full")
    model = tiny_model(tiny_config(), plan)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = adamw.StochasticAdamW(model.parameters(), lr=1e-5)
    optimizer.step()  # makes the moments
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    moments = list(filter(torch.is_tensor, states))
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    live = LiveBytes([*model.parameters(), *gradients, *moments])
    with live:
        optimizer.step()
    estimated = estimate(tiny_config(), plan).step
    assert estimated == 8 * 4 * 2**13
    assert live.peak == pytest.approx(estimated, rel=0.05)


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_dtypes_of_weights_and_states_without_deepspeed(tuner: Any) -> None:
    """bf16 weights have bf16 AdamW states and no fp32 copy; adapters on them are fp32 with fp32
    states."""
    plan = TrainingPlan(tuner, RANK)
    model = tiny_model(tiny_config(), plan)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer: Any = torch.optim.AdamW(trained, fused=True)
    if tuner == "full":
        optimizer = adamw.StochasticAdamW(trained, lr=1e-5)
    optimizer.step()
    num_bytes = 0
    for states in optimizer.state.values():
        num_bytes += states["exp_avg"].nbytes + states["exp_avg_sq"].nbytes
    estimated = estimate(tiny_config(), plan)
    assert estimated.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert estimated.gradients == sum(parameter.nbytes for parameter in trained)
    assert estimated.optimizer == num_bytes
    assert plan.master_weights is (tuner == "lora")
