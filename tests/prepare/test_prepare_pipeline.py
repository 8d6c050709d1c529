"""The whole of `prepare_dataset.py`: corpus in; rows, references, clips, codes and report out, to
the last one."""

import itertools
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from helpers.commands import TEXT, corpus, prepare, prepare_apart, read, reasons, speech, table
from helpers.trees import said

from plugins.prepare import cli
from plugins.prepare import run as run_module


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes half a second; tests/prepare/test_prepare_report.py looks at the picture."""
    monkeypatch.setattr(cli, "picture", lambda report: b"")


def ids(path: Path) -> list[str]:
    return [row["id"] for row in read(path)]


def report(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        output.with_suffix(".report.json").read_text(encoding="utf-8")
    )
    return found


# --- rows and rejections ---


def vctk(root: Path) -> list[Any]:
    """Two voices of three clips, and one of each fault that VCTK has."""
    tree = root / "wav48_silence_trimmed"
    for number, name in enumerate(
        ["p225_001", "p225_002", "p225_003", "p226_001", "p226_002", "p226_003"]
    ):
        for mic in (1, 2):
            speech(tree / name[:4] / f"{name}_mic{mic}.flac", seed=10 * mic + number, rate=48_000)
        said(root / "txt" / name[:4] / f"{name}.txt", TEXT)
    speech(tree / "p315" / "p315_001_mic1.flac", rate=48_000)
    said(root / "txt" / "p227" / "p227_001.txt", TEXT)
    speech(tree / "p228" / "p228_001_mic1.flac", 0.4, rate=48_000)
    said(root / "txt" / "p228" / "p228_001.txt", TEXT)
    speech(tree / "p228" / "p228_002_mic1.flac", rate=48_000)
    said(root / "txt" / "p228" / "p228_002.txt", "Far too much text for a clip of one second. " * 2)
    return ["--dataset_type", "vctk", "--input_dir", root]


def libritts(root: Path) -> list[Any]:
    """Two voices of two clips, one clip that is silent, one without text, one with an empty
    text."""
    folder = root / "train-clean-100"
    names = [
        "19_198_000000_000000",
        "19_198_000001_000000",
        "26_495_000000_000000",
        "26_495_000001_000000",
    ]
    silent, mute, blank = "26_495_000002_000000", "26_495_000003_000000", "26_495_000004_000000"
    for number, name in enumerate([*names, mute, blank]):
        speech(folder / name[:2] / name[3:6] / f"{name}.wav", seed=number)
    sf.write(folder / "26" / "495" / f"{silent}.wav", np.zeros(36_000), 24_000)
    for name in [*names, silent, blank]:
        said(
            folder / name[:2] / name[3:6] / f"{name}.normalized.txt", "" if name == blank else TEXT
        )
    return ["--dataset_type", "libritts", "--input_dir", root]


def csv(root: Path) -> list[Any]:
    """Three good clips and one of each fault that a file can have."""
    for number in range(3):
        speech(root / f"ok{number}.wav", seed=number)
    speech(root / "low.wav", rate=8_000, seed=4)
    speech(root / "short.wav", 0.99)
    speech(root / "long.wav", 30.01, rate=16_000)
    speech(root / "wide.wav", channels=3, seed=3)
    sf.write(root / "nan.wav", np.full(36_000, np.nan), 24_000, subtype="FLOAT")
    sf.write(root / "silent.wav", np.zeros(36_000), 24_000)
    sf.write(root / "clipped.wav", np.clip(3 * np.sin(np.arange(36_000) / 20), -1, 1), 24_000)
    sf.write(root / "offset.wav", 0.3 * np.sin(np.arange(36_000) / 20) + 0.2, 24_000)
    (root / "notes.wav").write_text("no audio")
    cut = speech(root / "cut.wav", 2.0, seed=9)
    cut.write_bytes(cut.read_bytes()[:50_000])
    (root / "empty.wav").touch()
    names = ["ok0.wav", "ok1.wav", "ok2.wav", *(f"{name}.wav" for name in CSV_FAULTS)]
    arguments = table(root, dict.fromkeys(names, "one"))
    with (root / "meta.csv").open("a", encoding="utf-8") as file:
        file.write(f"ok2.wav,{TEXT},one\n")
    return arguments


CSV_FAULTS = {
    "low": "sample rate below min_sample_rate_hz",
    "short": "duration below min_duration_s",
    "long": "duration above max_duration_s",
    "wide": "channels above max_channels",
    "nan": "holds NaN or infinite samples",
    "silent": "silence share above max_silence_share",
    "clipped": "clipped share above max_clipped_share",
    "offset": "DC offset above max_dc_offset",
    "notes": "is not readable audio",
    "cut": "is truncated (49956 of 96000 bytes)",
    "empty": "is empty (0 bytes)",
    "gone": "not found",
}


@pytest.mark.parametrize(
    ("make", "accepted", "rejected"),
    [
        (
            vctk,
            [f"p22{voice}_00{number}" for voice in (5, 6) for number in (1, 2, 3)],
            [
                ("p227_001", "no recording"),
                ("p228_001", "duration below min_duration_s"),
                ("p228_002", "characters per second above max_chars_per_s"),
                ("p315_001", "no transcript"),
            ],
        ),
        (
            libritts,
            [
                f"{voice}_00000{number}_000000"
                for voice in ("19_198", "26_495")
                for number in (0, 1)
            ],
            [
                ("26_495_000002_000000", "silence share above max_silence_share"),
                ("26_495_000003_000000", "no transcript"),
                ("26_495_000004_000000", "text is empty"),
            ],
        ),
        (
            csv,
            ["ok0.wav", "ok1.wav", "ok2.wav"],
            [
                *((f"{name}.wav", reason) for name, reason in CSV_FAULTS.items()),
                ("ok2.wav", "duplicate id"),
            ],
        ),
    ],
)
def test_every_clip_is_a_row_or_a_rejection(make, accepted, rejected, tmp_path, capsys):
    output = tmp_path / "out" / "train.jsonl"
    assert prepare(*make(tmp_path / "corpus"), "--output_file", output, "--validate") == 0
    assert ids(output) == accepted
    told = [(id_, reason if reason == wanted else reason.partition(" (")[0])
            for (id_, reason), (_, wanted) in zip(reasons(output), rejected, strict=True)]  # fmt: skip
    assert told == rejected
    kinds = Counter(reason.partition(" (")[0] for _, reason in rejected)
    found = report(output)
    assert found["accepted"]["clips"] == len(accepted)
    assert found["rejected"] == {"clips": len(rejected), "reasons": dict(sorted(kinds.items()))}
    assert found["duration_s"]["min"] == found["duration_s"]["max"] == 1.2
    assert found["splits"]["train"]["clips"] == len(accepted)
    assert sum(each["clips"] for each in found["speakers"].values()) == len(accepted)
    summary = capsys.readouterr().out
    assert f"rows      {len(accepted)} train, 0 validation\n" in summary
    assert f"rejected  {len(rejected)}\n" in summary
    assert all(f"          {count} {kind}\n" in summary for kind, count in kinds.items())


def test_headers_alone_reject_what_they_show(tmp_path):
    """Whether a clip is silent, only its samples say; its length, its header."""
    output = tmp_path / "train.jsonl"
    assert prepare(*csv(tmp_path / "corpus"), "--output_file", output, "--validate", "header") == 0
    in_samples = {"nan", "silent", "clipped", "offset", "cut"}
    assert {
        id_.removesuffix(".wav") for id_, _ in reasons(output)
    } == CSV_FAULTS.keys() - in_samples | {"ok2"}
    assert len(read(output)) == 3 + len(in_samples)


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        (1.0, 0.1, "clipped share above max_clipped_share"),  # their average stays below full scale
        (1.0, -0.5, "clipped share above max_clipped_share"),  # out of phase
        (0.2, 0.2, None),
        (0.2, -0.2, "silence share above max_silence_share"),  # nothing is left of it
    ],
)
def test_each_channel_is_judged(tmp_path, left, right, reason):
    """The average, on which the model is trained, hides what is wrong with one of them."""
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    speech(root / "ok.wav", channels=2)
    wave = np.clip(3 * np.sin(np.arange(36_000) / 20), -1, 1)
    sf.write(root / "a.wav", np.stack([left * wave, right * wave], axis=1), 24_000)
    assert prepare(*table(root, ["ok.wav", "a.wav"]), "--output_file", output, "--validate") == 0
    assert reasons(output) == ([] if reason is None else [("a.wav", reason)])


def test_an_offset_in_one_channel_is_found(tmp_path):
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    speech(root / "ok.wav")
    wave = 0.3 * np.sin(np.arange(36_000) / 20)
    sf.write(root / "a.wav", np.stack([wave + 0.1, wave - 0.1], axis=1), 24_000)
    assert prepare(*table(root, ["ok.wav", "a.wav"]), "--output_file", output, "--validate") == 0
    assert reasons(output) == [("a.wav", "DC offset above max_dc_offset")]


def test_limits_are_flags(tmp_path):
    output = tmp_path / "train.jsonl"
    limits = [
        "--min_duration_s",
        "0.5",
        "--min_sample_rate_hz",
        "8000",
        "--max_channels",
        "3",
        "--max_dc_offset",
        "1",
    ]
    assert prepare(*csv(tmp_path / "corpus"), "--output_file", output, "--validate", *limits) == 0
    assert ids(output) == [
        f"{name}.wav" for name in ("ok0", "ok1", "ok2", "low", "short", "wide", "offset")
    ]


# --- duplicates ---


@pytest.mark.parametrize("level", ["header", "full"])
def test_one_recording_is_trained_on_once(tmp_path, level):
    """The same file under two names, and one recording as WAV and FLAC, which only the samples
    tell."""
    root = tmp_path / "corpus"
    speech(root / "a.wav", seed=1)
    (root / "b.wav").write_bytes((root / "a.wav").read_bytes())
    samples, rate = sf.read(root / "a.wav")
    sf.write(root / "c.flac", samples, rate)
    speech(root / "d.wav", seed=2)
    output = tmp_path / "train.jsonl"
    arguments = table(root, ["a.wav", "b.wav", "c.flac", "d.wav"])
    assert prepare(*arguments, "--output_file", output, "--validate", level) == 0
    copies = [("b.wav", "duplicate audio (as a.wav)")] + [
        ("c.flac", "duplicate audio (as a.wav)")
    ] * (level == "full")
    assert reasons(output) == copies
    assert ids(output) == [
        name for name in ("a.wav", "b.wav", "c.flac", "d.wav") if name not in dict(copies)
    ]


def test_equal_edges_are_no_duplicate(tmp_path):
    """Headers-only mode hashes ends of files: recordings that differ in between must both stay."""
    root = tmp_path / "corpus"
    samples, rate = sf.read(speech(root / "a.wav", 2.0))
    samples[20_000:20_010] = 0
    sf.write(root / "b.wav", samples, rate)
    output = tmp_path / "train.jsonl"
    assert (
        prepare(*table(root, ["a.wav", "b.wav"]), "--output_file", output, "--validate", "header")
        == 0
    )
    assert ids(output) == ["a.wav", "b.wav"]


def _same_id(root: Path) -> list[Any]:
    for number in range(2):
        speech(root / f"{number}.wav", seed=30 * number)
    (root / "meta.csv").write_text(
        f"audio,text,id\n0.wav,{TEXT},x\n1.wav,{TEXT},x\n", encoding="utf-8"
    )
    return [
        "--dataset_type",
        "custom",
        "--input_dir",
        root,
        "--csv_file",
        root / "meta.csv",
        "--id_column",
        "id",
    ]


def test_one_id_is_used_once(tmp_path):
    output = tmp_path / "train.jsonl"
    arguments = _same_id(tmp_path / "corpus")
    assert prepare(*arguments, "--output_file", output) == 0
    assert [row["audios"] for row in read(output)] == [[str(tmp_path / "corpus" / "0.wav")]]
    assert reasons(output) == [("x", f"duplicate id (as {tmp_path}/corpus/meta.csv:2)")]


def test_a_rejected_clip_does_not_take_the_file_of_the_accepted_one(tmp_path):
    """Two clips with one id: the row of the first would be trained on the sound of the second."""
    output = tmp_path / "train.jsonl"
    arguments = _same_id(tmp_path / "corpus")
    assert prepare(*arguments, "--output_file", output, "--audio_output", tmp_path / "audio") == 0
    (row,) = read(output)
    assert (
        np.abs(sf.read(row["audios"][0])[0] - sf.read(tmp_path / "corpus" / "0.wav")[0]).max()
        < 1e-3
    )


def test_an_id_of_an_augmented_copy_is_refused(tmp_path):
    """Row and file of the one would be those of the other, and which of them depended on the order
    of the workers."""
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    names = ["x", "x-speed0.9", "x-speed1.1", "y-speed0.9"]
    for number, name in enumerate(names):
        speech(root / f"{name}.wav", seed=10 * number)
    lines = ["audio,text,id", *(f"{name}.wav,{TEXT},{name}" for name in reversed(names))]
    (root / "meta.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = [
        "--dataset_type",
        "custom",
        "--input_dir",
        root,
        "--csv_file",
        root / "meta.csv",
        "--id_column",
        "id",
    ]
    arguments += ["--output_file", output, "--audio_output", tmp_path / "audio"]
    assert prepare(*arguments, "--speed_factors", "0.9") == 0
    assert reasons(output) == [("x-speed0.9", "duplicate id (as the augmented copy of x)")]
    fit = ["y-speed0.9", "x-speed1.1", "x"]
    assert ids(output) == [id_ for name in fit for id_ in (name, f"{name}-speed0.9")]
    assert len({row["audios"][0] for row in read(output)}) == 6
    assert prepare(*arguments) == 0
    assert sorted(ids(output)) == sorted(names)


# --- processing: on the disk before it is said to be done ---


def test_the_journal_names_no_file_that_is_not_on_the_disk(tmp_path, monkeypatch):
    """After a power cut the next run would take an empty file for a finished clip."""
    synced: list[str] = []
    journal = tmp_path / ".train.jsonl.journal"

    def sync(path: str) -> None:
        assert path not in journal.read_text()
        assert sf.info(path).duration > 1  # whole, under its own name
        synced.append(path)

    monkeypatch.setattr(run_module, "sync", sync)
    flags = ["--audio_output", tmp_path / "audio", "--noise_snr_db", "20"]
    assert (
        prepare(*corpus(tmp_path / "corpus", 4), "--output_file", tmp_path / "train.jsonl", *flags)
        == 0
    )
    assert synced == [row["audios"][0] for row in read(tmp_path / "train.jsonl")]


def test_what_cannot_be_synced_is_not_done(tmp_path, monkeypatch):
    def sync(path: str) -> None:
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr(run_module, "sync", sync)
    output = tmp_path / "train.jsonl"
    arguments = [
        *corpus(tmp_path / "corpus", 2),
        "--output_file",
        output,
        "--audio_output",
        tmp_path / "audio",
    ]
    assert prepare(*arguments) == 1
    assert not output.exists()
    assert (tmp_path / ".train.jsonl.journal").read_text() == ""


# --- split ---


def sides(output: Path) -> dict[str, list[dict[str, Any]]]:
    paths = {
        "train": output,
        **{name: output.with_name(f"{name}.jsonl") for name in ("val", "test")},
    }
    return {name: read(path) for name, path in paths.items() if path.exists()}


def test_split_in_three(tmp_path):
    arguments = corpus(tmp_path / "corpus", 60)
    output = tmp_path / "train.jsonl"
    flags = [
        "--output_file",
        output,
        "--split",
        "--val_ratio",
        "0.2",
        "--test_ratio",
        "0.2",
        "--validate",
        "header",
    ]
    assert prepare(*arguments, *flags) == 0
    found = {name: [row["id"] for row in rows] for name, rows in sides(output).items()}
    assert sorted(itertools.chain(*found.values())) == [
        f"clip{number:03d}.wav" for number in range(60)
    ]
    assert {name: len(each) for name, each in found.items()}.keys() == {"train", "val", "test"}
    assert all(5 <= len(found[name]) <= 20 for name in ("val", "test"))
    assert {name: each["clips"] for name, each in report(output)["splits"].items()} == {
        name: len(each) for name, each in found.items()
    }
    # Half as many again, listed the other way round: nobody changes sides.
    more = corpus(tmp_path / "corpus", 90)
    lines = (tmp_path / "corpus" / "meta.csv").read_text().splitlines()
    (tmp_path / "corpus" / "meta.csv").write_text(
        "\n".join([lines[0], *reversed(lines[1:])]) + "\n"
    )
    assert prepare(*more, *flags) == 0
    for name, rows in sides(output).items():
        assert set(found[name]) <= {row["id"] for row in rows}
    assert prepare(*more, *flags, "--seed", "7") == 0
    assert not set(found["val"]) <= {row["id"] for row in sides(output)["val"]}


def test_split_by_speaker(tmp_path):
    output = tmp_path / "train.jsonl"
    flags = [
        "--output_file",
        output,
        "--split",
        "--split_by_speaker",
        "--val_ratio",
        "0.2",
        "--test_ratio",
        "0.2",
    ]
    assert prepare(*corpus(tmp_path / "corpus", 36, speakers=12), *flags) == 0
    voices = {name: {row["speaker"] for row in rows} for name, rows in sides(output).items()}
    assert (
        len(voices["train"]) + len(voices["val"]) + len(voices["test"])
        == 12
        == len(set().union(*voices.values()))
    )
    assert prepare(*corpus(tmp_path / "corpus", 60, speakers=12), *flags) == 0
    assert {
        name: {row["speaker"] for row in rows} for name, rows in sides(output).items()
    } == voices


@pytest.mark.parametrize("by_speaker", [False, True])
def test_augmented_copies_are_only_trained_on(tmp_path, by_speaker):
    """A faster copy of a validation clip among the training rows, and the validation loss means
    nothing."""
    output = tmp_path / "train.jsonl"
    flags = [
        "--audio_output",
        tmp_path / "audio",
        "--speed_factors",
        "0.9,1.1",
        "--noise_snr_db",
        "20",
    ]
    flags += ["--split", "--val_ratio", "0.5", *(["--split_by_speaker"] if by_speaker else [])]
    assert (
        prepare(*corpus(tmp_path / "corpus", 8, speakers=8), "--output_file", output, *flags) == 0
    )
    found = {name: [row["id"] for row in rows] for name, rows in sides(output).items()}
    copies = ("-speed0.9", "-speed1.1", "-snr20")
    assert not any(id_.endswith(copies) for id_ in found["val"])
    originals = [id_ for id_ in found["train"] if not id_.endswith(copies)]
    assert sorted(found["train"]) == sorted(
        id_ + suffix for id_ in originals for suffix in ("", *copies)
    )


# --- references ---


def paired(tmp_path: Path, *flags: Any) -> dict[str, list[dict[str, Any]]]:
    """Eight voices of five clips, and one voice with a single clip; each clip has a text of its
    own."""
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    names = {f"clip{number:03d}.wav": f"voice{number % 8}" for number in range(40)} | {
        "alone.wav": "hermit"
    }
    if not root.exists():
        for number, name in enumerate(names):
            speech(root / name, 3.0 + number / 100, seed=number, rate=16_000)
        speech(root / "clip008.wav", 2.9, seed=8, rate=16_000)  # too short to clone from
    lines = [
        "audio,text,speaker",
        *(f"{name},Text of {name},{speaker}" for name, speaker in names.items()),
    ]
    (root / "meta.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = ["--dataset_type", "custom", "--input_dir", root, "--csv_file", root / "meta.csv"]
    arguments += ["--speaker_column", "speaker", "--output_file", output, "--references", "--split"]
    assert prepare(*arguments, "--val_ratio", "0.3", *flags) == 0
    return sides(output)


@pytest.mark.parametrize("flags", [[], ["--audio_output", "audio"]])
def test_references_are_other_utterances_of_the_voice_and_side(tmp_path, flags, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = paired(tmp_path, "--without_reference", "0", *flags)
    for rows in found.values():
        by_audio = {row["audios"][0]: row for row in rows}
        fit = {speaker: [r for r in rows if r["speaker"] == speaker and "clip008" not in r["id"]]
               for speaker in {r["speaker"] for r in rows}}  # fmt: skip
        for row in rows:
            if not [other for other in fit[row["speaker"]] if other is not row]:
                assert "reference_audio" not in row
                assert "reference_text" not in row
                continue
            reference = by_audio[row["reference_audio"]]  # of the same side, or this fails
            assert reference is not row
            assert reference["speaker"] == row["speaker"]
            assert reference["id"] != "clip008.wav"
            assert (
                row["reference_text"]
                == reference["messages"][-2]["content"]
                == f"Text of {reference['id']}"
            )
    everyone = [row for rows in found.values() for row in rows]
    assert "reference_audio" not in next(row for row in everyone if row["speaker"] == "hermit")
    assert sum("reference_audio" in row for row in everyone) > 30


def test_references_follow_from_the_seed(tmp_path):
    def pairs(*flags: Any) -> dict[str, str | None]:
        rows = [row for side in paired(tmp_path, *flags).values() for row in side]
        return {row["id"]: row.get("reference_audio") for row in rows}

    first = pairs("--without_reference", "0.5")
    assert pairs("--without_reference", "0.5") == first
    assert pairs("--without_reference", "0.5", "--seed", "7") != first
    everyone = pairs("--without_reference", "0")
    dropped = [
        id_ for id_, reference in everyone.items() if reference is not None and first[id_] is None
    ]
    assert 10 <= len(dropped) <= 30
    assert all(first[id_] in (None, reference) for id_, reference in everyone.items())
    assert set(pairs("--without_reference", "1").values()) == {None}


def test_one_speaker_for_all(tmp_path):
    root, output = tmp_path / "lj", tmp_path / "train.jsonl"
    for number in range(3):
        speech(root / "wavs" / f"LJ{number}.wav", 3.1, seed=number, rate=16_000)
    (root / "metadata.csv").write_text(
        "".join(f"LJ{n}|{TEXT}|{TEXT}\n" for n in range(3)), encoding="utf-8"
    )
    arguments = [
        "--dataset_type",
        "ljspeech",
        "--input_dir",
        root,
        "--output_file",
        output,
        "--references",
    ]
    assert prepare(*arguments, "--without_reference", "0") == 0
    assert all(row["reference_audio"] != row["audios"][0] for row in read(output))


def test_a_copy_of_the_target_is_no_reference(tmp_path):
    """A reference that speaks the very words to be spoken, only noisier, teaches the model to
    copy."""
    output = tmp_path / "train.jsonl"
    arguments = corpus(tmp_path / "corpus", 6, speakers=2, duration_s=3.2, rate=16_000)
    flags = [
        "--references",
        "--without_reference",
        "0",
        "--audio_output",
        tmp_path / "audio",
        "--noise_snr_db",
        "20,30",
    ]
    assert prepare(*arguments, "--output_file", output, *flags) == 0
    ids_by_audio = {row["audios"][0]: row["id"] for row in read(output)}
    for row in read(output):
        assert ids_by_audio[row["reference_audio"]].split("-")[0] != row["id"].split("-")[0]


# --- processing ---


def test_originals_stay_and_the_output_is_24_khz_mono(tmp_path):
    root, output, audio = tmp_path / "corpus", tmp_path / "train.jsonl", tmp_path / "audio"
    arguments = corpus(root, 4, rate=44_100, channels=2, duration_s=1.5, pad_s=0.5)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.iterdir()}
    flags = [
        "--audio_output",
        audio,
        "--trim",
        "energy",
        "--trim_padding_s",
        "0.1",
        "--speed_factors",
        "0.8",
        "--split",
    ]
    assert prepare(*arguments, "--output_file", output, *flags, "--validate") == 0
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.iterdir()} == before
    rows = [row for side in sides(output).values() for row in side]
    assert len(rows) == 4 + len(sides(output)["train"]) // 2
    for row in rows:
        info = sf.info(row["audios"][0])
        assert (info.samplerate, info.channels) == (24_000, 1)
        factor = 0.8 if row["id"].endswith("-speed0.8") else 1.0
        assert info.duration * factor == pytest.approx(
            1.7, abs=0.06
        )  # the tone and 0.1 s around it
        assert Path(row["audios"][0]).is_relative_to(audio)
    found = report(output)
    assert found["accepted"]["clips"] == len(rows)
    assert found["accepted"]["hours"] == round(
        sum(sf.info(row["audios"][0]).duration for row in rows) / 3600, 4
    )


def test_what_trimming_leaves_is_judged_again(tmp_path):
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    speech(root / "a.wav", 1.2)
    speech(root / "b.wav", 0.6, pad_s=0.5)
    flags = ["--audio_output", tmp_path / "audio", "--trim", "energy", "--max_silence_share", "1"]
    arguments = table(root, ["a.wav", "b.wav"])
    assert prepare(*arguments, "--output_file", output, *flags, "--trim_padding_s", "0") == 0
    assert ids(output) == ["a.wav"]
    assert reasons(output) == [("b.wav", "after processing: duration below min_duration_s")]


def test_ids_that_look_alike_are_files_of_their_own(tmp_path):
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    names = ["a/b.wav", "a_b.wav", "a b.wav", "a/b.flac", "ü.wav"]
    for number, name in enumerate(names):
        speech(root / name, seed=number)
    assert (
        prepare(*table(root, names), "--output_file", output, "--audio_output", tmp_path / "audio")
        == 0
    )
    files = [row["audios"][0] for row in read(output)]
    assert len(set(files)) == 5
    assert all(re.fullmatch(rf"{tmp_path}/audio/.*\.flac", file) for file in files)


# --- codes ---


@pytest.fixture
def coded(tiny: Path, tmp_path: Path) -> Path:
    """Rows with codes of six clips, five of them with a reference."""
    arguments = corpus(tmp_path / "corpus", 6, speakers=1, duration_s=3.0, rate=16_000)
    output = tmp_path / "data" / "train.jsonl"
    flags = [
        "--references",
        "--without_reference",
        "0",
        "--encode_codes",
        "--codec",
        tiny / "audio_tokenizer",
    ]
    assert prepare(*arguments, "--output_file", output, *flags) == 0
    return output


def test_codes_are_those_of_the_codec(tiny: Path, coded: Path):
    from plugins.audio.code_cache import CodeCache
    from plugins.audio.code_references import parse_reference
    from plugins.audio.codec import Codec

    codec, rows = Codec(str(tiny / "audio_tokenizer")), read(coded)
    assert len(rows) == 6
    for row in rows:
        for audio, column in (("audios", "audio_codes"), ("reference_audio", "reference_codes")):
            (path,) = row[audio] if audio == "audios" else [row[audio]]
            (reference,) = row[column]
            folder, key = parse_reference(reference, beside=coded.parent, where="", field="")
            codes = CodeCache(folder)[key]
            assert codes.dtype == np.int16
            assert np.array_equal(codes, codec.encode_file(path).numpy())
    folder = coded.parent / "codes"
    assert len(list(CodeCache(folder))) == 6, "references are no clips of their own"


def test_a_second_run_encodes_what_is_new(
    tiny: Path, coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from plugins.audio.codec import Codec

    encoded: list[str] = []
    original = Codec.encode_file
    monkeypatch.setattr(
        Codec, "encode_file", lambda self, path: (encoded.append(path), original(self, path))[1]
    )
    arguments = corpus(tmp_path / "corpus", 8, speakers=1, duration_s=3.0, rate=16_000)
    speech(tmp_path / "corpus" / "clip002.wav", 3.0, seed=77, rate=16_000)
    flags = ["--output_file", coded, "--encode_codes", "--codec", tiny / "audio_tokenizer"]
    assert prepare(*arguments, *flags) == 0
    assert [Path(path).stem for path in encoded] == ["clip002", "clip006", "clip007"]


def test_codes_of_augmented_copies_and_processed_clips(tiny: Path, tmp_path: Path):
    output = tmp_path / "train.jsonl"
    flags = ["--audio_output", tmp_path / "audio", "--speed_factors", "0.9", "--encode_codes"]
    arguments = corpus(tmp_path / "corpus", 2)
    assert (
        prepare(*arguments, "--output_file", output, *flags, "--codec", tiny / "audio_tokenizer")
        == 0
    )
    keys = [row["audio_codes"][0] for row in read(output)]
    assert len(keys) == len(set(keys)) == 4


@pytest.mark.slow
def test_training_never_loads_the_codec(
    tiny: Path, coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from helpers.sft import sft

    import plugins.audio.codec

    monkeypatch.setattr(plugins.audio.codec, "_load_codec", lambda path: pytest.fail("loaded"))
    records = sft(tiny, coded, tmp_path / "run", max_steps=2)
    assert [np.isfinite(record["loss"]) for record in records if "loss" in record] == [True, True]


def refused(model: Path, rows: Path, tmp_path: Path) -> list[str]:
    """The lines with which training refuses `rows` before its first step."""
    from helpers.sft import flags
    from swift.pipelines import sft_main

    from plugins.errors import UserError

    with pytest.raises(UserError) as caught:
        sft_main(flags(model, rows, tmp_path / "run", max_steps=1))
    return str(caught.value).splitlines()


@pytest.mark.parametrize("fault", ["another clip", "another codec", "another length", "no cache"])
def test_codes_of_something_else_are_refused_by_training(
    fault: str, tiny: Path, coded: Path, tmp_path: Path
):
    model, first = tiny, read(coded)[0]
    if fault == "another clip":
        speech(Path(first["reference_audio"]), 3.0, seed=99, rate=16_000)
    elif fault == "another codec":
        model = shutil.copytree(tiny, tmp_path / "model")
        config = model / "audio_tokenizer" / "config.json"
        config.write_text(config.read_text() + "\n")
    elif fault == "another length":
        speech(tmp_path / "corpus" / "clip004.wav", 4.0, seed=4, rate=16_000)
    else:
        shutil.rmtree(coded.parent / "codes")
    lines = refused(model, coded, tmp_path)
    assert lines
    assert all(re.match(rf"{coded}:\d+: (audio|reference)_codes", line) for line in lines), lines
    if fault == "another clip":
        assert (
            len(lines)
            == sum(row["reference_audio"] == first["reference_audio"] for row in read(coded)) + 1
        )
        assert all(
            line.endswith("file changed; run prepare_dataset.py --encode_codes again")
            for line in lines
        )
    if fault == "another codec":
        assert len(lines) == 1, "it is told once"
        assert lines[0].endswith("again, with that --codec and another --codes_dir")


@pytest.mark.slow
def test_any_changed_clip_is_refused_by_training(tiny: Path, coded: Path, tmp_path: Path):
    """A clip that was recorded anew at the same length would be trained with the codes of the old
    recording."""
    first = read(coded)[0]["reference_audio"]
    other = next(row["audios"][0] for row in read(coded) if row["audios"][0] != first)
    speech(Path(other), 3.0, seed=99, rate=16_000)
    assert len(refused(tiny, coded, tmp_path)) >= 1


# --- exit codes ---


def test_exit_codes(tmp_path):
    """As a shell sees them: 0 rows, 1 unusable input, 2 wrong usage, 3 rejections with --strict."""
    output = tmp_path / "out" / "train.jsonl"
    good = [*corpus(tmp_path / "good", 2), "--output_file", output]
    bad = [*csv(tmp_path / "bad"), "--output_file", output, "--validate"]
    assert prepare_apart(*good, "--strict").returncode == 0
    old = output.read_bytes()
    wrong = prepare_apart(*good, "--frobnicate")
    assert (wrong.returncode, output.read_bytes()) == (2, old)
    nothing = prepare_apart(*good, "--validate", "--min_duration_s", "20")
    assert (nothing.returncode, nothing.stdout, output.read_bytes()) == (1, "", old)
    assert nothing.stderr.splitlines()[-1].startswith("error: custom: input_dir: ")
    assert "rejected: 2 duration below min_duration_s" in nothing.stderr
    strict = prepare_apart(*bad, "--strict")
    assert (strict.returncode, ids(output)) == (3, ["ok0.wav", "ok1.wav", "ok2.wav"])
    assert prepare(*bad) == 0
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".")]


@pytest.mark.parametrize("flag", [["--mic", "2"], ["--hf_split", "train"], ["--list_file", "x"]])
def test_a_flag_of_another_corpus_is_wrong_usage(tmp_path, capsys, flag):
    with pytest.raises(SystemExit, match="2"):
        prepare(*corpus(tmp_path / "corpus", 1), "--output_file", tmp_path / "train.jsonl", *flag)
    assert f"error: {flag[0]} belongs to --dataset_type " in capsys.readouterr().err


def test_common_voice_quotes_are_text(tmp_path):
    arguments = corpus(tmp_path / "corpus", 1)
    (tmp_path / "corpus" / "meta.csv").write_text(
        'audio\ttext\tspeaker\nclip000.wav\t"So it is, he said.\tann\n'
    )
    output = tmp_path / "train.jsonl"
    assert prepare(*arguments, "--output_file", output) == 1, "a quote that does not close"
    assert prepare(*arguments, "--output_file", output, "--no_quotes") == 0
    assert read(output)[0]["messages"][0]["content"] == '"So it is, he said.'


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trim", "energy"], "error: command line: --audio_output: None changes audio"),
        (
            ["--min_duration_s", "40"],
            "error: command line: --min_duration_s: 40.0 is above --max_duration_s (30); swap",
        ),
        (
            ["--audio_output", "x", "--speed_factors", "9"],
            "error: command line: --speed_factors: (9.0,) is outside",
        ),
        (["--csv_file", "gone.csv"], "error: custom: csv_file: 'gone.csv' not found"),
    ],
)
def test_a_flag_that_cannot_be_meant_is_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    arguments = corpus(tmp_path / "corpus", 2)
    assert prepare(*arguments, "--output_file", tmp_path / "train.jsonl", *flags) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "train.jsonl").exists()
