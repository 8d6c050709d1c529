"""Labelled hidden rows -> sums and counts of both losses -> one scalar. Pure tensors: it knows
neither the model nor where the rows come from.

Nothing here divides before `combine`: a sum over rows can be added over micro-batches and ranks, a
mean cannot. Sums are over the whole batch, or apart for each of its rows (`apart`).

    loss = w_text  * T / N_text
         + w_audio * sum_k u_k A_k / (N_frames * sum_k u_k)
         + w_aux   * Z / N_rows

T and A_k are sums of cross-entropies over trained text tokens and over the trained frames of
codebook k, Z the sum of squared log-partitions (z-loss, ST-MoE, arXiv 2202.08906, eq. 5) over every
trained prediction of both heads, that is N_rows = N_text + K * N_frames. N_text and N_frames are
counts over the whole optimisation step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.delay_pattern import IGNORE_INDEX
from plugins.errors import problem
from plugins.model.rows import places_of, take
from plugins.settings import HiggsAudioSettings

PIECE = 2**24  # logits that are in fp32 at a time: 64 MB


@dataclass(frozen=True)
class LossSums:
    """Sums over trained predictions; addable. fp32 tensors on the model's device; apart for each
    row of a batch fp64, with B in front of each shape."""

    loss: Tensor  # () for text, (K,) for audio: cross-entropy
    z: Tensor  # (): squared log-partition
    correct: Tensor  # like loss: argmax equals target
    count: Tensor  # like loss: trained predictions


@dataclass(frozen=True)
class LossWeights:
    """w_text, w_audio, w_aux of the formula above, and the weights u_k of the codebooks (K,)."""

    text: float
    audio: float
    auxiliary: float
    codebooks: tuple[float, ...]
    sum_codebooks: bool = False  # times K: the scale of transformers' native loss

    @classmethod
    def of(cls, settings: HiggsAudioSettings, num_codebooks: int) -> LossWeights:
        """Those of a run. Raises UserError if `audio_codebook_weights` are not one per codebook."""
        codebooks = settings.audio_codebook_weights or (1.0,) * num_codebooks
        if len(codebooks) != num_codebooks:
            raise problem(
                source="settings",
                field="audio_codebook_weights",
                value=codebooks,
                reason=f"has {len(codebooks)} weights for {num_codebooks} codebooks",
                remedy=f"give {num_codebooks} or leave it empty",
            )
        return cls(
            text=settings.text_loss_weight,
            audio=settings.audio_loss_weight,
            auxiliary=settings.auxiliary_loss_weight,
            codebooks=codebooks,
            sum_codebooks=settings.audio_codebook_reduction == "sum",
        )


def predicting(labels: Tensor, *, offset: int = 1) -> Tensor:
    """The one place of the causal shift: the hidden row at t - 1 predicts the label of t.

    labels (B, S) or (B, S, K) -> (B, S) bool, the rows that predict a label (any of the K). offset:
    other shifts are for the preflight, which shows that they fit worse."""
    trained = labels != IGNORE_INDEX
    if trained.dim() == 3:
        trained = trained.any(dim=-1)
    return F.pad(trained[:, offset:], (0, offset))


def shifted_rows(
    hidden: Tensor, labels: Tensor, places: Tensor | None = None, *, offset: int = 1
) -> tuple[Tensor, Tensor]:
    """hidden (B, S, H), labels (B, S) or (B, S, K) -> rows (R, H) and their targets (R,) or (R, K).

    places (R,): those of `predicting`; without them it waits for the device. R may be 0: everything
    below then sums to 0 with zero gradients."""
    if places is None:
        (places,) = places_of(predicting(labels, offset=offset))
    targets = labels.flatten(0, 1).index_select(0, places + offset)
    return take(hidden.flatten(0, 1), places), targets


Summing = Callable[[Tensor], Tensor]  # (R, ...) -> (...), or apart: (B, ...)


def together(values: Tensor) -> Tensor:
    return values.sum(dim=0)


def apart(places: Tensor, batch_size: int, num_positions: int) -> Summing:
    """Sums for each row of a batch. places (R,): in (B * S,), of the R values that are summed."""
    row_of = places // num_positions  # (R,)

    def summed(values: Tensor) -> Tensor:
        # fp64: a clip is thousands of nats, and two of them differ by a few.
        sums = values.new_zeros((batch_size, *values.shape[1:]), dtype=torch.float64)
        return sums.index_add(0, row_of, values.double())

    return summed


def text_loss_sums(
    rows: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    summed: Summing = together,
) -> LossSums:
    """rows (R, H), targets (R,), head: (R, H) -> (R, V). Sums over the R trained text tokens."""
    loss, log_partition, correct = CrossEntropy.apply(head(rows), targets)
    return LossSums(
        loss=summed(loss),
        z=summed(log_partition.square()),
        correct=summed(correct),
        # A tensor like the others, which ranks can add.
        count=summed(torch.ones_like(loss)),
    )


def audio_loss_sums(
    rows: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    codebook_size: int,
    summed: Summing = together,
) -> LossSums:
    """rows (R, H), targets (R, K) with -100 where codebook k is not trained, head: (R, H) -> (R, K
    * C).

    Sums per codebook (K,): F + 1 predictions per clip and codebook, the F codes and one EOS.
    """
    num_codebooks = targets.shape[1]
    logits = head(rows).unflatten(-1, (num_codebooks, codebook_size)).flatten(0, 1)  # (R * K, C)
    loss, log_partition, correct = CrossEntropy.apply(logits, targets.flatten())  # (R * K,)
    loss, log_partition = loss.view_as(targets), log_partition.view_as(targets)  # (R, K)
    correct = correct.view_as(targets)
    trained = (targets != IGNORE_INDEX).float()
    return LossSums(
        loss=summed(loss),  # untrained entries are 0
        z=summed(log_partition.square() * trained).sum(dim=-1),
        correct=summed(correct),
        count=summed(trained),
    )


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy and log-partition of R rows of logits, in fp32 whatever the logits are.

    Operators one by one would keep fp32 copies of all logits: themselves, log_softmax, and
    gradients of both losses. Here only the logits as they are and the gradient in their dtype have
    that size; the rest is done in pieces."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """logits (R, C), targets (R,) with -100 -> fp32 (R,) each: loss, log-partition, whether
        argmax equals target; the first and the last are 0 where there is no target."""
        loss = torch.zeros(len(logits), device=logits.device)
        log_partition, correct = torch.zeros_like(loss), torch.zeros_like(loss)
        for piece in _pieces(logits):
            best, guess = logits[piece].max(dim=-1, keepdim=True)
            best = best.float()
            # fp32; relative to the best, as log_softmax does: a loss near 0 keeps its digits.
            scores = logits[piece] - best
            target = targets[piece].unsqueeze(-1)
            chosen = scores.gather(-1, target.clamp(min=0))
            # In place: `scores` is the only fp32 copy of the piece.
            log_sum = scores.exp_().sum(dim=-1, keepdim=True).log_()
            loss[piece] = ((log_sum - chosen) * (target != IGNORE_INDEX)).squeeze(-1)
            log_partition[piece] = (log_sum + best).squeeze(-1)
            correct[piece] = (guess == target).float().squeeze(-1)
        # Logits as they are, not their softmax: that would be fp32, twice the size of bf16.
        ctx.save_for_backward(logits, targets, log_partition)
        ctx.mark_non_differentiable(correct)
        return loss, log_partition, correct

    @staticmethod
    def backward(
        ctx: Any, of_loss: Tensor, of_log_partition: Tensor, _: Any
    ) -> tuple[Tensor, None]:
        """d loss = softmax - onehot(target), d log-partition = softmax."""
        logits, targets, log_partition = ctx.saved_tensors
        of_loss = of_loss * (targets != IGNORE_INDEX)
        grad = torch.empty_like(logits)
        for piece in _pieces(logits):
            probabilities = (logits[piece] - log_partition[piece].unsqueeze(-1)).exp_()  # fp32
            probabilities *= (of_loss[piece] + of_log_partition[piece]).unsqueeze(-1)
            target = targets[piece].clamp(min=0).unsqueeze(-1)
            # At rows without target `of_loss` is 0: whatever index stands there is harmless.
            grad[piece] = probabilities.scatter_add_(-1, target, -of_loss[piece].unsqueeze(-1))
        return grad, None


def _pieces(logits: Tensor) -> list[slice]:
    """Rows in pieces of at most `PIECE` logits."""
    size = max(PIECE // logits.shape[1], 1)
    return [slice(start, start + size) for start in range(0, len(logits), size)]


def combine(
    text: LossSums, audio: LossSums, *, num_text: Tensor, num_frames: Tensor, weights: LossWeights
) -> Tensor:
    """The formula of this module as a scalar (). A modality without trained predictions contributes
    exactly 0.

    num_text, num_frames: () counts of the whole optimisation step, at least those of `text` and
    `audio`."""
    # Clamped, so that an absent modality is 0 / 1 and not 0 / 0.
    u = torch.tensor(weights.codebooks).to(audio.loss.device, non_blocking=True)
    num_codebooks = len(weights.codebooks)
    scale = num_codebooks if weights.sum_codebooks else 1
    num_rows = num_text + num_codebooks * num_frames
    return (
        weights.text * text.loss / num_text.clamp(min=1)
        + weights.audio * scale * (u * audio.loss).sum() / (num_frames.clamp(min=1) * u.sum())
        + weights.auxiliary * (text.z + audio.z) / num_rows.clamp(min=1)
    )
