"""A dialogue of one spoken "Hello", and prompts as the original implementation writes them."""

from __future__ import annotations

import torch

from plugins.data.dialogue import AudioClip, Turn
from plugins.data.tokens import SpecialTokens


def clip(num_frames: int = 3) -> AudioClip:
    return AudioClip("a.wav", torch.zeros(8, num_frames, dtype=torch.long))


HELLO = (Turn("user", ("Hello",)), Turn("assistant", (clip(),), trained=True))


def collapsed(values: torch.Tensor, ids: torch.Tensor, tokens: SpecialTokens) -> list[int]:
    """`values` (S,) at text positions and at the first placeholder of each clip in `ids` (S,).

    The original writes one <|AUDIO_OUT|> per clip where the native layout has F + 2 + 7
    placeholders.
    """
    is_audio = (ids == tokens.audio) | (ids == tokens.audio_delay)
    follows_audio = torch.cat([torch.zeros(1, dtype=torch.bool), is_audio[:-1]])
    return values[~is_audio | ~follows_audio].tolist()
