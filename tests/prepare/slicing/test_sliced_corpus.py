"""``--dataset_type recordings``: a folder of recordings -> rows, whatever happens on the way.

The words are known here (`joined.KnowingRecogniser`); test_slicing_speech.py hears them."""

from __future__ import annotations

import json
import os
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from helpers.commands import contents
from helpers.joined import RATE_HZ, KnowingRecogniser, Said, embedded, join

from plugins.audio import waveforms as audio
from plugins.hearing import recogniser
from plugins.prepare.cli import main
from plugins.prepare.slicing import hearing
from plugins.prepare.slicing.hearing import Heard, Word

pytest.importorskip("faster_whisper")
SOME_WORDS = [Word(f" word{i}", 0.5 * i, 0.5 * i + 0.4, 0.9) for i in range(50)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of two speakers and three recordings; and what was said in each."""
    folder, spoken = tmp_path_factory.mktemp("corpus"), embedded(16)
    said = {}
    for seed, (name, clips) in enumerate(
        {"ann/one.wav": spoken[:8], "ann/two.wav": spoken[4:12], "bob/one.wav": spoken[8:]}.items()
    ):
        said[folder / name] = join(folder / name, clips, seed=seed)
    return folder, said


@pytest.fixture
def knowing(corpus: Any, monkeypatch: pytest.MonkeyPatch) -> KnowingRecogniser:
    return known(corpus[1], monkeypatch)


def known(
    said: dict[Path, list[Said]], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> KnowingRecogniser:
    recogniser = KnowingRecogniser(*said.items(), **options)
    monkeypatch.setattr(hearing, "listener", recogniser.listener)
    return recogniser


def prepare(folder: Path, output: Path, *options: str) -> int:
    words = ["--dataset_type", "recordings", "--input_dir", folder, "--output_file", output]
    return main([*map(str, words), "--workers", "1", *options])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_say_what_was_said_in_their_clips(
    corpus: Any, knowing: KnowingRecogniser, tmp_path: Path
) -> None:
    folder, said = corpus
    before = contents(folder)
    assert prepare(folder, tmp_path / "x.jsonl", "--validate") == 0
    rows = lines(tmp_path / "x.jsonl")
    listed = {clip["id"]: clip for clip in lines(tmp_path / "x_clips" / "clips.jsonl")}
    texts: dict[str, str] = {}
    for row in rows:
        clip = listed[row["id"]]
        assert row["speaker"] == row["id"].split("/")[0]
        assert row["language"] == "en"
        (path,) = row["audios"]
        info = audio.probe(path)
        assert info.sample_rate_hz == RATE_HZ
        assert info.duration_s == pytest.approx(clip["end_s"] - clip["start_s"], abs=0.01)
        assert 2.0 <= info.duration_s <= 15.4
        # The clip is that part of the recording, to the sample.
        original = audio.load(clip["recording"], sample_rate_hz=RATE_HZ)
        start = round(clip["start_s"] * RATE_HZ)
        found = audio.load(path, sample_rate_hz=RATE_HZ)
        shifts = [np.abs(original[start + d :][: len(found)] - found).max() for d in range(-9, 9)]
        assert min(shifts) < 1e-6
        text = row["messages"][0]["content"]
        for one in said[Path(clip["recording"])]:
            inside = clip["start_s"] <= one.start_s and one.end_s <= clip["end_s"]
            assert inside == (one.text in text)
        texts[clip["recording"]] = f"{texts.get(clip['recording'], '')} {text}".strip()
    assert texts == {str(path): " ".join(one.text for one in all_) for path, all_ in said.items()}
    assert contents(folder) == before
    assert lines(tmp_path / "x.rejected.jsonl") == []


def test_a_second_run_hears_nothing_again(
    corpus: Any, knowing: KnowingRecogniser, tmp_path: Path
) -> None:
    assert prepare(corpus[0], tmp_path / "x.jsonl") == 0
    first, num_heard = contents(tmp_path), knowing.num_heard
    assert num_heard > 0
    assert prepare(corpus[0], tmp_path / "x.jsonl") == 0
    assert contents(tmp_path) == first
    assert knowing.num_heard == num_heard
    # Other settings are other clips; what is left of the old ones goes.
    assert prepare(corpus[0], tmp_path / "x.jsonl", "--max_clip_s", "6") == 0
    assert knowing.num_heard > num_heard
    rows = lines(tmp_path / "x.jsonl")
    assert max(audio.probe(row["audios"][0]).duration_s for row in rows) <= 6.4
    listed = lines(tmp_path / "x_clips" / "clips.jsonl")
    assert len(list((tmp_path / "x_clips").rglob("*.flac"))) == len(listed)


class Killed(BaseException):
    """What no handler of the command catches, as a kill."""


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of two recordings, of one and of several stretches; and what was said in them."""
    folder, spoken = tmp_path_factory.mktemp("long"), embedded(16)
    said = {folder / "a.wav": join(folder / "a.wav", spoken[:4])}
    said[folder / "b.wav"] = join(folder / "b.wav", spoken * 2, seed=1)
    return folder, said


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_killed_run_goes_on_in_the_middle_of_a_recording(
    at: int, long: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said = long
    knowing = known(said, monkeypatch)
    assert prepare(folder, tmp_path / "whole" / "x.jsonl") == 0
    total, knowing.num_heard = knowing.num_heard, 0
    assert total >= 4
    words = knowing.words

    def deadly(samples: np.ndarray) -> Any:
        if knowing.num_heard == at:
            raise Killed
        return words(samples)

    knowing.words = deadly  # type: ignore[method-assign]
    with pytest.raises(Killed):
        prepare(folder, tmp_path / "killed" / "x.jsonl")
    assert not (tmp_path / "killed" / "x.jsonl").exists()
    knowing.words, knowing.num_heard = words, 0  # type: ignore[method-assign]
    assert prepare(folder, tmp_path / "killed" / "x.jsonl") == 0
    assert knowing.num_heard == total - at, "nothing is heard again, and nothing is left out"
    rows = [lines(tmp_path / name / "x.jsonl") for name in ("whole", "killed")]
    for row in (*rows[0], *rows[1]):
        row["audios"] = [os.path.relpath(row["audios"][0], tmp_path).split("/", 1)[1]]
    assert rows[0] == rows[1]
    clips = [contents(tmp_path / name / "x_clips") for name in ("whole", "killed")]
    assert clips[0] == clips[1]


@pytest.mark.parametrize("damage", ["cut", "gone", "note", "key"])
def test_damaged_clips_are_made_again(
    damage: str, corpus: Any, knowing: KnowingRecogniser, tmp_path: Path
) -> None:
    assert prepare(corpus[0], tmp_path / "x.jsonl") == 0
    first = contents(tmp_path)
    note = sorted((tmp_path / "x_clips").rglob("clips.json"))[1]
    clip = note.with_name("0001.flac")
    if damage == "cut":
        clip.write_bytes(clip.read_bytes()[:-100])
    elif damage == "gone":
        clip.unlink()
    elif damage == "note":
        note.write_bytes(note.read_bytes()[:-20])
    else:
        note.write_text(note.read_text().replace('"key": "', '"key": "0'))
    assert prepare(corpus[0], tmp_path / "x.jsonl") == 0
    assert contents(tmp_path) == first


def test_doubtful_clips_are_kept_and_told_and_worse_ones_rejected(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, said = corpus
    known(said, monkeypatch, sure=0.65)
    assert prepare(folder, tmp_path / "x.jsonl") == 0
    listed = lines(tmp_path / "x_clips" / "clips.jsonl")
    assert all(clip["doubts"] == ["words not heard clearly"] for clip in listed)
    assert f"{len(listed)} clips are kept but doubtful" in caplog.text
    html = (tmp_path / "x.report.html").read_text(encoding="utf-8")
    assert html.count("<audio ") == html.count(">words not heard clearly<") == len(listed)
    assert html.count('data-confidence="0.6500"') == len(listed)
    assert listed[0]["text"] in unescape(html)
    known(said, monkeypatch, sure=0.5)
    assert prepare(folder, tmp_path / "y.jsonl") == 1
    rejected = lines(tmp_path / "y.rejected.jsonl")
    assert {line["reason"] for line in rejected} == {"confidence below min_confidence (0.50)"}
    assert all(line["value"] for line in rejected), "with the words that were heard"
    assert all(Path(line["audio"]).is_file() for line in rejected)
    assert prepare(folder, tmp_path / "z.jsonl", "--min_confidence", "0.4") == 0


def test_music_under_the_speech_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in" / "a.wav"
    said = join(path, embedded(8))
    quiet, rate_hz = sf.read(path, dtype="float32")
    seconds = np.arange(len(quiet)) / rate_hz
    music = sum(np.sin(2 * np.pi * hz * seconds) for hz in (220, 277, 330)) / 3
    speech_rms = np.sqrt((quiet**2).mean()) * 2
    for snr_db, expected in ((14, "behind the speech"), (3, "SNR below min_snr_db")):
        gain = speech_rms / np.sqrt((music**2).mean()) * 10 ** (-snr_db / 20)
        mixed = quiet + gain * music
        sf.write(path, mixed / np.abs(mixed).max(), rate_hz, subtype="FLOAT")
        known({path: said}, monkeypatch)
        prepare(path.parent, tmp_path / "x.jsonl")
        listed = lines(tmp_path / "x_clips" / "clips.jsonl")
        assert listed
        for clip in listed:
            assert expected in f"{clip['doubts']} {clip['fault']}", clip


def test_unfit_recordings_are_rejected_and_take_no_other_along(
    corpus: Any, knowing: KnowingRecogniser, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(corpus[0], folder)
    (folder / "text.m4a").write_text("no sound")
    (folder / "empty.wav").touch()
    whole = (folder / "bob" / "one.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    sf.write(folder / "silent.wav", np.zeros(RATE_HZ), RATE_HZ)
    sf.write(folder / "none.wav", np.zeros(0), RATE_HZ)
    (folder / "link.wav").symlink_to("nowhere.wav")
    (folder / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(folder / "pipe.wav")
    (folder / "notes.txt").write_text("of the studio")
    os.rename(os.fsencode(folder / "ann" / "two.wav"), os.fsencode(folder) + b"/\xff.wav")
    assert prepare(folder, tmp_path / "x.jsonl") == 0
    reasons = {line["id"]: line["reason"] for line in lines(tmp_path / "x.rejected.jsonl")}
    assert reasons.pop("empty.wav").startswith("is empty")
    assert reasons.pop("cut.wav").startswith("is truncated")
    assert reasons.pop("text.m4a") == "is not readable audio"
    assert reasons.pop("silent.wav") == reasons.pop("none.wav") == "no speech found"
    assert reasons.pop("link.wav") == "may not be read (No such file or directory)"
    assert reasons.pop("loop.wav").startswith("may not be read (")
    assert reasons.pop("pipe.wav") == "is not a regular file"
    assert reasons.pop("\\udcff.wav") == "name is not UTF-8"
    assert not reasons


def test_any_name_and_rate_has_clips_of_its_own(
    corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also two recordings with one stem, and at the codec's rate or below it."""
    import soxr

    folder, _ = corpus
    samples, _ = sf.read(folder / "ann" / "one.wav", dtype="float32")
    names = ["a/talk.flac", "b/talk.flac", "b/talk.wav", "früh 早上.wav", "fru\u0308h.wav"]
    rates_hz = [8_000, 22_050, 44_100, 96_000, 24_000]
    for name, rate_hz in zip(names, rates_hz, strict=True):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        other = soxr.resample(samples, RATE_HZ, rate_hz)
        sf.write(tmp_path / "in" / name, np.stack([other, other], axis=1), rate_hz)
    recogniser = KnowingRecogniser()
    monkeypatch.setattr(recogniser, "words", lambda _: Heard(SOME_WORDS, "en"))
    monkeypatch.setattr(hearing, "listener", recogniser.listener)
    assert prepare(tmp_path / "in", tmp_path / "x.jsonl", "--min_sample_rate_hz", "8000") == 0
    clips = lines(tmp_path / "x_clips" / "clips.jsonl")
    assert {clip["id"].rpartition("-")[0] for clip in clips} == set(names)
    rows = lines(tmp_path / "x.jsonl")
    rates = {row["id"].rpartition("-")[0]: audio.probe(row["audios"][0]) for row in rows}
    found = {name: (info.sample_rate_hz, info.num_channels) for name, info in rates.items()}
    assert found == {n: (min(hz, 24_000), 1) for n, hz in zip(names, rates_hz, strict=True)}
    assert len({row["audios"][0] for row in rows}) == len(rows)


def test_clips_beside_the_recordings_are_no_recordings(
    corpus: Any, knowing: KnowingRecogniser, tmp_path: Path
) -> None:
    shutil.copytree(corpus[0], tmp_path / "in")
    output, copies = tmp_path / "in" / "x.jsonl", tmp_path / "in" / "copies"
    for _ in range(2):
        assert prepare(tmp_path / "in", output, "--audio_output", str(copies)) == 0
        assert len(lines(output)) == len(lines(tmp_path / "in" / "x_clips" / "clips.jsonl"))


def test_a_script_beside_a_recording_gives_its_wording(
    corpus: Any, knowing: KnowingRecogniser, tmp_path: Path
) -> None:
    folder, said = corpus
    shutil.copytree(folder, tmp_path / "in")
    texts = [one.text for one in said[folder / "ann" / "one.wav"]]
    written = [f"“{text[:-1].upper()}!”" for text in texts]
    cues = [f"{i}\n00:00:0{i},0 --> 00:00:0{i},9\n{text}\n\n" for i, text in enumerate(written)]
    (tmp_path / "in" / "ann" / "one.srt").write_text("".join(cues), encoding="utf-8")
    (tmp_path / "in" / "ann" / "two.txt").write_text("Of something else there is to tell.")
    (tmp_path / "in" / "bob" / "one.vtt").write_text("WEBVTT\n")
    assert prepare(tmp_path / "in", tmp_path / "x.jsonl") == 0
    rows = lines(tmp_path / "x.jsonl")
    assert {row["id"].rpartition("-")[0] for row in rows} == {"ann/one.wav"}
    assert " ".join(row["messages"][0]["content"] for row in rows) == " ".join(written)
    listed = lines(tmp_path / "x_clips" / "clips.jsonl")
    assert {clip["agreement"] for clip in listed if not clip["fault"]} == {1.0}
    reasons = {line["reason"].partition(" (")[0] for line in lines(tmp_path / "x.rejected.jsonl")}
    assert reasons == {"script does not say what is heard", "script says nothing"}
    # Another wording is another preparation of that recording alone.
    num_heard = knowing.num_heard
    (tmp_path / "in" / "ann" / "two.txt").unlink()
    assert prepare(tmp_path / "in", tmp_path / "x.jsonl") == 0
    assert knowing.num_heard == num_heard + 1


class Again:
    """Hears each clip alone as its stretch was heard, `knowing` it, but for the first `deaf`."""

    languages, is_multilingual = ("en",), False
    knowing: Any = None
    deaf = 0

    def __init__(self, folder: Path, **_: Any) -> None:
        self.num_heard = 0

    def identity(self) -> str:
        return "again"

    def hear(self, samples: np.ndarray, language: str, *, beam_size: int) -> str:
        self.num_heard += 1
        words = [word.text for word in Again.knowing.words(samples).words]
        return "".join(words[4:] if self.num_heard <= Again.deaf else words)


@pytest.fixture
def again(knowing: KnowingRecogniser, monkeypatch: pytest.MonkeyPatch) -> type[Again]:
    monkeypatch.setattr(recogniser, "Recogniser", Again)
    monkeypatch.setattr(Again, "knowing", knowing)
    return Again


def test_a_second_hearing_may_check_the_clips(
    corpus: Any, again: type[Again], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "deaf", 2)  # the careful hearing too
    assert prepare(corpus[0] / "ann", tmp_path / "x.jsonl", "--check_transcripts") == 0
    (line,) = lines(tmp_path / "x.rejected.jsonl")
    assert line["reason"] == "transcript: the beginning of the text is not heard"
    found = lines(tmp_path / "x.transcripts.jsonl")
    assert {row["cer"] for row in found if row["id"] != line["id"]} == {0.0}
    assert len(found) == len(lines(tmp_path / "x_clips" / "clips.jsonl"))


@pytest.mark.usefixtures("again")
def test_a_second_hearing_finds_words_that_a_script_lacks(corpus: Any, tmp_path: Path) -> None:
    """That many words, of a long clip, the alignment alone lets pass."""
    folder, said = corpus
    shutil.copytree(folder / "ann", tmp_path / "in")
    texts = [one.text for one in said[folder / "ann" / "one.wav"]]
    texts[1] = texts[1].rsplit(maxsplit=2)[0]
    (tmp_path / "in" / "one.txt").write_text(" ".join(texts))
    assert prepare(tmp_path / "in", tmp_path / "x.jsonl", "--max_clip_s", "9") == 0
    assert lines(tmp_path / "x.rejected.jsonl") == []
    options = ["--max_clip_s", "9", "--check_transcripts"]
    assert prepare(tmp_path / "in", tmp_path / "x.jsonl", *options) == 0
    (line,) = lines(tmp_path / "x.rejected.jsonl")
    assert line["reason"] == "transcript: more is heard than is written"
    assert texts[1] in line["written"]


def test_one_name_for_all(corpus: Any, knowing: KnowingRecogniser, tmp_path: Path) -> None:
    assert prepare(corpus[0], tmp_path / "x.jsonl", "--single_speaker", "eve") == 0
    assert {row["speaker"] for row in lines(tmp_path / "x.jsonl")} == {"eve"}


def test_a_folder_of_somebody_else_is_left_alone(
    corpus: Any, knowing: KnowingRecogniser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(corpus[0], tmp_path / "x.jsonl") == 0
    (tmp_path / "x_clips" / ".higgs_audio_copies.json").unlink()
    before = contents(tmp_path)
    assert prepare(corpus[0], tmp_path / "x.jsonl") == 1
    assert "which no preparation has noted as its own" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--language", "fr"], "knows English; add --asr Systran/faster-whisper-large-v3"),
        (["--language", "de_DE"], "'de_DE' is not heard by the recogniser that ships"),
        (["--asr", "{folder}"], "holds no model.bin"),
        (["--min_clip_s", "9"], "--min_clip_s"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_heard(
    options: list[str], message: str, corpus: Any, tmp_path: Path, capsys: Any
) -> None:
    given = [option.format(folder=tmp_path) for option in options]
    assert prepare(corpus[0], tmp_path / "x.jsonl", *given) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x_clips").exists()


@pytest.mark.parametrize("flag", ["--diarize", "--max_clip_s"])
def test_flags_of_recordings_belong_to_them(flag: str, tmp_path: Path, capsys: Any) -> None:
    words = ["--dataset_type", "folder", "--input_dir", str(tmp_path)]
    with pytest.raises(SystemExit):
        main([*words, "--output_file", str(tmp_path / "x.jsonl"), flag, "5"])
    assert f"{flag} belongs to --dataset_type recordings" in capsys.readouterr().err


def test_whose_language_is_not_told_is_not_checked(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        prepare(tmp_path, tmp_path / "x.jsonl", "--check_transcripts", "--asr", "large-v3")
    assert "of recordings needs --language with --asr" in capsys.readouterr().err
