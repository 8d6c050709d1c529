"""Blind comparison of two systems of an evaluation: pairs to hear, and votes that are kept.

FOLDER/audio/SYSTEM/ID.wav --pairs--> two sides, thrown anew for each pair --vote--> votes.csv, a
line per vote, on the disk before the next pair is heard. Which side was whose stands in the line.
Knows no Gradio."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import math
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from plugins.errors import problem

VOTES, AUDIO = "votes.csv", "audio"
COLUMNS = ("time", "voter", "item", "a", "b", "vote", "better")
A, B, EQUAL = "a", "b", "equal"
_EVALUATION = "items.jsonl"


@dataclass(frozen=True)
class Pair:
    """What is heard: `a` and `b` are systems."""

    item: str
    text: str
    a: str
    b: str
    folder: Path

    def audio(self, side: str) -> Path:
        system = self.a if side == A else self.b
        return self.folder / AUDIO / system / f"{self.item}.wav"


def systems(folder: Path) -> list[str]:
    """Those of an evaluation that have clips."""
    place = folder / AUDIO
    if not place.is_dir():
        return []
    return sorted(path.name for path in place.iterdir() if any(path.glob("*.wav")))


def next_pair(folder: Path, first: str, second: str, *, voter: str) -> Pair | None:
    """Of items that both have said, one that `voter` has judged least often, drawn; None if there
    is none. Raises UserError for one system twice."""
    if first == second:
        raise problem(
            source="page",
            field="systems",
            value=first,
            reason="is there twice",
            remedy="choose two that differ",
        )
    common = _items(folder, first) & _items(folder, second)
    if not common:
        return None
    judged: Counter[str] = Counter()
    for vote in read(folder):
        if vote["voter"] == voter and {vote["a"], vote["b"]} == {first, second}:
            judged[vote["item"]] += 1
    least = min(judged[item] for item in common)
    item = random.choice(sorted(item for item in common if judged[item] == least))
    a, b = random.sample((first, second), 2)
    return Pair(item, _texts(folder).get(item, ""), a, b, folder)


def keep(pair: Pair, vote: str, *, voter: str) -> None:
    """Append the vote (A, B or EQUAL) and return when it is on the disk."""
    better = {A: pair.a, B: pair.b, EQUAL: ""}[vote]
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    path = pair.folder / VOTES
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of two pages one at a time writes
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            writer.writerow(COLUMNS)
        elif not path.read_bytes().endswith(b"\n"):  # cut off by a full disk or a power cut
            text.write("\n")
        writer.writerow([now, voter, pair.item, pair.a, pair.b, vote, better])
        try:
            file.write(text.getvalue().encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            # Half a line would be a wrong vote.
            with suppress(OSError):
                os.truncate(path, size)
            raise


def read(folder: Path) -> list[dict[str, str]]:
    """Whole lines only."""
    path = folder / VOTES
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="", errors="replace") as file:
        votes = []
        for row in csv.DictReader(file):
            if row.get("vote") in (A, B, EQUAL) and None not in row.values():
                votes.append({name: str(row[name]) for name in COLUMNS})
        return votes


def result(folder: Path) -> list[tuple[str, str, int, int, int, float]]:
    """For each two systems: their names, votes for either, for neither, and how likely a preference
    so clear is if there is none (two-sided sign test)."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for vote in read(folder):
        a, b = vote["a"], vote["b"]
        one, two = min(a, b), max(a, b)
        counts.setdefault((one, two), Counter())[vote["better"]] += 1
    lines = []
    for (one, two), votes in sorted(counts.items()):
        wins, losses = votes[one], votes[two]
        lines.append((one, two, wins, losses, votes[""], sign_test(wins, losses)))
    return lines


def sign_test(wins: int, losses: int) -> float:
    """p of at least so many more votes for one of two that are equal."""
    total, most = wins + losses, max(wins, losses)
    tail = sum(math.comb(total, k) for k in range(most, total + 1)) / 2**total
    return min(1.0, 2 * tail)


def _items(folder: Path, system: str) -> set[str]:
    return {path.stem for path in (folder / AUDIO / system).glob("*.wav")}


def _texts(folder: Path) -> dict[str, str]:
    """Id -> what was to be said."""
    texts = {}
    for row in _rows(folder):
        with suppress(LookupError):
            texts[str(row["id"])] = str(row["text"])
    return texts


def cut(folder: Path) -> set[tuple[str, str]]:
    """Item and system of the clips that did not end by themselves."""
    clips = set()
    for row in _rows(folder):
        with suppress(LookupError, TypeError, AttributeError):
            for system, scores in row["systems"].items():
                if scores["stopped"] == 0:
                    clips.add((str(row["id"]), str(system)))
    return clips


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Of the evaluation; lines that are damaged are none."""
    with suppress(OSError, UnicodeDecodeError):
        for line in (folder / _EVALUATION).read_text(encoding="utf-8").split("\n"):
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row
