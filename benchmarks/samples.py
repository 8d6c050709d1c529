"""Random rows of text and a trained clip, for a model of any size: no tokenizer, no codec."""

from __future__ import annotations

import torch

from plugins.data.dialogue import EncodedSample
from plugins.data.tokens import SpecialTokens
from plugins.model.config import HiggsAudioV2Config


def tokens_of(config: HiggsAudioV2Config) -> SpecialTokens:
    """Of no tokenizer: what a trained clip needs."""
    return SpecialTokens(
        begin_of_text=2,
        header_start=-1,
        header_end=-1,
        end_of_turn=3,
        end_of_message=-1,
        scene_start=-1,
        scene_end=-1,
        audio_bos=-1,
        reference_bos=4,
        audio_eos=5,
        audio=config.audio_token_id,
        audio_delay=config.audio_delay_token_id,
        pad=1,
        stream_bos=config.audio_stream_bos_id,
        stream_eos=config.audio_stream_eos_id,
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_size,
    )


def make_sample(
    tokens: SpecialTokens, num_text: int, num_frames: int, generator: torch.Generator
) -> EncodedSample:
    """`num_text` text tokens, the three around the clip among them."""
    text = torch.randint(6, 1000, (num_text - 3,), generator=generator).tolist()
    shape = (tokens.num_codebooks, num_frames)
    codes = torch.randint(0, tokens.num_codes, shape, generator=generator)
    audio = [tokens.audio] * (num_frames + 2)
    delays = [tokens.audio_delay] * (tokens.num_codebooks - 1)
    ids = [*text, tokens.reference_bos, *audio, *delays, tokens.audio_eos, tokens.end_of_turn]
    trained = {tokens.reference_bos, tokens.audio_eos, tokens.end_of_turn}
    labels = [token if token in trained else -100 for token in ids]
    return EncodedSample(ids, labels, [codes], [True])
