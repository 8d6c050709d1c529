"""Speech -> a codec: the encoder learns latents that are given, codebooks are fitted to what it
then says, and the decoder learns the sound of quantised latents.

A step depends on the seed and its number only, and each part of the way leaves a file in `work`: a
killed run goes on where it was. It computes on the GPU where there is one."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from demo.recipes.codec import adversary, common, losses, network, targets
from demo.recipes.codec.corpus import HOP, PIPER, Clips, Speech
from demo.recipes.codec.targets import SOUND
from demo.run import CODEC
from plugins.audio import waveforms as audio
from plugins.files import disk

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_SAVE_S = 120
_COMMON_WEIGHT = 0.5  # of its latents, beside those of the sound


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on."""

    seed: int = 0
    sentences: int = 700  # of each voice
    warmup_steps: int = 300
    encoder_steps: int = 22_000
    encoder_rate: float = 2e-3
    encoder_batch: int = 6
    encoder_frames: int = 40  # of a segment
    encoder_margin: int = 6  # of them at either end, where it does not hear enough
    codebook_frames: int = 14_000  # of each voice, that the codebooks are fitted to
    decoder_steps: int = 26_000
    decoder_rate: float = 1e-3
    decoder_batch: int = 4
    decoder_frames: int = 24
    average: float = 0.999  # the decoder that is stored: of its weights over some 1,000 steps
    adversary_from: int = 3_500  # step of the decoder: first words, then sound
    adversary_rate: float = 4e-4
    adversary_ramp: int = 500  # steps


@dataclass(frozen=True)
class Data:
    """One stretch of speech, F frames long."""

    samples: np.ndarray  # (F * HOP,) int16
    latents: Tensor  # (F, LATENT): the encoder's targets, or the decoder's input

    def batch(
        self, size: int, num_frames: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Random segments: waveforms (B, N), latents (B, LATENT, F)."""
        num_starts = len(self.latents) - num_frames
        starts = torch.randint(num_starts, (size,), generator=generator)
        waveforms, latents = [], []
        for start in starts.tolist():
            end = start + num_frames
            waveforms.append(audio.to_float(self.samples[start * HOP : end * HOP]))
            latents.append(self.latents[start:end].T)
        batch = torch.from_numpy(np.stack(waveforms)), torch.stack(latents)
        return batch[0].to(DEVICE), batch[1].to(DEVICE)


class Learner:
    """A network and its optimiser."""

    def __init__(
        self, part: Any, *, rate: float, betas: tuple[float, float], max_norm: float = 1.0
    ) -> None:
        self.part, self.rate, self.max_norm = part.to(DEVICE), rate, max_norm
        self.optimizer = torch.optim.Adam(part.parameters(), lr=rate, betas=betas)

    def descend(self, loss: Tensor, *, share: float) -> None:
        """One step, at that share of the rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = share * self.rate
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.part.parameters(), self.max_norm)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"part": self.part.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.part.load_state_dict(state["part"])
        self.optimizer.load_state_dict(state["optimizer"])


class Run:
    """A training's way through its steps: checkpoints and loss curve. parts: all that changes."""

    def __init__(self, path: Path, recipe: Recipe, **parts: Any) -> None:
        self.path, self.recipe, self.parts = path, recipe, parts
        self.step = 0
        self.curve: list[tuple[int, float]] = []  # step, mean loss since the one before
        self.losses: list[float] = []
        if path.exists():
            state = torch.load(path, weights_only=True, map_location=DEVICE)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            self.step, self.curve, self.losses = state["step"], state["curve"], state["losses"]

    def steps(self, last: int) -> Iterator[tuple[int, float, torch.Generator]]:
        """Those that are left: number, share of the learning rates, randomness of its own."""
        saved_s = time.monotonic()
        while self.step < last:
            # Linear warm-up, then half a cosine.
            warmup = min(1.0, (self.step + 1) / self.recipe.warmup_steps)
            share = warmup * 0.5 * (1 + math.cos(math.pi * self.step / last))
            # No state of a generator to save: a resumed run draws what a whole one would.
            seed = (self.recipe.seed << 32) + self.step
            yield self.step, max(share, 0.02), torch.Generator().manual_seed(seed)
            self.step += 1
            if self.step % 100 == 0:
                self._note(last)
            if time.monotonic() - saved_s > _SAVE_S or self.step == last:
                self._save()
                saved_s = time.monotonic()

    def _note(self, last: int) -> None:
        loss = sum(self.losses) / len(self.losses)
        self.curve.append((self.step, loss))
        self.losses = []
        print(f"{self.path.stem} {self.step} of {last}: loss {loss:.4f}", flush=True)

    def _save(self) -> None:
        state: dict[str, Any] = {"step": self.step, "curve": self.curve, "losses": self.losses}
        for name, part in self.parts.items():
            state[name] = part.state_dict()
        with disk.replace_when_done(self.path) as new:
            torch.save(state, new)


def train(recipe: Recipe, speech: Speech, start: Path, work: Path) -> Any:
    """start: folder of the earlier codec, fetched if it is not there. Returns the codec; `work`
    takes what is between."""
    latents = _once(work / "targets.pt", lambda: _targets(speech))
    codec = network.load(CODEC)  # its shape, and what lies between the parts
    encoder = network.encoder(network.earlier(start), codec.acoustic_encoder, seed=recipe.seed)
    parts = [*speech.shared.values(), *speech.warped.values()]
    data = Data(np.concatenate([clips.samples for clips in parts]), latents)
    _train_encoder(recipe, encoder, data, work / "encoder.pt")
    samples = np.concatenate([clips.samples for clips in speech.own.values()])
    frozen = _once(work / "frozen.pt", lambda: _freeze(recipe, encoder, speech, samples))
    data = Data(samples, frozen["quantised"])
    decoder = network.decoder(network.earlier(start), data.samples, data.latents)
    codec.acoustic_encoder.load_state_dict(frozen["encoder"])
    codec.acoustic_decoder = _train_decoder(recipe, decoder, data, work / "decoder.pt").cpu()
    network.set_codebooks(codec, frozen["books"])
    return codec.eval()


def _targets(speech: Speech) -> Tensor:
    """(F, LATENT): of the shared clips, then of the warped ones."""

    def features(clips: Clips) -> Tensor:
        return targets.log_mel(torch.from_numpy(audio.to_float(clips.samples)))

    shared = {voice: features(clips) for voice, clips in speech.shared.items()}
    warped = [features(clips) for clips in speech.warped.values()]
    sound = targets.principal(torch.cat([*shared.values(), *warped]))
    return torch.cat([sound, common.latents(speech, shared)], dim=1)


def _once(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` returns, or did before the run was killed."""
    if not path.exists():
        with disk.replace_when_done(path) as new:
            torch.save(make(), new)
    return torch.load(path, weights_only=True)


def _train_encoder(recipe: Recipe, encoder: nn.Module, data: Data, path: Path) -> None:
    learner = Learner(encoder, rate=recipe.encoder_rate, betas=(0.8, 0.99))
    run, encode = Run(path, recipe, encoder=learner), torch.compile(encoder)
    inside = slice(recipe.encoder_margin, recipe.encoder_frames - recipe.encoder_margin)
    for _, share, generator in run.steps(recipe.encoder_steps):
        waveforms, latents = data.batch(recipe.encoder_batch, recipe.encoder_frames, generator)
        errors = (encode(waveforms[:, None]) - latents)[..., inside].square()
        loss = errors[:, :SOUND].mean() + _COMMON_WEIGHT * errors[:, SOUND:].mean()
        learner.descend(loss, share=share)
        run.losses.append(loss.item())


@torch.no_grad()
def _freeze(recipe: Recipe, encoder: Any, speech: Speech, samples: np.ndarray) -> dict[str, Any]:
    """The trained encoder as it will be stored, codebooks of its own latents, and the sound of
    `samples` quantised, (F, LATENT)."""
    encoder = encoder.cpu().eval()
    targets.let_common_rule(encoder.conv2)
    # Rounded as it will be stored: the codebooks are fitted to what it then says.
    encoder = encoder.half().float()
    latents = []
    for part, share in ((speech.shared, 1.0), (speech.warped, 0.6)):
        for voice, clips in part.items():
            # The natural voice has the most to say.
            num_frames = int(recipe.codebook_frames * (2 if voice == PIPER else share))
            latents.append(network.encode(encoder, clips.samples[: num_frames * HOP]))
    books = targets.fit_codebooks(torch.cat(latents), seed=recipe.seed)
    _, quantised = targets.quantise(network.encode(encoder, samples), books)
    quantised[:, SOUND:] = 0  # the decoder has no use for it
    return {"encoder": encoder.state_dict(), "books": books, "quantised": quantised}


def _train_decoder(recipe: Recipe, decoder: nn.Module, data: Data, path: Path) -> nn.Module:
    """Returns the average of its weights."""
    # The usual betas where an adversary changes what is wanted.
    learner = Learner(decoder, rate=recipe.decoder_rate, betas=(0.8, 0.99))
    averaged = AveragedModel(decoder, multi_avg_fn=get_ema_multi_avg_fn(recipe.average))
    judges = Learner(
        adversary.judges(seed=recipe.seed),
        rate=recipe.adversary_rate,
        betas=(0.5, 0.9),
        max_norm=math.inf,
    )
    run = Run(path, recipe, decoder=learner, averaged=averaged, judges=judges)
    difference, decode = losses.SpectralLoss(DEVICE), torch.compile(decoder)
    for step, share, generator in run.steps(recipe.decoder_steps):
        recorded, latents = data.batch(recipe.decoder_batch, recipe.decoder_frames, generator)
        decoded = decode(latents)[:, 0]
        loss = difference(decoded, recorded, sizes=losses.TURNS[step % 2])
        run.losses.append(loss.item())
        if (since := step - recipe.adversary_from) >= 0:
            judge = judges.part[step % len(judges.part)]
            judge.requires_grad_(True)
            judges.descend(adversary.judge_loss(judge, decoded, recorded), share=max(share, 0.1))
            judge.requires_grad_(False)
            ramp = min(1.0, since / recipe.adversary_ramp)
            loss = loss + ramp * adversary.decoder_loss(judge, decoded, recorded)
        learner.descend(loss, share=share)
        averaged.update_parameters(decoder)
    return averaged.module


def write_curves(work: Path, path: Path) -> None:
    """The loss curves of both networks as CSV."""
    with disk.replace_when_done(path) as new, open(new, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["network", "step", "loss"])
        for name in ("encoder", "decoder"):
            checkpoint = torch.load(work / f"{name}.pt", weights_only=True, map_location="cpu")
            for step, loss in checkpoint["curve"]:
                writer.writerow([name, step, f"{loss:.4f}"])
