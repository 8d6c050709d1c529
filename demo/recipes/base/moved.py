"""Voices that nobody has. What the codec's first codebook leaves of a voice is nearly the same at
all times: put anywhere else, it is another voice, and a base that knew only its named ones would
have half of the second codebook still to learn."""

from __future__ import annotations

import torch
from torch import Tensor

from demo.recipes.codec import targets
from demo.recipes.codec.targets import SOUND

_ENTRIES = 6  # of the second codebook, among which a voice lies
_CHANGE = 0.1  # of what moves about that place


def moved(latents: Tensor, books: Tensor, *, seed: int) -> Tensor:
    """(F, LATENT) of one voice, books (K, NUM_CODES, LATENT) -> codes (K, F): the same sounds in a
    voice drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    _, sounds = targets.quantise(latents, books[:1])
    left = (latents - sounds)[:, :SOUND]
    change = torch.randn(SOUND, SOUND, generator=generator) * _CHANGE / SOUND**0.5
    about = (left - left.mean(0)) @ (torch.eye(SOUND) + change)
    places = books[1, : targets.SIZES[1], :SOUND]
    other = latents.clone()
    other[:, :SOUND] = sounds[:, :SOUND] + _place(places, generator) + about
    codes, _ = targets.quantise(other, books)
    return codes


def _place(places: Tensor, generator: torch.Generator) -> Tensor:
    """(P, D) -> (D,): somewhere among a few that are near each other."""
    one = places[torch.randint(len(places), (), generator=generator)]
    near = places[(places - one).square().sum(1).argsort()[:_ENTRIES]]
    weights = torch.rand(len(near), 1, generator=generator)
    return (weights * near).sum(0) / weights.sum()
