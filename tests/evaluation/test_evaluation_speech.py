"""Evaluation of real speech with the real scorers: Asterisk's prompts, and flite."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from conftest import ROOT, write_jsonl
from helpers.recorded import RATE_HZ, SOUNDS, decoded, require_sounds, transcripts

from plugins.audio import waveforms as audio
from plugins.cli import main
from plugins.hearing.scorers import load_scorers

NUM_CLIPS, MIN_S, MAX_S = 24, 2.0, 6.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """24 of them, from the whole alphabet: `id`, `text`, `audio` (16 kHz WAV)."""
    require_sounds()
    _, missing = load_scorers()
    if missing:
        pytest.skip(f"needs all scorers: {'; '.join(map(str, missing))}")
    candidates = []
    for name, text in transcripts():
        if "/" in name:
            continue  # of digits, dates and dictation
        path = SOUNDS / f"{name}.g722"
        # One byte holds two samples. What stands in brackets is a sound, not a word.
        num_samples = 2 * path.stat().st_size if path.is_file() else 0
        if "[" not in text and MIN_S <= num_samples / RATE_HZ <= MAX_S:
            candidates.append((name, text, path))
    folder = tmp_path_factory.mktemp("prompts")
    chosen = []
    for name, text, path in candidates[:: len(candidates) // NUM_CLIPS][:NUM_CLIPS]:
        wav = folder / f"{name}.wav"
        audio.save_wav(wav, decoded(path), RATE_HZ)
        assert audio.probe(wav).duration_s >= MIN_S
        chosen.append({"id": name, "text": text, "audio": str(wav)})
    assert len(chosen) == NUM_CLIPS
    return chosen


def rows(path: Path, prompts: Sequence[dict[str, str]], texts: Sequence[str] | None = None) -> Path:
    """Test rows that clone each prompt from the next one."""
    spoken = []
    for number, prompt in enumerate(prompts):
        text = prompt["text"] if texts is None else texts[number]
        user = {"role": "user", "content": text}
        row = {"id": prompt["id"], "speaker": "prompts", "audios": [prompt["audio"]]}
        row["messages"] = [user, {"role": "assistant", "content": ""}]
        row["reference_audio"] = prompts[(number + 1) % len(prompts)]["audio"]
        spoken.append(row)
    return write_jsonl(path, spoken)


@pytest.fixture(scope="module")
def evaluated(prompts: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`evaluated(test rows, folder of recordings)`: scores of "generated". What has been heard is
    heard once."""
    out = tmp_path_factory.mktemp("evaluated")

    def evaluate(test_rows: Path, generated: Path) -> dict[str, float]:
        arguments = ["--dataset", test_rows, "--generated", generated, "--output", out]
        assert main(["evaluate", *map(str, arguments), "--device", "cpu"]) == 0
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        assert not summary["missing"]
        scores = summary["systems"]["generated"]["scores"]
        print(json.dumps(scores))  # what a failure is judged by
        return {name: score["mean"] for name, score in scores.items() if score is not None}

    return evaluate


@pytest.fixture(scope="module")
def recordings(
    prompts: list[dict[str, str]], evaluated: Any, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The recordings themselves as generated: function of the number of clips -> their scores."""
    folder = tmp_path_factory.mktemp("rows")

    def scores(num_clips: int) -> dict[str, float]:
        chosen = prompts[:num_clips]
        return evaluated(
            rows(folder / f"{num_clips}.jsonl", chosen), Path(chosen[0]["audio"]).parent
        )

    return scores


def test_recordings_are_understood_and_known_again(recordings: Any) -> None:
    scores = recordings(NUM_CLIPS)
    assert scores["wer"] <= 0.10
    assert scores["wer_seed"] <= 0.25, "numbers stay digits there"
    assert scores["similarity"] >= 0.8
    assert scores["duration_ratio"] == 1.0


def test_other_transcripts_are_not_what_is_heard(
    prompts: list[dict[str, str]], evaluated: Any, tmp_path: Path
) -> None:
    texts = [prompt["text"] for prompt in prompts]
    shuffled = rows(tmp_path / "shuffled.jsonl", prompts, texts[7:] + texts[:7])
    scores = evaluated(shuffled, Path(prompts[0]["audio"]).parent)
    assert scores["wer"] >= 0.80
    assert scores["wer_seed"] >= 0.80


def test_another_speaker_is_told_apart(
    prompts: list[dict[str, str]], evaluated: Any, recordings: Any, tmp_path: Path
) -> None:
    if shutil.which("flite") is None:
        pytest.skip("needs Debian's flite: apt-get install flite")
    same, chosen = recordings(8)["similarity"], prompts[:8]
    for prompt in chosen:
        wav = tmp_path / f"{prompt['id']}.wav"
        command = ["flite", "-voice", "slt", "-t", prompt["text"], "-o", str(wav)]
        subprocess.run(command, check=True, timeout=60)
    scores = evaluated(rows(tmp_path / "test.jsonl", chosen), tmp_path)
    assert scores["similarity"] <= same - 0.15
    assert scores["wer"] <= 0.35, "and yet it is understood"


def test_noise_lowers_both_qualities(
    prompts: list[dict[str, str]], evaluated: Any, recordings: Any, tmp_path: Path
) -> None:
    clean, chosen, random = recordings(8), prompts[:8], np.random.default_rng(0)
    for prompt in chosen:
        samples, rate_hz = sf.read(prompt["audio"], dtype="float32")
        noise = random.standard_normal(len(samples)).astype(np.float32)
        noisy = samples + noise * np.sqrt((samples**2).mean() / (noise**2).mean())  # 0 dB
        sf.write(tmp_path / f"{prompt['id']}.wav", noisy / np.abs(noisy).max(), rate_hz)
    noisy_scores = evaluated(rows(tmp_path / "test.jsonl", chosen), tmp_path)
    for name in ("dnsmos", "distillmos"):
        assert noisy_scores[name] <= clean[name] - 0.5, name


def test_a_killed_evaluation_of_real_speech_ends_with_the_same_bytes(
    prompts: list[dict[str, str]], tmp_path: Path
) -> None:
    """Killed between any two things heard, by all scorers, in processes of their own."""
    chosen = prompts[:2]
    test_rows = rows(tmp_path / "test.jsonl", chosen)

    def command(out: str) -> list[str]:
        arguments = ["--dataset", test_rows, "--generated", Path(chosen[0]["audio"]).parent]
        arguments += ["--output", tmp_path / out, "--device", "cpu"]
        return [sys.executable, "-m", "plugins", "evaluate", *map(str, arguments)]

    quiet = subprocess.DEVNULL
    options: dict[str, Any] = {"cwd": ROOT, "stdout": quiet, "stderr": quiet}
    subprocess.run(command("whole"), check=True, timeout=300, **options)
    # While the first clip is heard by its five scorers, and while the second is.
    for num_lines in (4, 8):
        process = subprocess.Popen(command("broken"), **options)
        journal, until = tmp_path / "broken" / "progress.jsonl", time.monotonic() + 300
        while process.poll() is None and time.monotonic() < until:
            if journal.is_file() and journal.read_bytes().count(b"\n") >= num_lines:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.01)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "broken" / "summary.json").exists()
    subprocess.run(command("broken"), check=True, timeout=300, **options)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for name in ("summary.json", "items.jsonl", "report.md"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
