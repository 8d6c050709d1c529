"""Samples while training: the same few prompts before the first step, at each evaluation and at the
end.

    `sample_texts`, rows of the validation set or two sentences of ours --prompts--> Dialogue
    Dialogue --HiggsAudioGenerator--> OUTPUT/samples/step-N/0.wav ... and samples.jsonl;
        audio for TensorBoard, wandb and SwanLab; sample_stop_rate, sample_seconds in the log

All are spoken in one batch. The training does not notice: random states and modes are put back,
and what fails here is told and left out. Rank 0 speaks, at most MOST times MAX_AUDIO_S, while the
others wait. Of a model whose weights are divided among the ranks (ZeRO-3, FSDP2) there are no
samples."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from swift.utils import get_logger
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from plugins.corpora.canonical import ROW_SOURCE
from plugins.data.clips import check_clips
from plugins.data.dialogue import AudioClip, Dialogue
from plugins.data.rows import dialogue_from_row
from plugins.data.sources import read_rows
from plugins.inference import HiggsAudioGenerator
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech
from plugins.speaking.voices import request
from plugins.training.packs import table_of
from plugins.training.resume import SAMPLES

logger = get_logger()

MOST = 4
MAX_AUDIO_S = 10.0
LIST = "samples.jsonl"
# As `higgs-audio speak` does by default, so that the stop rate is what users will hear.
_SAMPLING = Sampling(seed=0)
_OF_VALIDATION = 2
_SENTENCES = (
    "Good morning! Could you tell me when the next boat to the island leaves?",
    "It rained for three days, and then, all of a sudden, the sky was blue again.",
)


def attach(trainer: Any) -> None:
    """Let `trainer` speak while it trains, if it is to. Raises UserError for `sample_texts` that
    cannot be spoken."""
    settings: HiggsAudioSettings = trainer.template.settings
    trainer.remove_callback(Samples)
    is_wanted = settings.samples
    if is_wanted is None:
        is_wanted = "tensorboard" in trainer.args.report_to
    if not is_wanted:
        return
    if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
        logger.info(
            "samples: left out, the model's weights are divided among the ranks;"
            " speak with its checkpoints"
        )
        return
    callback = Samples(trainer, prompts(settings, trainer.eval_dataset))
    # In front of TensorBoard's, which closes its file when the training ends.
    trainer.callback_handler.callbacks.insert(0, callback)


def prompts(settings: HiggsAudioSettings, validation: Any) -> list[Dialogue]:
    """What is spoken, the user's turn last: 1 to MOST dialogues, the same for the same settings and
    rows.

    validation: MS-SWIFT's data set, if there is one. Raises UserError for `sample_texts` that
    cannot be spoken."""
    texts = settings.sample_texts[:MOST]
    if len(texts) == 1 and texts[0].endswith(".jsonl"):
        check = partial(check_clips, settings=settings)
        rows = read_rows(texts[0], settings, check=check, training=False)[:MOST]
        dialogues = (dialogue_from_row(row, settings, training=False) for row in rows)
        return list(map(_unanswered, dialogues))
    if not texts and (dialogues_of_validation := list(_of_validation(validation, settings))):
        return dialogues_of_validation
    return [request(text, None, [], settings) for text in texts or _SENTENCES]


def _of_validation(dataset: Any, settings: HiggsAudioSettings) -> Iterator[Dialogue]:
    """Rows from all over the set whose last turn is a clip; none of a stream."""
    rows = table_of(dataset)
    is_stream = not hasattr(rows, "__len__")
    if is_stream or ROW_SOURCE not in (getattr(rows, "column_names", None) or []):
        return
    stride = -(-len(rows) // _OF_VALIDATION)
    for row in rows.select(range(0, len(rows), stride)):
        dialogue = dialogue_from_row(row, settings)
        if all(isinstance(part, AudioClip) for part in dialogue.turns[-1].parts):
            yield _unanswered(dialogue)


def _unanswered(dialogue: Dialogue) -> Dialogue:
    turns = list(dialogue.turns)
    while turns and turns[-1].role == "assistant":
        turns.pop()
    return replace(dialogue, turns=tuple(turns))


@contextmanager
def unnoticed(model: Any) -> Iterator[None]:
    """Inside, random numbers may be drawn and modules change their mode: afterwards both are as
    before."""
    python, numpy = random.getstate(), np.random.get_state()
    modes = [(module, module.training) for module in model.modules()]
    devices = []
    if torch.cuda.is_available():
        devices.append(torch.cuda.current_device())
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, mode in modes:
            module.training = mode


class Samples(TrainerCallback):
    """Of one trainer."""

    def __init__(self, trainer: Any, prompts: list[Dialogue]) -> None:
        self._trainer, self._prompts = trainer, prompts
        self._last_step: int | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:  # of the base model, and not again when a run is resumed
            self._sample(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._sample(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._trainer.stopping.ends_early:
            self._sample(state.global_step)

    def _sample(self, step: int) -> None:
        if step == self._last_step or _is_spoken(self._trainer.state, step):
            return
        self._last_step = step
        trainer = self._trainer
        metrics: list[dict[str, float]] = [{}]
        if trainer.is_world_process_zero():
            try:
                with unnoticed(trainer.model):
                    metrics = [self._speak(step)]
            # A full disk, a model that cannot speak yet: no reason to end a training.
            except Exception as error:
                _tell(step, "all", error)
        if dist.is_initialized():
            dist.broadcast_object_list(metrics)
        if metrics[0]:
            trainer.log(metrics[0])  # on every rank: MS-SWIFT gathers metrics of its own there

    def _speak(self, step: int) -> dict[str, float]:
        """Speak each prompt and show it; mean stop rate and seconds of those that succeeded, {} if
        none did."""
        trainer, template = self._trainer, self._trainer.template
        folder = Path(trainer.args.output_dir) / SAMPLES / f"step-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        with template.codec.on(str(next(trainer.model.parameters()).device)):
            speeches = self._speeches(step)
        spoken: list[Speech] = []
        lines = []
        for i, speech in speeches.items():
            try:
                file = folder / f"{i}.wav"
                _as_trained(speech, trainer.args.output_dir, step).save(file)
                spoken.append(speech)
                lines.append(_line(file, speech))
                self._show(i, file, speech, step)
            except Exception as error:
                _tell(step, str(i), error)
        (folder / LIST).write_text("".join(lines), encoding="utf-8")
        if not spoken:
            return {}
        return {
            "sample_stop_rate": sum(speech.stopped for speech in spoken) / len(spoken),
            "sample_seconds": sum(speech.duration_s for speech in spoken) / len(spoken),
        }

    def _speeches(self, step: int) -> dict[int, Speech]:
        """By the number of the prompt: all in one batch; if that fails, one at a time and by the
        plain way, so that a prompt that fails costs none of the others."""
        try:
            return dict(enumerate(self._said(self._prompts)))
        except Exception as error:
            if len(self._prompts) > 1:
                _tell(step, "batch", error)
        speeches = {}
        for i, prompt in enumerate(self._prompts):
            try:
                (speeches[i],) = self._said([prompt], cuda_graphs=False)
            except Exception as error:
                _tell(step, str(i), error)
        return speeches

    def _said(self, prompts: list[Dialogue], cuda_graphs: bool | None = None) -> list[Speech]:
        trainer, template = self._trainer, self._trainer.template
        generator = HiggsAudioGenerator(
            trainer.model,
            template.tokenizer,
            codec=template.codec,
            settings=template.settings,
            cuda_graphs=cuda_graphs,
        )
        samplings = [_SAMPLING] * len(prompts)
        return generator.speak(prompts, samplings=samplings, max_audio_s=MAX_AUDIO_S)

    def _show(self, number: int, file: Path, speech: Speech, step: int) -> None:
        """Where the run is reported to: audio, one entry per prompt."""
        trainer, name = self._trainer, f"samples/{number}"
        for writer in _tensorboards(trainer.callback_handler.callbacks):
            writer.add_audio(name, speech.audio, step, speech.sample_rate)
            writer.add_text(f"{name} text", speech.text, step)
            writer.flush()
        if "wandb" in trainer.args.report_to:
            import wandb

            # As transformers' own callback gives the step: wandb counts calls.
            wandb.log(
                {name: wandb.Audio(str(file), caption=speech.text), "train/global_step": step}
            )
        if "swanlab" in trainer.args.report_to:
            import swanlab

            swanlab.log({name: swanlab.Audio(str(file), caption=speech.text)}, step=step)


def _as_trained(speech: Speech, output_dir: str, step: int) -> Speech:
    """With a mark that names the weights, which have no folder of their own yet."""
    if speech.mark is None:
        return speech
    weights = f"{Path(output_dir).name}, step {step}"
    return replace(speech, mark=replace(speech.mark, adapter=weights))


def _is_spoken(state: Any, step: int) -> bool:
    """Whether the log has samples of that step: of this process, or of one that was killed."""
    for record in state.log_history:
        if "sample_stop_rate" in record and record.get("step") == step:
            return True
    return False


def _line(file: Path, speech: Speech) -> str:
    sample = {
        "file": file.name,
        "text": speech.text,
        "seconds": speech.duration_s,
        "stopped": speech.stopped,
    }
    return json.dumps(sample, ensure_ascii=False) + "\n"


def _tensorboards(callbacks: Iterable[Any]) -> Iterator[Any]:
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            yield callback.tb_writer


def _tell(step: int, which: str, error: Exception) -> None:
    reason = str(error).partition("\n")[0]
    logger.warning(f"sample {which} at step {step} left out: {type(error).__name__}: {reason}")
