"""Batches: literal tensors, and equality with the collator of the original implementation
(tests/golden)."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from helpers.prompts import collapsed
from helpers.published import PublishedConfig

from plugins.collator import collate
from plugins.corpora.canonical import canonical_row
from plugins.data.dialogue import EncodedSample
from plugins.data.prompt import encode
from plugins.data.rows import dialogue_from_row
from plugins.data.tokens import SpecialTokens
from plugins.settings import HiggsAudioSettings

# Per case: the turns and codes that the original was given.
META = json.loads((GOLDEN / "collator" / "meta.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tokens(llama_tokenizer: Any) -> SpecialTokens:
    return SpecialTokens.from_config(PublishedConfig(), llama_tokenizer)


def tiny_tokens() -> SpecialTokens:
    return SpecialTokens(
        begin_of_text=1, header_start=2, header_end=3, end_of_turn=4, end_of_message=11,
        scene_start=5, scene_end=6, audio_bos=7, reference_bos=-1, audio_eos=8,
        audio=9, audio_delay=10, pad=0, stream_bos=98, stream_eos=99,
        num_codebooks=2, codebook_size=100,
    )  # fmt: skip


def spoken(num_frames: int, *, trained: bool = True) -> EncodedSample:
    codes = torch.arange(2 * num_frames).view(2, num_frames)
    # K = 2: F + 2 placeholders and K - 1 of the delay, between BOS and EOS of the audio.
    ids = [1, 7, *[9] * (num_frames + 2), 10, 8]
    return EncodedSample(ids, [-100, 7, *[-100] * (num_frames + 3), 8], [codes], [trained])


def test_literal_batch_of_unequal_lengths_with_a_text_only_row() -> None:
    text_only = EncodedSample([1, 50, 4], [-100, 50, 4])
    batch = collate([spoken(2), spoken(1, trained=False), text_only], tiny_tokens(), training=True)
    assert batch["input_ids"].tolist() == [
        [1, 7, 9, 9, 9, 9, 10, 8],
        [1, 7, 9, 9, 9, 10, 8, 0],
        [1, 50, 4, 0, 0, 0, 0, 0],
    ]
    assert batch["attention_mask"].sum(1).tolist() == [8, 7, 3]
    assert batch["labels"][2].tolist() == [-100, 50, 4, *[-100] * 5]
    assert batch["audio_input_ids"].tolist() == [
        [[98, 98], [0, 98], [1, 2], [99, 3], [99, 99]],
        [[98, 98], [0, 98], [99, 1], [99, 99], [99, 99]],
        [[99, 99]] * 5,
    ]
    assert batch["audio_input_ids_mask"].tolist() == [[True] * 5, [True] * 4 + [False], [False] * 5]
    assert batch["audio_labels"][0].tolist() == [
        [-100, -100],
        [0, -100],
        [1, 2],
        [99, 3],
        [-100, 99],
    ]
    assert (batch["audio_labels"][1:] == -100).all(), "an untrained reference clip has no labels"


def test_generation_pads_on_the_left_and_has_no_labels() -> None:
    batch = collate([spoken(2), spoken(1)], tiny_tokens(), training=False)
    assert "labels" not in batch
    assert "audio_labels" not in batch
    assert batch["input_ids"][1].tolist() == [0, 1, 7, 9, 9, 9, 10, 8]
    assert batch["attention_mask"][1].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]


def test_batch_without_audio_keeps_its_names() -> None:
    """Every rank must run the same code: a text-only batch has empty audio tensors, not missing
    ones."""
    batch = collate([EncodedSample([1, 50, 4], [-100, 50, 4])], tiny_tokens(), training=True)
    assert batch["audio_input_ids"].shape == (1, 0, 2)
    assert batch["audio_labels"].shape == (1, 0, 2)


def test_placeholders_that_do_not_match_the_frames_name_the_row() -> None:
    """The native model accepts surplus frames in silence and then trains shifted audio."""
    sample = spoken(2)
    codes = torch.zeros(2, 3, dtype=torch.long)  # one frame more than there are placeholders for
    broken = EncodedSample(sample.input_ids, sample.labels, [codes], [True], "train.jsonl:7")
    complaint = r"train\.jsonl:7: clips take \[6\] frames but the prompt has \[5\]"
    with pytest.raises(AssertionError, match=complaint):
        collate([broken], tiny_tokens(), training=True)


def golden_sample(name: str, tokenizer: Any, tokens: SpecialTokens) -> EncodedSample:
    """The sample of a golden case, through our own rows and prompt."""
    case = META[name]
    messages: list[dict[str, Any]] = []
    for i, (role, content) in enumerate(case["turns"]):
        message = {"role": role, "content": ""}  # speech, unless it has a text
        if isinstance(content, str):
            message["content"] = content
        if case["start_index"] is not None and i < case["start_index"]:
            message["loss"] = False  # the original trains from there on
        messages.append(message)
    codes = [np.array(clip).T.tolist() for clip in case["codes"]]  # (K, F) -> (F, K) per clip
    row = canonical_row({"messages": messages, "audio_codes": codes}, name, HiggsAudioSettings())
    return encode(dialogue_from_row(row, HiggsAudioSettings()), tokenizer, tokens)


@pytest.mark.parametrize(
    ("file", "members"),
    [
        ("plain", ["plain"]),
        ("scene", ["scene"]),
        ("clone_last", ["clone_last"]),
        ("multi", ["multi"]),
        ("batch_plain_clone", META["batch_plain_clone"]["members"]),
    ],
)
def test_equals_the_original_collator(
    file: str, members: list[str], llama_tokenizer: Any, tokens: SpecialTokens
) -> None:
    golden = np.load(GOLDEN / "collator" / f"{file}.npz")
    samples = [golden_sample(member, llama_tokenizer, tokens) for member in members]
    batch = collate(samples, tokens, training=True)
    for row in range(len(samples)):
        # The two pad to other lengths.
        real = batch["attention_mask"][row].bool()
        ids, labels = batch["input_ids"][row][real], batch["labels"][row][real]
        golden_real = golden["attention_mask"][row].astype(bool)
        golden_ids = golden["input_ids"][row][golden_real].tolist()
        golden_labels = golden["label_ids"][row][golden_real].tolist()
        assert collapsed(ids, ids, tokens) == golden_ids
        assert collapsed(labels, ids, tokens) == golden_labels
    # The original has codebooks first, and no padding: (K, frames of all clips).
    mask = batch["audio_input_ids_mask"]
    assert batch["audio_input_ids"][mask].T.tolist() == golden["audio_out_ids"].tolist()
    assert batch["audio_labels"][mask].T.tolist() == golden["label_audio_ids"].tolist()
