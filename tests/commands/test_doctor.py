"""`higgs-audio doctor`: a healthy set-up passes, each of eleven sabotaged ones is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CORPUS, corpus_rows, write_jsonl
from helpers.preflight import (
    NUM_ROWS,
    ToFrames,
    no_eos,
    one_step_early,
    plant,
    undelayed_frames,
    undelayed_labels,
    voices_that_copy_targets,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from plugins.audio import waveforms as audio
from plugins.audio.codec import CODEC_FOLDER, Codec
from plugins.cli import main


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("rows") / "train.jsonl", corpus_rows(NUM_ROWS))


def doctor(
    capsys: pytest.CaptureFixture[str], model: Path, rows: Path, *more: str
) -> tuple[int, str]:
    code = main(["doctor", "--model", str(model), "--dataset", str(rows), *more])
    return code, capsys.readouterr().out


def test_a_healthy_set_up_passes(
    learnt: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validation = write_jsonl(tmp_path / "val.jsonl", corpus_rows(5)[NUM_ROWS:])
    code, out = doctor(capsys, learnt, rows, "--val_dataset", str(validation), "--dry_run")
    assert code == 0, out
    passed = [
        "environment",
        "checkpoint",
        "dataset",
        "validation",
        "codec",
        "prompts",
        "labels",
        "offset probe",
        "texts",
    ]
    for check in passed:
        assert f"ok      {check}: " in out, out
    # These rows are what it was trained on.
    (warning,) = [line for line in out.splitlines() if line.startswith("warning")]
    assert "known by heart" in warning
    assert "trained weights" in out
    assert ">><|audio_out_bos|><<[clip 1: " in out, "the dry run marks what is trained"


def test_random_weights_are_recognised_and_only_reported(
    tiny: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = doctor(capsys, tiny, rows)
    assert code == 0, out
    assert "info    offset probe: random weights (every norm is 1): nothing can be told" in out


def test_clips_below_16_khz_are_warned_of(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = corpus_rows(2)
    audio.save_wav(
        tmp_path / "low.wav", audio.load(rows[1]["audios"][0], sample_rate_hz=8000), 8000
    )
    rows[1]["audios"] = ["low.wav"]
    code, out = doctor(capsys, tiny, write_jsonl(tmp_path / "train.jsonl", rows))
    assert code == 0, out
    warning = "warning sample rates: 1 clips have a sample rate below 16 kHz, the least for this"
    assert f"{warning} model ({tmp_path}/train.jsonl:2: {tmp_path}/low.wav, 8000 Hz)" in out


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00\x01",
        b"\x89PNG\r\n\x1a\n\x00",
        "model: x".encode("utf-16"),
        b"model: \x00",
        b"a: 2026-99-99",
        b"{" * 20_000,
        b"- 1",
        b"",
        b"a: !!python/object:os.system {}",
        b"a: *b",
        b"\tmodel: x",
    ],
)
def test_a_config_that_is_no_yaml_is_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    assert main(["doctor", "--config", str(path)]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert f"config: '{path}' " in error[0]
    assert len(error[0]) < 500


# Takes (learnt, tmp_path, monkeypatch), returns (model folder, rows, further flags).
Sabotage = Callable[[Path, Path, pytest.MonkeyPatch], tuple[Path, list[dict[str, Any]], list[str]]]


def edited_config(**changes: Any) -> Sabotage:
    def sabotage(learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        folder = tmp_path / "model"
        shutil.copytree(learnt, folder)
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        values |= {name: change(values[name]) for name, change in changes.items()}
        (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
        return folder, corpus_rows(NUM_ROWS), []

    return sabotage


def missing_text_head(learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "model"
    shutil.copytree(learnt, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["text_lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, corpus_rows(NUM_ROWS), []


def with_given_codes(change: Callable[[Codec, str], Tensor]) -> Sabotage:
    """Rows that bring codes beside their clips."""

    def sabotage(learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        codec = Codec(str(learnt / CODEC_FOLDER))
        rows = corpus_rows(NUM_ROWS)
        for row in rows:
            row["audio_codes"] = [change(codec, row["audios"][0]).T.tolist()]
        return learnt, rows, []

    return sabotage


def at_16_khz(codec: Codec, path: str) -> Tensor:
    return codec.encode(audio.load(path, sample_rate_hz=16_000))


def wrong_codec(learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from demo.tiny import build_codec

    torch.manual_seed(7)
    waveforms = [
        audio.load(path, sample_rate_hz=24_000) for path in sorted(CORPUS.glob("wavs/*.flac"))[:4]
    ]
    build_codec(waveforms).save_pretrained(tmp_path / "codec")
    return learnt, corpus_rows(NUM_ROWS), ["--codec", str(tmp_path / "codec")]


def prompt_drift(learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return learnt, corpus_rows(NUM_ROWS, raw_prompt=True), []


def reference_is_target(learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return learnt, voices_that_copy_targets(tmp_path), []


def planted(**functions: ToFrames) -> Sabotage:
    def sabotage(learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        plant(monkeypatch, **functions)
        return learnt, corpus_rows(NUM_ROWS), []

    return sabotage


SABOTAGES: dict[str, tuple[Sabotage, str]] = {
    "codebook_size": (
        edited_config(codebook_size=lambda size: 1024),
        "codebook_size: 1024 leaves no room for stream",
    ),
    "shifted_ids": (
        edited_config(audio_token_id=lambda token: token + 1),
        "'<|AUDIO_OUT|>' has id",
    ),
    "shuffled_codes": (
        with_given_codes(lambda codec, path: codec.encode_file(path).flip(0)),
        "audio_codes: 'codes of ",
    ),
    "no_text_head": (missing_text_head, "'text_lm_head.weight' is missing"),
    "wrong_codec": (
        wrong_codec,
        "no better than chance (6.93): these codes are not those that the model was trained",
    ),
    "codes_of_16_khz": (with_given_codes(at_16_khz), "frames for a clip of"),
    "prompt_drift": (
        prompt_drift,
        "3 of 3 rows are trained with a prompt that `generate` will not use",
    ),
    "reference_is_target": (reference_is_target, "voice0.flac' has the same content as the target"),
    "no_eos": (
        planted(labels=no_eos),
        "[0, 0, 0, 0, 0, 0, 0, 0] stream-EOS labels per codebook instead of one",
    ),
    "undelayed": (
        planted(labels=undelayed_labels, frames=undelayed_frames),
        "its frames are not delayed",
    ),
    "off_by_one": (planted(labels=one_step_early), "its labels are shifted by -1"),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_sabotage_is_named(
    name: str,
    learnt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sabotage, cause = SABOTAGES[name]
    model, rows, more = sabotage(learnt, tmp_path, monkeypatch)
    code, out = doctor(capsys, model, write_jsonl(tmp_path / "rows.jsonl", rows), *more)
    failed = [line for line in out.splitlines() if line.startswith("failed")]
    assert code == 1
    assert any(cause in line for line in failed), out


def test_clips_with_other_texts_are_noticed(
    learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A metadata table that slipped by one row."""
    rows = corpus_rows(NUM_ROWS)
    texts = [row["messages"][1]["content"] for row in rows]
    for row, text in zip(rows, [*texts[1:], texts[0]], strict=True):
        row["messages"][1]["content"] = text
    _, out = doctor(capsys, learnt, write_jsonl(tmp_path / "rows.jsonl", rows))
    assert "warning texts: " in out
    assert "are texts and clips paired as they should be?" in out


def test_the_doctor_reads_the_yaml_file_of_a_run(
    tiny: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Model, data and settings come from there, and the memory that it needs is estimated."""
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {tiny}\ndataset: {rows}\nmodel_kwargs:\n  max_audio_length: 10\n", encoding="utf-8"
    )
    assert main(["doctor", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "codec frames, more than max_audio_length 10" in out
    assert re.search(r"info    memory: about 1\.\d GiB per device, estimated", out)
    assert "CUDA context" in out


@pytest.mark.parametrize(
    ("more", "expected"), [("", 31), ("packing: true\nmax_length: 512\n", 179)]
)
def test_written_answers_are_in_the_estimate(
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: str,
    expected: int,
) -> None:
    """Of a row the text that it trains; of a pack what its densest rows, 31 of 89 positions, would
    fill it with."""
    answer = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "0123456789" * 3}]
    rows = write_jsonl(tmp_path / "rows.jsonl", [*corpus_rows(1), {"messages": answer}])
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {tiny}\ndataset: {rows}\n{more}", encoding="utf-8")
    main(["doctor", "--config", str(config)])
    assert f"; {expected} trained text tokens a row" in capsys.readouterr().out


def test_the_doctor_needs_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--dataset", "a.jsonl"]) == 1
    assert "--model is missing; give it, or a --config that names it" in capsys.readouterr().err
    assert main(["doctor", "--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml' not found (looked in" in capsys.readouterr().err
