"""HiggsAudioTrainer: one exact loss per optimisation step, the audio learning rate, metrics per
codebook. L3.

Exact means: the loss and the gradients of a step do not depend on how its rows are split into
micro-batches, accumulation steps and ranks. Numerators come from the model as sums, denominators
are counted here over the whole step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from swift.dataset import LazyLLMDataset, PackingDataset
from swift.optimizers import OptimizerCallback, optimizers_map
from swift.trainers import Seq2SeqTrainer, TrainerFactory
from swift.utils import get_logger
from torch import Tensor
from transformers import Trainer

from plugins.audio.codec import CODEC_FOLDER
from plugins.corpora.canonical import ROW_SOURCE
from plugins.delay_pattern import IGNORE_INDEX
from plugins.errors import UserError, problem
from plugins.model.loss import LossSums, LossWeights, combine
from plugins.model.modeling import DualLossOutput
from plugins.ms_swift.template import TEMPLATE_TYPE, HiggsAudioTemplate
from plugins.settings import HiggsAudioSettings, check_knob_names
from plugins.training import card as training_card
from plugins.training import disk as disk_guard
from plugins.training import guards, packs, resume, samples, tuning
from plugins.training import saves as checkpoints
from plugins.training.meters import BatchMeter, Meter
from plugins.training.preflight import before_training, dry_run
from plugins.training.preflight.leaks import MEMORISED

logger = get_logger()

OPTIMIZER = "higgs_audio"
_AUDIO_PARAMETER = re.compile(
    r"(^|\.)(audio_mlp|audio_input_layernorm|audio_post_attention_layernorm|embed_audio_tokens|audio_lm_head)\."
)


def is_audio_parameter(name: str) -> bool:
    """Audio FFN, audio norms, audio embedding, audio head, and the LoRA weights on any of them."""
    return _AUDIO_PARAMETER.search(name) is not None


class HiggsAudioOptimizerCallback(OptimizerCallback):
    """Two learning rates (base and audio), each with and without weight decay."""

    def create_optimizer(self, model: Any = None) -> Any:
        model = self.trainer.model if model is None else model
        settings: HiggsAudioSettings = self.trainer.template.settings
        optimizer_cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(self.args, model)
        if {"params", "model", "optimizer_dict"} & kwargs.keys():
            reason = "builds its own parameter groups, so audio_learning_rate would be ignored"
            raise problem(
                source="options",
                field="optim",
                value=str(self.args.optim),
                reason=reason,
                remedy="use adamw_torch or a similar one",
            )
        groups = parameter_groups(
            model,
            decay_names=set(Trainer.get_decay_parameter_names(self.trainer, model)),
            learning_rate=self.args.learning_rate,
            audio_learning_rate=settings.audio_learning_rate,
            weight_decay=self.args.weight_decay,
        )
        if not groups:
            remedy = "freeze less, or name trainable_parameters"
            reason = "are frozen: nothing is left to train"
            raise problem(
                source="options",
                field="freeze_parameters",
                value="all",
                reason=reason,
                remedy=remedy,
            )
        for group in groups:
            kind = "audio" if group["audio"] else "base"
            size = sum(parameter.numel() for parameter in group["params"])
            logger.info(
                f"{kind} parameters: {size:,} at {group['lr']:g}, weight decay {group['weight_decay']:g}"
            )
        return optimizer_cls(groups, **kwargs)


def parameter_groups(
    model: Any,
    *,
    decay_names: set[str],
    learning_rate: float,
    audio_learning_rate: float | None,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Non-empty groups of the trainable parameters: base before audio, decayed before not
    decayed."""
    if audio_learning_rate is None:
        audio_learning_rate = learning_rate
    members: dict[tuple[bool, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members.setdefault((is_audio_parameter(name), name not in decay_names), []).append(
                parameter
            )
    return [
        {
            "params": parameters,
            "lr": audio_learning_rate if audio else learning_rate,
            "weight_decay": 0.0 if no_decay else weight_decay,
            "audio": audio,
        }
        for (audio, no_decay), parameters in sorted(members.items(), key=lambda item: item[0])
    ]


class LossMeter(Meter):
    """Running sums of both losses, turned into metrics only when they are logged."""

    def add(self, outputs: DualLossOutput) -> None:
        text, audio = outputs.text, outputs.audio
        scalars = torch.stack([text.loss, text.z, text.correct, text.count, audio.z])
        self.add_row(torch.cat([scalars, audio.loss, audio.correct, audio.count]))  # (5 + 3 K,)

    def drain(self) -> tuple[LossSums, LossSums] | None:
        """The sums since the last call over all ranks, on the CPU; None if there were none."""
        total = self.take()
        if total is None:
            return None
        text_loss, text_z, text_correct, text_count, audio_z, *rest = total.unbind()
        audio_loss, audio_correct, audio_count = torch.stack(rest).chunk(3)
        text = LossSums(text_loss, text_z, text_correct, text_count)
        return text, LossSums(audio_loss, audio_z, audio_correct, audio_count)


def metrics(text: LossSums, audio: LossSums) -> dict[str, float]:
    """loss_text, acc_text, loss_audio, loss_audio_cb0.., acc_audio_cb0.., loss_aux; none of an
    absent modality."""
    result: dict[str, float] = {}
    if text.count > 0:
        result["loss_text"] = float(text.loss / text.count)
        result["acc_text"] = float(text.correct / text.count)
    if audio.count.sum() > 0:
        losses, accuracies = audio.loss / audio.count, audio.correct / audio.count
        result["loss_audio"] = float(losses.mean())
        result.update({f"loss_audio_cb{k}": float(value) for k, value in enumerate(losses)})
        result.update({f"acc_audio_cb{k}": float(value) for k, value in enumerate(accuracies)})
    num_rows = text.count + audio.count.sum()
    if num_rows > 0:
        result["loss_aux"] = float((text.z + audio.z) / num_rows)
    return {name: round(value, 8) for name, value in result.items()}


def memorised_codebooks(logs: dict[str, float], mode: str, epoch: float) -> dict[str, float]:
    """Losses that are lower than any on speech that the model has not seen: in the first epoch, or
    in evaluation."""
    if mode == "train" and epoch >= 1:
        return {}
    prefix = "loss_audio_cb" if mode == "train" else "eval_loss_audio_cb"
    return {
        name: loss for name, loss in logs.items() if name.startswith(prefix) and loss < MEMORISED
    }


class HiggsAudioTrainer(Seq2SeqTrainer):
    """MS-SWIFT's trainer with our denominators, optimizer and metrics. For any other model: the
    base itself."""

    data_collator: Any

    def __new__(cls, *args: Any, template: Any = None, **kwargs: Any) -> Any:
        if isinstance(template, HiggsAudioTemplate):
            return super().__new__(cls)
        if (
            getattr(getattr(kwargs.get("model"), "model_meta", None), "template", None)
            == TEMPLATE_TYPE
        ):
            reason = f"is no template for this model, which needs {TEMPLATE_TYPE!r}"
            raise problem(
                source="options",
                field="template",
                value=type(template).__name__,
                reason=reason,
                remedy="leave --template out",
            )
        return Seq2SeqTrainer(*args, template=template, **kwargs)

    def __init__(
        self, *, model: Any, args: Any, template: HiggsAudioTemplate, **kwargs: Any
    ) -> None:
        refuse_unsupported(args, template)
        packs.refuse_unsupported(args, kwargs.get("train_dataset"))
        guards.check_temporary_folder(args.dataloader_num_workers)
        args.optimizer = OPTIMIZER
        self.batches = BatchMeter()
        self.meters: dict[str, Any] = {
            "train": LossMeter(),
            "eval": LossMeter(),
            "batches": self.batches,
        }
        super().__init__(model=model, args=args, template=template, **kwargs)
        # What the preflight leaves to the first step and the first save.
        self._check_gradients = False
        self._adapter_keys: set[str] = set()
        self.guard = guards.Guard(self)
        self.add_callback(self.guard)
        for dataset in (self.train_dataset, self.eval_dataset):
            if isinstance(dataset, PackingDataset):
                dataset = dataset.dataset
            if isinstance(dataset, LazyLLMDataset):
                # MS-SWIFT would train on a random other row in place of one that fails.
                dataset.strict, dataset.n_try_fetch = True, 1
        if self.is_world_process_zero():
            _settle_output_folder(Path(args.output_dir), template.settings)

    def train(self, resume_from_checkpoint: str | None = None, *args: Any, **kwargs: Any) -> Any:
        settings: HiggsAudioSettings = self.template.settings
        if settings.preflight or settings.dry_run:
            report = before_training.run(self, _say)
            if report.failed:
                summary = "; ".join(f"{finding.check}: {finding.text}" for finding in report.failed)
                raise problem(
                    source="preflight",
                    field="training",
                    value="refused",
                    reason=f"because {summary}",
                    remedy="mend it, or set preflight: false",
                )
            self._adapter_keys = tuning.adapter_keys(self.model)
            self._check_gradients = True
        samples.attach(self)
        if settings.dry_run:
            dry_run.show(self, report)
            raise SystemExit(0)
        self.fingerprint = resume.fingerprint(self)
        starts_anew = resume_from_checkpoint is None or self.args.resume_only_model
        resumed = None if starts_anew else Path(str(resume_from_checkpoint))
        self.owner = checkpoints.owner(self.fingerprint, resumed)
        if resumed is None:
            resume.begin(self)
        elif resume.prepare(self, resumed):
            return None
        if self.args.save_strategy != "no":
            disk_guard.check_space(self)
        with self.guard.watching(), resume.keeping(self):
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        training_card.write(self)
        return result

    def get_train_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        collator, self.data_collator = self.data_collator, guards.NamedRows(self.data_collator)
        try:
            return super().get_train_dataloader(*args, **kwargs)
        finally:
            self.data_collator = collator

    def _prepare_inputs(self, inputs: Any) -> Any:
        prepared = super()._prepare_inputs(inputs)
        self.guard.rows = prepared.pop(ROW_SOURCE, [])
        return prepared

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        if self._check_gradients:
            self._check_gradients = False
            tuning.check_gradients(self)
        grad_norm = super()._get_grad_norm(*args, **kwargs)
        self.guard.settle(grad_norm)
        return grad_norm

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self.batches.start()
        # A resumed run builds loader and codec, which draw random numbers, at another moment:
        # dropout must not notice.
        with torch.random.fork_rng(devices=[]):
            return super().get_batch_samples(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        # The first evaluation of a process draws more than later ones do.
        with torch.random.fork_rng(devices=[]), self.batches.paused():
            return super().evaluate(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """(2,): trained text tokens and trained audio frames of the step, over all micro-batches
        and ranks."""
        counts = torch.zeros(2, dtype=torch.long, device=device)
        for batch in batch_samples:
            # Codebook 0 stands for all: each has F codes and one EOS per clip.
            trained = (batch["labels"][:, 1:], batch["audio_labels"][:, 1:, 0])
            counts += torch.stack([(labels != IGNORE_INDEX).sum() for labels in trained]).to(device)
        return self.accelerator.gather(counts[None]).sum(dim=0)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.meters["train" if self.model.training else "eval"].add(outputs)
        if self.model.training:
            self.guard.saw(loss)
            self.batches.add(inputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        mode = "train" if self.model.training else "eval"
        sums = self.meters[mode].drain()
        if sums is not None:
            prefix = "" if mode == "train" else "eval_"
            logs.update({f"{prefix}{name}": value for name, value in metrics(*sums).items()})
            if "eval_loss" in logs:
                # The base averages over batches; over the whole set it is the same formula as in
                # training.
                logs["eval_loss"] = self._loss_of(*sums)
            if leaked := memorised_codebooks(logs, mode, self.state.epoch or 0.0):
                shown = ", ".join(f"{name} {loss:.2f}" for name, loss in leaked.items())
                logger.warning(
                    f"{shown}: no unseen speech is predicted that well. Either these clips were trained on before, or"
                    " the labels leak into the inputs."
                )
        if "train_loss" in logs:
            # The base divides the sum over all steps by the number of those since the last resume.
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        if "learning_rate" in logs:
            self.guard.amend(logs)
            logs.update(self.batches.drain())
            audio_rates = [
                group["lr"] for group in self.optimizer.param_groups if group.get("audio")
            ]
            if audio_rates:
                logs["audio_learning_rate"] = audio_rates[0]
        with disk_guard.log_line(self):
            super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with disk_guard.saving(self), resume.saving(self), self.batches.paused():
            super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if (folder / CODEC_FOLDER).exists():
            # Never in a checkpoint, which is new. MS-SWIFT copies with a plain `copytree`, which it
            # would stop.
            checkpoints.set_aside(folder / CODEC_FOLDER)
        super()._save(output_dir, state_dict)
        tuning.check_saved(folder, self._adapter_keys)
        self._adapter_keys = set()
        # A checkpoint that moves must still know its codec and whether its prompts were raw.
        self.template.settings.save(folder)

    def _loss_of(self, text: LossSums, audio: LossSums) -> float:
        weights = LossWeights.of(self.template.settings, len(audio.count))
        return float(
            combine(text, audio, num_text=text.count, num_frames=audio.count[0], weights=weights)
        )


def refuse_unsupported(args: Any, template: HiggsAudioTemplate) -> None:
    """Raise UserError for options under which the loss or the learning rate would silently be
    another one."""
    text_only = "recomputes a text loss on logits that are not text"
    deepspeed = args.deepspeed if isinstance(args.deepspeed, dict) else {}
    checks = [
        ("loss_scale", template._loss_scale, template._loss_scale == "default", text_only),
        ("enable_dft_loss", args.enable_dft_loss, not args.enable_dft_loss, text_only),
        ("enable_channel_loss", args.enable_channel_loss, not args.enable_channel_loss, text_only),
        ("loss_type", args.loss_type, args.loss_type is None, text_only),
        ("label_smoothing_factor", args.label_smoothing_factor, not args.label_smoothing_factor, text_only),
        ("sequence_parallel_size", template.sequence_parallel_size, template.sequence_parallel_size == 1, text_only),
        ("predict_with_generate", args.predict_with_generate, not args.predict_with_generate, "generates text"),
        ("truncation_strategy", template.truncation_strategy, template.truncation_strategy == "raise", "cuts clips"),
        ("average_tokens_across_devices", args.average_tokens_across_devices, args.average_tokens_across_devices,
         "makes the loss depend on the number of ranks"),
        ("optimizer", args.optimizer, args.optimizer in {None, OPTIMIZER}, "ignores audio_learning_rate"),
        ("deepspeed", "optimizer", "optimizer" not in deepspeed, "ignores audio_learning_rate"),
    ]  # fmt: skip
    for option, value, supported, reason in checks:
        if not supported:
            raise problem(
                source="options",
                field=option,
                value=value,
                reason=reason,
                remedy="leave it at its default",
            )


def _say(text: str) -> None:
    for line in text.splitlines():
        logger.info(line)


def _settle_output_folder(output_dir: Path, settings: HiggsAudioSettings) -> None:
    """Write the resolved settings; check and settle MS-SWIFT's args.json, which it writes before
    the trainer exists."""
    output_dir.mkdir(parents=True, exist_ok=True)
    settings.save(output_dir)
    path = output_dir / "args.json"
    if not path.is_file():
        return
    args = json.loads(path.read_text(encoding="utf-8"))
    check_knob_names(args.get("model_kwargs") or {}, "options")
    # A relative plugin path, as our YAML files have it, would bind later `swift export` runs to
    # this directory.
    args["external_plugins"] = [
        str(Path(plugin).resolve()) for plugin in args.get("external_plugins") or []
    ]
    path.write_text(json.dumps(args, ensure_ascii=False, indent=2), encoding="utf-8")


def register() -> None:
    """Idempotent. Raises UserError if another plugin has put its own trainer there."""
    mapping, ours = TrainerFactory.TRAINER_MAPPING, "plugins.trainer.HiggsAudioTrainer"
    if mapping["causal_lm"] not in {"swift.trainers.Seq2SeqTrainer", ours}:
        raise UserError(
            f"another plugin has registered the trainer {mapping['causal_lm']}; use one of the two"
        )
    mapping["causal_lm"] = ours
    optimizers_map[OPTIMIZER] = HiggsAudioOptimizerCallback
