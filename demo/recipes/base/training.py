"""Samples -> a model that reads them: one loop, the kit's prompt, collator, model and losses.

A step depends on the seed and its number only, so a killed run goes on where it was. Weights are
averaged as it goes: what is judged and exported is the average."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from demo.recipes.base.guide import Guide, targets
from demo.recipes.base.samples import Draw, Sample
from plugins.audio.codec import NUM_CODES
from plugins.collator import collate
from plugins.data.prompt import encode
from plugins.data.tokens import SpecialTokens
from plugins.delay_pattern import IGNORE_INDEX
from plugins.files import disk
from plugins.model.load import native_model
from plugins.model.loss import shifted_rows, text_loss_sums
from plugins.model.original_format import load_tokenizer

_NOTE, _JUDGE = 50, 250  # steps between lines of the curve, and between looks at unseen phrases
_SAVE_S = 240


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on, beside the clips and what the first step begins with."""

    seed: int = 0
    steps: int = 12_000
    positions: int = 3000  # of a batch, padding counted
    group: int = 8  # batches that are sorted by length together
    rate: float = 2e-3
    warmup: int = 100
    decay: float = 0.25  # share of the steps at the end over which the rate falls to 0
    weight_decay: float = 0.02
    average: float = 0.995
    short_steps: int = 120  # of short phrases, at the beginning
    guide: float = 0.5  # weight of the loss of attention
    text: float = 0.1  # of that of the tokens around the audio
    misheard: float = 0.1  # share of the codes that it is shown which are another frame's
    codebooks: tuple[float, ...] = (4.0, 2.0, 2.0, 1.5, 0.7, 0.3, 0.3, 0.3)


class Run:
    """Model, optimisers and curve at some step; `work` has its checkpoint.

    random_model: the folder of what the first step begins with (`network.build`)."""

    def __init__(self, recipe: Recipe, random_model: Path, work: Path, *, device: str) -> None:
        self.recipe, self.device = recipe, torch.device(device)
        self.tokenizer = load_tokenizer(random_model)
        self.model: Any = native_model(str(random_model)).to(device).train()
        # Half as fast again as torch's fused one, at these lengths on a CPU.
        self.model.config._attn_implementation = "eager"
        self.tokens = SpecialTokens.from_config(self.model.config, self.tokenizer)
        self.guide = Guide(self.model)
        self.optimizers = _optimizers(self.model, recipe)
        self.averaged = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.step, self.minutes = 0, 0.0
        self.curve: list[dict[str, float]] = []
        self._checkpoint = work / "state.pt"
        if self._checkpoint.exists():
            self._load(torch.load(self._checkpoint, weights_only=True, map_location=device))

    def train(self, drawn: Draw, unseen: Draw, *, until: int) -> None:
        """Up to that step; a checkpoint every few minutes and at the end."""
        batches = self._batches(drawn)
        figures: list[dict[str, float]] = []
        saved_s = time.monotonic()
        while self.step < until:
            figures.append(self._train(next(batches)))
            self.step += 1
            if self.step % _NOTE == 0:
                self._note(figures, drawn, unseen)
                figures = []
            if time.monotonic() - saved_s > _SAVE_S or self.step == until:
                self._save()
                saved_s = time.monotonic()

    def export(self, folder: Path) -> None:
        """The averaged model in fp16, for which its config says float32, and its tokenizer."""
        with self._average_in_place():
            halved = {name: p.half() for name, p in self.model.state_dict().items()}
            self.model.save_pretrained(folder, state_dict=halved)
        self.tokenizer.save_pretrained(folder)

    # A step.

    def _batches(self, drawn: Draw) -> Iterator[list[Sample]]:
        """From this step on."""
        group, number = divmod(self.step, self.recipe.group)
        while True:
            yield from _draw_group(self.recipe, drawn, group)[number:]
            group, number = group + 1, 0

    def _train(self, samples: Sequence[Sample]) -> dict[str, float]:
        started_s = time.monotonic()
        loss, figures = self._loss(samples, misheard=self.recipe.misheard)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._rate()
            optimizer.step()
            optimizer.zero_grad()
        # Early averages forget sooner.
        keep = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        parameters = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.averaged.values()), parameters, 1 - keep)
        return {**figures, "seconds": time.monotonic() - started_s}

    def _loss(
        self, samples: Sequence[Sample], *, misheard: float = 0.0
    ) -> tuple[Tensor, dict[str, float]]:
        """The formula of `plugins.model.loss` and the guide's, and figures for the curve."""
        encoded = [encode(sample.dialogue, self.tokenizer, self.tokens) for sample in samples]
        batch = collate(encoded, self.tokens, training=True)
        shown = batch["audio_input_ids"]
        batch["audio_input_ids"] = _misheard(shown, misheard, seed=self.step)
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        self.guide.places = targets(samples, encoded, self.tokens).to(self.device)
        text_labels, frame_labels = batch.pop("labels"), batch.pop("audio_labels")
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden = self.model.hidden_states(**batch)
            text_rows, text_targets = shifted_rows(hidden, text_labels)
            text = text_loss_sums(text_rows, text_targets, self.model.text_lm_head)
            audio_labels = self.model.labels_at_placeholders(
                batch["input_ids"], frame_labels, batch["audio_input_ids_mask"]
            )
            rows, codes = shifted_rows(hidden, audio_labels)  # (R, H), (R, K)
            logits = self.model.audio_lm_head(rows).view(codes.numel(), -1)
            audio = _cross_entropy(logits, codes.flatten()).view_as(codes).sum(0)  # (K,)
        guided, looks = self.guide.loss()
        num_frames = (codes != IGNORE_INDEX).float().sum(0)
        weights = torch.tensor(self.recipe.codebooks, device=self.device)
        loss = self.recipe.text * text.loss / text.count
        loss = loss + (weights * audio).sum() / (num_frames.max() * weights.sum())
        cb0, cb1, *_, cb7 = (audio / num_frames).tolist()
        figures = {"loss": loss.item(), "cb0": cb0, "cb1": cb1, "cb7": cb7, "looks": looks}
        figures["positions"] = float(batch["attention_mask"].sum())
        return loss + self.recipe.guide * guided, figures

    def _rate(self) -> float:
        """Warm-up, then constant, then down to 0: a run can go on before it falls."""
        recipe = self.recipe
        warm = min(1.0, (self.step + 1) / recipe.warmup)
        left = (recipe.steps - self.step) / (recipe.decay * recipe.steps)
        return recipe.rate * warm * min(1.0, left)

    # The curve and the checkpoint.

    def _note(self, figures: Sequence[dict[str, float]], drawn: Draw, unseen: Draw) -> None:
        row = {name: fmean(of_step[name] for of_step in figures) for name in figures[0]}
        seconds = row.pop("seconds")
        self.minutes += seconds * len(figures) / 60
        row["positions_per_s"] = row.pop("positions") / seconds
        row = {"step": self.step, "minutes": round(self.minutes, 1), **row}
        if self.step % _JUDGE == 0:
            row["seen_cb0"], _ = self.judge(drawn)
            row["unseen_cb0"], row["unseen_looks"] = self.judge(unseen)
        self.curve.append(row)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
        print(f"{shown} (of {self.recipe.steps} steps)", flush=True)

    @torch.no_grad()
    def judge(self, drawn: Draw) -> tuple[float, float]:
        """Nats of codebook 0 on whole phrases, and how often the guided head looks right, by the
        averaged weights."""
        draw = random.Random("judge")
        samples = [drawn.sample(draw) for _ in range(60)]
        with self._average_in_place():
            _, figures = self._loss(samples)
        return figures["cb0"], figures["looks"]

    @contextmanager
    def _average_in_place(self) -> Iterator[None]:
        """Inside, the model has its averaged weights."""

        def swap() -> None:
            for name, parameter in self.model.named_parameters():
                parameter.data, self.averaged[name] = self.averaged[name], parameter.data

        swap()
        yield
        swap()

    def _save(self) -> None:
        state = {
            "model": dict(self.model.named_parameters()),
            "averaged": self.averaged,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "minutes": self.minutes,
            "curve": self.curve,
        }
        with disk.replace_when_done(self._checkpoint) as new:
            torch.save(state, new)

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"], strict=False)
        self.averaged = state["averaged"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.minutes, self.curve = state["step"], state["minutes"], state["curve"]


def _draw_group(recipe: Recipe, drawn: Draw, group: int) -> list[list[Sample]]:
    """Batches of samples of about one length, in any order."""
    draw = random.Random(f"{recipe.seed} {group}")
    short = group * recipe.group < recipe.short_steps
    samples, total = [], 0
    while total < recipe.positions * recipe.group:
        samples.append(drawn.sample(draw, short=short))
        total += samples[-1].length
    samples.sort(key=lambda sample: sample.length)
    batches: list[list[Sample]] = [[] for _ in range(recipe.group)]
    filled = 0
    for sample in samples:
        # About as many positions in each; no sample is as long as a batch.
        batches[filled * recipe.group // total].append(sample)
        filled += sample.length
    draw.shuffle(batches)
    return batches


def _misheard(frames: Tensor, share: float, *, seed: int) -> Tensor:
    """(..., K): that share of the codes is exchanged for those of other frames; not what begins and
    ends a clip. Who knows the codes by heart need not read, and one day's own are wrong, too."""
    generator = torch.Generator().manual_seed(seed)
    others = frames.flatten(0, -2)
    others = others[torch.randperm(len(others), generator=generator)].view_as(frames)
    wrong = torch.rand(frames.shape, generator=generator) < share
    return torch.where(wrong & (frames < NUM_CODES) & (others < NUM_CODES), others, frames)


@torch.compile(dynamic=True)
def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (R, C), targets (R,) -> (R,) in fp32, 0 without a target.

    Compiled: the kit's own saves the memory of a GPU, and takes a CPU half as long as the model."""
    scores = logits.float()
    chosen = scores.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (scores.logsumexp(-1) - chosen) * (targets != IGNORE_INDEX)


def _optimizers(model: Any, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for what is looked up, the heads and the norms."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        in_layer = ".layers." in name and parameter.dim() == 2
        (matrices if in_layer else others).append(parameter)
    decay = recipe.weight_decay
    return [
        torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=decay),
    ]
