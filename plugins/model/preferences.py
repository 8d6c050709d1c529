"""Log-probabilities of chosen and rejected clips -> how much a model prefers the chosen one. Pure
tensors: it knows neither the model nor the reference.

A batch of P pairs has B = 2 P rows, the chosen ones first. The log-probability of a row's clips is
minus the sum of their cross-entropies over all codebooks and trained frames (`plugins.model.loss`:
the same labels, masks and shift). With h the difference of two log-ratios to the reference,

    h = (log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))

    sigmoid       -log sigmoid(beta h)          DPO, arXiv 2305.18290, eq. 7
    sigmoid_norm  the same of log-probabilities per predicted code     Tulu 3, arXiv 2411.15124
    ipo           (h - 1 / (2 beta))^2, per predicted code     arXiv 2310.12036, eq. 17

label_smoothing e, of the first two: (1 - e) of the loss, and e of that of the pair turned around.
Rewards are beta times the log-ratios."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.model.loss import LossSums

LOSSES = ("sigmoid", "sigmoid_norm", "ipo")
# What is counted of pairs, in the order of `Preferences.sums`.
NAMES = (
    "pairs", "loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen",
    "logps/rejected",
)  # fmt: skip


@dataclass(frozen=True)
class PreferenceLoss:
    """One of `LOSSES`, and its numbers."""

    name: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0  # of the loss of `plugins.model.loss`, of the chosen answers

    def of(self, policy: LossSums, reference: Tensor) -> Preferences:
        """policy: of the audio, apart for each row: loss and count (2 P, K). reference (2 P,):
        log-probabilities."""
        logps = log_probabilities(policy)  # (2 P,)
        scores, reference_scores = logps, reference
        if self.name != "sigmoid":
            num_codes = policy.count.sum(dim=-1)
            scores, reference_scores = logps / num_codes, reference / num_codes
        chosen, rejected = (scores - reference_scores).chunk(2)  # (P,) each: log-ratios
        h = chosen - rejected
        if self.name == "ipo":
            losses = (h - 1 / (2 * self.beta)).square()
        else:
            right, wrong = F.logsigmoid(self.beta * h), F.logsigmoid(-self.beta * h)
            losses = -(1 - self.label_smoothing) * right - self.label_smoothing * wrong
        return Preferences(losses, self.beta * chosen, self.beta * rejected, logps)


@dataclass(frozen=True)
class Preferences:
    """Of P pairs; fp64."""

    losses: Tensor  # (P,)
    chosen_rewards: Tensor  # (P,)
    rejected_rewards: Tensor  # (P,)
    logps: Tensor  # (2 P,), the chosen ones first

    def sums(self) -> Tensor:
        """(7,): of `NAMES`, over the pairs. A tie counts as half of a right answer, so that a model
        which is its own reference begins at 0.5."""
        margins = (self.chosen_rewards - self.rejected_rewards).detach()
        right = (margins.sign() + 1) / 2
        per_pair = (
            torch.ones_like(margins), self.losses, self.chosen_rewards, self.rejected_rewards,
            right, *self.logps.chunk(2),
        )  # fmt: skip
        return torch.stack([values.detach().sum() for values in per_pair])


def log_probabilities(audio: LossSums) -> Tensor:
    """audio: apart for each of the B rows, (B, K) -> (B,): of all clips of a row."""
    return -audio.loss.sum(dim=-1)


def of_chosen(sums: LossSums) -> LossSums:
    """Sums apart for the rows of P pairs -> sums over their chosen rows."""
    chosen = []
    for values in (sums.loss, sums.z, sums.correct, sums.count):
        chosen.append(values[: len(values) // 2].sum(dim=0))
    return LossSums(*chosen)
