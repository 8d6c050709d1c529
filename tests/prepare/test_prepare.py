"""Corpora -> JSONL: every usable clip becomes exactly its row, every other one is told with its
reason."""

import json
import os
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from plugins.corpora import Utterance
from plugins.prepare import clips
from plugins.prepare.cli import main
from plugins.prepare.clips import Work
from plugins.prepare.outputs import rejected_path, split_path
from plugins.prepare.rows import Clip, write_files
from plugins.prepare.rows import split as split_sides

ROOT = Path(__file__).resolve().parent.parent


# --- corpora in a temporary folder ---


def tone(
    path: Path, duration_s: float = 1.5, sample_rate_hz: int = 24_000, amplitude: float = 0.5
) -> Path:
    """A sine at `path`, whose folder is made; its pitch follows from the name, so that no two clips
    are the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(round(duration_s * sample_rate_hz)) / sample_rate_hz
    pitch_hz = 200 + zlib.crc32(path.stem.encode()) % 50_000 / 100
    sf.write(path, amplitude * np.sin(2 * np.pi * pitch_hz * time_s), sample_rate_hz)
    return path


def ljspeech(root: Path, lines: list[str], audio: list[str]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "metadata.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for name in audio:
        tone(root / "wavs" / name)
    return root


def many(root: Path, count: int) -> Path:
    """LJSpeech with `count` clips LJ000, LJ001, ..."""
    ids = [f"LJ{number:03d}" for number in range(count)]
    return ljspeech(
        root, [f"{id_}|Text {id_}|Text {id_}" for id_ in ids], [f"{id_}.wav" for id_ in ids]
    )


def custom(root: Path, table: str, audio: list[str]) -> tuple[Path, Path]:
    root.mkdir(parents=True, exist_ok=True)
    (root / "meta.csv").write_text(textwrap.dedent(table).lstrip(), encoding="utf-8")
    for name in audio:
        tone(root / name)
    return root, root / "meta.csv"


def run(kind: str, input_dir: Path, output: Path, *flags: object) -> int:
    argv = ["--dataset_type", kind, "--input_dir", input_dir, "--output_file", output, *flags]
    return main([str(each) for each in argv])


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def row(text: str, audio: Path, id_: str, speaker: str | None = None) -> dict:
    """The whole row, written out: this shape is what training reads."""
    messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": ""},
    ]
    known = {} if speaker is None else {"speaker": speaker}
    return {"messages": messages, "audios": [str(audio)], **known, "id": id_}


def one_line_error(capsys) -> str:
    """What was printed, which must be one line without a traceback."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.strip()


def test_instruction_is_the_models_own():
    """Another wording is another prompt than the one the model was trained on."""


# --- LJSpeech ---


def test_ljspeech_rows(tmp_path):
    """Normalized text before raw text, FLAC as well as WAV, lone quotes as they are, whitespace
    collapsed."""
    root = ljspeech(
        tmp_path / "lj",
        [
            'LJ1|In 1911|"In nineteen eleven',
            "LJ2|Only  raw \t text ",
            "LJ3|Raw text|",
            "",
            "LJ4|Zoë has 你好|Zoë has 你好",
        ],
        ["LJ1.wav", "LJ2.flac", "LJ3.wav", "LJ4.wav"],
    )
    assert run("ljspeech", root, tmp_path / "out" / "train.jsonl") == 0
    assert read(tmp_path / "out" / "train.jsonl") == [
        row('"In nineteen eleven', root / "wavs" / "LJ1.wav", "LJ1"),
        row("Only raw text", root / "wavs" / "LJ2.flac", "LJ2"),
        row("Raw text", root / "wavs" / "LJ3.wav", "LJ3"),
        row("Zoë has 你好", root / "wavs" / "LJ4.wav", "LJ4"),
    ]
    assert "你好" in (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8")
    assert read(tmp_path / "out" / "train.rejected.jsonl") == []


def test_paths_are_absolute_even_if_the_corpus_was_named_relatively(tmp_path, monkeypatch):
    """Training starts in another folder."""
    many(tmp_path / "lj", 1)
    monkeypatch.chdir(tmp_path)
    assert run("ljspeech", Path("lj"), Path("train.jsonl")) == 0
    assert read(tmp_path / "train.jsonl") == [
        row("Text LJ000", tmp_path / "lj" / "wavs" / "LJ000.wav", "LJ000")
    ]


def test_ljspeech_line_with_a_wrong_number_of_fields(tmp_path, capsys):
    """A bar inside a text would otherwise train half a sentence; the line number counts blank lines
    too."""
    root = ljspeech(tmp_path / "lj", ["LJ1|a|a", "", "LJ2"], ["LJ1.wav"])
    assert run("ljspeech", root, tmp_path / "train.jsonl") == 1
    assert f"{root}/metadata.csv:3: fields: 1 are not 2 or 3; " in one_line_error(capsys)


# --- VCTK ---


def vctk_text(root: Path, id_: str, text: str) -> None:
    path = root / "txt" / id_[:4] / f"{id_}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")


def test_vctk_092_prefers_the_first_microphone(tmp_path):
    """Both microphones recorded the same take: using both would put one recording into train and
    validation."""
    root = tmp_path / "vctk"
    tree = root / "wav48_silence_trimmed"
    for name in ("p225_001_mic1", "p225_001_mic2", "p280_001_mic2", "._p225_001_mic1"):
        tone(tree / name.strip("._")[:4] / f"{name}.flac", sample_rate_hz=48_000)
    vctk_text(root, "p225_001", "Please call Stella.")
    vctk_text(root, "p280_001", "Ask her.")
    (tree / "log.txt").write_text("not a speaker")
    assert run("vctk", root, tmp_path / "train.jsonl") == 0
    assert read(tmp_path / "train.jsonl") == [
        row("Please call Stella.", tree / "p225" / "p225_001_mic1.flac", "p225_001", "p225"),
        row("Ask her.", tree / "p280" / "p280_001_mic2.flac", "p280_001", "p280"),
    ]
    assert read(tmp_path / "train.rejected.jsonl") == []  # the hidden file is no recording


def test_vctk_080_and_what_lacks_its_other_half(tmp_path, capsys):
    """p315's transcripts were lost by the authors; that must cost its clips and not the run."""
    root = tmp_path / "vctk"
    for name in ("p225_001", "p225_003", "p315_001"):
        tone(root / "wav48" / name[:4] / f"{name}.wav")
    vctk_text(root, "p225_001", "Please call Stella.")
    vctk_text(root, "p225_002", "Never recorded.")
    (root / "txt" / "p225" / "p225_003.txt").write_bytes(b"caf\xe9")
    assert run("vctk", root, tmp_path / "train.jsonl") == 0
    audio, text = root / "wav48", root / "txt"
    assert read(tmp_path / "train.jsonl") == [
        row("Please call Stella.", audio / "p225" / "p225_001.wav", "p225_001", "p225")
    ]
    latin = str(text / "p225" / "p225_003.txt")
    assert read(tmp_path / "train.rejected.jsonl") == [
        {
            "file": str(text / "p225" / "p225_002.txt"),
            "id": "p225_002",
            "reason": "no recording",
            "value": "p225_002",
        },
        {"file": latin, "id": "p225_003", "reason": "transcript is not UTF-8", "value": latin},
        {
            "file": str(audio / "p315" / "p315_001.wav"),
            "id": "p315_001",
            "reason": "no transcript",
            "value": "p315_001.txt",
        },
    ]
    assert "          1 no transcript\n" in capsys.readouterr().out


# --- custom CSV ---


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_custom_csv_in_every_delimiter(tmp_path, delimiter):
    """The seed document's column names, a byte order mark as spreadsheets write it, quotes around a
    delimiter."""
    root = tmp_path / "clips"
    tone(root / "a.wav")
    tone(root / "sub" / "b.flac")
    header = delimiter.join(["filename", "transcript", "speaker_id"])
    first = delimiter.join(["a.wav", f'"One{delimiter} two"', "alice"])
    second = (
        delimiter.join(["sub/b", "It, was; so", ""])
        if delimiter in "|\t"
        else f"sub/b{delimiter}It was{delimiter}"
    )
    (tmp_path / "meta.csv").write_text(
        f"\ufeff{header}\r\n{first}\r\n{second}\r\n", encoding="utf-8", newline=""
    )
    flags = ["--csv_file", tmp_path / "meta.csv", "--text_column", "transcript"]
    flags += ["--audio_column", "filename", "--speaker_column", "speaker_id"]
    assert run("custom", root, tmp_path / "train.jsonl", *flags) == 0
    assert read(tmp_path / "train.jsonl") == [
        row(" ".join(f"One{delimiter} two".split()), root / "a.wav", "a.wav", "alice"),
        row(
            "It, was; so" if delimiter in "|\t" else "It was", root / "sub" / "b.flac", "sub/b.flac"
        ),
    ]


def test_custom_absolute_paths_and_missing_extensions(tmp_path):
    """The id of a clip in the corpus is relative to it, so that a move of the corpus keeps the
    split."""
    elsewhere = tone(tmp_path / "elsewhere" / "c.wav")
    root, table = custom(
        tmp_path / "clips",
        f"audio,text\n./sub/../a.wav,A\nb,B\n{elsewhere},C\n",
        ["a.wav", "b.ogg", "sub/x.wav"],
    )
    assert run("custom", root, tmp_path / "train.jsonl", "--csv_file", table) == 0
    assert read(tmp_path / "train.jsonl") == [
        row("A", root / "a.wav", "a.wav"),
        row("B", root / "b.ogg", "b.ogg"),
        row("C", elsewhere, str(elsewhere)),
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "audio,text\na.wav,One\n\nb.wav,Two, three\n",
            "meta.csv:4: fields: 3 where the header has 2; ",
        ),
        (
            'audio,text\na.wav,"One\nmore"\nb.wav\n',
            "meta.csv:4: fields: 1 where the header has 2; ",
        ),
        ('audio,text\na.wav,One\nb.wav,"Two" three\nc.wav,Four\n', "meta.csv:3: CSV: "),
        ("audio,txt\na.wav,One\n", "meta.csv:1: column: 'text' not found; did you mean 'txt'?"),
        (
            "path,sentence\na.wav,One\n",
            "meta.csv:1: column: 'text' not found; use one of path, sentence",
        ),
        ("audio,text,text\na.wav,One,Two\n", "meta.csv:1: column: 'text' occurs twice; "),
        ("", "custom: csv_file: "),
        ("audio,text\n", "holds no utterance; "),
    ],
)
def test_faulty_csv_is_told_with_its_line(tmp_path, capsys, table, message):
    """Guessing where a ragged line's text ends trains wrong sentences; nothing may be written."""
    root, path = custom(tmp_path / "clips", table, ["a.wav"])
    (tmp_path / "train.jsonl").write_text("old")
    assert run("custom", root, tmp_path / "train.jsonl", "--csv_file", path) == 1
    assert message in one_line_error(capsys)
    assert (tmp_path / "train.jsonl").read_text() == "old"


def test_csv_that_is_not_utf8(tmp_path, capsys):
    """Spreadsheets still export Latin-1; replaced letters would be trained."""
    root, path = custom(tmp_path / "clips", "", ["a.wav"])
    path.write_bytes("audio,text\na.wav,café\n".encode("latin-1"))
    assert run("custom", root, tmp_path / "train.jsonl", "--csv_file", path) == 1
    assert f"{str(path)!r} is not UTF-8; save it as UTF-8" in one_line_error(capsys)


# --- rejections ---


def _broken(root: Path) -> dict[str, tuple[str, object]]:
    """One clip per fault below `root`: name -> (reason, value) as `--validate` must tell them."""
    tone(root / "ok.wav")
    tone(root / "low.wav", sample_rate_hz=8000)
    tone(root / "short.wav", duration_s=0.5)
    tone(root / "long.wav", duration_s=30.5, sample_rate_hz=16_000)
    tone(root / "silent.wav", amplitude=0.0)
    sf.write(root / "nan.wav", np.full(36_000, np.nan), 24_000, subtype="FLOAT")
    cut = tone(root / "cut.wav", duration_s=3.0)
    cut.write_bytes(cut.read_bytes()[: 44 + 96_000])
    (root / "notes.wav").write_text("no audio at all")
    (root / "empty.wav").touch()
    (root / "folder.wav").mkdir()
    os.mkfifo(root / "pipe.wav")
    return {
        "low.wav": ("sample rate below min_sample_rate_hz", 8000),
        "short.wav": ("duration below min_duration_s", 0.5),
        "long.wav": ("duration above max_duration_s", 30.5),
        "silent.wav": ("silence share above max_silence_share", 1.0),
        "nan.wav": ("holds NaN or infinite samples", str(root / "nan.wav")),
        "cut.wav": ("is truncated (96000 of 144000 bytes)", str(root / "cut.wav")),
        "notes.wav": ("is not readable audio", str(root / "notes.wav")),
        "empty.wav": ("is empty (0 bytes)", str(root / "empty.wav")),
        "folder.wav": ("is a folder", str(root / "folder.wav")),
        "pipe.wav": ("is not a regular file", str(root / "pipe.wav")),
        "gone.wav": (f"not found (looked in {root}/)", "gone.wav"),
        "https://x.org/a.wav": ("is a URL", "https://x.org/a.wav"),
    }


def test_validate_tells_every_unfit_clip_with_its_reason(tmp_path, capsys):
    """The old habit was to skip silently; then nobody knows why a corpus has become small."""
    root = tmp_path / "clips"
    faults = _broken(root)
    names = ["ok.wav", *faults]
    lines = ["audio,text", *(f"{name},Hello" for name in names), "ok.wav,  ", ",Hello"]
    (root / "meta.csv").write_text("\n".join(lines), encoding="utf-8")
    assert (
        run("custom", root, tmp_path / "train.jsonl", "--csv_file", root / "meta.csv", "--validate")
        == 0
    )
    assert read(tmp_path / "train.jsonl") == [row("Hello", root / "ok.wav", "ok.wav")]
    told = [
        {"file": f"{root}/meta.csv:{line}", "id": name, "reason": reason, "value": value}
        for line, (name, (reason, value)) in enumerate(faults.items(), start=3)
    ]
    told.append(
        {"file": f"{root}/meta.csv:15", "id": "ok.wav", "reason": "text is empty", "value": ""}
    )
    told.append({"file": f"{root}/meta.csv:16", "id": "", "reason": "names no file", "value": ""})
    assert read(tmp_path / "train.rejected.jsonl") == told
    summary = capsys.readouterr().out
    assert "rejected  14\n          1 sample rate below min_sample_rate_hz\n" in summary
    assert "          1 not found\n" in summary


def test_without_validate_no_audio_is_opened(tmp_path, monkeypatch):
    """A quick look at 40,000 clips must not read them; what can be seen from outside is still
    told."""
    root = tmp_path / "clips"
    faults = _broken(root)
    monkeypatch.setattr(sf, "SoundFile", lambda *args: pytest.fail("opened"))
    (root / "meta.csv").write_text(
        "audio,text\n" + "".join(f"{name},Hello\n" for name in faults), encoding="utf-8"
    )
    assert run("custom", root, tmp_path / "train.jsonl", "--csv_file", root / "meta.csv") == 0
    usable = ["low.wav", "short.wav", "long.wav", "silent.wav", "nan.wav", "cut.wav", "notes.wav"]
    assert [each["id"] for each in read(tmp_path / "train.jsonl")] == usable
    assert len(read(tmp_path / "train.rejected.jsonl")) == len(faults) - len(usable)


@pytest.mark.parametrize(
    ("duration_s", "accepted"), [(1.0, True), (30.0, True), (0.99, False), (30.01, False)]
)
def test_duration_bounds_are_inclusive(tmp_path, duration_s, accepted):
    """Corpora cut at exactly 30 s are common."""
    audio = tone(tmp_path / "a.wav", duration_s=duration_s, sample_rate_hz=16_000)
    outcome = Work(level="full")(
        Utterance("here", "a", "Hello, how are you all, today?", audio, None)
    )
    assert (outcome.fault is None) == accepted, outcome


def test_an_unfit_file_is_told_before_absent_alternatives(tmp_path):
    """LJ1.flac is there and empty: "LJ1.wav not found" would send the user looking for the wrong
    file."""
    root = ljspeech(tmp_path / "lj", ["LJ1|a|a", "LJ2|b|b"], ["LJ2.wav"])
    empty = root / "wavs" / "LJ1.flac"
    empty.touch()
    assert run("ljspeech", root, tmp_path / "train.jsonl") == 0
    assert read(tmp_path / "train.rejected.jsonl") == [
        {
            "file": f"{root}/metadata.csv:1",
            "id": "LJ1",
            "reason": "is empty (0 bytes)",
            "value": str(empty),
        }
    ]


def test_nothing_usable_is_an_error_that_keeps_the_old_output(tmp_path, capsys):
    """An empty training file would fail an hour later, on the GPU; the list of reasons is written
    all the same."""
    root = ljspeech(tmp_path / "lj", ["LJ1|a|a", "LJ2||", "LJ3|c|c"], ["LJ2.wav"])
    (tmp_path / "train.jsonl").write_text("old")
    assert run("ljspeech", root, tmp_path / "train.jsonl") == 1
    error = one_line_error(capsys)
    assert "holds no usable clip (rejected: 2 not found, 1 text is empty)" in error
    assert error.endswith(f"see {tmp_path}/train.rejected.jsonl")
    assert (tmp_path / "train.jsonl").read_text() == "old"
    assert len(read(tmp_path / "train.rejected.jsonl")) == 3


# --- faults of the whole corpus, usage ---


@pytest.mark.parametrize("kind", ["ljspeech", "vctk", "custom"])
def test_missing_input_dir(tmp_path, capsys, kind):
    """The most frequent slip of all."""
    flags = ["--csv_file", "x.csv"] if kind == "custom" else []
    assert run(kind, tmp_path / "nowhere", tmp_path / "train.jsonl", *flags) == 1
    assert one_line_error(capsys).startswith(
        f"error: --input_dir: folder: '{tmp_path}/nowhere' not found; "
    )
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
    for name in folders:
        (tmp_path / "corpus" / name).mkdir(parents=True)
    flags = ["--csv_file", "absent.csv"] if kind == "custom" else []
    assert run(kind, tmp_path / "corpus", tmp_path / "train.jsonl", *flags) == 1
    assert message in one_line_error(capsys)


def test_output_must_be_jsonl(tmp_path, capsys):
    """`--output_file meta.csv` must not overwrite the user's metadata, and MS-SWIFT would read the
    rows as CSV."""
    root, table = custom(tmp_path / "clips", "audio,text\na.wav,One\n", ["a.wav"])
    before = table.read_bytes()
    assert run("custom", root, table, "--csv_file", table) == 1
    assert "does not end in .jsonl" in one_line_error(capsys)
    assert table.read_bytes() == before


def test_output_below_a_file_is_told_in_one_line(tmp_path, capsys):
    """Errors of the operating system are the user's too: no traceback."""
    root = many(tmp_path / "lj", 1)
    (tmp_path / "file").touch()
    assert run("ljspeech", root, tmp_path / "file" / "train.jsonl") == 1
    assert one_line_error(capsys).startswith(f"error: {tmp_path}/file")


@pytest.mark.parametrize(
    "flags",
    [
        ["--dataset_type", "ljspeech", "--shuffle"],
        ["--dataset_type", "ljspeech", "--csv_file", "x.csv"],
        ["--dataset_type", "vctk", "--text_column", "x"],
        ["--dataset_type", "custom"],
        ["--dataset_type", "gpt_sovits"],
        ["--dataset_type", "ljspeech", "--val_ratio", "1.5"],
        ["--dataset_type", "ljspeech", "--val_ratio", "many"],
        ["--dataset_type", "ljspeech", "--val", "0.1"],
    ],
)
def test_wrong_usage_exits_with_2(tmp_path, flags):
    """A flag that has no effect is refused rather than ignored; abbreviations would change meaning
    with new flags."""
    with pytest.raises(SystemExit) as caught:
        main([*flags, "--input_dir", str(tmp_path), "--output_file", str(tmp_path / "x.jsonl")])
    assert caught.value.code == 2


def test_help_documents_the_exit_codes(capsys):
    """Scripts rely on them."""
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "exit codes: 0 rows written, 1 unusable input" in capsys.readouterr().out


# --- split ---


def clip(id_: str, audio: str | None = None) -> Clip:
    return Clip(id_, Path(audio or f"/{id_}.wav"), None, {"id": id_}, None)


def split(clips: list[Clip], *, val_ratio: float, seed: int) -> tuple[list[Clip], list[Clip]]:
    sides = split_sides(clips, val_ratio=val_ratio, seed=seed)
    return sides["train"], sides["val"]


def ids(clips: list[Clip]) -> list[str]:
    return [each.id for each in clips]


def test_split_divides_and_keeps_the_order():
    """5 % of 2000 within three standard deviations of a binomial draw."""
    clips = [clip(f"u{number}") for number in range(2000)]
    train, validation = split(clips, val_ratio=0.05, seed=42)
    assert set(ids(train)) | set(ids(validation)) == set(ids(clips))
    assert not set(ids(train)) & set(ids(validation))
    assert 70 <= len(validation) <= 130
    assert ids(train) == [each.id for each in clips if each in train]


def test_split_is_the_same_on_every_machine():
    """Written down once: another hash would move clips that a model has already been trained on
    into validation."""
    clips = [clip(f"LJ001-{number:04d}") for number in range(1, 41)]
    _, validation = split(clips, val_ratio=0.1, seed=42)
    assert ids(validation) == ["LJ001-0033", "LJ001-0037", "LJ001-0038"]
    assert ids(split(clips, val_ratio=0.1, seed=43)[1]) != ids(validation)


def test_split_is_stable_when_clips_are_added_or_reordered():
    """A shuffle with a seed would deal all cards anew, and old validation clips would be trained
    on."""
    clips = [clip(f"u{number}") for number in range(400)]
    before = set(ids(split(clips[:200], val_ratio=0.1, seed=1)[1]))
    after = set(ids(split(clips[::-1], val_ratio=0.1, seed=1)[1]))
    assert before == {id_ for id_ in after if int(id_[1:]) < 200}


@pytest.mark.parametrize("val_ratio", [1e-9, 1 - 1e-9])
def test_neither_side_of_a_split_is_empty(val_ratio):
    """Two clips and 5 % would nearly always leave no validation rows."""
    train, validation = split([clip("a"), clip("b")], val_ratio=val_ratio, seed=42)
    assert (len(train), len(validation)) == (1, 1)


def test_one_recording_never_stands_on_both_sides():
    """Several rows may name one file, also under different ids (a link); their order must not
    matter either."""
    clips = [clip(f"u{number}", f"/{number // 4}.wav") for number in range(400)]
    train, validation = split(clips, val_ratio=0.3, seed=7)
    assert validation
    assert not {each.audio for each in train} & {each.audio for each in validation}
    assert ids(split(clips[::-1], val_ratio=0.3, seed=7)[1]) == ids(validation)[::-1]


def test_split_writes_two_files(tmp_path, capsys):
    """End to end, with the names of the seed document; a second run writes the same bytes."""
    root = many(tmp_path / "lj", 20)
    output = tmp_path / "data" / "ljspeech_train.jsonl"
    assert run("ljspeech", root, output, "--split", "--val_ratio", 0.2) == 0
    validation = tmp_path / "data" / "ljspeech_val.jsonl"
    train_ids, val_ids = ([each["id"] for each in read(path)] for path in (output, validation))
    assert sorted(train_ids + val_ids) == [f"LJ{number:03d}" for number in range(20)]
    assert 1 <= len(val_ids) <= 10
    assert sorted(os.listdir(output.parent)) == [
        "ljspeech_train.jsonl",
        "ljspeech_train.rejected.jsonl",
        "ljspeech_val.jsonl",
    ]
    assert (
        f"next      ./train_higgs_audio.sh --dataset {output} --val_dataset {validation}"
        in capsys.readouterr().out
    )
    before = output.read_bytes(), validation.read_bytes()
    assert run("ljspeech", root, output, "--split", "--val_ratio", 0.2) == 0
    assert (output.read_bytes(), validation.read_bytes()) == before


def test_linked_files_are_one_recording_in_the_split(tmp_path):
    """The same file under two names in one CSV."""
    root, table = custom(
        tmp_path / "clips", "audio,text\na.wav,A\nz.wav,Z\nlink.wav,A again\n", ["a.wav", "z.wav"]
    )
    (root / "link.wav").symlink_to(root / "a.wav")
    assert run("custom", root, tmp_path / "train.jsonl", "--csv_file", table, "--split") == 0
    sides = [
        {each["audios"][0] for each in read(tmp_path / name)}
        for name in ("train.jsonl", "val.jsonl")
    ]
    assert sorted(map(len, sides)) == [1, 1]
    assert not sides[0] & sides[1]


def test_a_single_recording_cannot_be_split(tmp_path, capsys):
    """An empty validation file stops MS-SWIFT much later."""
    assert run("ljspeech", many(tmp_path / "lj", 1), tmp_path / "train.jsonl", "--split") == 1
    assert "leave nothing for val; add recordings or leave out --split" in one_line_error(capsys)
    assert not (tmp_path / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("output", "validation"),
    [
        ("data/vctk_train.jsonl", "data/vctk_val.jsonl"),
        ("train.jsonl", "val.jsonl"),
        ("train/my.jsonl", "train/my_val.jsonl"),
        ("trained_train.v2.jsonl", "trained_val.v2.jsonl"),
    ],
)
def test_name_of_the_validation_file(output, validation):
    """Only the file's own name counts, not a folder's."""
    assert split_path(Path(output), "val") == Path(validation)
    assert rejected_path(Path("a/x_train.jsonl")) == Path("a/x_train.rejected.jsonl")


# --- summary, atomicity, independence ---


def test_summary_with_validate(tmp_path, capsys):
    """24 clips of 1.5 s are 0.01 h."""
    assert (
        run("ljspeech", many(tmp_path / "lj", 24), tmp_path / "my train.jsonl", "--validate") == 0
    )
    assert capsys.readouterr().out == textwrap.dedent(f"""\
        rows      24 train, 0 validation
        hours     0.01
        speakers  not named
        rejected  0
        written   {tmp_path}/my train.rejected.jsonl
        written   {tmp_path}/my train.report.json
        written   {tmp_path}/my train.report.png
        written   {tmp_path}/my train.report.txt
        written   {tmp_path}/my train.jsonl
        next      ./train_higgs_audio.sh --dataset '{tmp_path}/my train.jsonl'
        """)


def test_summary_without_validate_counts_speakers_and_admits_unknown_hours(tmp_path, capsys):
    """Hours from unread files would be invented."""
    root, table = custom(
        tmp_path / "clips", "audio,text,who\na,A,x\nb,B,y\nc,C,\n", ["a.wav", "b.wav", "c.wav"]
    )
    flags = ["--csv_file", table, "--speaker_column", "who"]
    assert run("custom", root, tmp_path / "train.jsonl", *flags) == 0
    summary = capsys.readouterr().out
    assert "hours     not measured (--validate does)\n" in summary
    assert "speakers  2\n" in summary


def test_an_error_midway_leaves_every_old_file_untouched(tmp_path):
    """Train rows of a new run beside validation rows of an old one would share recordings."""
    first, second = tmp_path / "train.jsonl", tmp_path / "val.jsonl"
    first.write_text("old train")
    second.write_text("old val")

    def failing():
        yield {"id": "a"}
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_files({first: [{"id": "b"}], second: failing()})
    assert (first.read_text(), second.read_text()) == ("old train", "old val")
    assert sorted(os.listdir(tmp_path)) == ["train.jsonl", "val.jsonl"]


def test_an_interrupted_run_leaves_the_old_output(tmp_path, monkeypatch):
    """Ctrl-C in the middle of the decoding."""
    root = many(tmp_path / "lj", 3)
    (tmp_path / "train.jsonl").write_text("old")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(clips.Source, "decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("ljspeech", root, tmp_path / "train.jsonl", "--validate", "--workers", 1)
    assert (tmp_path / "train.jsonl").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == [".train.jsonl.journal", "lj", "train.jsonl"]


def test_script_runs_where_torch_swift_and_transformers_cannot_be_imported(tmp_path):
    """Corpora are prepared on machines without a GPU stack; one careless import would close that
    way."""
    root = many(tmp_path / "lj", 2)
    program = textwrap.dedent("""
        import runpy, sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {"torch", "torchaudio", "swift", "transformers"}:
                    raise ImportError(f"{name} was imported")

        sys.meta_path.insert(0, Blocker())
        runpy.run_path(sys.argv[0], run_name="__main__")
    """)
    flags = [
        "--dataset_type",
        "ljspeech",
        "--input_dir",
        str(root),
        "--output_file",
        str(tmp_path / "train.jsonl"),
    ]
    command = f"import sys; sys.argv = {[str(ROOT / 'prepare_dataset.py'), *flags, '--split', '--validate']!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", command + program], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(read(tmp_path / "train.jsonl")) == len(read(tmp_path / "val.jsonl")) == 1


def test_script_prints_an_error_without_traceback(tmp_path):
    """Started from a foreign folder, the exit code and the single line reach the shell."""
    flags = ["--dataset_type", "ljspeech", "--input_dir", "nowhere", "--output_file", "train.jsonl"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "prepare_dataset.py"), *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (
        done.stderr
        == "error: --input_dir: folder: 'nowhere' not found; name the folder of the corpus\n"
    )
