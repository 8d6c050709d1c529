"""Every prompt variant has the token ids of the original implementation
(tests/golden/prompts.json).

The golden file is made by tests/golden/make/prompts.py with boson-multimodal 0.1.1. The original
writes one placeholder per clip and <|AUDIO|> for those in a system message, the native layout one
<|AUDIO_OUT|> or delay token per delayed frame. Placeholders have no embedding of their own, so the
maths is equal; they are mapped to one name here."""

import json
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from helpers.prompts import collapsed
from helpers.published import PublishedConfig

from plugins.corpora.canonical import canonical_row
from plugins.data.dialogue import EncodedSample
from plugins.data.prompt import encode
from plugins.data.rows import dialogue_from_row
from plugins.data.tokens import SpecialTokens
from plugins.settings import HiggsAudioSettings

PROMPTS = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))


def variants(*, speaking: bool) -> list[str]:
    return [name for name, golden in PROMPTS.items() if golden["speaking"] == speaking]


@pytest.fixture(scope="session")
def tokens(llama_tokenizer: Any) -> SpecialTokens:
    return SpecialTokens.from_config(PublishedConfig(), llama_tokenizer)


def our_sample(name: str, tokenizer: Any, tokens: SpecialTokens) -> EncodedSample:
    golden = PROMPTS[name]
    # The original cleans texts before it writes the prompt, in its example; the golden rows are as
    # they come.
    settings = HiggsAudioSettings(clean_text=False)
    row = canonical_row(golden["row"], name, settings)
    dialogue = dialogue_from_row(row, settings, training=not golden["speaking"])
    return encode(dialogue, tokenizer, tokens, open_turn=golden["speaking"])


def native_names(ids: list[int], tokenizer: Any, tokens: SpecialTokens) -> list[int]:
    """The original's placeholder of a clip in a system message -> that of every other clip."""
    placeholder = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    return [tokens.audio if token == placeholder else token for token in ids]


def without_clips(labels: list[int], ids: list[int], tokens: SpecialTokens) -> list[int]:
    """Labels at text positions: a placeholder's label is the clip's own affair (audio labels)."""
    kept = []
    for label, token in zip(labels, ids, strict=True):
        if token not in (tokens.audio, tokens.audio_delay):
            kept.append(label)
    return kept


@pytest.mark.parametrize("name", variants(speaking=False))
def test_trained_prompt_equals_the_original(
    name: str, llama_tokenizer: Any, tokens: SpecialTokens
) -> None:
    sample = our_sample(name, llama_tokenizer, tokens)
    input_ids = torch.tensor(sample.input_ids)
    expected = native_names(PROMPTS[name]["input_tokens"], llama_tokenizer, tokens)
    assert collapsed(input_ids, input_ids, tokens) == expected
    expected_labels = without_clips(PROMPTS[name]["label_tokens"], expected, tokens)
    assert without_clips(sample.labels, sample.input_ids, tokens) == expected_labels


@pytest.mark.parametrize("name", variants(speaking=True))
def test_generation_prompt_equals_the_original(
    name: str, llama_tokenizer: Any, tokens: SpecialTokens
) -> None:
    input_ids = torch.tensor(our_sample(name, llama_tokenizer, tokens).input_ids)
    expected = native_names(PROMPTS[name]["input_tokens"], llama_tokenizer, tokens)
    assert collapsed(input_ids, input_ids, tokens) == expected


@pytest.mark.parametrize("name", PROMPTS)
def test_clips_stand_in_the_order_of_the_prompt(
    name: str, llama_tokenizer: Any, tokens: SpecialTokens
) -> None:
    """References first, then targets: a swap of two clips would leave every id as it is."""
    row = PROMPTS[name]["row"]
    clips = our_sample(name, llama_tokenizer, tokens).clips
    assert [clip.T.tolist() for clip in clips] == row.get("reference_codes", []) + row[
        "audio_codes"
    ]
