"""AdamW for weights in bf16: computed in fp32, rounded up or down by chance.

    weights, gradients, moments (bf16) --fp32, a piece at a time--> weights, moments (bf16)

The neighbours of a weight of 0.02 are 1.2e-4 away in bf16, and a step of AdamW goes about as far as
the learning rate, 1e-5: rounded to the nearest, five of six such steps come to nothing, however
many are taken. Rounded up as often as the cut-off part is large, all of them arrive in the mean
(stochastic rounding, arXiv 2010.06192). So it is with the moments, whose second one changes by
1 - beta2 of itself. It takes 8 bytes per weight; fp32 weights beside bf16 ones would take 16. This
file imports torch only."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

PIECE = 2**24  # weights that are in fp32 at a time
# Bytes at work on each of them: weight, gradient, both moments and their quotient in fp32, and what
# rounding one of them takes.
PIECE_BYTES = 8 * 4

_MASK = -(2**16)  # the half of an fp32 number that bf16 has


class StochasticAdamW(Optimizer):
    """As torch.optim.AdamW, to the bit for fp32 weights; bf16 ones and their moments are rounded
    stochastically.

    What is drawn depends on seed, weight and step alone: data-parallel ranks round alike, and a
    resumed run as one that was not interrupted. State and groups are those of torch's AdamW, whose
    checkpoints it takes."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        seed: int = 0,
    ) -> None:
        self._seed = seed
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Weights without a gradient stay, and so do their moments."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = 0
        for group in self.param_groups:
            for weight in group["params"]:
                number += 1
                if weight.grad is not None:
                    self._update(weight, group, number)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any], number: int) -> None:
        """number: the weight's place among all of them."""
        state = self.state[weight]
        if not state:
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        step = int(state.get("step", 0)) + 1  # torch's own counts in a tensor
        state["step"] = step
        random = torch.Generator(weight.device).manual_seed(_mixed(self._seed, number, step))
        tensors = (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"])
        for piece in zip(*map(_pieces, tensors), strict=True):
            _update_piece(piece, group, step, random)


def _mixed(*numbers: int) -> int:
    """A seed of 32 bits, which are all that torch takes on a CPU. (`hash` is another one in another
    Python.)"""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Views of at most `PIECE` numbers, unless a single row has more."""
    if tensor.dim() == 0:
        tensor = tensor[None]
    row = max(1, tensor[:1].numel())
    return tensor.split(max(1, PIECE // row))


def _update_piece(
    piece: tuple[Tensor, ...], group: dict[str, Any], step: int, random: torch.Generator
) -> None:
    """piece: of the weight, its gradient and both moments."""
    weight, gradient, mean, square = piece
    beta1, beta2 = group["betas"]
    gradient = gradient.float()
    new_mean = mean.float().lerp_(gradient, 1 - beta1)
    new_square = square.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = new_square.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    new_weight = weight.float().mul_(1 - group["lr"] * group["weight_decay"])
    new_weight.addcdiv_(new_mean, scale, value=-group["lr"] / (1 - beta1**step))
    for target, exact in ((mean, new_mean), (square, new_square), (weight, new_weight)):
        store(target, exact, random)


def store(target: Tensor, exact: Tensor, random: torch.Generator) -> None:
    """`exact` (fp32) into `target`: if that is bf16, as one of the two neighbours, the nearer one
    as much more often as it is nearer. Infinity and NaN stay what they are."""
    if target.dtype != torch.bfloat16:
        target.copy_(exact)
        return
    noise = torch.randint(
        2**16, exact.shape, generator=random, dtype=torch.int32, device=exact.device
    )
    # Numbers of one sign lie as their bits do: what is added carries into the upper half as often
    # as the lower half is large.
    rounded = noise.add_(exact.view(torch.int32)).bitwise_and_(_MASK).view(torch.float32)
    target.copy_(torch.where(exact.isfinite(), rounded, exact))
