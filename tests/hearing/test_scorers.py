"""What is heard without the real scorers' weights, and which scorers are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CORPUS
from helpers.evaluation import evaluate, rows_to_say

from plugins.errors import UserError
from plugins.hearing import scorers


def test_a_silent_share() -> None:
    samples = np.concatenate([np.sin(np.arange(16_000) / 5), np.zeros(48_000)]).astype(np.float32)
    sound = scorers.load_scorers()[0][0]
    assert sound.hear(samples) == {"duration_s": 4.0, "silence": 0.75}


def test_missing_scorers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"distillmos", "webrtcvad", "jiwer"}
    monkeypatch.setattr(scorers, "find_spec", lambda name: None if name in gone else object())
    (sound, dnsmos), (transcript, voice, distillmos) = scorers.load_scorers()
    assert (sound.name, dnsmos.name) == ("sound", "dnsmos")
    assert "jiwer is not installed; run: pip install" in str(transcript)
    assert "webrtcvad is not installed" in str(voice)
    assert "--no-deps resemblyzer==0.1.4" in str(voice)
    assert "distillmos is not installed" in str(distillmos)
    # Nor does it help to have all packages if none hears the language.
    gone.remove("jiwer")
    _, (transcript, *_) = scorers.load_scorers(language="de")
    assert "hears English, not 'de'; give --asr" in str(transcript)


def test_missing_scorers_are_shown_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(scorers, "find_spec", lambda name: None)
    arguments = ["--generated", CORPUS / "wavs", "--dataset", rows_to_say(tmp_path)]
    assert evaluate(*arguments, "--output", tmp_path / "out") == 0
    shown = capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for name in ("transcript", "voice", "dnsmos", "distillmos"):
        assert f"missing: {name}: package" in shown
        assert "run: pip install" in summary["missing"][name]
        assert f"- missing: **{name}** (package" in report
    assert "| DistillMOS | higher | missing | missing |" in report
    assert summary["systems"]["generated"]["scores"]["wer"] is None


def test_models_of_transformers_by_folder(tmp_path: Path) -> None:
    """Real classes with random weights: what they hear is nonsense, but it is heard."""
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        WavLMConfig,
        WavLMForXVector,
    )

    torch.manual_seed(0)
    small: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    }  # fmt: skip
    asr, voice = tmp_path / "asr", tmp_path / "voice"
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4, "c": 5}))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary), pad_token="<pad>", unk_token="<unk>")
    tokenizer.save_pretrained(asr)
    Wav2Vec2ForCTC(Wav2Vec2Config(**small, vocab_size=6)).save_pretrained(asr)
    x_vectors = WavLMConfig(**small, tdnn_dim=(8,) * 5, xvector_output_dim=8)
    WavLMForXVector(x_vectors).save_pretrained(voice)
    for folder in (asr, voice):
        Wav2Vec2FeatureExtractor().save_pretrained(folder)
    loaded, _ = scorers.load_scorers(asr=str(asr), speaker_model=str(voice), language="de")
    by_name = {scorer.name: scorer for scorer in loaded}
    # Also of a clip that is shorter than what the model's last layers look at.
    for num_samples in (800, 32_000):
        samples = np.random.default_rng(0).normal(0, 0.1, num_samples).astype(np.float32)
        assert isinstance(by_name["transcript"].hear(samples), str)
        norm = np.linalg.norm(by_name["voice"].hear(samples))
        assert norm == pytest.approx(scorers.VOICE_UNIT, rel=1e-3)
    assert by_name["voice"].identity.startswith(f"voice {scorers.fingerprint(voice)}")
    with pytest.raises(UserError, match="asr: 'gone' is neither a folder nor a Hub id"):
        scorers.load_scorers(asr="gone")


def test_a_fingerprint_is_of_the_model_and_not_of_what_lies_beside_it(
    tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "other name"))
    before = scorers.fingerprint(tiny)
    state = ("trainer_state.json", "optimizer.pt", "rng_state_0.pth")
    for name in (*state, "summary.json", "README.md"):
        (folder / name).write_text("{}")
    assert scorers.fingerprint(folder) == before
    # One byte of the same size: dates and sizes are not trusted.
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert scorers.fingerprint(folder) != before
