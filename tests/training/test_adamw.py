"""Steps that are smaller than what bf16 can hold: lost by torch's AdamW, taken in the mean by
ours."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from plugins.errors import UserError
from plugins.training import adamw
from plugins.training.adamw import StochasticAdamW, store
from plugins.training.optimizer import precision

LR = 1e-5  # of configs/full_3b.yaml
NUM_STEPS = 40


def weights(dtype: torch.dtype, num: int = 2**15) -> torch.nn.Parameter:
    """As of a linear layer of the 3B model."""
    generator = torch.Generator().manual_seed(0)
    values = 0.02 * torch.randn(num // 64, 64, generator=generator)
    return torch.nn.Parameter(values.bfloat16().to(dtype))


def take_steps(
    optimizer: Any, weight: Tensor, numbers: range = range(NUM_STEPS), noise: float = 1.0
) -> None:
    """Gradients with a direction and noise, the same for every optimizer."""
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    for number in numbers:
        random = torch.Generator().manual_seed(100 + number)
        gradient = direction + noise * torch.randn(weight.shape, generator=random)
        weight.grad = (1e-3 * gradient).bfloat16().to(weight.dtype)
        optimizer.step()


def moved(optimizer_cls: Any, dtype: torch.dtype, **options: Any) -> Tensor:
    weight = weights(dtype)
    before = weight.detach().double()
    take_steps(optimizer_cls([weight], lr=LR, weight_decay=0.0, **options), weight)
    return weight.detach().double() - before


def test_a_step_of_ordinary_adamw_is_mostly_lost() -> None:
    """What the rest of this file is for: of a step of 1e-5 about a sixth of bf16 weights notice
    anything, and those go ten times too far."""
    weight = weights(torch.bfloat16)
    before = weight.detach().clone()
    take_steps(torch.optim.AdamW([weight], lr=LR, weight_decay=0.0), weight, range(1))
    changed = (weight != before).double().mean()
    assert 0.10 < changed < 0.22


def test_steps_arrive_in_the_mean() -> None:
    exact = moved(torch.optim.AdamW, torch.float32)

    def arrived(change: Tensor) -> float:
        return float((change * exact).sum() / (exact * exact).sum())

    assert arrived(moved(StochasticAdamW, torch.bfloat16)) == pytest.approx(1, abs=0.03)
    assert abs(arrived(moved(torch.optim.AdamW, torch.bfloat16)) - 1) > 0.1


def test_an_old_second_moment_fades() -> None:
    """Rounded to the nearest, 0.999 of a number is that number: it would stay for ever."""
    for optimizer_cls, is_stuck in ((torch.optim.AdamW, True), (StochasticAdamW, False)):
        weight = weights(torch.bfloat16)
        optimizer = optimizer_cls([weight], lr=LR, betas=(0.9, 0.999))
        weight.grad = torch.full_like(weight, 1e-3)
        optimizer.step()
        first = optimizer.state[weight]["exp_avg_sq"].float().mean()
        for _ in range(100):
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
        left = float(optimizer.state[weight]["exp_avg_sq"].float().mean() / first)
        assert left == pytest.approx(1.0 if is_stuck else 0.999**100, rel=0.01)


def test_fp32_weights_are_those_of_torch_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw, "PIECE", 1000)
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    ours, theirs = weights(torch.float32), weights(torch.float32)
    take_steps(StochasticAdamW([ours], **options), ours)
    take_steps(torch.optim.AdamW([theirs], foreach=False, **options), theirs)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (7,), (3, 5), (2, 3, 4), (1, 4096)])
def test_every_weight_is_reached(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of any shape, also of a matrix that lies transposed; one without a gradient
    stays."""
    monkeypatch.setattr(adamw, "PIECE", 8)
    weight = torch.nn.Parameter(torch.ones(shape, dtype=torch.bfloat16))
    turned = torch.nn.Parameter(torch.ones(6, 4, dtype=torch.bfloat16).T)
    still = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    weight.grad, turned.grad = torch.ones_like(weight), torch.ones_like(turned)
    optimizer = StochasticAdamW([weight, still, turned], lr=0.1)
    optimizer.step()
    assert (weight < 0.95).all()
    assert (turned < 0.95).all()
    assert (still == 1).all()
    assert still not in optimizer.state


def test_resumed_to_the_bit() -> None:
    never = weights(torch.bfloat16)
    take_steps(StochasticAdamW([never], lr=LR, seed=3), never)
    weight = weights(torch.bfloat16)
    first = StochasticAdamW([weight], lr=LR, seed=3)
    take_steps(first, weight, range(15))
    saved = copy.deepcopy(first.state_dict())
    resumed = torch.nn.Parameter(weight.detach().clone())
    second = StochasticAdamW([resumed], lr=LR, seed=3)
    second.load_state_dict(saved)
    torch.manual_seed(9)  # the global state has no part in it
    take_steps(second, resumed, range(15, NUM_STEPS))
    assert torch.equal(resumed, never)


def test_seed_weight_and_step_decide() -> None:
    """Ranks of one run, which all have its seed, stay equal; nothing is drawn twice."""
    ends = []
    for seed in (1, 1, 2):
        pair = [weights(torch.bfloat16), weights(torch.bfloat16)]
        optimizer = StochasticAdamW(pair, lr=LR, seed=seed)
        for weight in pair:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        ends.append([weight.detach() for weight in pair])
    assert torch.equal(ends[0][0], ends[1][0])
    assert not torch.equal(ends[0][0], ends[0][1])
    assert not torch.equal(ends[0][0], ends[2][0])


def test_a_checkpoint_of_torchs_adamw_goes_on() -> None:
    weight = weights(torch.bfloat16)
    theirs = torch.optim.AdamW([weight], lr=LR)
    take_steps(theirs, weight, range(5))
    ours = StochasticAdamW([weight], lr=LR)
    ours.load_state_dict(theirs.state_dict())
    take_steps(ours, weight, range(5, 8))
    assert ours.state[weight]["step"] == 8
    assert ours.state[weight]["exp_avg"].dtype == torch.bfloat16


MOST = torch.finfo(torch.bfloat16).max
VALUES = [0.1, -0.1, 1e-5, 1.00390625, -3.3333, 1e30, 1e-38, 1e-41, 0.02 - 1e-5, 123456.7]
KEPT = [0.0, -0.0, 1.0, -2.5, 0.15625, MOST, -MOST, 2.0**-126, math.inf, -math.inf, math.nan]


def stored(value: float, num: int = 20_000) -> Tensor:
    target = torch.zeros(num, dtype=torch.bfloat16)
    store(target, torch.full((num,), value), torch.Generator().manual_seed(0))
    return target.double()


@pytest.mark.parametrize("value", VALUES)
def test_rounding_is_right_in_the_mean(value: float) -> None:
    result, exact = stored(value), float(torch.tensor(value))
    low, high = result.unique().tolist()
    assert low < exact < high
    nearest = float(torch.tensor(value).bfloat16())
    assert nearest in (low, high)
    deviation = 4 * (high - low) / 2 / len(result) ** 0.5
    assert result.mean().item() == pytest.approx(exact, abs=deviation)


@pytest.mark.parametrize("value", KEPT)
def test_what_bf16_holds_is_kept(value: float) -> None:
    result = stored(value, 100)
    expected = torch.full_like(result, value)
    assert torch.equal(result, expected) or (math.isnan(value) and result.isnan().all())


def trainer(**options: Any) -> Any:
    values = {"deepspeed": False, "fsdp": False, "bf16": True, **options}
    plugin = SimpleNamespace(deepspeed_config=values["deepspeed"])
    return SimpleNamespace(
        is_deepspeed_enabled=bool(values["deepspeed"]),
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)),
        is_fsdp_enabled=values["fsdp"],
        args=SimpleNamespace(bf16=values["bf16"], fp16=False),
    )


ZERO: dict[str, Any] = {"zero_optimization": {"stage": 2}}


def groups(*dtypes: torch.dtype) -> list[dict[str, Any]]:
    return [{"params": [torch.zeros(1, dtype=dtype)]} for dtype in dtypes]


@pytest.mark.parametrize(
    ("options", "dtypes", "kept", "is_lossy"),
    [
        ({}, (torch.bfloat16,), "bf16, each step computed in fp32", True),
        ({}, (torch.float32, torch.bfloat16), "fp32, and those of the base bf16, each", True),
        ({}, (torch.float32,), "fp32", False),
        ({"deepspeed": ZERO}, (torch.bfloat16,), "fp32, DeepSpeed's copies", False),
        ({"deepspeed": ZERO}, (torch.float16,), "fp32, DeepSpeed's copies", False),
        ({"fsdp": True}, (torch.bfloat16,), "fp32, by FSDP", False),
        ({"fsdp": True, "bf16": False}, (torch.bfloat16,), "bf16, each step computed", True),
    ],
)
def test_who_keeps_weights_in_what(
    options: dict[str, Any], dtypes: Any, kept: str, is_lossy: bool
) -> None:
    text, lossy = precision(trainer(**options), groups(*dtypes))
    assert text.startswith(kept)
    assert lossy is is_lossy


def test_fp16_weights_cannot_be_trained() -> None:
    with pytest.raises(UserError, match="torch_dtype: 'float16' cannot hold trained weights; use"):
        precision(trainer(), groups(torch.float16))


def test_a_deepspeed_without_fp32_copies_is_refused() -> None:
    config = {**ZERO, "bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}
    with pytest.raises(UserError, match="deepspeed: 'bf16_master_weights_and_grads' would round"):
        precision(trainer(deepspeed=config), groups(torch.bfloat16))
