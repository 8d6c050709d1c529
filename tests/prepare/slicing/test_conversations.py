"""``--dialogues``: conversations -> rows of several turns.

The words are known here (`joined.KnowingRecogniser`); test_conversations_speech.py hears them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from helpers.joined import RATE_HZ, KnowingRecogniser, Spoken, converse, embedded

from plugins.audio import waveforms as audio
from plugins.prepare import cli
from plugins.prepare.slicing import hearing

pytest.importorskip("faster_whisper")
Prepare = Callable[..., int]


def spoken(*turns: tuple[int, float], first: int = 0) -> list[Spoken]:
    """Clips of the embedded corpus, each with who says it and the pause before it."""
    clips = embedded(16)
    result = []
    for i, (speaker, pause_s) in enumerate(turns):
        text, samples = clips[(first + i) % 16]
        result.append(Spoken(speaker, text, samples, pause_s))
    return result


TALK = ((0, 0.5), (1, 0.4), (1, 0.6), (0, 0.2), (1, 0.9), (0, 0.3))


def command(folder: Path, said: dict[str, Any], *options: str) -> int:
    """The command on conversations below folder/in, by name; its output is folder/x.jsonl."""
    known = KnowingRecogniser(*((folder / "in" / name, all_) for name, all_ in said.items()))
    words = ["--dataset_type", "recordings", "--input_dir", str(folder / "in"), "--workers", "1"]
    words += ["--output_file", str(folder / "x.jsonl"), "--dialogues"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hearing, "listener", known.listener)
        patch.setattr(cli, "picture", lambda report: b"picture")
        return cli.main([*words, *options])


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    return partial(command, tmp_path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"] if message["role"] == "user"]


def test_turns_are_in_order_with_their_speakers_and_texts(prepare: Prepare, tmp_path: Path) -> None:
    turns = spoken(*TALK)
    said = converse(tmp_path / "in" / "talk.wav", turns)
    assert prepare({"talk.wav": said}, "--validate") == 0
    (row,) = lines(tmp_path / "x.jsonl")
    parts = [turn.text for turn in turns]
    assert texts(row) == [
        f"[SPEAKER0] {parts[0]}",
        f"[SPEAKER1] {parts[1]} {parts[2]}",
        f"[SPEAKER0] {parts[3]}",
        f"[SPEAKER1] {parts[4]}",
        f"[SPEAKER0] {parts[5]}",
    ]
    assert len(row["audios"]) == 5
    assert lines(tmp_path / "x.rejected.jsonl") == []


def test_a_turn_is_what_its_channel_holds(prepare: Prepare, tmp_path: Path) -> None:
    """To the sample, from before its first word to after its last one, pauses as they were."""
    path = tmp_path / "in" / "talk.wav"
    said = converse(path, spoken(*TALK))
    assert prepare({"talk.wav": said}) == 0
    recorded, _ = sf.read(path, dtype="float32")
    clips = lines(tmp_path / "x_clips" / "clips.jsonl")
    assert [clip["start_s"] for clip in clips] == sorted(clip["start_s"] for clip in clips)
    for clip in clips:
        side = int(clip["speaker"] == "talk.wav:right")
        mine = [one for one in said[side] if one.text in clip["text"]]
        assert clip["start_s"] <= mine[0].start_s < mine[-1].end_s <= clip["end_s"]
        assert clip["said"] == pytest.approx((mine[0].start_s, mine[-1].end_s), abs=0.2)
        (path,) = (tmp_path / "x_clips").rglob(clip["file"])
        sound = audio.load(path, sample_rate_hz=RATE_HZ)
        start = round(clip["start_s"] * RATE_HZ)
        shifts = [
            np.abs(recorded[start + d :, side][: len(sound)] - sound).max() for d in range(-9, 9)
        ]
        assert min(shifts) < 1e-6


@pytest.mark.parametrize("crosstalk_db", [-60.0, -14.0])
def test_crosstalk_is_nobody(crosstalk_db: float, prepare: Prepare, tmp_path: Path) -> None:
    turns = spoken(*TALK)
    said = converse(tmp_path / "in" / "talk.wav", turns, crosstalk_db=crosstalk_db)
    assert prepare({"talk.wav": said}) == 0
    (row,) = lines(tmp_path / "x.jsonl")
    assert " ".join(texts(row)).count("[") == 5
    assert lines(tmp_path / "x.rejected.jsonl") == []


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Prepares two conversations of a minute and a half, again and again, in one folder."""
    folder = tmp_path_factory.mktemp("long")
    turns = [(i // 2 % 2, 0.3 + 0.1 * (i % 5)) for i in range(36)]
    said = {}
    for first, name in enumerate(("a.wav", "b.flac")):
        said[name] = converse(folder / "in" / name, spoken(*turns, first=5 * first))

    def run(*options: str) -> Path:
        assert command(folder, said, *options) == 0
        return folder

    return run


def by_path(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for clip in lines(folder / "x_clips" / "clips.jsonl"):
        (place,) = [
            path
            for path in (folder / "x_clips").glob("*")
            if path.is_dir() and path.name.startswith(Path(clip["recording"]).stem)
        ]
        found[str(place / clip["file"])] = clip
    return found


def test_long_talks_become_dialogues_of_a_minute_with_a_voice_for_each(
    long: Callable[..., Path],
) -> None:
    folder = long()
    rows, clips = lines(folder / "x.jsonl"), by_path(folder)
    used = [path for row in rows for path in row["audios"]]
    assert sorted(used) == sorted(clips), "nothing is lost, and nothing stands twice"
    for row in rows:
        turns = [clips[path] for path in row["audios"]]
        assert sum(audio.probe(path).duration_s for path in row["audios"]) <= 60
        speakers = list(dict.fromkeys(clip["speaker"] for clip in turns))
        assert len(speakers) == 2
        tags = [text.partition(" ")[0] for text in texts(row)]
        assert tags == [f"[SPEAKER{speakers.index(clip['speaker'])}]" for clip in turns]
        voices = [clips[path] for path in row["reference_audio"]]
        assert [clip["speaker"] for clip in voices] == speakers
        assert [clip["text"] for clip in voices] == row["reference_text"]
        assert not set(row["reference_audio"]) & set(row["audios"])
        for path in row["reference_audio"]:
            assert audio.probe(path).duration_s >= 3
    (report,) = lines(folder / "x.report.json")
    assert report["dialogues"]["rows"] == len(rows) > 3
    assert report["dialogues"]["turns"] == len(used)
    assert report["dialogues"]["speakers"] == {"2": len(rows)}
    assert report["dialogues"]["without_references"] == 0
    assert report["accepted"]["clips"] == len(used)
    assert len(report["speakers"]) == 4


@pytest.mark.parametrize("by_speaker", [False, True])
def test_no_clip_and_no_voice_is_on_both_sides(by_speaker: bool, long: Callable[..., Path]) -> None:
    folder = long("--split", "--val_ratio", "0.4", *["--split_by_speaker"] * by_speaker)
    clips = by_path(folder)
    sides = {name: lines(folder / name) for name in ("x.jsonl", "x_val.jsonl")}
    heard = {}
    for side, rows in sides.items():
        heard[side] = {
            path for row in rows for path in [*row["audios"], *row.get("reference_audio", [])]
        }
        assert heard[side]
    assert not heard["x.jsonl"] & heard["x_val.jsonl"]
    if by_speaker:
        names = [{clips[path]["speaker"] for path in paths} for paths in heard.values()]
        assert not names[0] & names[1]


def reasons(folder: Path) -> dict[str, int]:
    """Why there are rows of one turn."""
    (report,) = lines(folder / "x.report.json")
    single: dict[str, int] = report["dialogues"]["single_rows"]
    return single


def shown(folder: Path) -> list[list[str]]:
    """Of each row its speakers, as numbers of the texts that `spoken` gives them."""
    numbers = {text: i for i, (text, _) in enumerate(embedded(16))}
    found = []
    for row in lines(folder / "x.jsonl"):
        said = " ".join(texts(row))
        found.append("".join(f"{i:x}" for text, i in numbers.items() if text in said))
    return found


@pytest.mark.parametrize(
    ("turns", "options", "rows", "why"),
    [
        # A pause of 2.4 s is one, a longer one the end.
        ([(0, 0.5), (1, 2.4), (0, 0.5), (1, 2.8), (0, 0.5)], [], ["012", "34"], {}),
        # Who speaks alone between two of them has a row of its own.
        (
            [(0, 0.5), (1, 0.5), (0, 3.0), (0, 3.0), (1, 0.3)],
            [],
            ["01", "2", "34"],
            {"between long pauses": 1},
        ),
        # Who speaks while another does is in no dialogue, nor is that one.
        (
            [(0, 0.5), (1, 0.3), (0, 0.4), (1, -1.0), (0, 0.5), (1, 0.5)],
            [],
            ["01", "2", "3", "45"],
            {"somebody speaks at the same time, or who speaks is unclear": 2},
        ),
        # What was said and rejected is not left out of the middle of one.
        (
            [(0, 0.5), (1, 0.5), (0, 0.5), (1, 0.5), (0, 0.5)],
            ["--max_duration_s", "2.5"],
            ["01", "4"],
            {"beside what was rejected": 1},
        ),
        # One who speaks on is one turn, up to 15 s.
        ([(0, 0.5)] + [(1, 0.6)] * 4 + [(0, 0.5)], [], ["012345"], {}),
    ],
)
def test_a_dialogue_ends_where_something_would_be_left_out(
    turns: Any, options: list[str], rows: list[str], why: Any, prepare: Prepare, tmp_path: Path
) -> None:
    said = converse(tmp_path / "in" / "talk.wav", spoken(*turns))
    assert prepare({"talk.wav": said}, *options) == 0
    assert (shown(tmp_path), reasons(tmp_path)) == (rows, why)
