"""Exact resume: what a trainer must remember between two processes, and whether both are the same
run.

    trainer --fingerprint--> name: JSON value of all that its weights depend on
    trainer, checkpoint --saving--> RUN_FILE, SUMS_FILE --prepare, _Restore--> the same trainer

transformers restores weights, optimizer, schedule, step, random generators and the place in the
data, in a stream that of its first epoch only. This file adds, per checkpoint: the fingerprint of
the run, length and hash of its log (RUN_FILE), and the loss sums since the last log line of each
rank (SUMS_FILE). With them a run that is killed and resumed equals one that is not, to the bit.
What follows the last step is `plugins.training.ending`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from swift.utils import get_logger
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from plugins.corpora.canonical import LENGTHS, ROW_SOURCE, SPEAKER
from plugins.corpora.pairs import IN_TABLE
from plugins.errors import UserError, problem
from plugins.files.disk import read_json, replace_when_done
from plugins.training.packs import table_of
from plugins.training.saves import require_whole, reserve, rotate, seal, set_aside

logger = get_logger()

RUN_FILE = "higgs_audio_run.json"
SUMS_FILE = "higgs_audio_sums_{rank}.json"
END_FILE = "higgs_audio_end.json"  # in the output folder: a run has done all that it was to do
LOG = "logging.jsonl"  # of MS-SWIFT
SAMPLES = "samples"  # folder of `plugins.training.samples`

# What the weights of every later step depend on. Names are those of the flags.
_OPTIONS = (
    "seed", "data_seed", "world_size", "per_device_train_batch_size",
    "gradient_accumulation_steps", "num_train_epochs", "max_steps", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "warmup_ratio", "weight_decay", "max_grad_norm", "optim",
    "bf16", "fp16", "train_dataloader_shuffle", "group_by_length", "dataloader_drop_last",
    "loss_type", "beta", "rpo_alpha", "label_smoothing",
)  # fmt: skip
_MODEL = ("model", "tuner_type", "ref_model")
_PACKING = ("packing", "packing_length", "packing_strategy")
_ADAPTER = (
    "lora_rank", "lora_alpha", "lora_dropout", "target_modules", "target_regex", "use_rslora",
    "use_dora",
)  # fmt: skip
_NO_EFFECT = {
    "preflight",
    "dry_run",
    "force_resume",
    "audio_root",
    "samples",
    "sample_texts",
    "marks",
}
# MS-SWIFT's file of a row and its count of tokens, and where the row stood, are not what it says.
_NO_CONTENT = {ROW_SOURCE, IN_TABLE[ROW_SOURCE], SPEAKER, "dataset", LENGTHS}


def fingerprint(trainer: Any) -> dict[str, Any]:
    """Name -> JSON value of everything that the run's weights depend on, as far as this process can
    see it."""
    args = trainer.args
    # The trainer's model has the adapter of the checkpoint, whatever the command line says.
    path = Path(args.output_dir) / "args.json"
    typed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = list(_MODEL)
    if typed.get("tuner_type") != "full":
        names += _ADAPTER
    if typed.get("packing"):
        names += _PACKING
    if typed.get("modules_to_save"):
        names.append("modules_to_save")
    values = {
        **_rows(trainer.train_dataset),
        **_chosen({**args.to_dict(), "world_size": args.world_size}, _OPTIONS),
        **_chosen(typed, names),
    }
    for name, value in dataclasses.asdict(trainer.template.settings).items():
        if name not in _NO_EFFECT:
            values[name] = value
    # As the checkpoint holds them: tuples are lists there.
    return json.loads(json.dumps(values, default=str))


def _chosen(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _rows(dataset: Any) -> dict[str, Any]:
    """Number and SHA-256 of the rows in their order; nothing of a stream, which has no end."""
    dataset = table_of(dataset)
    if not hasattr(dataset, "__len__"):
        return {}
    digest = hashlib.sha256()
    columns = sorted(set(dataset.column_names) - _NO_CONTENT)
    for batch in dataset.select_columns(columns).iter(batch_size=1000):
        digest.update(json.dumps(batch, ensure_ascii=False).encode())
    return {"number of rows": len(dataset), "content of the rows": digest.hexdigest()}


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each name whose value is another one."""
    lines = []
    for name in {**saved, **now}:  # those of the checkpoint first
        before, after = saved.get(name), now.get(name)
        if before != after:
            lines.append(f"{name}: {before!r} in the checkpoint, {after!r} now")
    return lines


def begin(trainer: Any) -> None:
    """Make `trainer` start anew: log and samples of an earlier run in its folder, the former
    perhaps ending in half a line, go aside."""
    if not trainer.is_world_process_zero():
        return
    for name in (LOG, SAMPLES):
        path = Path(trainer.args.output_dir) / name
        if path.exists():
            set_aside(path)


Left = Literal["steps", "ending", "nothing"]


def prepare(trainer: Any, checkpoint: Path) -> Left:
    """Make `trainer` go on exactly where `checkpoint` was saved. Returns what is left to do.

    Raises UserError, on every rank, if the checkpoint is not whole, or is of another run without
    `force_resume`."""
    refusal: str | None = None
    changed: list[str] = []
    is_over = False
    if trainer.is_world_process_zero():
        try:
            changed, is_over = _examine(trainer, checkpoint)
        except UserError as error:
            refusal = str(error)
    refusal, changed, is_over = _from_first_rank([refusal, changed, is_over])
    if refusal:
        raise UserError(refusal)
    if changed:
        logger.warning("resumed although " + "; ".join(changed))
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if not changed and state.global_step >= state.max_steps:
        # transformers would take one step more whenever an epoch is not over.
        trainer.state = state
        if trainer.args.should_save and _is_own(trainer, checkpoint):
            # The run may have been killed while it removed old ones.
            limit = trainer.args.save_total_limit
            rotate(checkpoint, trainer.owner, limit=limit, best=state.best_model_checkpoint)
        if is_over:
            logger.info(f"{checkpoint} is the end of its training: nothing is left to do")
            return "nothing"
        logger.info(f"{checkpoint} is the end of its training: log, samples and card follow")
        trainer.add_callback(_Restore(trainer, checkpoint))
        return "ending"
    logger.info(f"resuming from {checkpoint}")
    trainer.add_callback(_Restore(trainer, checkpoint))
    return "steps"


def place_in_stream(trainer: Any) -> tuple[int, int]:
    """The epoch, and the number of its batches that are trained on, of a state that was loaded.

    transformers divides steps by the length of an epoch. A stream has none, and is taken for one
    epoch that holds all steps: the fraction in `state.epoch` is of those."""
    state, args = trainer.state, trainer.args
    epoch = int(state.epoch or 0)
    steps = ((state.epoch or 0) - epoch) * state.max_steps
    return epoch, round(steps * args.gradient_accumulation_steps)


def _examine(trainer: Any, checkpoint: Path) -> tuple[list[str], bool]:
    """What differs, and whether all that follows the last step is done. Cuts the log."""
    require_whole(checkpoint)
    run = read_json(checkpoint / RUN_FILE, "name another checkpoint")
    # What was saved before the setting existed was trained with raw texts.
    changed = differences({"clean_text": False, **run["fingerprint"]}, trainer.fingerprint)
    if changed and not trainer.template.settings.force_resume:
        error = problem(
            source="options",
            field="resume_from_checkpoint",
            value=str(checkpoint),
            reason="is of another run",
            remedy="undo them, or accept another result with --force_resume true",
        )
        raise UserError("\n  ".join([f"{error}:", *changed]))
    log = Path(trainer.args.output_dir) / LOG
    start = _log_start(log, run["log_bytes"])
    # Of a run that was started anew in this folder since, the log is another one.
    is_own = _is_own(trainer, checkpoint) and run.get("log_sha256") in (None, _sha256(start))
    if not is_own:
        begin(trainer)
        return changed, False
    num_bytes = _end_of(trainer, checkpoint)
    if log.is_file():
        # Steps after the checkpoint are taken again, and a line that was being written is half a
        # line.
        os.truncate(log, len(start) if num_bytes is None else num_bytes)
    return changed, num_bytes is not None


def _end_of(trainer: Any, checkpoint: Path) -> int | None:
    """How long the log was when the run was over with `checkpoint`; None if it was not."""
    try:
        end = read_json(Path(trainer.args.output_dir) / END_FILE, "")
        is_same = end["run"] == trainer.owner.run and end["checkpoint"] == checkpoint.name
        return int(end["log_bytes"]) if is_same else None
    except (UserError, LookupError, TypeError, ValueError):
        return None


def note_end(trainer: Any) -> None:
    """Note, on rank 0, that nothing is left to do in the run of `trainer`."""
    if not trainer.is_world_process_zero():
        return
    folder = Path(trainer.args.output_dir)
    log = folder / LOG
    end = {
        "run": trainer.owner.run,
        "checkpoint": f"checkpoint-{trainer.state.global_step}",
        "log_bytes": log.stat().st_size if log.is_file() else 0,
    }
    try:
        with replace_when_done(folder / END_FILE, synced=False) as temporary:
            _write(temporary, end)
    except OSError as error:
        # The training is saved: at worst its end is done again.
        logger.warning(f"{folder / END_FILE} is not written ({error.strerror})")


def _log_start(log: Path, num_bytes: int | None = None) -> bytes:
    return log.read_bytes()[:num_bytes] if log.is_file() else b""


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_own(trainer: Any, checkpoint: Path) -> bool:
    return checkpoint.parent.resolve() == Path(trainer.args.output_dir).resolve()


class _Restore(TrainerCallback):
    """After transformers has set them to zero: the sums since the last log line."""

    def __init__(self, trainer: Any, checkpoint: Path) -> None:
        self._trainer = trainer
        self._path = checkpoint / SUMS_FILE.format(rank=trainer.args.process_index)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        trainer.remove_callback(self)
        if not self._path.is_file():
            return  # forced, with more ranks than before
        sums = json.loads(self._path.read_text(encoding="utf-8"))
        trainer._tr_loss += sums["loss"]
        trainer._total_loss_scalar = sums["total_loss"]
        trainer._globalstep_last_logged = sums["last_logged_step"]
        for mode, values in sums["meters"].items():
            trainer.meters[mode].restore(values, args.device)


@contextmanager
def saving(trainer: Any) -> Iterator[None]:
    """Around transformers' own saving of a checkpoint, inside `keeping`: its note first; what is
    missing in it, its marker, then the removal of old ones."""
    args, state = trainer.args, trainer.state
    checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
    if args.should_save:
        reserve(checkpoint, trainer.owner, logger.warning)
    _wait()  # no rank writes into a folder that is about to go
    yield
    sums = {
        "loss": trainer._tr_loss.item(),
        "total_loss": trainer._total_loss_scalar,
        "last_logged_step": trainer._globalstep_last_logged,
        "meters": {mode: meter.values() for mode, meter in trainer.meters.items()},
    }
    _write(checkpoint / SUMS_FILE.format(rank=args.process_index), sums)
    if args.should_save:
        start = _log_start(Path(args.output_dir) / LOG)
        written = {"log_bytes": len(start), "log_sha256": _sha256(start)}
        _write(checkpoint / RUN_FILE, {"fingerprint": trainer.fingerprint, **written})
    _wait()  # the marker comes after the files of all ranks
    if args.should_save:
        seal(checkpoint, resumable=not args.save_only_model)
        limit = trainer.save_total_limit
        rotate(checkpoint, trainer.owner, limit=limit, best=state.best_model_checkpoint)


@contextmanager
def keeping(trainer: Any) -> Iterator[None]:
    """Around a training: `rotate` alone removes checkpoints.

    transformers would do so before the new one is on the disk, and with a limit of one it removes
    at the end every folder that is called checkpoint-... but the best, whoever wrote it."""
    args = trainer.args
    trainer.save_total_limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = trainer.save_total_limit


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


def _from_first_rank(values: list[Any]) -> list[Any]:
    if dist.is_initialized():
        dist.broadcast_object_list(values)
    return values
