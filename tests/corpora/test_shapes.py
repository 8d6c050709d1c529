"""Rows as other programs write them: what they mean here, in preparation and in training, or the
line that says what to do."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import prepare, read, speech
from helpers.trees import clip, sorted_out, utterances

from plugins.corpora import read_jsonl
from plugins.corpora.canonical import RowError, flat_row, parse_row
from plugins.corpora.shapes import in_our_shape
from plugins.data.sources import read_rows
from plugins.settings import HiggsAudioSettings

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]
PLAIN = {"messages": TURNS, "audio": "a.wav"}
CLONE = {**PLAIN, "reference_audio": "b.wav"}


def chatml(*contents: Any, **changes: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    messages = [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=False)
    ]
    return {"messages": messages, **changes}


def boson(path: str, **changes: Any) -> dict[str, Any]:
    """As boson-multimodal dumps its AudioContent."""
    empty = {"raw_audio": "", "offset": None, "duration": None, "row_id": None}
    return {"type": "audio", "audio_url": path, **empty, **changes}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"audio": "a.wav", "text": "Hi"}, PLAIN),
        ({"text": "Hi", "audios": ["a.wav"]}, {"messages": TURNS, "audios": ["a.wav"]}),
        ({"audio_path": "a.wav", "transcript": "Hi"}, PLAIN),
        ({"audio_file": "a.wav", "sentence": "Hi"}, PLAIN),
        ({"file_name": "a.wav", "transcription": "Hi"}, PLAIN),
        ({"wav": "a.wav", "text": "Hi", "id": "u1"}, {**PLAIN, "id": "u1"}),
        (
            {"audio_filepath": "a.wav", "text": "Hi", "duration": 1.5, "lang": "en"},
            {**PLAIN, "duration_s": 1.5, "language": "en"},
        ),
        ({"audio": "a.wav", "text": "Hi", "speaker_id": 7}, {**PLAIN, "speaker": 7}),
        ({"audio": "a.wav", "text": "Hi", "ref_audio": "b.wav"}, CLONE),
        ({"audio": "a.wav", "text": "Hi", "prompt_audio": "b.wav"}, CLONE),
        (
            {"audio": "a.wav", "text": "Hi", "ref_audio_path": "b.wav", "ref_text": "Ho"},
            {**CLONE, "reference_text": "Ho"},
        ),
        (
            {"messages": TURNS, "audios": ["a.wav"], "ref_audio": "b.wav", "prompt_text": "Ho"},
            {"messages": TURNS, "audios": ["a.wav"], "reference_audio": "b.wav"}
            | {"reference_text": "Ho"},
        ),
        ({"audio": "a.wav", "text": ""}, {**PLAIN, "messages": [TURNS[0] | {"content": ""}]}),
        ({**CLONE, "speaker": "ann"}, {**CLONE, "speaker": "ann"}),
        ({"codes": [1]}, {"codes": [1]}),  # for the reader of our own rows to refuse
    ],
)
def test_flat_rows(row, expected):
    before = json.dumps(row)
    if row.get("text") == "":
        expected["messages"].append(TURNS[1])
    assert in_our_shape(row) == expected
    assert json.dumps(row) == before


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chatml("Hi", boson("a.wav")), (["a.wav"], [True])),
        (chatml("Hi", [boson("a.wav")]), (["a.wav"], [True])),
        (chatml({"type": "text", "text": "Hi"}, boson("a.wav")), (["a.wav"], [True])),
        (chatml([{"type": "text", "text": "Hi"}], boson("a.wav")), (["a.wav"], [True])),
        (chatml("Hi", boson("a.wav"), start_index=None, misc=None), (["a.wav"], [True])),
        (chatml("Hi", boson("a.wav"), start_index=0), (["a.wav"], [True])),
        (chatml("Hi", boson("a.wav"), start_index=1, speaker="ann"), (["a.wav"], [True])),
        (
            chatml("Ho", boson("b.wav"), "Hi", boson("a.wav"), start_index=2),
            (["b.wav", "a.wav"], [False, True]),
        ),
        (
            chatml("Ho", boson("b.wav"), "Hi", boson("a.wav"), start_index=3, misc={"x": 1}),
            (["b.wav", "a.wav"], [False, True]),
        ),
        (chatml("Hi", boson("a.wav", offset=0.0, duration=0)), (["a.wav"], [True])),
        (chatml("Hi", boson("a.wav", raw_audio="UklGRg==")), (["a.wav"], [True])),
        (chatml("Hi", [{"type": "audio", "audio": "a.wav"}]), (["a.wav"], [True])),
    ],
)
def test_chatml_of_boson(row, expected):
    """`start_index` is the first message that is trained; those before it are conditioning."""
    flat = flat_row(parse_row(json.dumps(row)))
    answers = [message for message in flat.messages if message["role"] == "assistant"]
    assert (flat.audios, [answer["loss"] for answer in answers]) == expected
    assert {message["content"] for message in flat.messages} <= {"Hi", "Ho", "<audio>"}


@pytest.mark.parametrize(
    ("row", "field", "reason", "remedy"),
    [
        ({"audio": "a.wav", "audio_path": "b.wav", "text": "Hi"}, "column", "means audio", "leave"),
        ({**CLONE, "ref_audio": "c.wav"}, "column", "means reference_audio", "leave one"),
        ({"audio": "a.wav", "text": 5}, "text", "is no text", "give the transcript"),
        ({"audio": "a.wav", "text": None}, "row", "has no text", "give the transcript"),
        ({"audio": "a.wav", "text": "Hi", "emotion": "x"}, "column", "is unknown", ""),
        (chatml("Hi", boson("a.wav"), start_index=2), "start_index", "is no index", "counted"),
        (chatml("Hi", boson("a.wav"), start_index=True), "start_index", "is no index", "counted"),
        (chatml("Hi", boson("a.wav"), start_index="1"), "start_index", "is no index", "counted"),
        (chatml("Hi", boson("", raw_audio="UklGRg==")), "raw_audio", "is the recording", "write"),
        (chatml("Hi", boson("a.wav", offset=1.5)), "offset", "names a part", "ffmpeg -ss"),
        (chatml("Hi", boson("a.wav", duration=2.0)), "duration", "names a part", "take it whole"),
        (chatml("Hi", boson("a.wav", audio="b.wav")), "audio_url", "stands beside", "leave one"),
        (
            chatml(boson("v.wav"), boson("a.wav")),
            "content",
            "has audio in a user",
            "reference_audio",
        ),
        (chatml("Hi", boson(7)), "content", "is neither a text nor an audio item", "give a text"),
    ],
)
def test_what_has_no_equal_here_is_refused(row, field, reason, remedy):
    with pytest.raises(RowError) as caught:
        flat_row(parse_row(json.dumps(row)))
    assert caught.value.field.endswith(field)
    assert caught.value.reason.startswith(reason)
    assert remedy in caught.value.remedy


def test_anything_in_the_place_of_anything(tmp_path):
    """Only a fault of the row, whatever JSON a line holds."""
    values = (None, True, 0, -1, 1e300, "", "a.wav", [], [[]], {}, {"type": []}, [{"type": {}}])
    names = ("messages", "start_index", "audio", "text", "ref_audio", "ref_text", "misc", "wav")
    items = ("type", "audio_url", "raw_audio", "offset", "duration", "audio", "text")
    choose = random.Random(18)
    for _ in range(2000):
        row = {name: choose.choice(values) for name in choose.sample(names, 3)}
        if choose.random() < 0.6:
            content = {name: choose.choice(values) for name in choose.sample(items, 3)}
            content["type"] = choose.choice(("audio", "text", []))
            row["messages"] = [
                {"role": "assistant", "content": choose.choice((content, [content]))}
            ]
        try:
            flat_row(parse_row(json.dumps(row)))
        except RowError as fault:
            fault.at("rows.jsonl:1")


def test_flat_rows_are_prepared_and_trained_with_their_reference(tmp_path):
    """They were an unknown column; the voice must be checked, written and seen by training."""
    for number, name in enumerate(("a", "b", "c")):
        speech(tmp_path / "wavs" / f"{name}.wav", seed=number)
    flat = {"audio": "wavs/a.wav", "text": "Hello world.", "ref_audio": "wavs/b.wav"}
    lost = {"audio": "wavs/c.wav", "text": "Hello world.", "ref_audio": "wavs/lost.wav"}
    source, output = tmp_path / "flat.jsonl", tmp_path / "train.jsonl"
    source.write_text(f"{json.dumps(flat)}\n{json.dumps(lost)}\n")
    flags = ["--dataset_type", "jsonl", "--jsonl_file", source, "--input_dir", tmp_path]
    assert prepare(*flags, "--output_file", output, "--validate") == 0
    (row,) = read(output)
    turns = [{"role": "user", "content": "Hello world."}, {"role": "assistant", "content": ""}]
    assert row == {
        "messages": turns,
        "reference_audio": str(tmp_path / "wavs/b.wav"),
        "audios": [str(tmp_path / "wavs/a.wav")],
        "id": "wavs/a.wav",
    }
    (rejected,) = read(tmp_path / "train.rejected.jsonl")
    assert rejected["reason"].startswith("reference_audio not found")
    source.write_text(json.dumps(flat))
    (trained,) = read_rows(str(source), HiggsAudioSettings(), check=lambda dialogue: None)
    assert trained["reference_audio"] == [str(tmp_path / "wavs/b.wav")]


def test_a_row_of_boson_is_prepared(tmp_path):
    clip(tmp_path / "a.wav")
    row = chatml("Hi", boson("a.wav"), start_index=1, misc={"source": "x"}, speaker="ann")
    path = Path(tmp_path / "rows.jsonl")
    path.write_text(json.dumps(row))
    (utterance,) = utterances(read_jsonl(tmp_path, path))
    assert (utterance.text, utterance.speaker) == ("Hi", "ann")
    assert utterance.row is not None
    assert utterance.row["messages"] == [TURNS[0], {"role": "assistant", "content": "<audio>"}]
    assert sorted_out(read_jsonl(tmp_path, path)) == (["a.wav"], [])
