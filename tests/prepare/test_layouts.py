"""Corpora as people have them on their disks -> rows: the whole row, or one line that says what is
wrong."""

import os
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Row, listed, one_line_error, prepare, read, speech
from helpers.trees import said


def row(text: str, audio: Path, id_: str, speaker: str | None = None) -> Row:
    """The whole row, written out: this shape is what training reads."""
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
    known = {} if speaker is None else {"speaker": speaker}
    return {"messages": messages, "audios": [str(audio)], **known, "id": id_}


def ljspeech(root: Path, lines: list[str], audio: list[str]) -> list[Any]:
    root.mkdir(parents=True, exist_ok=True)
    (root / "metadata.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for number, name in enumerate(audio):
        speech(root / "wavs" / name, seed=number)
    return ["--dataset_type", "ljspeech", "--input_dir", root]


# --- LJSpeech ---


def test_ljspeech_rows(tmp_path):
    """Normalized text before raw text, FLAC as well as WAV, lone quotes as they are, whitespace
    collapsed."""
    root, output = tmp_path / "lj", tmp_path / "out" / "train.jsonl"
    lines = [
        'LJ1|In 1911|"In nineteen eleven',
        "LJ2|Only  raw \t text ",
        "LJ3|Raw text|",
        "",
        "LJ4|Zoë has 你好|Zoë has 你好",
    ]
    arguments = ljspeech(root, lines, ["LJ1.wav", "LJ2.flac", "LJ3.wav", "LJ4.wav"])
    assert prepare(*arguments, "--output_file", output) == 0
    assert read(output) == [
        row('"In nineteen eleven', root / "wavs" / "LJ1.wav", "LJ1"),
        row("Only raw text", root / "wavs" / "LJ2.flac", "LJ2"),
        row("Zoë has 你好", root / "wavs" / "LJ4.wav", "LJ4"),
    ]
    assert "你好" in output.read_text(encoding="utf-8")
    (empty,) = read(tmp_path / "out" / "train.rejected.jsonl")
    assert (empty["id"], empty["reason"]) == ("LJ3", "text is empty"), "and no other column's"


def test_paths_are_absolute_even_if_the_corpus_was_named_relatively(tmp_path, monkeypatch):
    """Training starts in another folder."""
    ljspeech(tmp_path / "lj", ["LJ1|a|a"], ["LJ1.wav"])
    monkeypatch.chdir(tmp_path)
    named = ["--dataset_type", "ljspeech", "--input_dir", "lj"]
    assert prepare(*named, "--output_file", "train.jsonl") == 0
    assert read(tmp_path / "train.jsonl") == [row("a", tmp_path / "lj" / "wavs" / "LJ1.wav", "LJ1")]


def test_ljspeech_lines_with_a_wrong_number_of_fields(tmp_path):
    """A bar inside a text would otherwise train half a sentence; it refused the whole corpus. The
    line number counts blank lines too."""
    root, output = tmp_path / "lj", tmp_path / "train.jsonl"
    lines = ["LJ1|a|a", "", "LJ2", "LJ3|One|two|three", "LJ4|d|d"]
    arguments = ljspeech(root, lines, ["LJ1.wav", "LJ3.wav", "LJ4.wav"])
    assert prepare(*arguments, "--output_file", output) == 0
    assert [row["id"] for row in read(output)] == ["LJ1", "LJ4"]
    rejected = [tuple(line.values()) for line in read(tmp_path / "train.rejected.jsonl")]
    reason = "wrong number of fields ({} are not id|text|normalized text)"
    assert rejected == [
        (f"{root}/metadata.csv:3", "LJ2", reason.format(1), "LJ2"),
        (f"{root}/metadata.csv:4", "LJ3", reason.format(4), "LJ3|One|two|three"),
    ]


def test_an_unfit_file_is_told_before_absent_alternatives(tmp_path):
    """LJ1.flac is there and empty: "LJ1.wav not found" would send the user looking for the wrong
    file."""
    root = tmp_path / "lj"
    arguments = ljspeech(root, ["LJ1|a|a", "LJ2|b|b"], ["LJ2.wav"])
    empty = root / "wavs" / "LJ1.flac"
    empty.touch()
    assert prepare(*arguments, "--output_file", tmp_path / "train.jsonl") == 0
    (rejected,) = read(tmp_path / "train.rejected.jsonl")
    assert rejected == {
        "file": f"{root}/metadata.csv:1",
        "id": "LJ1",
        "reason": "is empty (0 bytes)",
        "value": str(empty),
    }


# --- VCTK ---


def test_vctk_092_prefers_the_first_microphone(tmp_path):
    """Both microphones recorded the same take: using both would put one recording into train and
    validation."""
    root = tmp_path / "vctk"
    tree = root / "wav48_silence_trimmed"
    names = ("p225_001_mic1", "p225_001_mic2", "p280_001_mic2", "._p225_001_mic1")
    for name in names:
        speech(tree / name.strip("._")[:4] / f"{name}.flac", rate=48_000)
    said(root / "txt" / "p225" / "p225_001.txt", "Please call Stella.")
    said(root / "txt" / "p280" / "p280_001.txt", "Ask her.")
    (tree / "log.txt").write_text("not a speaker")
    named = ["--dataset_type", "vctk", "--input_dir", root]
    assert prepare(*named, "--output_file", tmp_path / "train.jsonl") == 0
    assert read(tmp_path / "train.jsonl") == [
        row("Please call Stella.", tree / "p225" / "p225_001_mic1.flac", "p225_001", "p225"),
        row("Ask her.", tree / "p280" / "p280_001_mic2.flac", "p280_001", "p280"),
    ]
    assert read(tmp_path / "train.rejected.jsonl") == []  # the hidden file is no recording


def test_vctk_080_and_what_lacks_its_other_half(tmp_path, capsys):
    """p315's transcripts were lost by the authors; that must cost its clips and not the run."""
    root = tmp_path / "vctk"
    audio, text = root / "wav48", root / "txt"
    for name in ("p225_001", "p225_003", "p315_001"):
        speech(audio / name[:4] / f"{name}.wav")
    said(text / "p225" / "p225_001.txt", "Please call Stella.")
    never_recorded = said(text / "p225" / "p225_002.txt", "Never recorded.")
    latin = text / "p225" / "p225_003.txt"
    latin.write_bytes(b"caf\xe9")
    named = ["--dataset_type", "vctk", "--input_dir", root]
    assert prepare(*named, "--output_file", tmp_path / "train.jsonl") == 0
    stella = row("Please call Stella.", audio / "p225" / "p225_001.wav", "p225_001", "p225")
    assert read(tmp_path / "train.jsonl") == [stella]
    rejected = [tuple(line.values()) for line in read(tmp_path / "train.rejected.jsonl")]
    mute = str(audio / "p315" / "p315_001.wav")
    assert rejected == [
        (str(never_recorded), "p225_002", "no recording", "p225_002"),
        (str(latin), "p225_003", "transcript is not UTF-8", str(latin)),
        (mute, "p315_001", "no transcript", "p315_001.txt"),
    ]
    assert "          1 no transcript\n" in capsys.readouterr().out


# --- custom CSV ---


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_custom_csv_in_every_delimiter(tmp_path, delimiter):
    """The seed document's column names, a byte order mark as spreadsheets write it, quotes around a
    delimiter."""
    root = tmp_path / "clips"
    speech(root / "a.wav")
    speech(root / "sub" / "b.flac", seed=1)
    plain = "It, was; so" if delimiter in "|\t" else "It was so"
    lines = [
        ["filename", "transcript", "speaker_id"],
        ["a.wav", f'"One{delimiter} two"', "alice"],
        ["sub/b", plain, ""],
    ]
    arguments = listed(root, *map(delimiter.join, lines))
    csv = root / "meta.csv"
    csv.write_bytes(b"\xef\xbb\xbf" + csv.read_bytes().replace(b"\n", b"\r\n"))
    arguments += ["--text_column", "transcript", "--audio_column", "filename"]
    arguments += ["--speaker_column", "speaker_id", "--output_file", tmp_path / "train.jsonl"]
    assert prepare(*arguments) == 0
    collapsed = " ".join(f"One{delimiter} two".split())
    assert read(tmp_path / "train.jsonl") == [
        row(collapsed, root / "a.wav", "a.wav", "alice"),
        row(plain, root / "sub" / "b.flac", "sub/b.flac"),
    ]


def test_custom_absolute_paths_and_missing_extensions(tmp_path):
    """The id of a clip in the corpus is relative to it, so that a move of the corpus keeps the
    split."""
    root, elsewhere = tmp_path / "clips", speech(tmp_path / "elsewhere" / "c.wav", seed=9)
    for number, name in enumerate(["a.wav", "b.ogg", "sub/x.wav"]):
        speech(root / name, seed=number)
    arguments = listed(root, "audio,text", "./sub/../a.wav,A", "b,B", f"{elsewhere},C")
    assert prepare(*arguments, "--output_file", tmp_path / "train.jsonl") == 0
    assert read(tmp_path / "train.jsonl") == [
        row("A", root / "a.wav", "a.wav"),
        row("B", root / "b.ogg", "b.ogg"),
        row("C", elsewhere, str(elsewhere)),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("audio,txt\na,One\n", "meta.csv:1: column: 'text' not found; did you mean 'txt'?"),
        ("path,sentence\na,One\n", ":1: column: 'text' not found; use one of path, sentence"),
        ("audio,text,text\na,One,Two\n", "meta.csv:1: column: 'text' occurs twice; "),
        ("audio,text\na,caf\xe9\n", "is not UTF-8; save it as UTF-8"),
        ("", "custom: csv_file: "),
        ("audio,text\n", "holds no utterance; "),
    ],
)
def test_a_csv_that_is_no_table_is_told_in_one_line(tmp_path, capsys, content, message):
    """Replaced letters train wrong sentences; nothing may be written."""
    arguments, output = listed(tmp_path / "clips"), tmp_path / "train.jsonl"
    (tmp_path / "clips" / "meta.csv").write_text(content, encoding="latin-1")
    speech(tmp_path / "clips" / "a.wav")
    output.write_text("old")
    assert prepare(*arguments, "--output_file", output) == 1
    assert message in one_line_error(capsys)
    assert output.read_text() == "old"


def test_common_voice_quotes_are_text(tmp_path):
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    speech(root / "a.wav")
    arguments = [
        *listed(root, "audio\ttext", 'a.wav\t"So it is, he said.'),
        "--output_file",
        output,
    ]
    assert prepare(*arguments) == 1, "a quote that does not close"
    assert prepare(*arguments, "--no_quotes") == 0
    assert read(output)[0]["messages"][0]["content"] == '"So it is, he said.'


# --- the other layouts; tests/corpora reads them with all their faults ---


@pytest.mark.parametrize("kind", ["libritts", "folder", "gpt_sovits"])
def test_every_layout_has_its_reader(tmp_path, kind):
    root = tmp_path / "corpus"
    folder = root / "train-clean-100" / "19" / "198"
    audio = speech(folder / "19_198_000000_000000.wav")
    said(folder / "19_198_000000_000000.normalized.txt", "Hello.")
    said(folder / "19_198_000000_000000.txt", "Hello.")
    arguments = ["--dataset_type", kind, "--input_dir", root]
    if kind == "gpt_sovits":
        said(tmp_path / "clips.list", f"{audio}|ann|en|Hello.")
        arguments += ["--list_file", tmp_path / "clips.list"]
    assert prepare(*arguments, "--output_file", tmp_path / "train.jsonl") == 0
    (line,) = read(tmp_path / "train.jsonl")
    assert line["audios"] == [str(audio)]
    assert line["messages"][0]["content"] == "Hello."


# --- what is not there ---


@pytest.mark.parametrize("kind", ["ljspeech", "vctk", "custom"])
def test_missing_input_dir(tmp_path, capsys, kind):
    """The most frequent slip of all."""
    flags = ["--csv_file", "x.csv"] if kind == "custom" else []
    arguments = ["--dataset_type", kind, "--input_dir", tmp_path / "nowhere", *flags]
    assert prepare(*arguments, "--output_file", tmp_path / "train.jsonl") == 1
    error = one_line_error(capsys)
    assert error.startswith(f"error: --input_dir: folder: '{tmp_path}/nowhere' not found; ")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "folders", "message"),
    [
        ("ljspeech", ["wavs"], "holds no metadata.csv; "),
        ("vctk", ["txt"], "holds neither wav48_silence_trimmed/ nor wav48/; "),
        ("vctk", ["wav48"], "holds no txt/; "),
        ("vctk", ["wav48", "txt"], "holds no utterance; "),
        ("custom", ["clips"], "csv_file: 'absent.csv' not found; "),
    ],
)
def test_missing_part_of_a_corpus(tmp_path, capsys, kind, folders, message):
    """Usually the folder above or below the right one was named."""
    root = tmp_path / "corpus"
    for name in folders:
        (root / name).mkdir(parents=True)
    flags = ["--csv_file", "absent.csv"] if kind == "custom" else []
    arguments = ["--dataset_type", kind, "--input_dir", root, *flags]
    assert prepare(*arguments, "--output_file", tmp_path / "train.jsonl") == 1
    assert message in one_line_error(capsys)
