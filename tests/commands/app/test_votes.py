"""Blind comparisons: nobody knows the sides, every vote is kept."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from plugins.commands.app import votes
from plugins.commands.app.votes import EQUAL, A, B, Pair, keep, next_pair, read, result
from plugins.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for system, items in {"base": "123", "tuned": "234", "empty": ""}.items():
        (tmp_path / votes.AUDIO / system).mkdir(parents=True)
        for item in items:
            (tmp_path / votes.AUDIO / system / f"{item}.wav").touch()
    (tmp_path / "items.jsonl").write_text(json.dumps({"id": "2", "text": "Two, says she."}) + "\n{")
    return tmp_path


def pair(folder: Path) -> Pair:
    found = next_pair(folder, "base", "tuned", voter="ann")
    assert found is not None
    return found


def test_pairs_are_of_both_and_sides_are_thrown(folder: Path) -> None:
    assert votes.systems(folder) == ["base", "tuned"]
    pairs = [pair(folder) for _ in range(60)]
    assert {one.item for one in pairs} == {"2", "3"}
    assert {(one.a, one.b) for one in pairs} == {("base", "tuned"), ("tuned", "base")}
    assert {one.text for one in pairs} == {"Two, says she.", ""}
    for one in pairs[:5]:
        assert one.audio(A).parent.name == one.a
        assert one.audio(B).parent.name == one.b
    with pytest.raises(UserError, match="systems: 'base' is there twice; choose two that differ"):
        next_pair(folder, "base", "base", voter="")
    assert next_pair(folder, "base", "empty", voter="") is None


def test_who_has_judged_one_hears_another(folder: Path) -> None:
    first = pair(folder)
    keep(first, A, voter="ann")
    assert {pair(folder).item for _ in range(20)} == {"2", "3"} - {first.item}
    keep(pair(folder), EQUAL, voter="ann")
    assert {pair(folder).item for _ in range(30)} == {"2", "3"}, "all again"


def test_votes_are_csv_with_the_sides(folder: Path) -> None:
    for vote, voter in ((A, "ann"), (B, 'Bob, "B"\nnext'), (EQUAL, "")):
        keep(Pair("2", "", "tuned", "base", folder), vote, voter=voter)
    with (folder / votes.VOTES).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["better"] for row in rows] == ["tuned", "base", ""]
    assert rows[1]["voter"] == 'Bob, "B"\nnext'
    assert [(row["a"], row["b"]) for row in rows] == [("tuned", "base")] * 3
    assert result(folder) == [("base", "tuned", 1, 1, 1, 1.0)]


def test_a_line_that_was_cut_off_costs_no_other(folder: Path) -> None:
    one = Pair("2", "", "tuned", "base", folder)
    keep(one, A, voter="ann")
    with (folder / votes.VOTES).open("a") as file:
        file.write("2026-01-01,ann,2,tun")
    keep(one, B, voter="ann")
    assert [vote["better"] for vote in read(folder)] == ["tuned", "base"]


def test_a_full_disk_leaves_no_half_vote(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Pair("2", "", "tuned", "base", folder)
    keep(one, A, voter="ann")
    before = (folder / votes.VOTES).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        keep(one, B, voter="ann")
    assert (folder / votes.VOTES).read_bytes() == before


def _vote(folder: Path, number: int) -> None:
    for _ in range(20):
        keep(Pair("2", "", "tuned", "base", folder), A, voter=str(number))


def test_two_pages_write_at_once(folder: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    pages = [context.Process(target=_vote, args=(folder, number)) for number in range(3)]
    for page in pages:
        page.start()
    for page in pages:
        page.join()
    assert Counter(vote["voter"] for vote in read(folder)) == {"0": 20, "1": 20, "2": 20}
    assert (folder / votes.VOTES).read_text().count("time,") == 1


@pytest.mark.parametrize(("wins", "losses", "p"), [
    (0, 0, 1.0), (5, 5, 1.0), (5, 0, 0.0625), (9, 1, 22 / 1024), (1, 9, 22 / 1024),
])  # fmt: skip
def test_the_sign_test_is_exact(wins: int, losses: int, p: float) -> None:
    assert votes.sign_test(wins, losses) == pytest.approx(p)
