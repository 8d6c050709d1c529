"""Voices to clone in the columns of tables and of Hugging Face datasets: read, or told, but never
dropped unsaid."""

import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Audio
from helpers.commands import prepare, read, speech
from helpers.hub import alone, saved, sound, table  # noqa: F401 (a fixture)
from helpers.trees import clip, rejects, sorted_out, utterances

from plugins.corpora import Columns, read_custom, read_huggingface
from plugins.errors import UserError

pytestmark = pytest.mark.usefixtures("alone")
VOICE = {"reference_audio": "b.wav"}
NAMED = Columns(reference_audio="voice", reference_text="said")


@pytest.mark.parametrize(
    ("header", "fields", "columns", "expected"),
    [
        ("audio,text,ref_audio", "a.wav,Hi,b.wav", Columns(), VOICE),
        ("audio,text,reference_audio", "a.wav,Hi,b.wav", Columns(), VOICE),
        ("prompt_audio,text,audio", "b.wav,Hi,a.wav", Columns(), VOICE),
        ("audio,text,ref_audio", "a,Hi,b", Columns(), VOICE),
        (
            "audio,text,ref_audio,ref_text",
            "a,Hi,b, Ho ",
            Columns(),
            VOICE | {"reference_text": "Ho"},
        ),
        ("audio,text,ref_audio,reference_text", "a,Hi,b,", Columns(), VOICE),
        ("audio,text,ref_audio,ref_text", "a,Hi,,", Columns(), {}),
        ("audio,text,voice,said", "a,Hi,b,Ho", NAMED, VOICE | {"reference_text": "Ho"}),
        ("audio,text,voice,said,ref_audio", "a,Hi,b,,c", NAMED, VOICE),
        ("audio,text,prompt_text", "a,Hi,Ho", Columns(), {}),  # of no voice
        ("audio,text,voice", "a,Hi,b", Columns(), {}),
        ("ref_audio,text", "a,Hi", Columns(audio="ref_audio"), {}),
        # Names as another machine wrote them: those of voices are found as those of clips are.
        ("audio,text,ref_audio", "C:\\x\\a.wav,Hi,C:\\x\\b.wav", Columns(), VOICE),
        ("audio,text,ref_audio", "/old/a.wav,Hi,/old/b", Columns(), VOICE),
        ("audio,text,ref_audio", "a.wav,Hi,b.WAV", Columns(), VOICE),
    ],
)
def test_columns_of_a_table(tmp_path, header, fields, columns, expected):
    for name in ("a", "b", "c"):
        clip(tmp_path / f"{name}.wav")
    (tmp_path / "list.csv").write_text(f"{header}\n{fields}\n")
    (utterance,) = utterances(read_custom(tmp_path, tmp_path / "list.csv", columns))
    row = dict(utterance.to_row())
    assert row.pop("audios") == [str(tmp_path / "a.wav")]
    assert row.pop("messages")[0]["content"] == "Hi"
    if expected:
        expected = expected | {"reference_audio": str(tmp_path / "b.wav")}
    assert row == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("a,Hi,lost.wav,", "reference_audio not found"),
        ("a,Hi,a.wav,", "reference_audio is the target itself"),
        ("a,Hi,link.wav,", "reference_audio is the target itself"),
        ("a,Hi,,Ho", "reference_text has no reference"),
        ("a,Hi,x.m4a,", "reference_audio is in a format that is not read"),
        ("a,Hi,http://host/b.wav,", "reference_audio is a URL"),
        ("lost,Hi,b,", "not found"),
    ],
)
def test_a_faulty_reference_is_told(tmp_path, fields, reason):
    """Without it the row would be another task."""
    for name in ("a", "b"):
        clip(tmp_path / f"{name}.wav")
    (tmp_path / "link.wav").symlink_to("a.wav")
    (tmp_path / "x.m4a").write_bytes(b"\0\0\0\x1cftypM4A ")
    (tmp_path / "list.csv").write_text(f"audio,text,ref_audio,ref_text\n{fields}\n")
    (rejected,) = rejects(read_custom(tmp_path, tmp_path / "list.csv", Columns()))
    assert rejected.reason.startswith(reason)


def test_many_rows_may_clone_one_voice_of_another_machine(tmp_path):
    """Which is the recording of a row, too: that takes it from none of them."""
    for name in ("a", "b", "c"):
        clip(tmp_path / f"{name}.wav")
    pairs = [("a", "b"), ("b", "a"), ("c", "b")]
    rows = [f"/old/{name}.wav,Hi,/old/{voice}.wav" for name, voice in pairs]
    (tmp_path / "list.csv").write_text("\n".join(["audio,text,ref_audio", *rows]))
    results = utterances(read_custom(tmp_path, tmp_path / "list.csv", Columns()))
    voices = [Path(utterance.to_row()["reference_audio"]).name for utterance in results]
    assert voices == ["b.wav", "a.wav", "b.wav"]


def test_a_column_of_references_that_occurs_twice(tmp_path):
    (tmp_path / "list.csv").write_text("audio,text,ref_audio,ref_audio\na,Hi,b,c\n")
    with pytest.raises(UserError, match="column: 'ref_audio' occurs twice; rename one"):
        list(read_custom(tmp_path, tmp_path / "list.csv", Columns()))


def hub_set(tmp_path, voices: list[Any], audio: bool, **columns: list[Any]) -> str:
    clips = [sound(tmp_path, f"{i}.wav", 220 + 20 * i) for i in range(len(voices))]
    dataset = table(clips, **columns).cast_column("audio", Audio())
    name = next(name for name, values in columns.items() if values is voices)
    return saved(tmp_path, dataset.cast_column(name, Audio()) if audio else dataset)


@pytest.mark.parametrize("audio", [True, False])
def test_embedded_references_of_a_dataset(tmp_path, audio):
    """Columns `ref_audio` and `ref_text` were dropped unsaid."""
    voices = [
        sound(tmp_path, "v.wav", 500),
        {"bytes": None, "path": None},
        sound(tmp_path, "0.wav"),
    ]
    source = hub_set(tmp_path, voices, audio, ref_audio=voices, ref_text=["Ho", None, ""])
    results = list(read_huggingface(source, Columns(), audio_dir=tmp_path / "out"))
    first, second, third = utterances(results)
    assert first.row is not None
    assert third.row is not None
    with open(first.row["reference_audio"], "rb") as file:
        assert file.read() == voices[0]["bytes"]
    assert first.row["reference_text"] == "Ho"
    assert second.row is None
    # The first clip is the voice of the third.
    assert third.row["reference_audio"] == str(first.audio)
    assert "reference_text" not in third.row


def test_faulty_references_of_a_dataset(tmp_path):
    m4a = {"bytes": b"\0\0\0\x1cftypM4A " + bytes(50), "path": "v.m4a"}
    voices = [m4a, {"bytes": b"", "path": "v.wav"}, sound(tmp_path, "2.wav", 260)]
    source = hub_set(tmp_path, voices, True, voice=voices)
    columns = Columns(reference_audio="voice")
    ids, told = sorted_out(read_huggingface(source, columns, audio_dir=tmp_path / "out"))
    assert ids == []
    assert [reason.partition(" (")[0] for _, reason, _ in told] == [
        "reference_audio is in a format that is not read",
        "reference_audio is empty",
        "reference_audio is the target itself",
    ]


def test_recordings_that_are_not_read_are_named(tmp_path, caplog):
    voices = [sound(tmp_path, "v.wav", 500)]
    source = hub_set(tmp_path, voices, True, voice=voices)
    with caplog.at_level(logging.WARNING):
        assert len(list(read_huggingface(source, Columns(), audio_dir=tmp_path / "out"))) == 1
    (message,) = caplog.messages
    assert "column 'voice' are not read; " in message
    assert message.endswith("named with --reference_audio_column voice")


def test_the_flags(tmp_path, capsys):
    for number, name in enumerate("ab"):
        speech(tmp_path / f"{name}.wav", seed=number)
    (tmp_path / "list.csv").write_text("audio,text,v,t\na,Twenty letters here.,b,Ho\n")
    flags = ["--dataset_type", "custom", "--input_dir", tmp_path, "--csv_file"]
    flags += [tmp_path / "list.csv", "--output_file", tmp_path / "train.jsonl"]
    voice = ["--reference_audio_column", "v", "--reference_text_column", "t"]
    assert prepare(*flags, *voice, "--validate") == 0
    (row,) = read(tmp_path / "train.jsonl")
    assert (row["reference_audio"], row["reference_text"]) == (str(tmp_path / "b.wav"), "Ho")
    assert "1 rows with a reference" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        prepare(*flags, *voice[2:])
    assert "--reference_text_column needs --reference_audio_column" in capsys.readouterr().err
