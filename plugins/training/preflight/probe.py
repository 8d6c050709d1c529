"""Cross-entropies that only the right labels, codes and texts give, on the user's own model and
rows: rows with their batches of one in, nats per code out.

A trained model predicts the code of the next step, with codebook k delayed by k steps, far better
than anything else. So if labels at another offset, or without the delay pattern, fit better than
those that are about to be trained, then these are wrong, whatever the cause; and if nothing fits
better than chance, the codes are not this model's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plugins.data.dialogue import EncodedSample
from plugins.data.tokens import SpecialTokens
from plugins.delay_pattern import IGNORE_INDEX
from plugins.model.loss import audio_loss_sums, shifted_rows
from plugins.training.preflight.labels import expected_frames, expected_labels

OFFSETS = (0, 1, 2)
_RIGHT = ("as trained", 1)
_MARGIN = 0.1  # nats; planted defects differ by whole ones, chance by hundredths
# Of the entropy of guessing. Measured: 0.99 before the first step, 0.95 after ten.
_UNTRAINED = 0.98

Row = tuple[EncodedSample, dict[str, Tensor]]  # a row and its batch of one


@dataclass(frozen=True)
class OffsetProbe:
    """Mean cross-entropies in nats per code, by frames and labels (`as trained`, `no delay`) and
    offset."""

    losses: dict[tuple[str, int], float]
    codebook_losses: tuple[float, ...]  # (K,) of what is about to be trained
    entropy: float  # mean, in nats, of what the model predicts
    num_codes: int
    chance: float  # of guessing among all codes
    random_init: bool

    @property
    def complaint(self) -> str | None:
        """Other labels that fit better by a margin, and what that means; None if there are none."""
        right = self.losses[_RIGHT]
        best = min(self.losses, key=lambda variant: self.losses[variant])
        if self.is_untrained or self.losses[best] > min(right - _MARGIN, self.chance):
            return None
        kind, offset = best
        cause = "frames and labels are not delayed as this model was trained with"
        if kind == _RIGHT[0]:
            cause = f"the labels are shifted by {offset - 1:+d}"
        by = f"{self.losses[best]:.2f} against {right:.2f}"
        return f"labels at +{offset}, {kind}, fit better ({by}): {cause}"

    @property
    def is_untrained(self) -> bool:
        """Random weights, or an audio part that predicts every code alike."""
        return self.random_init or self.entropy > _UNTRAINED * self.chance

    @property
    def is_chance(self) -> bool:
        """Whether a model that does not guess predicts what is about to be trained no better than
        by guessing."""
        return not self.is_untrained and self.losses[_RIGHT] >= self.chance

    @property
    def is_decisive(self) -> bool:
        """Whether any other labels fit worse by a margin: a model that knows frequencies only fits
        all alike."""
        return max(self.losses.values()) - self.losses[_RIGHT] > _MARGIN

    def render(self) -> str:
        """A row per offset and a column per kind; what is about to be trained is marked."""
        kinds = list(dict.fromkeys(kind for kind, _ in self.losses))
        lines = [f"{'labels at':<12}" + "".join(f"{kind:>14}" for kind in kinds)]
        for offset in OFFSETS:
            line = f"{f'+{offset}' if offset else '0':<12}"
            for kind in kinds:
                mark = " <" if (kind, offset) == _RIGHT else "  "
                line += f"{self.losses[kind, offset]:.3f}{mark}".rjust(14)
            lines.append(line)
        per_codebook = " ".join(f"{loss:.2f}" for loss in self.codebook_losses)
        num_codes = f"{self.num_codes} codes"
        lines.append(f"chance {self.chance:.2f}; per codebook at < {per_codebook}; {num_codes}")
        return "\n".join(lines)


@torch.no_grad()
def offset_probe(model: Any, rows: Sequence[Row], tokens: SpecialTokens) -> OffsetProbe:
    """model: the native class, LoRA layers in place. rows: each with the batch that training makes
    of it alone."""
    sums: defaultdict[tuple[str, int], Tensor] = defaultdict(
        lambda: torch.zeros(tokens.num_codebooks)
    )
    counts, entropy = torch.zeros(tokens.num_codebooks), 0.0
    with in_eval_mode(model):
        for sample, batch in rows:
            for kind, variant in _kinds(sample, batch, tokens):
                # One forward pass serves all offsets: only the labels move.
                hidden, labels = _hidden_and_labels(model, variant)
                for offset in OFFSETS:
                    sums[kind, offset] += _loss(model, hidden, labels, tokens, offset)
                if kind == _RIGHT[0]:
                    entropy += _entropy(model, hidden, labels, tokens)
            counts += (batch["audio_labels"] >= 0).sum(dim=(0, 1))
    # The mean over codebooks weighs all of them alike, however many labels they have.
    return OffsetProbe(
        losses={variant: float((losses / counts).mean()) for variant, losses in sums.items()},
        codebook_losses=tuple((sums[_RIGHT] / counts).tolist()),
        entropy=entropy / float(counts.sum()),
        num_codes=int(counts.sum()),
        chance=math.log(tokens.num_codes),
        random_init=is_random_init(model),
    )


@torch.no_grad()
def mean_loss(model: Any, batches: Sequence[dict[str, Tensor]]) -> float:
    """Cross-entropy per code, as training measures it."""
    total = count = 0.0
    with in_eval_mode(model):
        for batch in batches:
            outputs = model(**on_device(model, batch))
            total += float(outputs.audio_loss.sum())
            count += float(outputs.audio_count.sum())
    return total / count


def is_random_init(model: Any) -> bool:
    """Whether nothing has been trained yet: every norm still multiplies by one, and no LoRA weight
    has moved."""
    # Whatever else a loader or a tuner makes anew, these begin at one and at zero.
    trained = False
    for name, parameter in model.named_parameters():
        if "layernorm.weight" in name or name.endswith("model.norm.weight"):
            trained |= bool((parameter != 1).any())
        elif "lora_B" in name:
            trained |= bool((parameter != 0).any())
    return not trained


def _hidden_and_labels(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Hidden states (B, S, H), and audio labels (B, S, K) at their placeholders."""
    inputs = on_device(model, batch)
    audio_labels = inputs.pop("audio_labels")
    inputs.pop("labels")  # of the text: hidden states only, no loss
    labels = model.labels_at_placeholders(
        inputs["input_ids"], audio_labels, inputs["audio_input_ids_mask"]
    )
    return model.hidden_states(**inputs), labels


def _entropy(model: Any, hidden: Tensor, labels: Tensor, tokens: SpecialTokens) -> float:
    """Of what the model predicts, summed over the trained codes."""
    rows, targets = shifted_rows(hidden, labels)
    logits = model.audio_lm_head(rows).float()  # (R, K C)
    logits = logits.unflatten(-1, (tokens.num_codebooks, tokens.codebook_size))
    entropies = torch.distributions.Categorical(logits=logits).entropy()  # (R, K)
    return float((entropies * (targets != IGNORE_INDEX)).sum())


def _loss(model: Any, hidden: Tensor, labels: Tensor, tokens: SpecialTokens, offset: int) -> Tensor:
    """(K,) sums of cross-entropies."""
    rows = shifted_rows(hidden, labels, offset=offset)
    return audio_loss_sums(*rows, model.audio_lm_head, tokens.codebook_size).loss.cpu()


def _kinds(
    sample: EncodedSample, batch: dict[str, Tensor], tokens: SpecialTokens
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The batch itself; as it is by definition, if that is another one; with all codebooks of a
    frame in one step."""
    yield _RIGHT[0], batch
    by_definition = _laid_out(sample, batch, tokens, delayed=True)
    for name in ("audio_input_ids", "audio_labels"):
        if not torch.equal(by_definition[name], batch[name]):
            yield "by definition", by_definition
            break
    yield "without delay", _laid_out(sample, batch, tokens, delayed=False)


def _laid_out(
    sample: EncodedSample, batch: dict[str, Tensor], tokens: SpecialTokens, *, delayed: bool
) -> dict[str, Tensor]:
    """`batch` with frames and labels (1, T, K) of the oracle."""
    frames, labels = [], []
    for codes, trained in zip(sample.clips, sample.clips_trained, strict=True):
        frames.append(expected_frames(codes, tokens, delayed=delayed))
        if trained:
            labels.append(expected_labels(codes, tokens, delayed=delayed))
        else:
            labels.append(torch.full_like(frames[-1], IGNORE_INDEX))
    audio = {"audio_input_ids": torch.cat(frames)[None], "audio_labels": torch.cat(labels)[None]}
    return {**batch, **audio}


def on_device(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    moved = dict(batch)
    for name, value in batch.items():
        if isinstance(value, Tensor):
            moved[name] = value.to(model.device)
    return moved


@contextmanager
def in_eval_mode(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()  # dropout would blur what is compared
    try:
        yield
    finally:
        model.train(was_training)
