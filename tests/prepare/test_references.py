"""References: those that rows of our own bring along are checked, processed and split like the
clips; those that are chosen are other utterances of the voice on the same side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile as sf
from helpers.commands import TEXT, Row, corpus, ids, listed, prepare, read, reasons, sides, speech

from plugins.prepare import similarity


def rows(folder: Path, references: dict[str, str | None]) -> list[Any]:
    """A JSONL of the clips `references` names (clip -> its reference), and the arguments that name
    it."""
    lines = []
    for clip, reference in references.items():
        row: dict[str, Any] = {
            "messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": ""}],
            "audios": [str(folder / clip)],
            "id": Path(clip).stem,
        }
        if reference is not None:
            row |= {"reference_audio": str(folder / reference), "reference_text": "What it says."}
        lines.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return ["--dataset_type", "jsonl", "--input_dir", folder, "--jsonl_file", folder / "rows.jsonl"]


def clips(folder: Path, count: int, duration_s: float = 3.5) -> list[str]:
    return [speech(folder / f"clip{i}.wav", duration_s, seed=i).name for i in range(count)]


def test_an_unfit_reference_takes_its_row_along(tmp_path: Path) -> None:
    names = clips(tmp_path, 4)
    speech(tmp_path / "short.wav", 0.4)
    speech(tmp_path / "loud.wav", 3.0, seed=9)
    samples, rate = sf.read(tmp_path / "loud.wav")
    sf.write(tmp_path / "loud.wav", (samples * 20).clip(-1, 1), rate)
    (tmp_path / "noise.wav").write_bytes(b"RIFF")
    given = dict(zip(names, ["short.wav", "loud.wav", "noise.wav", "clip0.wav"], strict=True))
    output = tmp_path / "out" / "train.jsonl"
    assert prepare(*rows(tmp_path, given), "--output_file", output, "--validate") == 0
    assert reasons(output) == [
        ("clip0", "reference_audio duration below min_duration_s"),
        ("clip1", "reference_audio clipped share above max_clipped_share"),
        ("clip2", "reference_audio is not readable audio"),
    ]
    assert ids(output) == ["clip3"], "whose reference is a fit clip of a row that is not"
    assert prepare(*rows(tmp_path, given), "--output_file", output, "--validate", "header") == 0
    assert [name for name, _ in reasons(output)] == ["clip0", "clip2"]


def test_a_rejected_clip_is_no_reference(tmp_path: Path) -> None:
    names = clips(tmp_path, 2)
    speech(tmp_path / "short.wav", 0.4)
    output = tmp_path / "out" / "train.jsonl"
    given = {"short.wav": None, names[0]: "short.wav", names[1]: names[0]}
    assert prepare(*rows(tmp_path, given), "--output_file", output, "--validate") == 0
    assert reasons(output) == [
        ("short", "duration below min_duration_s"),
        ("clip0", "reference_audio is a rejected clip"),
    ]


def test_references_follow_the_processing_and_stale_codes_go(tmp_path: Path) -> None:
    names = clips(tmp_path, 2)
    outside = str(speech(tmp_path / "voice.wav", 3.0, seed=7))
    arguments = rows(tmp_path, {names[0]: names[1], names[1]: "voice.wav"})
    lines = read(tmp_path / "rows.jsonl")
    for line in lines:
        line |= {"audio_codes": [[[1] * 8]], "reference_codes": [[[1] * 8]], "duration_s": 3.5}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "out" / "train.jsonl"
    flags = ["--audio_output", tmp_path / "24k", "--trim", "energy"]
    assert prepare(*arguments, "--output_file", output, *flags) == 0
    first, second = read(output)
    assert first["reference_audio"] == second["audios"] == [str(tmp_path / "24k" / "clip1.flac")]
    assert second["reference_audio"] == outside
    assert second["reference_codes"] == [[[1] * 8]], "it is as it was"
    assert not {"audio_codes", "duration_s"} & {*first, *second}
    assert "reference_codes" not in first


def test_references_stay_on_their_side_of_the_split(tmp_path: Path, capsys: Any) -> None:
    """Left out and counted; `--references` then gives another one of the same side."""
    names = clips(tmp_path, 24)
    outside = speech(tmp_path / "voice.wav", 3.0, seed=99)
    given: dict[str, str | None] = {name: names[i - 1] for i, name in enumerate(names)}
    given[names[5]] = outside.name
    output = tmp_path / "out" / "train.jsonl"
    arguments = [*rows(tmp_path, given), "--output_file", output, "--split", "--val_ratio", "0.3"]
    assert prepare(*arguments) == 0
    audio = {name: {row["audios"][0] for row in rows} for name, rows in sides(output).items()}
    crossing = 0
    for name, side in sides(output).items():
        for row in side:
            wanted = str(tmp_path / str(given[Path(row["audios"][0]).name]))
            stays = wanted in audio[name] or wanted == str(outside)
            assert (row.get("reference_audio") == wanted) == stays
            assert ("reference_text" in row) == stays
            crossing += not stays
    assert crossing > 0
    assert f"{crossing} left out: they lay on another side of the split" in capsys.readouterr().out
    paired = [*arguments, "--references", "--single_speaker", "ann", "--without_reference", "0"]
    assert prepare(*paired) == 0
    for name, side in sides(output).items():
        for row in side:
            assert row["reference_audio"] in {*audio[name], str(outside)} - {row["audios"][0]}


# --- chosen by --references ---


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The arguments that name a corpus of eight voices with five clips each, and one voice with a
    single clip; each clip has a text of its own."""
    root = tmp_path_factory.mktemp("voices")
    lines = []
    for number in range(40):
        duration_s = 2.9 if number == 8 else 3.0 + number / 100  # one is too short to clone from
        name = speech(root / f"clip{number:03d}.wav", duration_s, seed=number, rate=16_000).name
        lines.append(f"{name},Text of {name},voice{number % 8}")
    speech(root / "alone.wav", 3.5, seed=50, rate=16_000)
    lines.append("alone.wav,Text of alone.wav,hermit")
    flags = ["--speaker_column", "speaker", "--references", "--split", "--val_ratio", "0.3"]
    return [*listed(root, "audio,text,speaker", *lines), *flags]


@pytest.mark.parametrize("flags", [[], ["--audio_output", "audio"]])
def test_references_are_other_utterances_of_the_voice_and_side(
    voices: list[Any], tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "train.jsonl"
    arguments = [*voices, "--output_file", output, "--without_reference", "0"]
    assert prepare(*arguments, *flags) == 0
    num_references = 0
    for rows in sides(output).values():
        by_audio = {row["audios"][0]: row for row in rows}
        for row in rows:
            others = [other for other in rows if _may_follow(row, other)]
            assert ("reference_audio" in row) == ("reference_text" in row) == bool(others)
            if others:
                reference = by_audio[row["reference_audio"]]  # of the same side, or this fails
                assert reference in others
                text = f"Text of {reference['id']}"
                assert row["reference_text"] == reference["messages"][-2]["content"] == text
                num_references += 1
            assert row["speaker"] != "hermit" or not others
    assert num_references > 30


def _may_follow(row: Row, other: Row) -> bool:
    """Whether `other` can be the reference of `row`: another clip of the voice, not too short."""
    is_fit = other["speaker"] == row["speaker"] and other["id"] != "clip008.wav"
    return is_fit and other is not row


def test_references_follow_from_the_seed(voices: list[Any], tmp_path: Path) -> None:
    def pairs(*flags: Any) -> dict[str, str | None]:
        output = tmp_path / "train.jsonl"
        assert prepare(*voices, "--output_file", output, *flags) == 0
        result = {}
        for rows in sides(output).values():
            result |= {row["id"]: row.get("reference_audio") for row in rows}
        return result

    half = pairs("--without_reference", "0.5")
    assert pairs("--without_reference", "0.5") == half
    assert pairs("--without_reference", "0.5", "--seed", "7") != half
    every = pairs("--without_reference", "0")
    dropped = [id_ for id_ in every if half[id_] is None and every[id_] is not None]
    assert 10 <= len(dropped) <= 30
    assert all(half[id_] == every[id_] for id_ in every if id_ not in dropped)
    assert set(pairs("--without_reference", "1").values()) == {None}


def test_one_speaker_for_all(tmp_path: Path) -> None:
    """LJSpeech names none; all of it is one voice."""
    root, output = tmp_path / "lj", tmp_path / "train.jsonl"
    lines = []
    for number in range(3):
        speech(root / "wavs" / f"LJ{number}.wav", 3.1, seed=number, rate=16_000)
        lines.append(f"LJ{number}|{TEXT}|{TEXT}\n")
    (root / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    arguments = ["--dataset_type", "ljspeech", "--input_dir", root, "--output_file", output]
    assert prepare(*arguments, "--references", "--without_reference", "0") == 0
    assert all(row["reference_audio"] != row["audios"][0] for row in read(output))


def test_a_copy_of_the_target_is_no_reference(tmp_path: Path) -> None:
    """A reference that speaks the very words to be spoken, only noisier, teaches the model to
    copy."""
    output = tmp_path / "train.jsonl"
    arguments = corpus(tmp_path / "corpus", 6, speakers=2, duration_s=3.2, rate=16_000)
    flags = ["--references", "--without_reference", "0", "--audio_output", tmp_path / "audio"]
    flags += ["--noise_snr_db", "20,30", "--output_file", output]
    assert prepare(*arguments, *flags) == 0
    id_of = {row["audios"][0]: row["id"] for row in read(output)}
    for row in read(output):
        assert id_of[row["reference_audio"]].split("-")[0] != row["id"].split("-")[0]


NO_PAIRS = {
    "no speaker": (
        [],
        ["a", "b"],
        3.5,
        "no clip names its speaker; name their column with --speaker_column, or give"
        " --single_speaker NAME if all are one voice",
    ),
    "too short": (
        ["--speaker_column", "speaker"],
        ["a", "a"],
        1.5,
        "no clip of a named speaker has 3 s or more; add longer clips or leave out --references",
    ),
    "one clip each": (
        ["--speaker_column", "speaker"],
        ["a", "b"],
        3.5,
        "no speaker has a clip of 3 s and another one; add clips or leave out --references",
    ),
    "only blanks": (
        ["--speaker_column", "speaker"],
        [" ", ""],
        3.5,
        "no clip names its speaker; name their column with --speaker_column, or give"
        " --single_speaker NAME if all are one voice",
    ),
}


@pytest.mark.parametrize("case", NO_PAIRS)
def test_references_that_make_no_pair_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """It was exit 0 without a word, and a model that was never shown how to clone."""
    flags, speakers, duration_s, message = NO_PAIRS[case]
    lines = []
    for number, speaker in enumerate(speakers):
        speech(tmp_path / f"{number}.wav", duration_s, seed=number)
        lines.append(f"{number}.wav,{TEXT} {number},{speaker}")
    output = tmp_path / "out" / "train.jsonl"
    arguments = [*listed(tmp_path, "audio,text,speaker", *lines), "--output_file", output]
    assert prepare(*arguments, *flags, "--references", "--without_reference", "0") == 1
    error = capsys.readouterr().err
    assert error == f"error: --references: pairs: 0 were made: {message}\n"
    assert not output.exists()
    assert prepare(*arguments, *flags) == 0
    assert "cloning   0 rows with a reference\n" in capsys.readouterr().out


def test_no_voice_is_like_another(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "Similarity", lambda lowest: lambda a, b: False)
    arguments = corpus(tmp_path, 4, speakers=1, duration_s=3.5)
    arguments += ["--output_file", tmp_path / "out" / "train.jsonl", "--references"]
    assert prepare(*arguments, "--min_similarity", "0.9") == 1
    told = capsys.readouterr().err
    assert "no two clips of a speaker reach --min_similarity 0.9; lower it" in told
