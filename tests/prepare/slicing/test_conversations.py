"""``--dialogues``: conversations -> rows of several turns.

The words are known here (`joined.KnowingRecogniser`); test_conversations_speech.py hears them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from helpers.commands import contents
from helpers.joined import RATE_HZ, KnowingRecogniser, Spoken, converse, embedded

from plugins.audio import waveforms as audio
from plugins.prepare import cli
from plugins.prepare.slicing import diarising, hearing
from plugins.prepare.slicing.voices import SIZE

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
        (folder / "x_val.jsonl").unlink(missing_ok=True)
        assert command(folder, said, *options) == 0
        return folder

    run.said = said  # type: ignore[attr-defined]
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
    ("turns", "first", "options", "rows", "why"),
    [
        # A pause of 2.4 s is one, a longer one the end.
        ([(0, 0.5), (1, 2.4), (0, 0.5), (1, 2.8), (0, 0.5)], 0, [], ["012", "34"], {}),
        # Who speaks alone between two of them has a row of its own.
        (
            [(0, 0.5), (1, 0.5), (0, 3.0), (0, 3.0), (1, 0.3)],
            0,
            [],
            ["01", "2", "34"],
            {"between long pauses": 1},
        ),
        # Who speaks while another does is in no dialogue, nor is that one.
        (
            [(0, 0.5), (1, 0.3), (0, 0.4), (1, -1.0), (0, 0.5), (1, 0.5)],
            0,
            [],
            ["01", "2", "3", "45"],
            {"somebody speaks at the same time, or who speaks is unclear": 2},
        ),
        # What was said and rejected is not left out of the middle of one.
        (
            [(0, 0.5), (1, 0.5), (0, 0.5), (1, 0.5), (0, 0.5), (1, 0.5)],
            5,
            ["--max_duration_s", "2.45"],
            ["567", "a"],
            {"beside what was rejected": 1},
        ),
        # One who speaks on is one turn, up to 15 s.
        ([(0, 0.5)] + [(1, 0.6)] * 4 + [(0, 0.5)], 0, [], ["012345"], {}),
    ],
)
def test_a_dialogue_ends_where_something_would_be_left_out(
    turns: Any,
    first: int,
    options: list[str],
    rows: list[str],
    why: Any,
    prepare: Prepare,
    tmp_path: Path,
) -> None:
    said = converse(tmp_path / "in" / "talk.wav", spoken(*turns, first=first))
    assert prepare({"talk.wav": said}, *options) == 0
    assert (shown(tmp_path), reasons(tmp_path)) == (rows, why)


def test_what_is_no_conversation_is_told(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One channel; three; twice the same, also softer and the other way round."""
    folder = tmp_path / "in"
    said = converse(folder / "talk.wav", spoken(*TALK))
    both, _ = sf.read(folder / "talk.wav", dtype="float32")
    mixed = both.sum(axis=1)
    for name, sound in {
        "1.wav": mixed,
        "3.wav": np.stack([mixed] * 3, axis=1),
        "same.flac": np.stack([mixed, mixed], axis=1),
        "soft.ogg": np.stack([-0.1 * mixed, mixed], axis=1),
        "silent.wav": np.zeros((RATE_HZ, 2)),
    }.items():
        sf.write(folder / name, sound, RATE_HZ)
    assert prepare({"talk.wav": said}) == 0
    found = {line["id"]: line["reason"] for line in lines(tmp_path / "x.rejected.jsonl")}
    remedy = "--diarize tells the speakers of a mixed track apart"
    assert found.pop("1.wav") == f"has no channel for each of two speakers (but 1; {remedy})"
    assert found.pop("3.wav") == f"has no channel for each of two speakers (but 3; {remedy})"
    same = f"has the same sound in both channels, no conversation ({remedy})"
    assert found.pop("same.flac") == found.pop("soft.ogg") == same
    assert found == {"silent.wav": "no speech found"}
    # One channel of silence is a monologue.
    for path in folder.iterdir():
        path.unlink()
    both[:, 1] = 1e-4 * np.random.default_rng(0).standard_normal(len(both))
    sf.write(folder / "talk.wav", both, RATE_HZ)
    capsys.readouterr()
    assert prepare({"talk.wav": said}) == 1
    error = capsys.readouterr().err
    assert "dialogues: 0 were found among" in error
    assert "nobody else speaks in the recording); leave --dialogues out" in error


class Quieter:
    """Takes the louder speech for one voice's, the other for another's."""

    def voices(self, heard: np.ndarray, speech: Any) -> np.ndarray:
        found = np.zeros((len(speech), 3, SIZE), np.float32)
        for i, (start_s, end_s) in enumerate(speech):
            piece = heard[round(start_s * RATE_HZ) : round(end_s * RATE_HZ)]
            for j, part in enumerate((piece, piece[: RATE_HZ // 2], piece[-RATE_HZ // 2 :])):
                found[i, j, int(np.abs(part).max() > 0.15)] = 1
        return found


def test_speakers_of_one_track_are_told_apart(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diarising, "VoiceMeter", Quieter)
    turns = []
    for turn in spoken(*TALK):
        turn = replace(turn, pause_s=max(turn.pause_s, 0.35))  # a shorter one is none
        level = 0.5 if turn.speaker else 0.05
        turns.append(replace(turn, samples=turn.samples / np.abs(turn.samples).max() * level))
    said = converse(tmp_path / "in" / "talk.wav", turns, mixed=True)
    words = sorted(said[0] + said[1], key=lambda one: one.start_s)
    assert prepare({"talk.wav": words}, "--diarize", "2") == 0
    (row,) = lines(tmp_path / "x.jsonl")
    parts = [turn.text for turn in turns]
    assert texts(row) == [
        f"[SPEAKER0] {parts[0]}",
        f"[SPEAKER1] {parts[1]} {parts[2]}",
        f"[SPEAKER0] {parts[3]}",
        f"[SPEAKER1] {parts[4]}",
        f"[SPEAKER0] {parts[5]}",
    ]
    assert {clip["speaker"] for clip in by_path(tmp_path).values()} == {"speaker1", "speaker2"}


def test_what_two_say_without_a_pause_is_said_by_none(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a clip under the name of the one who said more of it."""
    monkeypatch.setattr(diarising, "VoiceMeter", Quieter)
    turns = []
    for i, turn in enumerate(spoken(*TALK)):
        level = 0.5 if turn.speaker else 0.05
        samples = turn.samples / np.abs(turn.samples).max() * level
        turns.append(replace(turn, samples=samples, pause_s=0.0 if i == 3 else 0.5))
    said = converse(tmp_path / "in" / "talk.wav", turns, mixed=True)
    words = sorted(said[0] + said[1], key=lambda one: one.start_s)
    assert prepare({"talk.wav": words}, "--diarize", "2") == 0
    assert shown(tmp_path) == ["01", "45"]
    (rejected,) = lines(tmp_path / "x.rejected.jsonl")
    assert rejected["reason"] == "two speakers without a pause between them"
    assert f"{turns[2].text} {turns[3].text}" in rejected["heard"]


class Killed(BaseException):
    """What no handler of the command catches, as a kill."""


def test_a_killed_run_ends_with_the_same_bytes(long: Callable[..., Path], tmp_path: Path) -> None:
    whole = long()
    before = contents(whole)
    shutil.copytree(whole / "in", tmp_path / "in")
    said = long.said  # type: ignore[attr-defined]
    hear, num_heard = KnowingRecogniser.words, 0

    def deadly(self: KnowingRecogniser, samples: np.ndarray) -> Any:
        nonlocal num_heard
        num_heard += 1
        if num_heard in (3, 9):
            raise Killed
        return hear(self, samples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KnowingRecogniser, "words", deadly)
        for _ in range(2):
            with pytest.raises(Killed):
                command(tmp_path, said)
        assert command(tmp_path, said) == 0
    assert moved(contents(tmp_path), tmp_path) == moved(before, whole)
    assert command(tmp_path, said) == 0
    assert moved(contents(tmp_path), tmp_path) == moved(before, whole)


def moved(files: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """`files` as if they lay at one place. The recordings of a test and its copy differ in time."""
    found = {}
    for name, content in files.items():
        name = name.partition("/")[2]
        if not name.endswith("clips.json"):
            found[name] = content.replace(bytes(folder), b"")
    return found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--single_speaker", "ann"], "--dialogues has no effect with --single_speaker"),
        (["--speed_factors", "0.9"], "--speed_factors copies single clips"),
        (["--noise_snr_db", "20"], "--noise_snr_db copies single clips"),
        (["--dataset_type", "folder"], "--dialogues belongs to --dataset_type recordings"),
    ],
)
def test_wrong_usage(
    options: list[str], message: str, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        prepare({}, *options)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_cluster_makes_the_same_bytes(long: Callable[..., Path]) -> None:
    ray = pytest.importorskip("ray")
    folder = long("--validate")
    before = contents(folder)
    try:
        long("--validate", "--executor", "ray")
    finally:
        ray.shutdown()  # MS-SWIFT would train on its cluster
    assert contents(folder) == before
