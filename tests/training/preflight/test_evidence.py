"""Labels, probe and leaks, each alone: planted defects are named, a right set-up is not refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import corpus_rows
from helpers.preflight import (
    Encoded,
    encode_rows,
    one_step_early,
    plant,
    undelayed_frames,
    undelayed_labels,
)

from plugins.model.load import native_model
from plugins.trainer import memorised_codebooks
from plugins.training.preflight.labels import audit
from plugins.training.preflight.leaks import shared_audio
from plugins.training.preflight.probe import OffsetProbe, offset_probe


@pytest.fixture(scope="module")
def encoded(tiny: Path) -> Encoded:
    return encode_rows(tiny)


def test_the_probe_picks_the_next_step_with_delay(learnt: Path, encoded: Encoded) -> None:
    probe = offset_probe(native_model(str(learnt)), encoded.batches(), encoded.tokens)
    assert probe.complaint is None
    assert not probe.random_init
    right = probe.losses.pop(("as trained", 1))
    assert right < 1 < min(probe.losses.values())


@pytest.mark.parametrize(
    ("functions", "cause"),
    [
        (
            {"labels": one_step_early},
            r"labels at \+0, as trained, fit better .*: the labels are shifted by -1",
        ),
        (
            {"labels": undelayed_labels, "frames": undelayed_frames},
            r"labels at \+1, by definition, fit better .*: frames and labels are not delayed",
        ),
    ],
)
def test_the_probe_alone_catches_planted_defects(
    functions: dict[str, Any],
    cause: str,
    learnt: Path,
    encoded: Encoded,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without knowing the definition: the trained weights themselves tell."""
    plant(monkeypatch, **functions)
    complaint = offset_probe(native_model(str(learnt)), encoded.batches(), encoded.tokens).complaint
    assert complaint is not None
    assert re.match(cause, complaint)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda batch, tokens: batch["labels"].fill_(-100),
            "is trained in its text or in its audio only",
        ),
        (
            lambda batch, tokens: batch.update(labels=batch["input_ids"].clone()),
            "position 0, '<|begin_of_text|>', is trained",
        ),
        (
            lambda batch, tokens: batch["labels"].masked_fill_(
                batch["labels"] == tokens.end_of_turn, -100
            ),
            "'<|eot_id|>' of a trained turn has no label",
        ),
        (
            lambda batch, tokens: batch["attention_mask"][0, :3].fill_(0),
            "a mask hides part of the row",
        ),
        (
            lambda batch, tokens: batch["audio_labels"][0, 20].fill_(5),
            "label 5 at frame 20, codebook 0 instead of",
        ),
        (
            lambda batch, tokens: batch["audio_input_ids"][0, 20].fill_(5),
            "frame 20 holds 5 in codebook 0 instead of",
        ),
    ],
)
def test_the_audit_names_each_deviation(
    change: Callable[..., Any],
    complaint: str,
    encoded: Encoded,
) -> None:
    tokens, tokenizer = encoded.tokens, encoded.tokenizer
    sample, batch = encoded.batches()[0]
    assert audit(sample, batch, tokens, tokenizer) == []
    change(batch, tokens)
    assert complaint in audit(sample, batch, tokens, tokenizer)[0]


def test_the_same_audio_in_files_of_other_names_is_found(tmp_path: Path) -> None:
    clips = [row["audios"][0] for row in corpus_rows(3)]
    copy = shutil.copy(clips[0], tmp_path / "other_name.flac")
    assert shared_audio(clips[:2], [clips[2], str(copy)]) == [(clips[0], str(copy))]


@pytest.mark.parametrize(
    ("logs", "mode", "epoch", "expected"),
    [
        ({"loss_audio_cb0": 3.0, "loss_audio_cb1": 0.4}, "train", 0.5, ["loss_audio_cb1"]),
        ({"loss_audio_cb0": 0.4}, "train", 2.0, []),  # learnt by heart, not leaked
        ({"eval_loss_audio_cb0": 0.4}, "eval", 2.0, ["eval_loss_audio_cb0"]),
        ({"loss_text": 0.1}, "train", 0.5, []),
    ],
)
def test_losses_that_no_unseen_speech_has(
    logs: dict[str, float], mode: str, epoch: float, expected: list[str]
) -> None:
    assert list(memorised_codebooks(logs, mode, epoch)) == expected


def probe_of(right: float, others: float, *, entropy: float = 4.0) -> OffsetProbe:
    losses = {
        ("as trained", 0): others,
        ("as trained", 1): right,
        ("without delay", 1): others + 0.01,
    }
    return OffsetProbe(losses, (right,) * 8, entropy, 1000, 6.93, random_init=False)


@pytest.mark.parametrize(
    ("probe", "complains", "is_chance", "is_decisive"),
    [
        # It knows frequencies only: every offset fits alike.
        (probe_of(4.345, 4.340), False, False, False),
        # An untouched audio part beside trained norms of text.
        (probe_of(6.96, 6.95, entropy=6.91), False, False, False),
        # Other speech, or another codec: the loss cannot tell.
        (probe_of(9.7, 10.5), False, True, True),
        (probe_of(7.9, 0.5), True, True, False),
        (probe_of(0.5, 7.9), False, False, True),
    ],
)
def test_verdicts_of_the_probe(
    probe: OffsetProbe, complains: bool, is_chance: bool, is_decisive: bool
) -> None:
    """Training that is right must not be refused because a young model cannot tell."""
    assert (probe.complaint is not None) == complains
    assert (probe.is_chance, probe.is_decisive) == (is_chance, is_decisive)
