"""Rows for `higgs-audio evaluate`, and the command in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import CORPUS, corpus_rows, write_jsonl

from plugins.cli import main


def rows_to_say(folder: Path, num_rows: int = 3) -> Path:
    """JSONL of two speakers in turn, the first row with a reference."""
    rows = corpus_rows(num_rows)
    for number, row in enumerate(rows):
        row["speaker"] = f"voice{number % 2}"
    rows[0]["reference_audio"] = str(CORPUS / "wavs" / "DEMO-0009.flac")
    rows[0]["reference_text"] = "Some words."
    return write_jsonl(folder / "test.jsonl", rows)


def evaluate(*arguments: Any) -> int:
    """The command's exit code. The tiny model never stops by itself: clips are short."""
    return main(["evaluate", "--device", "cpu", "--max_audio_s", "0.4", *map(str, arguments)])
