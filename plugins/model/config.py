"""The native config, plus what transformers' class lacks: the audio tower of some original
checkpoints.

Saved configs stay native ones: `model_type` is the same, and without a tower nothing is added.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import HiggsAudioV2Config as _Native


@strict
class HiggsAudioV2Config(_Native):
    """`audio_encoder_config`: the shape of the Whisper encoder, None for the published checkpoints,
    which have none."""

    audio_encoder_config: dict[str, Any] | None = None
    audio_in_token_id: int | None = None  # <|AUDIO|>: placeholder of an embedding of the tower
    # A clip in a system message is heard through its codes (too).
    encode_audio_in_tokens: bool = True
