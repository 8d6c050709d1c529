"""Defects of transformers' Higgs-Audio V2 `generate`.

Each test asserts what would be right. They fail today, strictly: a test that passes turns the suite
red and names the workaround that can go. `docs/upstream.md` lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from native import ASSISTANT_HEADER, AUDIO_END, TEXT, audio_turn, delayed, given
from transformers import GenerationConfig, HiggsAudioV2ForConditionalGeneration


@pytest.fixture
def model(tiny: Path) -> Any:
    """Without dropout, so that `train` and `eval` are the same."""
    return HiggsAudioV2ForConditionalGeneration.from_pretrained(tiny, use_text_head=True)


def greedy(model: Any, **options: Any) -> GenerationConfig:
    config = model.config
    return GenerationConfig(
        do_sample=False,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        **options,
    )


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="greedy decoding draws at random; workaround: plugins/speaking/decoding.py:decode",
)
def test_greedy_decoding_is_the_same_twice(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of the model's own generation config are added to the one given, custom ones too.

    The conversion script writes repetition-aware sampling there, which draws codes again even with
    `do_sample=False`: "greedy" speech is another one at each call."""
    monkeypatch.setattr(
        model, "generation_config", greedy(model, ras_win_len=7, ras_win_max_num_repeat=1)
    )
    prompt = torch.tensor(
        [[model.config.bos_token_id, *TEXT, *ASSISTANT_HEADER, model.config.audio_bos_token_id]]
    )
    speech = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        speech.append(model.generate(prompt, generation_config=greedy(model, max_new_tokens=30)))
    assert torch.equal(*speech)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="an audio turn before the prompt's end; workaround: plugins/speaking/decoding.py:decode",
)
def test_speech_may_follow_an_audio_turn_directly(model: Any) -> None:
    """The delay processor takes a delay token among the last eight for the end of what it is to
    generate.

    In Llama-3's tokens the last one of a finished turn is the eighth: nothing but EOS comes out,
    without a BOS. A user turn in between hides it."""
    config = model.config
    prompt = torch.tensor([[*audio_turn(config, 3), *ASSISTANT_HEADER, config.audio_bos_token_id]])
    frames = delayed(config, 3)[None]
    heard = {
        "audio_input_ids": frames,
        "audio_input_ids_mask": torch.ones(frames.shape[:2], dtype=torch.bool),
    }
    given(prompt[0, -8:-6].tolist() == [config.audio_delay_token_id, AUDIO_END])
    speech = model.generate(prompt, **heard, generation_config=greedy(model, max_new_tokens=10))
    assert speech[0, frames.shape[1]].tolist() == [config.audio_stream_bos_id] * 8


@pytest.mark.xfail(
    strict=True,
    raises=RuntimeError,
    reason="no frames is not no audio; workaround: plugins/speaking/decoding.py:decode",
)
def test_a_prompt_with_zero_frames_is_a_prompt_without_audio(model: Any) -> None:
    """`audio_input_ids` of shape (B, 0, K), what a collator gives for a batch without clips, counts
    as fully decoded.

    The prompt is then thrown away and attention fails on an empty tensor.
    """
    config = model.config
    prompt = torch.tensor(
        [[config.bos_token_id, *TEXT, *ASSISTANT_HEADER, config.audio_bos_token_id]]
    )
    empty = {
        "audio_input_ids": torch.zeros(1, 0, 8, dtype=torch.long),
        "audio_input_ids_mask": torch.ones(1, 0) > 0,
    }
    options = greedy(model, max_new_tokens=3)
    speech = model.generate(prompt, **empty, generation_config=options)
    assert torch.equal(speech, model.generate(prompt, generation_config=options))
