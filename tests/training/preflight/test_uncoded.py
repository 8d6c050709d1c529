"""A GPU that waits for the codec is told of before the first step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import corpus_rows, write_jsonl
from datasets import Dataset
from helpers.sft import heard, sft, warnings_with

from plugins.ms_swift.dataset_loader import FEATURES
from plugins.training.preflight import uncoded

CODES = [[[1] * 8] * 3]
KEY = ["codes#" + "0" * 32]
ROWS: dict[str, dict[str, Any]] = {
    "bare": {"audios": ["a.wav"]},
    "inline": {"audios": ["a.wav"], "audio_codes": CODES},
    "cached": {"audios": ["a.wav"], "audio_code_keys": KEY},
    "codes alone": {"audio_codes": CODES},
    "text": {},
    "bare reference": {"audio_codes": CODES, "reference_audio": ["b.wav"]},
    "coded reference": {
        "audios": ["a.wav"],
        "audio_code_keys": KEY,
        "reference_audio": ["b.wav"],
        "reference_code_keys": KEY,
    },
    "heard by a tower": {"audio_codes": CODES, "reference_codes": CODES},
    "two clips": {"audios": ["a.wav", "b.wav"]},
    "null": {"audios": ["a.wav"], "audio_codes": None, "audio_code_keys": None},
}
UNCODED = {"bare", "bare reference", "two clips", "null"}


def warning_of(*names: str, device: str = "cuda", **options: Any) -> str | None:
    empty: dict[str, Any] = {name: [] for name in FEATURES}
    empty |= {"raw_prompt": False, "speaker": "", "row_source": ""}
    rows = [{**{k: empty.get(k) for k in FEATURES}, **ROWS[name]} for name in names]
    dataset: Any = Dataset.from_list(rows, features=FEATURES)
    for change in options.values():
        dataset = change(dataset)
    args = SimpleNamespace(device=torch.device(device))
    return uncoded.warning(SimpleNamespace(args=args, train_dataset=dataset))


@pytest.mark.parametrize("name", ROWS)
def test_rows_without_codes_are_counted(name: str) -> None:
    warning = warning_of(name, "inline")
    if name in UNCODED:
        assert warning is not None
        assert warning.startswith("1 of 2 rows have clips without codes")
        assert "--encode_codes" in warning
    else:
        assert warning is None


def test_all_of_them_at_once() -> None:
    warning = warning_of(*ROWS)
    assert warning is not None
    assert warning.startswith(f"{len(UNCODED)} of {len(ROWS)} rows ")


def test_rows_of_a_part_are_counted() -> None:
    """As a split for validation leaves them."""
    assert warning_of("inline", "bare", select=lambda table: table.select([0])) is None
    warning = warning_of("inline", "bare", select=lambda table: table.select([1]))
    assert warning is not None
    assert warning.startswith("1 of 1 rows")


def test_a_cpu_a_stream_and_a_table_of_others_are_none() -> None:
    assert warning_of("bare", device="cpu") is None
    assert warning_of("bare", stream=Dataset.to_iterable_dataset) is None
    assert warning_of("bare", other=lambda table: table.select_columns(["messages"])) is None


@pytest.mark.slow
def test_a_training_says_it_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(uncoded, "is_on_gpu", lambda args: True)
    dataset = write_jsonl(tmp_path / "train.jsonl", corpus_rows(2))
    with heard(caplog):
        sft(tiny, dataset, tmp_path / "out", max_steps=1, save_strategy="no")
    (warning,) = warnings_with(caplog, "without codes")
    assert warning.startswith("2 of 2 rows")
