"""Config and tokenizer of a model -> every special token id, read once.

The names are those of the published tokenizer (a Llama-3 tokenizer with audio tokens); the ids are
never typed. It knows no prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from plugins.errors import UserError

SCENE_START = "<|scene_desc_start|>"
SCENE_END = "<|scene_desc_end|>"
# Its published name: a slot of Llama-3 that nobody has renamed.
_DELAY = "<|reserved_special_token_6|>"


@dataclass(frozen=True)
class TowerInput:
    """How a model with an audio tower hears a clip in a system message
    (`plugins.model.audio_tower`)."""

    placeholder: int  # <|AUDIO|>, one per position of the tower
    num_mel_bins: int
    with_codes: bool  # the clip's codes follow


@dataclass(frozen=True)
class SpecialTokens:
    """Ids in the text vocabulary, then ids in the codebooks' vocabulary."""

    begin_of_text: int
    header_start: int
    header_end: int
    end_of_turn: int
    end_of_message: int  # ends an assistant turn that another assistant turn follows
    scene_start: int
    scene_end: int
    audio_bos: int  # <|audio_out_bos|>: opens a clip that somebody speaks
    reference_bos: int  # <|audio_bos|>: opens a clip in a system message
    audio_eos: int  # <|audio_eos|>: closes every clip
    audio: int  # placeholder of stream BOS, codes and stream EOS
    audio_delay: int  # placeholder of the K - 1 steps of delay
    pad: int
    stream_bos: int
    stream_eos: int
    num_codebooks: int
    codebook_size: int  # with the two specials
    tower: TowerInput | None = None  # None: the model has no audio tower

    @classmethod
    def from_config(cls, config: Any, tokenizer: Any) -> SpecialTokens:
        """From a `HiggsAudioV2Config` and its tokenizer. Raises UserError where the two contradict
        each other."""

        def token_id(token: str, expected: int | None = None) -> int:
            token_id = tokenizer.convert_tokens_to_ids(token)
            if token_id is None or token_id == tokenizer.unk_token_id:
                raise UserError(
                    f"tokenizer: {token!r} is not a token of the vocabulary; "
                    "use the tokenizer that was published with the model"
                )
            if expected is not None and token_id != expected:
                raise UserError(
                    f"tokenizer: {token!r} has id {token_id} but the model's config says"
                    f" {expected}; use config and tokenizer of the same checkpoint"
                )
            return int(token_id)

        tokens = cls(
            # Where config and tokenizer both name a token, they must agree.
            begin_of_text=token_id("<|begin_of_text|>"),
            header_start=token_id("<|start_header_id|>"),
            header_end=token_id("<|end_header_id|>"),
            end_of_turn=token_id("<|eot_id|>"),
            end_of_message=token_id("<|eom_id|>"),
            scene_start=token_id(SCENE_START),
            scene_end=token_id(SCENE_END),
            audio_bos=token_id("<|audio_out_bos|>", config.audio_bos_token_id),
            reference_bos=token_id("<|audio_bos|>"),
            audio_eos=token_id("<|audio_eos|>"),
            audio=token_id("<|AUDIO_OUT|>", config.audio_token_id),
            audio_delay=token_id(_DELAY, config.audio_delay_token_id),
            pad=int(config.pad_token_id),
            stream_bos=config.audio_stream_bos_id,
            stream_eos=config.audio_stream_eos_id,
            num_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
            tower=_tower_input(config, token_id),
        )
        last_special = max(tokens.stream_bos, tokens.stream_eos)
        # transformers' default, 1024, is the size without them.
        if tokens.codebook_size <= last_special:
            specials = f"({tokens.stream_bos}, {tokens.stream_eos})"
            raise UserError(
                f"config.json: codebook_size: {tokens.codebook_size} leaves no room for stream BOS"
                f" and EOS {specials}; set it to {last_special + 1}"
            )
        return tokens

    @property
    def num_codes(self) -> int:
        """Codes per codebook without the specials: valid codes are 0 .. num_codes - 1."""
        # The two specials are the last ids of a codebook.
        return min(self.stream_bos, self.stream_eos)


def _tower_input(config: Any, token_id: Callable[[str, int | None], int]) -> TowerInput | None:
    if getattr(config, "audio_encoder_config", None) is None:
        return None
    # Without a tower the vocabulary of the model need not have this one.
    placeholder = token_id("<|AUDIO|>", config.audio_in_token_id)
    return TowerInput(
        placeholder,
        config.audio_encoder_config.get("num_mel_bins", 128),
        config.encode_audio_in_tokens,
    )
