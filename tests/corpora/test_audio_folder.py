"""The metadata.csv of an AudioFolder, and what a folder of no recordings is told."""

from pathlib import Path

import pytest
from helpers.trees import clip, heard, rejects, said, sorted_out, utterances

from plugins.corpora import Rejected, Utterance, read_folder, read_huggingface
from plugins.corpora.tables import Columns
from plugins.errors import UserError
from plugins.prepare.cli import main

ONE_TWO = [("a.wav", "One"), ("b.flac", "Two")]


def audio_folder(folder: Path, table: str, *, name: str = "metadata.csv") -> Path:
    clip(folder / "a.wav")
    clip(folder / "b.flac")
    (folder / name).write_bytes(table.encode())
    return folder


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("file_name,text\na.wav,One\nb.flac,Two\n", "metadata.csv"),
        ("file_name,transcription\na.wav,One\nb.flac,Two", "metadata.csv"),
        ("sentence,file_name,duration\nOne,a.wav,0.1\nTwo,b.flac,0.1\n", "metadata.csv"),
        ("\ufefffile_name,transcript\r\na.wav,One\r\nb.flac,Two\r\n", "metadata.csv"),
        ('"file_name","text"\n"a.wav","One"\n"b.flac","Two"\n', "metadata.csv"),
        (" file_name , text\na.wav, One \n\nb.flac,Two\n", "metadata.csv"),
        ('file_name,text\na.wav,"One"\n./b.flac,"Two"\n', "metadata.csv"),
        ("file_name\ttext\na.wav\tOne\nb.flac\tTwo\n", "metadata.tsv"),
        (
            '{"file_name": "a.wav", "text": "One"}\n{"file_name": "b.flac", "text": "Two"}',
            "metadata.jsonl",
        ),
        (
            '\ufeff{"text": "One", "file_name": "a.wav"}\r\n\r\n'
            '{"transcription": "Two", "file_name": "b.flac"}\r\n',
            "metadata.jsonl",
        ),
    ],
)
def test_tables_as_they_come(tmp_path, caplog, table, name):
    results = heard(read_folder(audio_folder(tmp_path, table, name=name)))
    assert sorted((id_, text) for id_, text, _ in results) == ONE_TWO
    assert caplog.messages == []


def test_subsets_speakers_and_what_no_table_names(tmp_path):
    """A subset is no speaker; one name in two of them is no duplicate; clips that a table does not
    name have transcripts of their own, or are told."""
    table = "file_name,text,speaker_id\na.wav,One,ann\nmore/c.wav,Three,bert\n"
    clip(tmp_path / "train" / "more" / "c.wav")
    audio_folder(tmp_path / "train", table)
    audio_folder(tmp_path / "test", "file_name,text\na.wav,One\nlost.wav,Lost\n")
    said(tmp_path / "test" / "b.txt", "beside")
    results = list(read_folder(tmp_path))
    found = {utterance.id: utterance.text for utterance in utterances(results)}
    assert found == {
        "test/a.wav": "One",
        "test/b.flac": "beside",
        "train/a.wav": "One",
        "train/more/c.wav": "Three",
    }
    speakers = {utterance.id: utterance.speaker for utterance in utterances(results)}
    assert speakers["train/more/c.wav"] == "bert"
    assert speakers["test/a.wav"] is None
    told = {(entry.id, entry.kind) for entry in rejects(results)}
    assert told == {("test/lost.wav", "not found"), ("train/b.flac", "no transcript")}


@pytest.mark.parametrize(
    "table",
    [
        "",
        "\n",
        "a.wav|One\nb.flac|Two\n",
        "audio,text\na.wav,One\n",
        "File_Name,text\n",
        "[]",
        "\0\0",
        '"file',
        "x" * 200_000,
        "[" * 100_000,
    ],
)
def test_other_tables_are_left_alone(tmp_path, table):
    """LJSpeech's among them: transcripts beside the clips stay what is meant."""
    for name in ("metadata.csv", "metadata.jsonl"):
        audio_folder(tmp_path, table, name=name)
    said(tmp_path / "a.txt", "One")
    said(tmp_path / "b.lab", "Two")
    assert sorted((id_, text) for id_, text, _ in heard(read_folder(tmp_path))) == ONE_TWO


def test_a_table_without_texts_is_refused_with_its_remedy(tmp_path):
    audio_folder(tmp_path, "file_name,label\na.wav,dog\n")
    with pytest.raises(UserError, match=r"metadata.csv:1: columns: .* name no text .*custom"):
        list(read_folder(tmp_path))


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (["shard-0000.tar", "shard-0001.tar"], r"unpack it \(tar -xf\), as the shards"),
        (["x.tar.gz"], "unpack it"),
        (["x.ZIP"], "unpack it"),
        (["wav.scp", "text"], "give --dataset_type kaldi"),
        (["train.parquet"], "give --dataset_type huggingface"),
        (["x.jsonl"], "give --dataset_type jsonl"),
        (["metadata.csv"], "give --dataset_type custom"),
        (["x.tsv"], "give --dataset_type custom"),
        (["x.list"], "give --dataset_type gpt_sovits"),
        (["sub/84-1.trans.txt"], "give --dataset_type libritts"),
    ],
)
def test_a_folder_of_another_kind_is_sent_to_its_reader(tmp_path, names, remedy):
    """The line that came named --input_dir and "the metadata"."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=rf"holds no recording with a text, but .*; {remedy}"):
        list(read_folder(tmp_path))


def test_an_archive_in_the_place_of_a_folder(tmp_path, capsys):
    archive = tmp_path / "shard.tar"
    archive.touch()
    for kind in ("folder", "huggingface"):
        flags = ["--dataset_type", kind, "--input_dir", str(archive)]
        assert main([*flags, "--output_file", str(tmp_path / "train.jsonl")]) == 1
        assert "is a file; name the folder of the corpus; an archive" in capsys.readouterr().err


def test_an_audio_folder_or_shards_given_as_dataset_are_sent_to_folder(tmp_path):
    (tmp_path / "shard.tar").touch()
    audio_folder(tmp_path, "file_name,text\na.wav,One\n")
    with pytest.raises(UserError, match=r"metadata\.csv.*dataset_type folder.*tar -xf"):
        list(read_huggingface(str(tmp_path), Columns(), audio_dir=tmp_path / "out"))


def test_a_faulty_line_takes_nothing_from_the_others(tmp_path):
    """Of the table, and of the clips that it does not name."""
    table = 'file_name,text\nx\0.wav,Nul\na.wav,One\nb.flac\nc.wav,"Open\nlost.wav,Lost\n'
    said(audio_folder(tmp_path, table) / "b.txt", "Beside")
    ids, faults = sorted_out(read_folder(tmp_path))
    assert ids == ["a.wav"]
    assert [reason.partition(" (")[0] for _, reason, _ in faults] == [
        "names no file",
        "wrong number of fields",
        "quotes do not pair up",
        "not found",
        "no recording",
    ]


def test_audio_root_jails_the_table(tmp_path):
    folder = audio_folder(tmp_path / "data", "file_name,text\na.wav,One\n../x.wav,X\n")
    clip(tmp_path / "x.wav")
    ids, told = sorted_out(read_folder(folder, root=folder))
    assert ids == ["a.wav"]
    assert any('holds ".."' in reason for _, reason, _ in told)
    (folder / "metadata.csv").rename(tmp_path / "metadata.csv")
    (folder / "metadata.csv").symlink_to(tmp_path / "metadata.csv")
    with pytest.raises(UserError, match="leads out of the audio root"):
        list(read_folder(folder, root=folder))


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ('{"text": "One"}', ("One", "s", None)),
        ('{"text": " One\\n two ", "speaker": "ann"}', ("One two", "ann", None)),
        ('{"transcription": "One", "speaker_id": 7, "language": "en"}', ("One", "7", "en")),
        ('\ufeff{"sentence": "Z\u00eb \u4f60"}\r\n', ("Z\u00eb \u4f60", "s", None)),
        ('{"text": "One", "speaker": [1], "language": 5}', ("One", "s", None)),
        ('{"text": "", "duration": 1}', ("", "s", None)),
        ('{"text": null}', "transcript names no text"),
        ('{"caption": "One"}', "transcript names no text"),
        ("[]", "transcript names no text"),
        ("{", "transcript is no JSON"),
        (r'{"text": "\ud83d"}', "transcript escapes half a character"),
        ("[" * 200_000, "transcript is no JSON"),
        ('{"text": "' + "x" * 1_000_000 + '"}', "transcript is larger than 1,000,000 bytes"),
    ],
)
def test_notes_beside_the_clips_of_an_unpacked_webdataset(tmp_path, note, expected):
    clip(tmp_path / "s" / "0001.flac")
    (tmp_path / "s" / "0001.json").write_bytes(note.encode())
    (tmp_path / "package.json").write_text("{}")
    (entry,) = read_folder(tmp_path)
    if isinstance(expected, str):
        assert isinstance(entry, Rejected)
        assert entry.kind == expected
    else:
        assert isinstance(entry, Utterance)
        assert (entry.text, entry.speaker, entry.language) == expected
