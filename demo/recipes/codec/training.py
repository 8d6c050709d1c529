"""Encoder and decoder in two processes of one thread each; a step depends on the seed and its
number only.

First apart: one process teaches the encoder the latents, the other the decoder the sound of
quantised latents. Then both train the decoder on what the trained encoder really gives, gradients
averaged. A killed run goes on from the last checkpoint. Both networks are compiled, which needs a
C++ compiler and saves a third of the time."""

from __future__ import annotations

import csv
import math
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing import spawn

from demo.recipes.codec import network, targets
from demo.recipes.codec.corpus import HOP
from demo.recipes.codec.losses import SpectralLoss
from plugins.audio import waveforms as audio
from plugins.files import disk

WORKERS = 2
_SAVE_S = 180
_MARGIN = 8  # frames: what lies farther off changes no latent


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on."""

    seed: int = 0
    sentences: int = 700  # of each voice
    encoder_steps: int = 12_000
    solo_steps: int = 6_000  # of the decoder, while the encoder learns
    joint_steps: int = 34_000  # of the decoder, in both processes
    batch: int = 4  # per process
    segment_frames: int = 20
    encoder_rate: float = 2e-3
    decoder_rate: float = 1.5e-3
    warmup_steps: int = 200


@dataclass(frozen=True)
class Data:
    """One stretch of speech, F frames long."""

    samples: np.ndarray  # (F * HOP,) int16
    latents: Tensor  # (F, LATENT): the encoder's targets, or the decoder's input

    def batch(self, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random segments: waveforms (B, N), latents (B, LATENT, F)."""
        num_starts = len(self.latents) - recipe.segment_frames
        starts = torch.randint(num_starts, (recipe.batch,), generator=generator)
        waveforms, latents = [], []
        for start in starts.tolist():
            end = start + recipe.segment_frames
            waveforms.append(audio.to_float(self.samples[start * HOP : end * HOP]))
            latents.append(self.latents[start:end].T)
        return torch.from_numpy(np.stack(waveforms)), torch.stack(latents)


class Run:
    """One network's way through its steps: schedule, checkpoints, loss curve."""

    def __init__(
        self, part: nn.Module, recipe: Recipe, path: Path, *, rate: float, steps: int
    ) -> None:
        self.part, self.recipe, self.path, self.rate, self.steps = part, recipe, path, rate, steps
        self.optimizer = torch.optim.Adam(part.parameters(), lr=rate)
        self.step = 0
        self.curve: list[tuple[int, float]] = []  # step, mean loss since the one before
        self._losses: list[float] = []
        if path.exists():
            state = torch.load(path, weights_only=True)
            part.load_state_dict(state["part"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.curve, self._losses = state["step"], state["curve"], state["losses"]

    def until(
        self,
        last: int,
        loss_of: Callable[[torch.Generator], Tensor],
        *,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """Train to step `last`. loss_of: from a generator seeded by step and rank."""
        saved_s = time.monotonic()
        while self.step < last:
            # No state of a generator to save: a resumed run draws what a whole one would.
            seed = (self.recipe.seed << 32) + self.step * WORKERS + rank
            generator = torch.Generator().manual_seed(seed)
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate()
            self.optimizer.zero_grad()
            loss = loss_of(generator)
            loss.backward()
            if ranks > 1:
                _average_gradients(self.part, ranks)
            nn.utils.clip_grad_norm_(self.part.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            if rank:  # all ranks have the same weights: one of them saves
                continue
            self._note(loss.item())
            if time.monotonic() - saved_s > _SAVE_S or self.step == last:
                self.save()
                saved_s = time.monotonic()

    def _rate(self) -> float:
        """Linear warm-up, then half a cosine down to 0."""
        warmup = min(1.0, (self.step + 1) / self.recipe.warmup_steps)
        return self.rate * warmup * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))

    def _note(self, loss: float) -> None:
        self._losses.append(loss)
        if self.step % 100 == 0:
            self.curve.append((self.step, sum(self._losses) / len(self._losses)))
            self._losses = []
            if self.step % 500 == 0:
                mean = self.curve[-1][1]
                print(f"{self.path.stem} {self.step} of {self.steps}: loss {mean:.4f}", flush=True)

    def save(self) -> None:
        state = {
            "part": self.part.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        _save({**state, "curve": self.curve, "losses": self._losses}, self.path)


def train(recipe: Recipe, samples: Path, work: Path) -> Any:
    """samples: (F * HOP,) int16 in a .npy file. Returns the codec; `work` takes what is between."""
    # What a killed run has finished lies in `work`; each phase begins where it left off.
    if not (work / "targets.pt").exists():
        waveform = torch.from_numpy(audio.to_float(np.load(samples)))
        latents = targets.principal(targets.log_mel(waveform))
        _, quantised = targets.quantise(latents, targets.fit_codebooks(latents, seed=recipe.seed))
        _save({"latents": latents, "quantised": quantised}, work / "targets.pt")
    spawn(_apart, (recipe, samples, work), nprocs=WORKERS)
    if not (work / "codes.pt").exists():
        _save(_real_codes(recipe, np.load(samples, mmap_mode="r"), work), work / "codes.pt")
    with tempfile.TemporaryDirectory() as meeting:
        spawn(_together, (recipe, samples, work, f"file://{meeting}/point"), nprocs=WORKERS)
    return assemble(recipe, work)


def assemble(recipe: Recipe, work: Path) -> Any:
    """The codec as far as its training has got; the encoder must have finished."""
    codec = network.build(seed=recipe.seed)
    state = torch.load(work / "codes.pt", weights_only=True)
    codec.acoustic_encoder.load_state_dict(state["encoder"])
    network.set_codebooks(codec, state["books"])
    decoder = torch.load(work / "decoder.pt", weights_only=True)["part"]
    codec.acoustic_decoder.load_state_dict(decoder)
    return codec.eval()


def write_curves(work: Path, path: Path) -> None:
    """The loss curves of both networks as CSV."""
    with disk.replace_when_done(path) as new, open(new, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["network", "step", "loss"])
        for name in ("encoder", "decoder"):
            for step, loss in torch.load(work / f"{name}.pt", weights_only=True)["curve"]:
                writer.writerow([name, step, f"{loss:.4f}"])


def _apart(rank: int, recipe: Recipe, samples: Path, work: Path) -> None:
    _enter()
    state = torch.load(work / "targets.pt", weights_only=True)
    if rank == 0:
        data = Data(np.load(samples, mmap_mode="r"), state["latents"])
        encoder = network.build(seed=recipe.seed).acoustic_encoder
        run = Run(
            encoder,
            recipe,
            work / "encoder.pt",
            rate=recipe.encoder_rate,
            steps=recipe.encoder_steps,
        )
        # The plain module is saved: names of weights in a compiled one are others.
        compiled = torch.compile(encoder)
        run.until(
            recipe.encoder_steps,
            lambda generator: _encoder_loss(compiled, *data.batch(recipe, generator)),
        )
    else:
        data = Data(np.load(samples, mmap_mode="r"), state["quantised"])
        run, loss_of = _decoder_run(recipe, data, work)
        run.until(recipe.solo_steps, loss_of)


def _together(rank: int, recipe: Recipe, samples: Path, work: Path, meeting: str) -> None:
    _enter()
    # Both processes are on this machine, whatever its network looks like.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=WORKERS)
    quantised = torch.load(work / "codes.pt", weights_only=True)["quantised"]
    data = Data(np.load(samples, mmap_mode="r"), quantised)
    run, loss_of = _decoder_run(recipe, data, work)
    run.until(run.steps, loss_of, rank=rank, ranks=WORKERS)
    torch.distributed.destroy_process_group()


def _enter() -> None:
    torch.set_num_threads(1)
    # `spawn` has a child interrupted when its parent dies, which one that a shell put into the
    # background ignores.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _decoder_run(
    recipe: Recipe, data: Data, work: Path
) -> tuple[Run, Callable[[torch.Generator], Tensor]]:
    decoder = network.build(seed=recipe.seed).acoustic_decoder
    compiled, difference = torch.compile(decoder), SpectralLoss()
    steps = recipe.solo_steps + recipe.joint_steps
    run = Run(decoder, recipe, work / "decoder.pt", rate=recipe.decoder_rate, steps=steps)

    def loss_of(generator: torch.Generator) -> Tensor:
        waveforms, latents = data.batch(recipe, generator)
        return difference(compiled(latents)[:, 0], waveforms)

    return run, loss_of


def _encoder_loss(
    encoder: Callable[[Tensor], Tensor], waveforms: Tensor, latents: Tensor
) -> Tensor:
    return nn.functional.mse_loss(encoder(waveforms[:, None]), latents)


@torch.no_grad()
def _real_codes(recipe: Recipe, samples: np.ndarray, work: Path) -> dict[str, Any]:
    """The trained encoder as it will be stored, codebooks of its own latents, and these quantised,
    (F, LATENT)."""
    encoder = network.build(seed=recipe.seed).acoustic_encoder
    encoder.load_state_dict(torch.load(work / "encoder.pt", weights_only=True)["part"])
    # Rounded as it will be stored: the codebooks are fitted to what it then says.
    encoder = encoder.half().float()
    wanted, parts = torch.load(work / "targets.pt", weights_only=True)["latents"], []
    for first in range(0, len(wanted), 500):
        before, last = min(first, _MARGIN), min(first + 500, len(wanted))
        heard = audio.to_float(samples[(first - before) * HOP : (last + _MARGIN) * HOP])
        # (1, 1, N) -> (1, LATENT, F); the margins go again.
        latents = encoder(torch.from_numpy(heard)[None, None])[0].T
        parts.append(latents[before : before + last - first])
    latents = torch.cat(parts)
    books = targets.fit_codebooks(latents, seed=recipe.seed).half().float()
    _, quantised = targets.quantise(latents, books)
    by_encoder = (latents - wanted).square().mean() / wanted.var()
    by_codebooks = (latents - quantised).square().mean() / latents.var()
    print(
        f"of the latents' variance the encoder misses {by_encoder:.4f},"
        f" the codebooks {by_codebooks:.4f}"
    )
    return {"encoder": encoder.state_dict(), "books": books, "quantised": quantised}


def _average_gradients(part: nn.Module, ranks: int) -> None:
    gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
    # In one message: each has its price, however short it is.
    flat = torch.cat(list(map(torch.flatten, gradients)))
    torch.distributed.all_reduce(flat)
    flat /= ranks
    start = 0
    for gradient in gradients:
        mean = flat[start : start + gradient.numel()]
        gradient.copy_(mean.view_as(gradient))
        start += gradient.numel()


def _save(state: dict[str, Any], path: Path) -> None:
    with disk.replace_when_done(path) as new:
        torch.save(state, new)
