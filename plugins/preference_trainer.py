"""HiggsAudioPreferenceTrainer: `swift rlhf --rlhf_type dpo`, with all that surrounds the steps of
a fine-tuning.

    P pairs, collated: their chosen rows, then their rejected ones (2 P, ...)
        --the model, and without gradient its reference--> log-probabilities (2 P,)
        --plugins.model.preferences--> one exact scalar

Exact as in `plugins.trainer`: numerators are sums, denominators are counted over the whole step.
Not MS-SWIFT's own trainer: that takes log-probabilities from one (B, S, V) of logits of text."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from swift.trainers import Seq2SeqTrainingArguments
from torch import Tensor

from plugins.model.loss import LossSums, combine
from plugins.model.preferences import log_probabilities, of_chosen
from plugins.ms_swift.template import HiggsAudioTemplate
from plugins.trainer import HiggsAudioTrainer
from plugins.training.preferences import (
    PreferenceMeter,
    PreferenceOutput,
    loss_of,
    preference_metrics,
    prepared,
    without_adapter,
    without_dropout,
)


class HiggsAudioPreferenceTrainer(HiggsAudioTrainer):
    """The reference is `ref_model`, which MS-SWIFT loads for a full fine-tuning, else the model
    without its adapter. For any other model: MS-SWIFT's trainer itself."""

    meter_class = PreferenceMeter

    @staticmethod
    def for_other_models() -> Any:
        from swift.rlhf_trainers import DPOTrainer

        return DPOTrainer

    def __init__(
        self,
        *,
        model: Any,
        args: Any,
        template: HiggsAudioTemplate,
        ref_model: Any = None,
        **kwargs: Any,
    ) -> None:
        # transformers' trainer asks for them, and MS-SWIFT's arguments of preferences lack some.
        for field in fields(Seq2SeqTrainingArguments):
            if not hasattr(args, field.name):
                setattr(args, field.name, field.default)
        self.preference_loss = loss_of(args)
        if args.disable_dropout:
            without_dropout(model)
        super().__init__(model=model, args=args, template=template, **kwargs)
        self.reference: Any = None
        if ref_model is not None:
            self.reference = prepared(self, ref_model)

    def create_loss_and_eval_metric(self, args: Any) -> dict[str, Any]:
        return {}  # the base would look for `loss_type` among losses of text

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """(3,): trained text tokens and trained audio frames of the chosen answers of the step, and
        its pairs."""
        chosen, num_pairs = [], 0
        for batch in batch_samples:
            in_batch = len(batch["labels"]) // 2
            labels = {name: batch[name][:in_batch] for name in ("labels", "audio_labels")}
            chosen.append(labels)
            num_pairs += in_batch
        pairs = torch.tensor([[num_pairs]], device=device)
        of_all_ranks = self.accelerator.gather(pairs).sum(dim=0)
        return torch.cat([super()._get_num_items_in_batch(chosen, device), of_all_ranks])

    def loss_and_outputs(self, model: Any, inputs: Any, num_items: Tensor) -> tuple[Any, Any]:
        inputs = {name: value for name, value in inputs.items() if name != "compute_loss_func"}
        # First: its activations are gone when those of the model come.
        reference = self.reference_log_probabilities(inputs)
        outputs = model(**inputs, rows_apart=True)
        preferences = self.preference_loss.of(outputs.audio, reference)
        text, audio = of_chosen(outputs.text), of_chosen(outputs.audio)
        num_text, num_frames, num_pairs = num_items
        likelihood = combine(
            text, audio, num_text=num_text, num_frames=num_frames, weights=self.loss_weights()
        )
        # With a weight of 0 too: ranks wait for a gradient of every parameter.
        loss = preferences.losses.sum() / num_pairs + self.preference_loss.sft_weight * likelihood
        outputs = PreferenceOutput.of(text, audio, preferences=preferences.sums())
        # What is wrapped around the model takes the mean over ranks.
        return loss.float() * self.accelerator.num_processes, outputs

    @torch.no_grad()
    def reference_log_probabilities(self, inputs: dict[str, Any]) -> Tensor:
        """Of the clips of a batch of pairs, (2 P,)."""
        if self.reference is not None:
            outputs = self.reference(**inputs, rows_apart=True)
        else:
            with without_adapter(self.model):
                outputs = self.model(**inputs, rows_apart=True)
        return log_probabilities(outputs.audio)

    def add_losses(
        self, logs: dict[str, float], mode: str, text: LossSums, audio: LossSums, *rest: Tensor
    ) -> None:
        super().add_losses(logs, mode, text, audio)
        (preferences,) = rest
        values = preference_metrics(preferences)
        loss = values.pop("loss")
        prefix = "" if mode == "train" else "eval_"
        for name, value in values.items():
            logs[f"{prefix}{name}"] = value
        if "eval_loss" in logs:
            logs["eval_loss"] = loss + self.preference_loss.sft_weight * self._loss_of(text, audio)
