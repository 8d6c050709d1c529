"""Every clip is a row or a rejection with its reason: unfit recordings, files that lie about
themselves, files of hours."""

import dataclasses
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from conftest import ROOT
from helpers.commands import (
    TEXT,
    ids,
    listed,
    prepare,
    read,
    reasons,
    report,
    speech,
    table,
)
from helpers.trees import at_most

from plugins.prepare.outputs import rejected_path


@dataclasses.dataclass(frozen=True)
class Faulty:
    """Two good clips, `ok.wav` and `ok.flac`, and one per fault, in a corpus of one speaker."""

    root: Path
    outside: dict[
        str, str
    ]  # clip -> its reason, or some with bars between; seen without opening it
    header: dict[str, str]
    samples: dict[str, str]

    @property
    def all(self) -> dict[str, str]:
        return self.outside | self.header | self.samples

    def arguments(self) -> list[Any]:
        lines = [f"ok.wav,{TEXT},ann", f"ok.flac,{TEXT},ann"]
        for name in self.all:
            text = TEXT * 4 if name == "fast.wav" else TEXT
            lines.append(f"{name},{text},ann")
        lines += ["ok.wav,  ,ann", f",{TEXT},ann", f"ok.wav,{TEXT},ann"]
        return [*listed(self.root, "audio,text,speaker", *lines), "--speaker_column", "speaker"]


# What is wrong with the last lines of the list, and not with a file.
LINES = [("ok.wav", "text is empty"), ("", "names no file"), ("ok.wav", "duplicate id")]


def _outside(root: Path) -> dict[str, str]:
    (root / "empty.wav").touch()
    (root / "empty.flac").touch()
    (root / "folder.wav").mkdir()
    (root / "link.wav").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.wav")
    return {
        "empty.wav": "is empty",
        "empty.flac": "is empty",
        "folder.wav": "is a folder",
        "link.wav": "is not a regular file",
        "pipe.wav": "is not a regular file",
        "gone.wav": "not found",
        "https://example.org/a.wav": "is a URL",
    }


def _header(root: Path) -> dict[str, str]:
    speech(root / "low.wav", rate=8_000)
    speech(root / "short.wav", 0.99)
    speech(root / "long.wav", 30.01, rate=16_000)
    speech(root / "wide.wav", channels=3, seed=3)
    speech(root / "fast.wav", seed=4)
    (root / "notes.wav").write_text("no audio")
    wav = speech(root / "ok.wav", 2.0, seed=5).read_bytes()
    rate, many = bytearray(wav), bytearray(wav)
    rate[24:28] = (2_000_000).to_bytes(4, "little")
    (root / "rate.wav").write_bytes(rate)
    many[22:24] = (1024).to_bytes(2, "little")
    (root / "many.wav").write_bytes(many)
    return {
        "low.wav": "sample rate below min_sample_rate_hz",
        "short.wav": "duration below min_duration_s",
        "long.wav": "duration above max_duration_s",
        "wide.wav": "channels above max_channels",
        "fast.wav": "characters per second above max_chars_per_s",
        "notes.wav": "is not readable audio",
        "rate.wav": "has too high a sample rate",
        "many.wav": "is not readable audio|has too many channels",
    }


def _samples(root: Path) -> dict[str, str]:
    sine = np.sin(np.arange(36_000) / 20)
    sf.write(root / "silent.wav", np.zeros(36_000), 24_000)
    sf.write(root / "clipped.wav", np.clip(3 * sine, -1, 1), 24_000)
    sf.write(root / "offset.wav", 0.3 * sine + 0.2, 24_000)
    for name, value in (("nan.wav", np.nan), ("inf.wav", np.inf)):
        samples = np.where(np.arange(36_000) == 100, value, 0.1)
        sf.write(root / name, samples, 24_000, subtype="FLOAT")
    wav = (root / "ok.wav").read_bytes()
    (root / "cut.wav").write_bytes(wav[:50_000])
    huge = bytearray(wav)
    huge[40:44] = (0x7FFFEFFF).to_bytes(4, "little")  # the length of the samples
    (root / "huge.wav").write_bytes(huge)
    flac = speech(root / "ok.flac", 2.0, seed=6).read_bytes()
    (root / "cut.flac").write_bytes(flac[: len(flac) // 2])
    (root / "head.flac").write_bytes(flac[:50])
    (root / "longer.flac").write_bytes(_flac_of_length(flac, 72_000))
    return {
        "silent.wav": "silence share above max_silence_share",
        "clipped.wav": "clipped share above max_clipped_share",
        "offset.wav": "DC offset above max_dc_offset",
        "nan.wav": "holds NaN or infinite samples",
        "inf.wav": "holds NaN or infinite samples",
        "cut.wav": "is truncated",
        "huge.wav": "is truncated",
        "cut.flac": "does not decode to its end|is truncated",
        "head.flac": "is not readable audio|does not decode to its end|is truncated",
        "longer.flac": "does not decode to its end|is truncated",
    }


def _flac_of_length(content: bytes, num_samples: int) -> bytes:
    """`content` with another length in its header: 36 bits beside rate, channels and bits."""
    packed = int.from_bytes(content[18:26], "big") >> 36 << 36 | num_samples
    return content[:18] + packed.to_bytes(8, "big") + content[26:]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    root = tmp_path_factory.mktemp("faulty")
    outside, header = _outside(root), _header(root)
    return Faulty(root, outside, header, _samples(root))


@pytest.mark.parametrize("flags", [["--validate"], ["--audio_output", "audio"]])
def test_every_unfit_clip_is_told_with_its_reason(faulty, tmp_path, monkeypatch, capsys, flags):
    """The old habit was to skip silently; then nobody knows why a corpus has become small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", lambda *args, **kwargs: pytest.fail("opened a socket"))
    output = tmp_path / "train.jsonl"
    with at_most(30):
        assert prepare(*faulty.arguments(), "--output_file", output, *flags, "--strict") == 3
    assert ids(output) == ["ok.wav", "ok.flac"]
    kinds = [(id_, reason.partition(" (")[0]) for id_, reason in reasons(output)]
    assert kinds[-3:] == LINES
    for (id_, kind), (name, wanted) in zip(kinds[:-3], faulty.all.items(), strict=True):
        assert id_ == name
        assert kind in wanted.split("|"), name
    assert ("cut.wav", "is truncated (49956 of 96000 bytes)") in reasons(output)
    root = faulty.root
    rejected = {row["id"]: row for row in read(rejected_path(output))}
    assert rejected["short.wav"]["value"] == 0.99
    assert rejected["gone.wav"] == {
        "file": f"{root}/meta.csv:9",
        "id": "gone.wav",
        "reason": f"not found (looked in {root}/)",
        "value": "gone.wav",
    }
    for line, name in enumerate(faulty.all, start=4):  # after the header and the good clips
        assert rejected[name]["file"] == f"{root}/meta.csv:{line}"
    summary = capsys.readouterr().out
    assert "rows      2 train, 0 validation\n" in summary
    assert f"rejected  {len(kinds)}\n" in summary
    counts = dict(Counter(kind for _, kind in kinds))
    for kind, count in counts.items():
        assert f"          {count} {kind}\n" in summary
    if flags == ["--validate"]:
        assert report(output)["rejected"] == {"clips": len(kinds), "reasons": counts}
        assert report(output)["accepted"]["clips"] == 2
        assert report(output)["duration_s"]["min"] == report(output)["duration_s"]["max"] == 2.0
        assert report(output)["splits"]["train"]["clips"] == 2
        assert report(output)["speakers"]["ann"]["clips"] == 2


def test_headers_alone_reject_what_they_show(faulty, tmp_path):
    """Whether a clip is silent, only its samples say; its length, its header."""
    output = tmp_path / "train.jsonl"
    arguments = [*faulty.arguments(), "--output_file", output, "--validate", "header"]
    assert prepare(*arguments) == 0
    told = {id_ for id_, _ in reasons(output)}
    assert told >= {*faulty.outside, *faulty.header}
    of_samples = {"silent.wav", "clipped.wav", "offset.wav", "nan.wav", "inf.wav", "cut.flac"}
    assert {"ok.wav", "ok.flac", *of_samples} <= set(ids(output))


def test_without_validate_no_audio_is_opened(faulty, tmp_path, monkeypatch):
    """A quick look at 40,000 clips must not read them; what can be seen from outside is still
    told."""
    monkeypatch.setattr(sf, "SoundFile", lambda *args: pytest.fail("opened"))
    output = tmp_path / "train.jsonl"
    assert prepare(*faulty.arguments(), "--output_file", output) == 0
    assert ids(output) == ["ok.wav", "ok.flac", *faulty.header, *faulty.samples]
    assert len(reasons(output)) == len(faulty.outside) + len(LINES)


def test_limits_are_flags(faulty, tmp_path):
    output = tmp_path / "train.jsonl"
    limits = ["--min_duration_s", "0.5", "--min_sample_rate_hz", "8000", "--max_channels", "3"]
    limits += ["--max_dc_offset", "1", "--max_chars_per_s", "100"]
    arguments = [*faulty.arguments(), "--output_file", output, "--validate"]
    assert prepare(*arguments, *limits) == 0
    fit = ["low.wav", "short.wav", "wide.wav", "fast.wav", "offset.wav"]
    assert ids(output) == ["ok.wav", "ok.flac", *fit]


# --- files of hours ---


@pytest.fixture(scope="module")
def hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight hours of silence in about a megabyte of FLAC; the same with two seconds in its header;
    a normal clip."""
    root = tmp_path_factory.mktemp("hours")
    with sf.SoundFile(root / "long.flac", "w", 16_000, 1) as file:
        minute = np.zeros(16_000 * 60, dtype=np.int16)
        for _ in range(8 * 60):
            file.write(minute)
    (root / "liar.flac").write_bytes(_flac_of_length((root / "long.flac").read_bytes(), 32_000))
    speech(root / "ok.wav")
    return root


def test_eight_hours_of_silence_take_no_memory(hours, tmp_path):
    """The bound on the duration is asked of the header; the samples must not come as a surprise."""
    output = tmp_path / "train.jsonl"
    arguments = [*table(hours, ["long.flac", "liar.flac", "ok.wav"]), "--output_file", output]
    # In a process of its own, asked of itself: rusage counts what came before `exec` too.
    code = "import sys; from plugins.prepare.cli import main; code = main(sys.argv[1:])"
    code += "; print(code, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    flags = ["--validate", "--workers", "1"]
    command = [sys.executable, "-c", code, *map(str, [*arguments, *flags])]
    printed = subprocess.check_output(command, cwd=ROOT, text=True, timeout=120)
    status, peak_kb = printed.splitlines()[-1].split()
    assert status == "0"
    assert int(peak_kb) / 1024 < 300
    (long, liar) = reasons(output)
    assert long == ("long.flac", "is too long to be decoded (28800 s at 16000 Hz, channels: 1)")
    assert liar[0] == "liar.flac"
    assert ids(output) == ["ok.wav"]
