"""What a training counts between two log lines, over all ranks.

    outputs of the model (sums) --LossMeter--> LossSums of text and audio --metrics--> name: value
    collated batches           --BatchMeter--> padding_share, audio_seconds_per_second, memory_gib

Both are saved with a checkpoint (`plugins.training.resume`)."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plugins.audio.codec import FRAMES_PER_S, NUM_CODES
from plugins.model.loss import LossSums
from plugins.model.modeling import DualLossOutput

_GIB = 2**30
_FRAMES = 2  # their place in the sums of a `BatchMeter`


class Meter:
    """A running sum of one vector, on the device of what is added, and on the CPU only when it is
    logged."""

    def __init__(self) -> None:
        self._total: Tensor | None = None

    def add_row(self, row: Tensor) -> None:
        row = row.detach().double()  # sums of many steps would lose digits in fp32
        self._total = row if self._total is None else self._total + row

    def values(self) -> list[float] | None:
        """The sums of this rank since the last time they were taken, for `restore` in a later
        process."""
        return None if self._total is None else self._total.tolist()

    def restore(self, values: list[float] | None, device: torch.device) -> None:
        self._total = None
        if values is not None:
            self._total = torch.tensor(values, dtype=torch.double, device=device)

    def take(self) -> Tensor | None:
        """The sums since the last call over all ranks, on the CPU; None if there were none."""
        total, self._total = self._total, None
        if total is None:
            return None
        if dist.is_initialized():
            dist.all_reduce(total)
        return total.cpu()


class LossMeter(Meter):
    """Running sums of both losses, turned into metrics only when they are logged."""

    def add(self, outputs: DualLossOutput) -> None:
        self.add_row(self.row_of(outputs))

    def row_of(self, outputs: DualLossOutput) -> Tensor:
        text, audio = outputs.text, outputs.audio
        scalars = torch.stack([text.loss, text.z, text.correct, text.count, audio.z])
        return torch.cat([scalars, audio.loss, audio.correct, audio.count])  # (5 + 3 K,)

    def drain(self) -> tuple[LossSums, LossSums] | None:
        """The sums since the last call over all ranks, on the CPU; None if there were none."""
        total = self.take()
        return None if total is None else self.sums_of(total)

    @staticmethod
    def sums_of(total: Tensor) -> tuple[LossSums, LossSums]:
        """Of text and audio, from a sum of rows."""
        text_loss, text_z, text_correct, text_count, audio_z, *rest = total.unbind()
        audio_loss, audio_correct, audio_count = torch.stack(rest).chunk(3)
        text = LossSums(text_loss, text_z, text_correct, text_count)
        return text, LossSums(audio_loss, audio_z, audio_correct, audio_count)


def metrics(text: LossSums, audio: LossSums) -> dict[str, float]:
    """loss_text, acc_text, loss_audio, loss_audio_cb0.., acc_audio_cb0.., loss_aux; none of an
    absent modality."""
    values: dict[str, Any] = {}
    if text.count > 0:
        values["loss_text"] = text.loss / text.count
        values["acc_text"] = text.correct / text.count
    if audio.count.sum() > 0:
        losses, accuracies = audio.loss / audio.count, audio.correct / audio.count  # (K,)
        values["loss_audio"] = losses.mean()
        for k in range(len(losses)):
            values[f"loss_audio_cb{k}"] = losses[k]
            values[f"acc_audio_cb{k}"] = accuracies[k]
    num_labels = text.count + audio.count.sum()
    if num_labels > 0:
        values["loss_aux"] = (text.z + audio.z) / num_labels
    return {name: round(float(value), 8) for name, value in values.items()}


class BatchMeter(Meter):
    """Of the training batches; the clock stands still while the training does something else."""

    def __init__(self) -> None:
        super().__init__()
        self._since_s: float | None = None

    def start(self) -> None:
        """Before a batch is fetched: the clock runs from the first time on."""
        self._since_s = self._since_s or time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        started_s = time.monotonic()
        try:
            yield
        finally:
            if self._since_s is not None:
                self._since_s += time.monotonic() - started_s

    def restore(self, values: list[float] | None, device: torch.device) -> None:
        super().restore(values, device)
        if self._total is not None:
            # They count per second, and those seconds passed in another process.
            self._total[_FRAMES] = 0

    def add(self, inputs: dict[str, Any]) -> None:
        """A collated batch (`plugins.collator`)."""
        mask = inputs.get("attention_mask")  # (B, S)
        if mask is None:  # packed rows have no padding
            mask = torch.ones_like(inputs["input_ids"])
        codes = inputs["audio_labels"][..., 0]
        # Codebook 0 stands for all; its end of stream is no audio.
        num_frames = ((codes >= 0) & (codes < NUM_CODES)).sum()
        real = mask.sum()
        self.add_row(torch.stack([real, torch.full_like(real, mask.numel()), num_frames]))  # (3,)

    def drain(self) -> dict[str, float]:
        """padding_share: of all positions of the batches. audio_seconds_per_second: trained seconds
        per second of training, all ranks together. memory_gib: the most that this process has had,
        on its GPU if it has one."""
        total = self.take()
        if total is None or self._since_s is None:
            return {}
        real, positions, num_frames = total.tolist()
        took_s = time.monotonic() - self._since_s
        self._since_s += took_s
        return {
            "padding_share": round(1 - real / positions, 8),
            "audio_seconds_per_second": round(num_frames / FRAMES_PER_S / took_s, 8),
            "memory_gib": round(_peak_bytes() / _GIB, 4),
        }


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
