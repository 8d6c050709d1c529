"""Rows of whatever JSON can spell: read, or refused by file and line; and codes that are none of
the model's, wherever they come from."""

from __future__ import annotations

import copy
import json
import random
import sqlite3
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CORPUS, write_jsonl

from plugins.audio.code_cache import CacheWriter
from plugins.audio.codec import Codec
from plugins.corpora.canonical import RowError, canonical_row, parse_row
from plugins.corpora.jsonl import read_jsonl
from plugins.data.clips import check_clips, with_clips
from plugins.data.dialogue import AudioClip, Dialogue, Turn
from plugins.data.rows import dialogue_from_row
from plugins.data.sources import read_rows
from plugins.errors import UserError
from plugins.settings import HiggsAudioSettings

A, B = (str(CORPUS / "wavs" / f"DEMO-000{i}.flac") for i in (1, 2))
SETTINGS = HiggsAudioSettings()
KEY = "0" * 32
FRAME = [1] * 8
GOOD: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "<|scene_desc_start|> Quiet <|scene_desc_end|>"},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": [{"type": "audio", "audio": A}], "loss": True},
    ],
    "reference_audio": [B],
    "reference_text": ["Glue."],
    "reference_codes": [[FRAME] * 55],
    "speaker": "ann",
    "raw_prompt": False,
    "id": "one",
}
VALUES = [
    None, True, -1, 0, 10**400, 1.5, 1e300, float("nan"), "", " ", "x", "a\0b", "\u2028", "<audio>",
    f"a\0b#{KEY}", f"codes#{KEY}", "/", "~", "..", "x" * 5000, "https://x/y.wav", [], [0], [[]],
    [None], [""], ["a\0"], [[[1024] * 8]], [[[True] * 8]], [[[None] * 8]], [[FRAME, [1]]], {},
    {"type": []}, [{"type": []}], [{"type": "audio", "audio": []}], [{"role": []}], {"role": {}},
    {"a\0": 1},
]  # fmt: skip
LINES = [
    r'{"messages": "\ud83d"}',
    r'{"\udc00": 1}',
    '{"messages": [{"role": [], "content": "a"}]}',
    '{"messages": [{"role": {}, "content": "a"}]}',
    '{"messages": [{"role": "user", "content": [{"type": []}]}]}',
    '{"messages": [{"role": "user", "content": {"type": []}}]}',
    '{"a\\u0000b": 1}',
    '{"messages\\u0000": []}',
    "[" * 200_000,
    '{"messages": ' + "[" * 900 + "]" * 900 + "}",
    '{"id": ' + "9" * 6000 + "}",
    '{"duration_s": 1e999, "messages": []}',
    '{"audio_codes": [[[' + "9" * 4000 + "]]]}",
    "",
    "null",
    '"x"',
    "{}",
    "\ufeff{}",
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every list and object of `value` with each of its places."""
    found: list[tuple[Any, Any]] = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for name, entry in pairs:
        found.append((value, name))
        if isinstance(entry, dict | list):
            found += places(entry)[:40]  # not each code
    return found


def changed(draw: random.Random) -> dict[str, Any]:
    row = copy.deepcopy(GOOD)
    for _ in range(draw.choice([1, 1, 2])):
        place, name = draw.choice(places(row))
        place[name] = draw.choice(VALUES)
    return row


def test_any_row(tmp_path: Path) -> None:
    draw = random.Random(0)
    path = write_jsonl(tmp_path / "rows.jsonl", [changed(draw) for _ in range(400)])
    with pytest.raises(UserError) as raised:
        read_rows(
            str(path), SETTINGS, check=lambda each: check_clips(each, SETTINGS), max_problems=400
        )
    lines = str(raised.value).split("\n")
    assert len(lines) > 200
    for line in lines:
        assert line.startswith(f"{path}:"), line
        assert "; " in line
    for entry in read_jsonl(tmp_path, path):
        assert entry.place.startswith(f"{path}:")


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_any_line(line: str, tmp_path: Path) -> None:
    with pytest.raises((RowError, UserError)):
        dialogue_from_row(canonical_row(parse_row(line), "t.jsonl:1", SETTINGS), SETTINGS)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"^{path}(:2)?: "):
        read_rows(str(path), SETTINGS, check=lambda _: None)


# Codes. 1024 and 1025 begin and end a stream, 5000 and -7 are none at all.

OUTSIDE = [1024, 1025, 5000, -7, 32_767, -32_768]


@pytest.mark.parametrize("code", OUTSIDE)
@pytest.mark.parametrize("column", ["audio_codes", "reference_codes"])
@pytest.mark.parametrize("is_cached", [True, False])
def test_codes_outside_of_the_codebooks(
    is_cached: bool, column: str, code: int, tmp_path: Path
) -> None:
    codes = np.ones((8, 55), np.int16)
    codes[3, 20] = code
    entry: Any = codes.T.tolist()
    if is_cached:
        write_cache(tmp_path / "codes", codes)
        entry = f"codes#{KEY}"
    row = {"messages": GOOD["messages"], "reference_audio": [B], column: [entry]}
    with pytest.raises(
        UserError, match=rf"^t\.jsonl:7: {column}\[0\]: {code} is outside 0\.\.1023"
    ):
        dialogue_from_row(canonical_row(row, "t.jsonl:7", SETTINGS, beside=tmp_path), SETTINGS)


@pytest.mark.parametrize(
    "entry",
    [
        f"a\0b#{KEY}", f"\ud800#{KEY}", f"{'x' * 5000}#{KEY}", f"{'a/' * 3000}#{KEY}", f"#{KEY}",
        f"/dev/null#{KEY}", f"~#{KEY}", "\0", "x", [[True] * 8], [[2**63] * 8], [[10**400] * 8],
        [[1.0] * 8], [["1"] * 8], {"a": 1}, 5,
    ],
)  # fmt: skip
@pytest.mark.parametrize("column", ["audio_codes", "reference_codes"])
@pytest.mark.parametrize("root", [None, "/tmp"])
def test_entries_that_are_no_codes(root: str | None, column: str, entry: Any) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]
    settings = HiggsAudioSettings(audio_root=root)
    with pytest.raises(UserError, match=r"^t\.jsonl:7: "):
        dialogue_from_row(
            canonical_row({"messages": messages, column: [entry]}, "t.jsonl:7", settings), settings
        )


def write_cache(folder: Path, codes: np.ndarray) -> None:
    """As a program might that does not look at what it writes."""
    with CacheWriter(folder, codec="codec") as writer:
        writer.add(KEY, np.zeros((8, 1), np.int16))
        writer.commit()
    content = codes.astype("<i2").tobytes()
    with sqlite3.connect(folder / "codes.sqlite") as file:
        file.execute(
            "UPDATE clips SET codes = ?, crc32_of_codes = ?", (content, zlib.crc32(content))
        )


@pytest.mark.parametrize("code", OUTSIDE)
def test_codes_of_a_codec_that_is_not_the_models(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 2048 codes, say: clips that bring no codes are encoded by it in mid-training."""

    class Tokens:
        tower = None

    def encode_file(self: Codec, path: str) -> torch.Tensor:
        return torch.full((8, 55), code)

    monkeypatch.setattr(Codec, "encode_file", encode_file)
    dialogue = Dialogue((Turn("assistant", (AudioClip(A),)),), source="t.jsonl:7")
    with pytest.raises(UserError, match=rf"^t\.jsonl:7: codec mine: {code} is outside 0\.\.1023; "):
        with_clips(dialogue, Codec("mine"), Tokens())  # type: ignore[arg-type]


def test_line_of_a_row_is_json_to_the_end() -> None:
    assert parse_row(json.dumps(GOOD) + "\r") == GOOD
