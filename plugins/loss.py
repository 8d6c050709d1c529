"""Labelled hidden rows -> sums and counts of both losses -> one scalar. L0: pure tensors, imports torch only.

Nothing here divides before `combine`: a sum over rows can be added over micro-batches and ranks, a mean cannot.

    loss = w_text * T / N_text  +  w_audio * sum_k u_k A_k / (N_frames * sum_k u_k)  +  w_aux * Z / N_rows

T and A_k are sums of cross-entropies over trained text tokens and over the trained frames of codebook k, Z the sum of
squared log-partitions (z-loss, ST-MoE, arXiv 2202.08906, eq. 5) over every trained prediction of both heads, that is
N_rows = N_text + K * N_frames. N_text and N_frames are counts over the whole optimisation step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.delay_pattern import IGNORE_INDEX


@dataclass(frozen=True)
class LossSums:
    """Sums over trained predictions; addable. fp32 tensors on the model's device."""

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


def shifted_rows(hidden: Tensor, labels: Tensor, *, offset: int = 1) -> tuple[Tensor, Tensor]:
    """The one place of the causal shift: the hidden row at t - 1 predicts the label of t.

    offset: other shifts are for the preflight, which shows that they fit worse.
    hidden (B, S, H) and labels (B, S) or (B, S, K) -> rows (R, H) and targets (R,) or (R, K), where R counts the
    positions with a label (any of the K). R may be 0: everything below then sums to 0 with zero gradients.
    """
    targets = labels[:, offset:]
    trained = targets != IGNORE_INDEX
    if trained.dim() == 3:
        trained = trained.any(dim=-1)
    return hidden[:, : targets.shape[1]][trained], targets[trained]


def text_loss_sums(rows: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> LossSums:
    """rows (R, H), targets (R,), head: (R, H) -> (R, V). Sums over the R trained text tokens."""
    logits = head(rows).float()
    loss = F.cross_entropy(logits, targets, reduction="sum")
    return LossSums(
        loss=loss,
        z=logits.logsumexp(dim=-1).square().sum(),
        correct=(logits.argmax(dim=-1) == targets).sum().float(),
        count=torch.full_like(loss, targets.numel()),
    )


def audio_loss_sums(rows: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], codebook_size: int) -> LossSums:
    """rows (R, H), targets (R, K) with -100 where codebook k is not trained, head: (R, H) -> (R, K * C).

    Sums per codebook (K,): F + 1 predictions per clip and codebook, the F codes and one EOS.
    """
    num_codebooks = targets.shape[-1]
    logits = head(rows).float().unflatten(-1, (num_codebooks, codebook_size))  # (R, K, C)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    trained = targets != IGNORE_INDEX
    return LossSums(
        loss=loss.sum(dim=0),  # untrained entries are 0 by ignore_index
        z=(logits.logsumexp(dim=-1).square() * trained).sum(),
        correct=((logits.argmax(dim=-1) == targets) & trained).sum(dim=0).float(),
        count=trained.sum(dim=0).float(),
    )


def combine(text: LossSums, audio: LossSums, *, num_text: Tensor, num_frames: Tensor, weights: LossWeights) -> Tensor:
    """The formula of this module as a scalar (). A modality without trained predictions contributes exactly 0.

    num_text, num_frames: () counts of the whole optimisation step, at least those of `text` and `audio`.
    """
    u = torch.tensor(weights.codebooks, device=audio.loss.device)
    num_codebooks = len(weights.codebooks)
    scale = num_codebooks if weights.sum_codebooks else 1
    num_rows = num_text + num_codebooks * num_frames
    return (
        weights.text * text.loss / num_text.clamp(min=1)
        + weights.audio * scale * (u * audio.loss).sum() / (num_frames.clamp(min=1) * u.sum())
        + weights.auxiliary * (text.z + audio.z) / num_rows.clamp(min=1)
    )
