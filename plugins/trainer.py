"""HiggsAudioTrainer: one exact loss per optimisation step, the audio learning rate, metrics per
codebook.

    options, model, template, data sets --> checks, the preflight, then MS-SWIFT's own loop

Exact means: the loss and the gradients of a step do not depend on how its rows are split into
micro-batches, accumulation steps and ranks. Numerators come from the model as sums, denominators
are counted here over the whole step. What surrounds the steps is `plugins.training`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from swift.dataloader import DataLoaderShard
from swift.dataset import LazyLLMDataset, PackingDataset
from swift.optimizers import optimizers_map
from swift.trainers import Seq2SeqTrainer, TrainerFactory
from swift.utils import get_logger, to_device
from torch import Tensor

from plugins.audio.codec import CODEC_FOLDER
from plugins.corpora.canonical import ROW_SOURCE
from plugins.delay_pattern import IGNORE_INDEX
from plugins.errors import UserError, problem
from plugins.model.loss import LossSums, LossWeights, combine
from plugins.ms_swift.template import TEMPLATE_TYPE, HiggsAudioTemplate
from plugins.settings import HiggsAudioSettings, check_knob_names
from plugins.training import ending, exhausted, resume, run_lock, samples, saves, tuning, workers
from plugins.training.meters import BatchMeter, LossMeter, metrics
from plugins.training.optimizer import OPTIMIZER, HiggsAudioOptimizerCallback
from plugins.training.options import refuse_unsupported
from plugins.training.preflight import before_training, dry_run, plan_lines, uncoded
from plugins.training.preflight.leaks import memorised_codebooks
from plugins.training.sick_steps import SickSteps, on_any_rank
from plugins.training.stopping import Stopping

logger = get_logger()

# Task of MS-SWIFT -> its trainer, and ours.
TRAINERS = {
    "causal_lm": ("swift.trainers.Seq2SeqTrainer", "plugins.trainer.HiggsAudioTrainer"),
    "dpo": (
        "swift.rlhf_trainers.DPOTrainer",
        "plugins.preference_trainer.HiggsAudioPreferenceTrainer",
    ),
}


class HiggsAudioTrainer(Seq2SeqTrainer):
    """MS-SWIFT's trainer with our denominators, optimizer and metrics. For any other model: the
    base itself."""

    data_collator: Any
    meter_class = LossMeter

    @staticmethod
    def for_other_models() -> Any:
        return Seq2SeqTrainer

    def __new__(cls, *args: Any, template: Any = None, **kwargs: Any) -> Any:
        if isinstance(template, HiggsAudioTemplate):
            return super().__new__(cls)
        model_meta = getattr(kwargs.get("model"), "model_meta", None)
        if getattr(model_meta, "template", None) == TEMPLATE_TYPE:
            raise problem(
                source="options",
                field="template",
                value=type(template).__name__,
                reason=f"is no template for this model, which needs {TEMPLATE_TYPE!r}",
                remedy="leave --template out",
            )
        return cls.for_other_models()(*args, template=template, **kwargs)

    def __init__(
        self, *, model: Any, args: Any, template: HiggsAudioTemplate, **kwargs: Any
    ) -> None:
        refuse_unsupported(args, template, kwargs.get("train_dataset"))
        workers.check_temporary_folder(args.dataloader_num_workers)
        args.optimizer = OPTIMIZER
        # It would wait for the device twice per micro-batch, to ask what `SickSteps` asks once per
        # step and answers better.
        args.logging_nan_inf_filter = False
        # By mode; a checkpoint holds their sums (`plugins.training.resume`).
        self.batches = BatchMeter()
        self.meters: dict[str, Any] = {
            "train": self.meter_class(),
            "eval": self.meter_class(),
            "batches": self.batches,
        }
        super().__init__(model=model, args=args, template=template, **kwargs)
        # What the preflight leaves to the first step and the first save.
        self._check_gradients = False
        self._adapter_keys: set[str] = set()
        # Where the rows of the micro-batch come from that the model has or is about to get.
        self.rows: list[str] = []
        self.sick_steps = SickSteps(self)
        self.stopping = Stopping(self)
        self.add_callback(self.sick_steps)
        self.add_callback(self.stopping)
        self.add_callback(ending.FirstStep())
        for dataset in (self.train_dataset, self.eval_dataset):
            if isinstance(dataset, PackingDataset):
                dataset = dataset.dataset
            if isinstance(dataset, LazyLLMDataset):
                # MS-SWIFT would train on a random other row in place of one that fails.
                dataset.strict, dataset.n_try_fetch = True, 1
        if self.is_world_process_zero():
            _settle_output_folder(Path(args.output_dir), template.settings)
        # The others read what the first one writes there: half of it ended them, now and then.
        self.accelerator.wait_for_everyone()

    def train(self, resume_from_checkpoint: str | None = None, *args: Any, **kwargs: Any) -> Any:
        settings: HiggsAudioSettings = self.template.settings
        ending.check_steps(self)
        if not settings.dry_run:  # which says more
            plan_lines.show(self, _say)
        slow = uncoded.warning(self) if self.is_world_process_zero() else None
        if slow is not None:
            logger.warning(slow)
        if settings.preflight or settings.dry_run:
            report = self._prove()
        samples.attach(self)
        if settings.dry_run:
            dry_run.show(self, report)
            raise SystemExit(0)
        self.fingerprint = resume.fingerprint(self)
        resumed: Path | None = None
        if resume_from_checkpoint is not None and not self.args.resume_only_model:
            resumed = Path(str(resume_from_checkpoint))
        self.owner = saves.owner(self.fingerprint, resumed)
        left: resume.Left = "steps"
        if resumed is None:
            resume.begin(self)
        else:
            left = resume.prepare(self, resumed)
        if left == "nothing":
            plan_lines.show_end(self, _say)
            return None
        if left == "steps" and self.args.save_strategy != "no":
            exhausted.check_space(self)
        # Signals come back last: nothing may end the process while it ends its workers.
        with (
            run_lock.released(),
            self.stopping.on_signals(),
            workers.ending(self),
            exhausted.gpu_memory(self),
            resume.keeping(self),
        ):
            if left == "ending":
                assert resumed is not None
                result = ending.finish(self, resumed)
            else:
                result = super().train(resume_from_checkpoint, *args, **kwargs)
            ending.close(self)
        plan_lines.show_end(self, _say)
        return result

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        place = super()._init_training_state(*args, **kwargs)
        if hasattr(self.train_dataset, "__len__") or self.args.ignore_data_skip:
            return place
        return resume.place_in_stream(self)

    def _prove(self) -> Any:
        """The report of the preflight. Raises UserError if a check of it failed."""
        report = before_training.run(self, _say)
        if report.failed:
            summary = "; ".join(f"{finding.check}: {finding.text}" for finding in report.failed)
            raise problem(
                source="preflight",
                field="training",
                value="refused",
                reason=f"because {summary}",
                remedy="mend it, or train it as it is with --preflight false",
            )
        self._adapter_keys = tuning.adapter_keys(self.model)
        self._check_gradients = True
        return report

    def get_train_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        collator, self.data_collator = self.data_collator, workers.NamedRows(self.data_collator)
        try:
            loader = super().get_train_dataloader(*args, **kwargs)
        finally:
            self.data_collator = collator
        if isinstance(loader, DataLoaderShard):
            # It would wait for the device at each tensor: `_prepare_inputs` moves them.
            loader.device = None
        return workers.remembered(loader)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        return workers.remembered(super().get_eval_dataloader(*args, **kwargs))

    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = to_device(inputs, self.args.device, non_blocking=True)
        prepared = super()._prepare_inputs(inputs)
        self.rows = prepared.pop(ROW_SOURCE, [])
        return prepared

    def _clip_grad_norm(self, model: Any) -> Any:
        self._check_gradients_once()
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self._check_gradients_once()  # without max_grad_norm nothing is clipped
        grad_norm = super()._get_grad_norm(*args, **kwargs)
        # A step is skipped, and a run stopped, by all ranks or by none.
        is_sick = self.sick_steps.is_sick(grad_norm)
        is_asked = torch.full_like(is_sick, self.stopping.is_asked)
        skip, self.stopping.is_agreed = on_any_rank([is_sick, is_asked])
        self.sick_steps.settle(skip=skip)
        return grad_norm

    def _check_gradients_once(self) -> None:
        """Before anything is clipped: MS-SWIFT then drops the gradients of a step whose norm is
        NaN."""
        if self._check_gradients:
            self._check_gradients = False
            tuning.check_gradients(self)

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
            num_text = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
            # Codebook 0 stands for all: each has F codes and one EOS per clip.
            num_frames = (batch["audio_labels"][:, 1:, 0] != IGNORE_INDEX).sum()
            counts += torch.stack([num_text, num_frames]).to(device, non_blocking=True)
        return self.accelerator.gather(counts[None]).sum(dim=0)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = self.loss_and_outputs(model, inputs, num_items_in_batch)
        self.meters["train" if self.model.training else "eval"].add(outputs)
        if self.model.training:
            self.sick_steps.add(self.rows, loss)
            self.batches.add(inputs)
        return (loss, outputs) if return_outputs else loss

    def loss_and_outputs(self, model: Any, inputs: Any, num_items: Any) -> tuple[Any, Any]:
        """This rank's part of the loss of a step, times the number of ranks, and the sums that it
        is made of. num_items: what `_get_num_items_in_batch` counts."""
        return super().compute_loss(model, inputs, True, num_items)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        mode = "train" if self.model.training else "eval"
        sums = self.meters[mode].drain()
        if sums is not None:
            self.add_losses(logs, mode, *sums)
        if "train_loss" in logs:
            # The base divides the sum over all steps by the number of those since the last resume.
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        if "learning_rate" in logs:
            self.sick_steps.amend(logs)
            logs.update(self.batches.drain())
            for group in self.optimizer.param_groups:
                if group.get("audio"):  # with and without weight decay: at the same rate
                    logs["audio_learning_rate"] = group["lr"]
        with exhausted.log_line(self):
            super().log(logs, *args, **kwargs)

    def add_losses(
        self, logs: dict[str, float], mode: str, text: LossSums, audio: LossSums, *rest: Tensor
    ) -> None:
        """The metrics of both losses, and a warning if they are too good."""
        prefix = "" if mode == "train" else "eval_"
        for name, value in metrics(text, audio).items():
            logs[f"{prefix}{name}"] = value
        if "eval_loss" in logs:
            # The base averages over batches; over the whole set it is the same formula as in
            # training.
            logs["eval_loss"] = self._loss_of(text, audio)
        if self.template.compares:
            return  # clips that the model has spoken itself are predicted as well as it speaks
        if leaked := memorised_codebooks(logs, mode, self.state.epoch or 0.0):
            shown = ", ".join(f"{name} {loss:.2f}" for name, loss in leaked.items())
            logger.warning(
                f"{shown}: no unseen speech is predicted that well. Either these clips were trained"
                " on before, or this model has spoken them, or the labels leak into the inputs."
            )

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with exhausted.saving(self), resume.saving(self), self.batches.paused():
            super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # From transformers 5.23 on every rank is called; MS-SWIFT's own takes itself for the first.
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        if (folder / CODEC_FOLDER).exists():
            # Never in a checkpoint, which is new. MS-SWIFT copies with a plain `copytree`, which it
            # would stop.
            saves.set_aside(folder / CODEC_FOLDER)
        super()._save(output_dir, state_dict)
        tuning.check_saved(folder, self._adapter_keys)
        self._adapter_keys = set()
        # A checkpoint that moves must still know its codec and whether its prompts were raw.
        self.template.settings.save(folder)

    def _loss_of(self, text: LossSums, audio: LossSums) -> float:
        weights = self.loss_weights()
        return float(
            combine(text, audio, num_text=text.count, num_frames=audio.count[0], weights=weights)
        )

    def loss_weights(self) -> LossWeights:
        return LossWeights.of(self.template.settings, self.template.tokens.num_codebooks)


def _say(text: str) -> None:
    for line in text.split("\n"):
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
    plugins = args.get("external_plugins") or []
    args["external_plugins"] = [str(Path(plugin).resolve()) for plugin in plugins]
    path.write_text(json.dumps(args, ensure_ascii=False, indent=2), encoding="utf-8")


def register() -> None:
    """Idempotent. Raises UserError if another plugin has put its own trainer there."""
    mapping = TrainerFactory.TRAINER_MAPPING
    for task, (theirs, ours) in TRAINERS.items():
        if (other := mapping[task]) not in {theirs, ours}:
            raise UserError(
                f"another plugin has registered the trainer {other}; use one of the two"
            )
        mapping[task] = ours
    optimizers_map[OPTIMIZER] = HiggsAudioOptimizerCallback
