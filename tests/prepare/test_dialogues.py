"""Dialogues among rows of our own: every clip is checked, processed and encoded, and the row stays
one."""

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile as sf
from helpers.commands import Row, prepare, read, speech

from plugins.data.sources import read_rows
from plugins.prepare.pairing import add_voices
from plugins.prepare.references import within_sides
from plugins.prepare.rows import Clip, split
from plugins.settings import HiggsAudioSettings

TEXTS = ("[SPEAKER0] Twenty letters here.", "[SPEAKER1] Again twenty letters.")


def dialogue(*names: str, **changes: Any) -> Row:
    messages = []
    for i in range(len(names)):
        messages += [{"role": "user", "content": TEXTS[i % 2]}]
        messages += [{"role": "assistant", "content": ""}]
    return {"messages": messages, "audios": [f"{name}.wav" for name in names], **changes}


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """Clips a to d."""
    for number, name in enumerate("abcd"):
        speech(tmp_path / f"{name}.wav", 3.2, seed=number)
    return tmp_path


def flags(folder: Path, *rows: Row) -> list[Any]:
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *("--dataset_type", "jsonl", "--jsonl_file", source, "--input_dir", folder),
        *("--output_file", folder / "out" / "train.jsonl"),
    ]


def test_a_dialogue_is_validated_and_encoded(tiny: Path, talk: Path):
    """It was "no plain text-to-speech row": its clips were never looked at."""
    encode = ["--validate", "--encode_codes", "--codec", tiny / "audio_tokenizer"]
    assert prepare(*flags(talk, dialogue("a", "b")), *encode) == 0
    (row,) = read(talk / "out" / "train.jsonl")
    assert row["messages"] == dialogue("a", "b")["messages"]
    assert row["audios"] == [str(talk / "a.wav"), str(talk / "b.wav")]
    assert len(set(row["audio_codes"])) == 2
    assert row["id"] == "a.wav+b.wav"
    (report,) = read(talk / "out" / "train.report.json")
    assert report["duration_s"]["max"] == pytest.approx(6.4)
    # What was written is what training takes, and what this command takes again.
    output = str(talk / "out" / "train.jsonl")
    assert len(read_rows(output, HiggsAudioSettings(), check=lambda dialogue: None)) == 1


@pytest.mark.parametrize(
    ("row", "kind", "value"),
    [
        (dialogue("a", "lost"), "not found", "lost.wav"),
        (dialogue("a", "short"), "duration below min_duration_s", "short.wav"),
        (dialogue("a", "broken"), "is not readable audio", "broken.wav"),
        (dialogue("a", "b", reference_audio="b.wav"), "reference_audio is the target itself", "b"),
        (dialogue("a", "b") | {"audios": ["a.wav"]}, "is no plain text-to-speech row", "a.wav"),
    ],
)
def test_one_unfit_clip_takes_its_dialogue_and_no_other(talk: Path, row, kind, value):
    speech(talk / "short.wav", 0.1)
    (talk / "broken.wav").write_bytes(b"hello" * 100)
    assert prepare(*flags(talk, row, dialogue("a", "b", id="whole")), "--validate") == 0
    assert [row["id"] for row in read(talk / "out" / "train.jsonl")] == ["whole"]
    (entry,) = read(talk / "out" / "train.rejected.jsonl")
    assert kind in entry["reason"]
    assert value in str(entry["value"])


def test_dialogues_may_share_clips_and_are_no_voices(talk: Path):
    """Two that begin alike are no duplicates; no clip of them is chosen as a reference."""
    rows = [dialogue("a", "b", speaker="x"), dialogue("a", "c", speaker="x")]
    turns = dialogue("d")["messages"]
    rows.append({"messages": turns, "audios": ["d.wav"], "speaker": "x", "ref_audio": "a.wav"})
    arguments = [*flags(talk, *rows), "--validate", "--references", "--without_reference", "0"]
    assert prepare(*arguments) == 0
    written = read(talk / "out" / "train.jsonl")
    assert [row.get("reference_audio") for row in written] == [None, None, str(talk / "a.wav")]


def test_the_clips_of_a_dialogue_are_processed(talk: Path):
    """Each into a file of its own; killed runs and second runs change nothing."""
    process = ["--audio_output", talk / "copies", "--trim", "energy", "--speed_factors", "0.9,1.1"]
    arguments = [*flags(talk, dialogue("a", "b", id="one")), *process]
    assert prepare(*arguments) == 0
    (row,) = read(talk / "out" / "train.jsonl")
    assert row["audios"] == [str(talk / "copies" / f"one-turn{i}.flac") for i in range(2)]
    for path in row["audios"]:
        assert sf.info(path).samplerate == 24_000
    before = (talk / "out" / "train.jsonl").read_bytes()
    Path(row["audios"][1]).unlink()
    assert prepare(*arguments) == 0
    assert (talk / "out" / "train.jsonl").read_bytes() == before
    assert Path(row["audios"][1]).is_file()


def test_a_conditioning_turn_of_boson_is_kept(talk: Path):
    row = dialogue("a", "b", start_index=3, misc={})
    assert prepare(*flags(talk, row), "--validate") == 0
    (row,) = read(talk / "out" / "train.jsonl")
    losses = [message.get("loss") for message in row["messages"]]
    assert losses == [None, False, None, None]
    assert "start_index" not in row


@pytest.mark.parametrize("by_speaker", [False, True])
def test_dialogues_that_share_a_clip_stay_on_one_side(by_speaker):
    """A long talk in windows of three: any cut would validate on what was trained."""
    paths = [Path(f"/{i}.wav") for i in range(40)]
    windows = []
    for i in range(30):
        window = paths[i : i + 3]
        windows.append(Clip(f"w{i}", window[0], f"s{i}", {}, others=tuple(window[1:])))
    windows.reverse()
    apart = [Clip(f"p{i}", Path(f"/p{i}.wav"), f"p{i}", {}) for i in range(30)]
    plain = Clip("plain", paths[31], "s5", {})
    clips = [plain, *windows, *apart]
    sides = split(clips, val_ratio=0.4, seed=1, by_speaker=by_speaker)
    shares = [name for name, side in sides.items() if any(clip in side for clip in windows)]
    assert len(shares) == 1
    assert plain in sides[shares[0]]
    assert all(sides.values())


def test_a_voice_that_is_spoken_in_a_dialogue_of_the_other_side_is_left_out():
    """Of a dialogue only the first recording counted."""
    talk = Clip("talk", Path("/a.wav"), None, {}, others=(Path("/b.wav"),))
    rows = [{"reference_audio": f"/{name}.wav", "reference_text": name} for name in "abc"]
    clips = [Clip(f"c{i}", Path(f"/{i}.wav"), None, row) for i, row in enumerate(rows)]
    sides, num_left_out = within_sides({"train": [talk], "val": clips})
    assert num_left_out == 2
    assert [clip.row for clip in sides["val"]] == [{}, {}, rows[2]]


def said(speaker: str, *names: str, seconds: float = 4.0) -> tuple[Clip, ...]:
    clips = []
    for name in names:
        messages = [{"role": "user", "content": name}, {"role": "assistant", "content": ""}]
        row = {"messages": messages, "audios": [f"/{name}.wav"]}
        path = Path(f"/{name}.wav")
        clips.append(Clip(name, path, speaker, row, duration_s=seconds, content=name))
    return tuple(clips)


def talk_of(id_: str, *turns: Clip) -> Clip:
    row = {"messages": [], "audios": [str(turn.audio) for turn in turns]}
    others = tuple(turn.audio for turn in turns[1:])
    return Clip(id_, turns[0].audio, None, row, others=others, turns=turns)


def test_dialogues_of_common_speakers_stay_on_one_side_where_speakers_decide():
    """Ann talks with Bob, and Bob with Eve: what any of them says alone is of that side too."""
    chain = []
    for i in range(20):
        chain.append(talk_of(f"t{i}", *said(f"s{i}", f"a{i}"), *said(f"s{i + 1}", f"b{i}")))
    alone = [clip for i in range(21) for clip in said(f"s{i}", f"alone{i}")]
    others = [clip for i in range(30) for clip in said(f"o{i}", f"other{i}")]
    sides = split([*chain, *alone, *others], val_ratio=0.4, seed=1, by_speaker=True)
    speakers = [set().union(*(clip.speakers for clip in side)) for side in sides.values()]
    assert all(speakers)
    assert not speakers[0] & speakers[1]


def test_voices_are_chosen_by_speaker_in_the_order_of_the_dialogue():
    ann, bob = said("ann", *"abc"), said("bob", *"xyz")
    short = said("ann", "short", seconds=2.9)
    first = talk_of("first", bob[0], ann[0], bob[1])
    second = talk_of("second", ann[1], bob[2])
    lonely = talk_of("lonely", ann[2], *said("eve", "e"))
    clips = add_voices([first, second, lonely, *short], seed=3)
    assert [clip.id for clip in clips] == ["first", "second", "lonely", "short"]
    for clip, names in ((clips[0], ["z", "bc"]), (clips[1], ["ac", "xy"])):
        texts = clip.row["reference_text"]
        assert [texts[i] in names[i] for i in range(2)] == [True, True]
        assert clip.row["reference_audio"] == [f"/{text}.wav" for text in texts]
    assert "reference_audio" not in clips[2].row
    system = clips[2].row["messages"][0]
    assert system["role"] == "system"
    assert "[SPEAKER*] tag" in system["content"]
    assert "feminine" not in system["content"]
    assert clips[3] == short[0]
    assert add_voices([first, second, lonely, *short], seed=3) == clips
