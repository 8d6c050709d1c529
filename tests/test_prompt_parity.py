"""Every prompt variant has the token ids of the original implementation (tests/golden/prompts.json).

The golden file is made by benchmarks/parity/prompts.py with boson-multimodal 0.1.1. The original writes one placeholder
per clip, and other names for clips in a system message; the native layout has one placeholder per delayed frame and
one pair of names. The maths is equal, so both are mapped here.
"""

import json
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from test_collator import collapsed
from test_prompt import PublishedConfig

from plugins.prompt import EncodedSample, encode
from plugins.rows import canonical_row, dialogue_from_row
from plugins.settings import HiggsAudioSettings
from plugins.tokens import SpecialTokens

PROMPTS = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))

NO_SYSTEM_TURN = (
    "the original's example writes no system turn for references without scene, rows._normalise_system always writes "
    "the instruction; the original's prompt needs raw_prompt"
)
DIFFERENCES = {
    "clone": NO_SYSTEM_TURN,
    "speaking_clone": NO_SYSTEM_TURN,
    "speakers_clone": NO_SYSTEM_TURN,
    "speakers_missing_system": (
        "the original's example adds a scene with alternating voices, rows._normalise_system only the instruction"
    ),
    "speakers_in_system_mixed": (
        "prompt._system_parts knows no voice in words: it starts a new paragraph and counts from SPEAKER0"
    ),
}


def variants(*, speaking: bool) -> list[Any]:
    return [
        pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=DIFFERENCES[name]))
        if name in DIFFERENCES
        else name
        for name, golden in PROMPTS.items()
        if golden["speaking"] == speaking
    ]


@pytest.fixture(scope="session")
def tokens(llama_tokenizer: Any) -> SpecialTokens:
    return SpecialTokens.from_config(PublishedConfig(), llama_tokenizer)


def our_sample(name: str, tokenizer: Any, tokens: SpecialTokens) -> EncodedSample:
    golden = PROMPTS[name]
    settings = HiggsAudioSettings()
    row = canonical_row(golden["row"], name, settings)
    dialogue = dialogue_from_row(row, settings, training=not golden["speaking"])
    return encode(dialogue, tokenizer, tokens, open_turn=golden["speaking"])


def native_names(ids: list[int], tokenizer: Any, tokens: SpecialTokens) -> list[int]:
    """The original's ids of a clip in a system message -> those of every other clip."""
    names = {"<|audio_bos|>": tokens.audio_bos, "<|AUDIO|>": tokens.audio}
    native = {tokenizer.convert_tokens_to_ids(name): token for name, token in names.items()}
    return [native.get(token, token) for token in ids]


def without_clips(labels: list[int], ids: list[int], tokens: SpecialTokens) -> list[int]:
    """Labels at text positions: a placeholder's label is the clip's own affair (audio labels)."""
    return [label for label, token in zip(labels, ids, strict=True) if token not in (tokens.audio, tokens.audio_delay)]


@pytest.mark.parametrize("name", variants(speaking=False))
def test_trained_prompt_equals_the_original(name: str, llama_tokenizer: Any, tokens: SpecialTokens) -> None:
    sample = our_sample(name, llama_tokenizer, tokens)
    input_ids = torch.tensor(sample.input_ids)
    expected = native_names(PROMPTS[name]["input_tokens"], llama_tokenizer, tokens)
    assert collapsed(input_ids, input_ids, tokens) == expected
    expected_labels = without_clips(PROMPTS[name]["label_tokens"], expected, tokens)
    assert without_clips(sample.labels, sample.input_ids, tokens) == expected_labels


@pytest.mark.parametrize("name", variants(speaking=True))
def test_generation_prompt_equals_the_original(name: str, llama_tokenizer: Any, tokens: SpecialTokens) -> None:
    input_ids = torch.tensor(our_sample(name, llama_tokenizer, tokens).input_ids)
    expected = native_names(PROMPTS[name]["input_tokens"], llama_tokenizer, tokens)
    assert collapsed(input_ids, input_ids, tokens) == expected


@pytest.mark.parametrize("name", PROMPTS)
def test_clips_stand_in_the_order_of_the_prompt(name: str, llama_tokenizer: Any, tokens: SpecialTokens) -> None:
    """References first, then targets: a swap of two clips would leave every id as it is."""
    row = PROMPTS[name]["row"]
    clips = our_sample(name, llama_tokenizer, tokens).clips
    assert [clip.T.tolist() for clip in clips] == row.get("reference_codes", []) + row["audio_codes"]
