"""What keeps a run from going wrong quietly: sick steps, signals, full disks, exhausted GPUs. L3.

    loss or gradient that is no number    --settle-->   step named, not taken, counted; the third in a row ends the run
    SIGTERM, SIGINT                       --on_save-->  step finished, checkpoint, resume command, exit code STOPPED
    checkpoint larger than the free space --saving-->   refused before a byte is written
    log line that cannot be written       --log_line--> said, the run goes on
    torch.OutOfMemoryError                --watching--> one line with what can be lowered

Every decision is taken by all ranks alike. What ends a run at once (a killed rank, a dead worker) is the launcher's and
torch's to notice; `ddp_timeout` bounds how long the others wait.
"""

from __future__ import annotations

import atexit
import copy
import gc
import json
import math
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors import SafetensorError
from swift.cli.main import parse_yaml_args
from swift.utils import get_logger
from torch import Tensor
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from transformers import TrainerCallback

from plugins.checkpoints import discard
from plugins.codec import CODEC_FOLDER
from plugins.errors import UserError, problem
from plugins.packs import single_rows
from plugins.resume import LOG
from plugins.rows import ROW_SOURCE
from plugins.settings import KNOBS

logger = get_logger()

STOPPED = 75  # exit code after a signal: EX_TEMPFAIL of sysexits.h, "try again later"; 128 + n means not saved
MOST_SKIPS_IN_A_ROW = 3
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ONE_SIGNAL_S = 2.0  # Ctrl-C under a launcher arrives twice: from the terminal and from the launcher
_COUNTS = "higgs_audio_guard"  # in trainer_state.json, so that a resumed run goes on counting
_SHOWN_ROWS = 8
_SMALL_FILES_BYTES = 32 * 2**20  # tokenizer (17 MB with Llama-3's), states of schedule and generators, JSON


@dataclass(frozen=True)
class NamedRows:
    """A collator whose batches also hold where their rows come from; pickles into spawned workers."""

    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if get_worker_info() is not None:
            # Ctrl-C and batch systems signal workers too, but the step that is being finished needs their batches.
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        return {**self.collate(rows), ROW_SOURCE: [row.get(ROW_SOURCE, "row") for row in single_rows(rows)]}


def _end_workers() -> None:
    """At exit, before multiprocessing's own hook: that sends SIGTERM, which they ignore, and then waits for ever.

    Asked by torch they remove their temporary files. A loader lives on in persistent workers or a kept traceback.
    """
    for each in gc.get_objects():
        if type(each) is _MultiProcessingDataLoaderIter:
            each._shutdown_workers()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error for each worker that is killed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class Guard(TrainerCallback):
    """Of one trainer. `rows` are those of the micro-batch that the model has or is about to get."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.rows: list[str] = []
        self._losses: list[tuple[list[str], Tensor]] = []  # rows and loss () of each micro-batch of the step
        self._signalled_s: float | None = None
        self._stop = False  # agreed by all ranks

    # --- sick steps ---

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        self._losses.clear()
        # A skipped step leaves no trace in the curves. Meters replace their tensor, so a shallow copy will do.
        self._before = trainer._tr_loss.clone(), copy.copy(trainer.meters["train"])

    def saw(self, loss: Tensor) -> None:
        self._losses.append((self.rows, loss.detach()))

    def settle(self, grad_norm: Any) -> None:
        """Between the last backward pass and the optimizer: drop the gradients of a sick step, on all ranks.

        The optimizer then finds nothing to do: weights, moments and their step counts stay as they are. DeepSpeed has
        stepped already and skips such steps by itself. Raises UserError at the third in a row.
        """
        sick = torch.stack([~torch.isfinite(loss) for _, loss in self._losses]).any().reshape(1)
        if grad_norm is not None and not self._has_scaler():
            sick |= not math.isfinite(float(grad_norm))
        stop = torch.tensor([self._signalled_s is not None], device=sick.device)
        flags = torch.cat([sick, stop]).to(torch.int32)
        if dist.is_initialized():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        skip, self._stop = (bool(flag) for flag in flags.tolist())
        counts = self._counts()
        counts["steps"] += 1
        if skip:
            counts["skipped"] += 1
            counts["skipped_now"] += 1
            counts["in_a_row"] += 1
            self._skip(counts["in_a_row"])
        else:
            counts["in_a_row"] = 0

    def _has_scaler(self) -> bool:
        """In fp16 gradients overflow now and then: a scaler of losses skips that step and lowers its scale."""
        trainer = self._trainer
        if trainer.is_deepspeed_enabled:
            return bool(trainer.args.fp16)
        # MS-SWIFT sets `fp16` for fp32 models too, and on a CPU there is no scaler for it.
        scaler = trainer.accelerator.scaler
        return scaler is not None and scaler.is_enabled()

    def _skip(self, in_a_row: int) -> None:
        trainer = self._trainer
        for parameter in trainer.model_wrapped.parameters():
            parameter.grad = None
        loss, trainer.meters["train"] = self._before
        trainer._tr_loss.copy_(loss)
        what, rows, num_rows = self._blame()
        self._counts()["rows"] += num_rows
        if in_a_row == MOST_SKIPS_IN_A_ROW:
            reason = f"{what} in {in_a_row} steps in a row, of which none was taken (rows of the last one: {rows})"
            remedy = "look at these rows, lower learning_rate, or resume from an earlier checkpoint"
            raise UserError(f"training: {reason}; {remedy}")
        if trainer.is_world_process_zero():
            logger.warning(f"step {trainer.state.global_step + 1} skipped: {what}; rows: {rows}")

    def _blame(self) -> tuple[str, str, int]:
        """What is no number, the rows to look at, of all ranks: those whose loss it is, else all of the step; how many
        rows the step has."""
        mine = [(rows, loss.item()) for rows, loss in self._losses]
        gathered: list[Any] = [mine]
        if dist.is_initialized():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, mine)
        seen = [batch for batches in gathered for batch in batches]
        sick = [(rows, loss) for rows, loss in seen if not math.isfinite(loss)]
        what = f"loss {sick[0][1]}" if sick else "gradients that are not finite, though every loss is,"
        num_rows = sum(len(rows) for rows, _ in seen)
        return what, _listed([row for rows, _ in sick or seen for row in rows]), num_rows

    def _counts(self) -> dict[str, int]:
        empty = {"skipped": 0, "rows": 0, "in_a_row": 0, "steps": 0, "skipped_now": 0}
        return self._trainer.state.stateful_callbacks.setdefault(_COUNTS, empty)

    def amend(self, logs: dict[str, float]) -> None:
        """Training logs: `skipped_steps` and `skipped_rows` of the run so far, and means over the steps that were
        taken."""
        counts = self._counts()
        if "grad_norm" in logs and not math.isfinite(logs["grad_norm"]):
            del logs["grad_norm"]  # the last step was a skipped one
        taken = counts["steps"] - counts["skipped_now"]
        if not taken:
            logs.pop("loss", None)
        elif counts["skipped_now"]:
            logs["loss"] *= counts["steps"] / taken
        logs["skipped_steps"], logs["skipped_rows"] = counts["skipped"], counts["rows"]
        counts["steps"] = counts["skipped_now"] = 0

    # --- signals ---

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around the training: signals wait for the end of a step, torch.OutOfMemoryError becomes a UserError."""
        args = self._trainer.args
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)
        checkpointing = args.gradient_checkpointing  # MS-SWIFT sets it to False while it trains
        handled = _SIGNALS if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self._on_signal) for number in handled}
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory(error, checkpointing) from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self._signalled_s is None:
            self._signalled_s = now
        elif now - self._signalled_s > _ONE_SIGNAL_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    @property
    def stopping(self) -> bool:
        """A signal ends this run before its training is over."""
        return self._stop and self._trainer.state.global_step < self._trainer.state.max_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stop:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the process here: what follows a finished training would stand in the log and remove checkpoints."""
        if not self.stopping:
            return
        trainer = self._trainer
        trainer.callback_handler.on_train_end(args, state, control)  # TensorBoard writes its last events
        if trainer.is_world_process_zero():
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            print(
                f"\nstopped by a signal after step {state.global_step}, {checkpoint} is saved; resume with", flush=True
            )
            print(resume_command(sys.argv, checkpoint), flush=True)
        if dist.is_initialized():
            dist.barrier()  # the launcher ends all ranks as soon as one is gone
        raise SystemExit(STOPPED)

    # --- memory ---

    def _out_of_memory(self, error: torch.OutOfMemoryError, checkpointing: bool) -> UserError:
        args, template = self._trainer.args, self._trainer.template
        first_line = str(error).partition("\n")[0]
        levers = [
            f"per_device_train_batch_size {args.per_device_train_batch_size} with more gradient_accumulation_steps",
            f"max_length {template.max_length}",
            f"max_audio_length {template.settings.max_audio_length}",
            *([] if checkpointing else ["gradient_checkpointing false (set it to true)"]),
        ]
        remedy = (
            f"lower {', '.join(levers)}; or take a smaller configs/*.yaml (LoRA, QLoRA, ZeRO or FSDP2 instead of full):"
            " `higgs-audio doctor --config FILE.yaml` computes what each needs"
        )
        rows = _listed(self.rows)
        return UserError(f"training: out of GPU memory (rows of the batch: {rows}; {first_line}); {remedy}")


def _listed(rows: list[str]) -> str:
    names = list(dict.fromkeys(rows))
    more = len(names) - _SHOWN_ROWS
    return ", ".join(names[:_SHOWN_ROWS]) + (f" and {more} more" if more > 0 else "")


def resume_command(argv: list[str], checkpoint: Path) -> str:
    """The shell's line that goes on from `checkpoint` in its own folder, for a process that was started with `argv`."""
    go_on = ["--resume_from_checkpoint", str(checkpoint), "--output_dir", str(checkpoint.parent)]
    return _command(argv, {"--resume_from_checkpoint", "--output_dir", "--add_version"},
                    [*go_on, "--add_version", "false"])  # fmt: skip


def real_command(argv: list[str]) -> str:
    """The shell's line that trains, for a process that was started with `argv` for a dry run."""
    words = _without(argv[1:], {"--dry_run"})
    for i, word in enumerate(words[1:], start=1):
        if words[i - 1] == "--model_kwargs" and '"dry_run"' in word:
            kept = {name: value for name, value in json.loads(word).items() if name != "dry_run"}
            words[i] = json.dumps(kept)
    return _command([argv[0], *words], {"--dry_run"}, [])


def _without(words: list[str], flags: set[str]) -> list[str]:
    kept: list[str] = []
    keep = True
    for word in words:
        if word.startswith("--"):
            keep = word.partition("=")[0] not in flags
        if keep:
            kept.append(word)
    return kept


def _command(argv: list[str], dropped: set[str], added: list[str]) -> str:
    program, arguments = Path(argv[0]), _with_yaml(argv[1:])
    if program.name == "sft.py" and program.parent.name == "cli":
        command = ["swift", "sft"]
    elif program == Path(__file__).resolve().parent / "train.py":
        command = ["higgs-audio", "sft"]
    else:
        command = [sys.executable, *argv[:1]]
    kept = _without(arguments, dropped | {"--local_rank", "--local-rank"})
    typed = " ".join(argv).lower()  # as flags or in --model_kwargs
    env = {
        knob.upper(): os.environ[knob.upper()]
        for knob in KNOBS
        if knob.upper() in os.environ and not {f"--{knob}"} & {*argv, *dropped} and f'"{knob}"' not in typed
    }
    here = os.environ
    if int(here.get("WORLD_SIZE", "1")) > 1:
        # torchrun's and DeepSpeed's name for the same number
        env["NPROC_PER_NODE"] = here.get("LOCAL_WORLD_SIZE") or here.get("LOCAL_SIZE") or here["WORLD_SIZE"]
    if int(here.get("GROUP_WORLD_SIZE", "1")) > 1:
        env |= {"NNODES": here["GROUP_WORLD_SIZE"], "NODE_RANK": here["GROUP_RANK"]}
        env |= {name: here[name] for name in ("MASTER_ADDR", "MASTER_PORT")}
    return shlex.join([*(f"{name}={value}" for name, value in env.items()), *command, *kept, *added])


def _with_yaml(arguments: list[str]) -> list[str]:
    """MS-SWIFT starts its processes with the flags of a YAML file in its place; back to the file, if they lead."""
    file = os.environ.get("SWIFT_CONFIG_FILE")
    if file is None or not Path(file).is_file():
        return arguments
    expanded = [file]
    parse_yaml_args(expanded)
    return [file, *arguments[len(expanded) :]] if arguments[: len(expanded)] == expanded else arguments


# --- disk ---


def checkpoint_bytes(trainer: Any) -> int:
    """About the size of the next checkpoint on disk, all ranks together, with Adam's two moments at the most."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    is_adapter = isinstance(model, PeftModel)
    weights = _num_bytes(trained if is_adapter else parameters)
    needed = weights + _SMALL_FILES_BYTES
    codec = Path(trainer.template.model_info.model_dir) / CODEC_FOLDER
    if not is_adapter and codec.is_dir():
        needed += sum(path.stat().st_size for path in codec.rglob("*") if path.is_file())
    if trainer.args.save_only_model:
        return needed
    if trainer.is_deepspeed_enabled:
        # Its own file of the weights, then fp32 weights and both moments in fp32.
        return needed + weights + 12 * sum(map(_num_elements, trained))
    return needed + 2 * _num_bytes(trained)


def _num_elements(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 leaves an empty tensor in its place


def _num_bytes(parameters: list[Any]) -> int:
    return sum(_num_elements(parameter) * parameter.element_size() for parameter in parameters)


def check_space(trainer: Any) -> None:
    """Raise UserError, on all ranks, if the next checkpoint does not fit on the disk of the output folder."""
    refusal: list[str | None] = [None]
    if trainer.is_world_process_zero():
        folder, needed = Path(trainer.args.output_dir), checkpoint_bytes(trainer)
        free = shutil.disk_usage(folder).free
        if free < needed:
            reason = f"has {free / 2**30:.2f} GiB free, and a checkpoint takes about {needed / 2**30:.2f} GiB"
            remedy = "free space, lower save_total_limit, or name another folder; nothing was written or removed"
            refusal = [str(problem("disk", "output_dir", str(folder), reason, remedy))]
    if dist.is_initialized():
        dist.broadcast_object_list(refusal)
    if refusal[0]:
        raise UserError(refusal[0])


@contextmanager
def saving(trainer: Any) -> Iterator[None]:
    """Around the writing of a checkpoint. Raises UserError if it does not fit, or if a file of it cannot be written."""
    check_space(trainer)
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise  # torch.save has no class of its own for a file that it cannot write
        checkpoint = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        file = getattr(error, "filename", None) or checkpoint  # torch and safetensors do not say
        if trainer.args.should_save:
            discard(checkpoint)  # of no use, and in the way of those who free space
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        remedy = "earlier checkpoints are as they were: mend it and use --resume_from_checkpoint"
        raise UserError(f"{file}: cannot be written ({reason}); {remedy}") from error


@contextmanager
def log_line(trainer: Any) -> Iterator[None]:
    """Around the writing of a log line: a line that fails is said and left out, and does not end the run."""
    log = Path(trainer.args.output_dir) / LOG
    num_bytes = log.stat().st_size if log.is_file() else 0
    try:
        yield
    except OSError as error:
        if trainer.is_world_process_zero() and log.is_file():
            os.truncate(log, num_bytes)  # half a line would spoil the next one
        logger.error(
            f"{error.filename or log}: cannot be written ({error.strerror}); training goes on, this line will be in the"
            " next checkpoint's trainer_state.json only"
        )
