"""Preparing a corpus, and reading its codes, against the plain way of doing it: `python -m
benchmarks.prepare`.

P-a  headers of all clips                    librosa.load(f, sr=24000), clip by clip, in one process
P-b  every sample decoded and checked        the same loop
P-c  checked, resampled, written as FLAC     the same loop; soundfile writes the clips, as FLAC too
P10  codes out of the cache, 13,100 rows     json.loads of rows with the codes in them
P6   row -> EncodedSample, cached codes      the codec in their place, of the published size, random

The clips are generated into a temporary folder and lie in the page cache when they are read. Of R
rounds, each decodes another R-th of the clips, with workers all of them, whose start a real corpus
does not notice; headers are read of all clips in each round. Arms with workers are what a user
runs: all that prepare_dataset.py does for a clip, in its two worker processes, from their start to
their end. The others show how much of that is the second process. `limit` is the same job reduced
to what any implementation does: soundfile's decoder, soxr, soundfile's encoder. What is compared is
first asserted to be equal. P10 and P6 stand in `benchmarks.cached`: they need torch, which is
imported after the rounds of audio, because the command forks its workers from a process without."""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile as sf
import soxr

from benchmarks.measure import (
    ROOT,
    Arm,
    Comparison,
    Rates,
    alternate,
    compare,
    count,
    line_of,
    machine,
    table,
    write_json,
)
from plugins.audio.waveforms import SAMPLE_RATE_HZ, load, to_float, to_pcm16
from plugins.corpora import Utterance
from plugins.prepare.clips import Outcome, Work
from plugins.prepare.quality import samples_hash
from plugins.prepare.run import CHUNK, journal_of, run_all, run_chunk

WORKERS = 2
NUM_CLIPS = 2000
NUM_ROWS = 13_100  # of LJSpeech
_FORMATS = ((44_100, "wav"), (44_100, "flac"), (48_000, "wav"), (48_000, "flac"))
_SHORT_S, _NUM_SHORT = 3.5, 3  # the clips that the codec encodes in each round
_STEP = 2**-15  # of 16 bit

AUDIO = [
    Comparison("P-a", "headers", "librosa", 30),
    Comparison("P-a", "headers, 2 workers", "librosa", 30),
    Comparison("P-b", "decode, check", "librosa", 3, limit="decode"),
    Comparison("P-b", "decode, check, 2 workers", "librosa", 3, limit="decode, 2 workers"),
    Comparison("P-c", "process, write", "librosa, write", 1.5, limit="resample, write"),
    Comparison(
        "P-c",
        "process, write, 2 workers",
        "librosa, write",
        1.5,
        limit="resample, write, 2 workers",
    ),
]
CODES = [
    Comparison("P10", "cached codes", "JSON lists", 10),
    Comparison("P10", "cached codes, tensors", "JSON lists, tensors", 10),
]
_FEW_CLIPS = 30  # where only short ones are looked for
EPOCH = [Comparison("P6", "cached epoch", "codec in the epoch", 50)]
IDS = ("P-a", "P-b", "P-c", "P10", "P6")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prepare", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--clips", type=int, default=NUM_CLIPS, help="generated clips (default: %(default)s)"
    )
    parser.add_argument(
        "--rows", type=int, default=NUM_ROWS, help="with codes, for P10 (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="of all arms (default: %(default)s)")
    parser.add_argument(
        "--no_codec", action="store_true", help="leave out P6, which builds a codec of 0.8 GB"
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "prepare.json"
    )
    args = parser.parse_args(argv)
    started_s, header = time.monotonic(), machine()
    with tempfile.TemporaryDirectory() as folder:
        ids = IDS[:-1] if args.no_codec else IDS  # P6 is the last
        sizes = {"num_rounds": args.rounds, "num_clips": args.clips, "num_rows": args.rows}
        report = run(Path(folder), ids=ids, **sizes)
    report = {**header, "clips": args.clips, "rows": args.rows, "rounds": args.rounds, **report}
    print(line_of(header))
    share = -(-args.clips // args.rounds)  # rounded up
    print(f"{args.clips} clips, {args.rounds} rounds; per round {share} clips in one process,")
    print(f"all of them with workers and for headers; codes of {args.rows} rows;")
    print("limit: the decoder, resampler and encoder alone")
    print(f"\n{table(report['comparisons'])}\n")
    print("cache: {bytes_per_s:.1f} bytes per second of audio".format(**report["cache"]))
    if args.no_codec:
        print("P6 left out (--no_codec)")
    else:
        print(f"P6: {_NUM_SHORT} clips below {_SHORT_S} s a round")
    print(f"took {time.monotonic() - started_s:.0f} s")
    write_json(args.output, report)
    return 0


def run(
    folder: Path,
    *,
    num_rounds: int,
    ids: Sequence[str] = IDS,
    num_clips: int = NUM_CLIPS,
    num_rows: int = NUM_ROWS,
) -> dict[str, Any]:
    """ids: which comparisons. The clips that are not decoded in full are a few only."""
    chosen = [claim for claim in (*AUDIO, *CODES, *EPOCH) if claim.id in ids]
    rates: Rates = {}
    report: dict[str, Any] = {}
    with_audio = not {"P-a", "P-b", "P-c"}.isdisjoint(ids)
    if not with_audio:
        num_clips = min(num_clips, _FEW_CLIPS)
    utterances = make_clips(folder / "clips", num_clips)
    if with_audio:
        rates |= alternate(audio_arms(utterances, folder, num_rounds), num_rounds)
    if {"P10", "P6"}.isdisjoint(ids):
        return {**report, "comparisons": compare(chosen, rates), "per_s": rates}
    # Not before: workers are forked, and a child of a process that has used torch may hang.
    from benchmarks.cached import build_codec, code_arms, epoch_arms

    if "P10" in ids:
        durations_s = list(map(utterance_duration_s, utterances))
        arms, report["cache"] = code_arms(list(islice(cycle(durations_s), num_rows)), folder)
        rates |= alternate(arms, num_rounds)
    if "P6" in ids:
        build_codec(folder / "codec")
        short = [clip for clip in utterances if utterance_duration_s(clip) < _SHORT_S]
        rates |= alternate(epoch_arms(short[:_NUM_SHORT], folder / "codec", folder), num_rounds)
    return {**report, "comparisons": compare(chosen, rates), "per_s": rates}


# The corpus.


def make_clips(folder: Path, num_clips: int) -> list[Utterance]:
    """Clips of 2 to 8 s, each a piece of one of four generated recordings, at a level of its
    own."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    recordings = [_speech_like(pitch_hz, generator) for pitch_hz in (95, 125, 180, 220)]
    utterances = []
    for i in range(num_clips):
        # Drawn, not in turn: shares are taken in steps.
        sample_rate_hz, suffix = _FORMATS[generator.integers(len(_FORMATS))]
        recording = recordings[generator.integers(len(recordings))]
        num_samples = int(generator.uniform(2, 8) * sample_rate_hz)
        start = generator.integers(len(recording) - num_samples)
        path = folder / f"{i:05d}.{suffix}"
        piece = recording[start : start + num_samples] * generator.uniform(0.3, 0.9)
        sf.write(path, piece, sample_rate_hz, subtype="PCM_16")
        text = "word " * round(3 * num_samples / sample_rate_hz)
        utterances.append(Utterance(f"benchmark:{i}", path.stem, text, path, None))
    return utterances


def _speech_like(pitch_hz: float, generator: np.random.Generator) -> np.ndarray:
    """12 s at 48 kHz with peak 1: a wandering pitch, falling harmonics, four syllables a second, a
    quiet room."""
    time_s = np.arange(12 * 48_000) / 48_000
    phase = 2 * np.pi * pitch_hz * (time_s + 0.05 * np.sin(2 * np.pi * 0.4 * time_s))
    voice = sum(np.sin(k * phase + generator.uniform(0, 6)) / k**1.2 for k in range(1, 31))
    phrases = 0.5 * np.sin(2 * np.pi * 0.7 * time_s)
    syllables = np.clip(0.6 + np.sin(2 * np.pi * 4 * time_s) + phrases, 0.02, None)
    sound = voice * syllables
    sound = sound / np.abs(sound).max() + 0.001 * generator.standard_normal(len(time_s))
    return sound / np.abs(sound).max()


def utterance_duration_s(utterance: Utterance) -> float:
    return float(sf.info(utterance.audio).duration)


# P-a, P-b, P-c.


def audio_arms(utterances: Sequence[Utterance], folder: Path, num_rounds: int) -> dict[str, Arm]:
    headers, full = Work(level="header"), Work(level="full")
    # A few are enough to see that all do the same job.
    check_equal(utterances[:8], folder / "checked")

    def share(i: int) -> Sequence[Utterance]:
        return utterances[i::num_rounds]

    def target(arm: str, i: int) -> Path:
        path = folder / arm / str(i)
        path.mkdir(parents=True)
        return path

    def here(work: Callable[[Utterance], Any], chosen: Iterable[Utterance]) -> int:
        return count(map(work, chosen))

    def processing(arm: str, i: int) -> Work:
        return Work(level="full", audio_dir=target(arm, i))

    # A folder per arm and round: none finds what another one has written.
    return {
        "librosa": lambda i: here(_librosa, share(i)),
        "headers": lambda i: len(run_chunk(headers, utterances)),
        "headers, 2 workers": lambda i: in_command(headers, utterances, target("headers", i)),
        "decode": lambda i: here(_decode, share(i)),
        "decode, 2 workers": lambda i: in_pool(_decode, utterances),
        "decode, check": lambda i: len(run_chunk(full, share(i))),
        "decode, check, 2 workers": lambda i: in_command(full, utterances, target("full", i)),
        "librosa, write": lambda i: here(partial(_librosa_write, target("librosa", i)), share(i)),
        "resample, write": lambda i: here(partial(_resample_write, target("limit", i)), share(i)),
        "resample, write, 2 workers": lambda i: in_pool(
            partial(_resample_write, target("limit2", i)), utterances
        ),
        "process, write": lambda i: len(run_chunk(processing("ours", i), share(i))),
        "process, write, 2 workers": lambda i: in_command(
            processing("ours2", i), utterances, target("journal", i)
        ),
    }


def in_command(work: Work, utterances: Sequence[Utterance], folder: Path) -> int:
    """As prepare_dataset.py does it: worker processes, keys, journal."""
    # Not a terminal: no progress bar among the results.
    with (
        open(os.devnull, "w") as nowhere,
        redirect_stderr(nowhere),
        journal_of(folder / "rows.jsonl") as journal,
    ):
        return len(run_all(utterances, work, journal=journal, num_workers=WORKERS))


def in_pool(work: Callable[[Utterance], Any], utterances: Sequence[Utterance]) -> int:
    with ProcessPoolExecutor(WORKERS) as pool:
        return count(pool.map(work, utterances, chunksize=CHUNK))


def check_equal(utterances: Sequence[Utterance], folder: Path) -> None:
    """Our samples, durations, hashes and files are those of librosa; nothing is refused."""
    for utterance in utterances:
        expected = _librosa(utterance)
        assert_same_sound(load(utterance.audio), expected, atol=1e-6)
        native, sample_rate_hz = librosa.load(utterance.audio, sr=None)
        duration_s = len(native) / sample_rate_hz
        assert _duration_s(Work(level="header")(utterance)) == duration_s
        full = Work(level="full")(utterance)
        assert _duration_s(full) == duration_s
        assert full.files[0].content == samples_hash(native, int(sample_rate_hz))
        written = Work(level="full", audio_dir=folder)(utterance)
        samples, rate_hz = sf.read(written.files[0].audio)
        assert rate_hz == SAMPLE_RATE_HZ
        assert_same_sound(samples, expected, atol=1.5 * _STEP)


def assert_same_sound(samples: np.ndarray, expected: np.ndarray, *, atol: float) -> None:
    """Librosa rounds the length up and appends a zero where the resampler rounds it down."""
    # The appended sample is not compared.
    assert len(expected) - len(samples) in (0, 1), (len(samples), len(expected))
    np.testing.assert_allclose(samples, expected[: len(samples)], rtol=0, atol=atol)


def _duration_s(outcome: Outcome) -> float | None:
    assert outcome.fault is None, outcome.fault
    return outcome.files[0].duration_s


def _librosa(utterance: Utterance) -> np.ndarray:
    return librosa.load(utterance.audio, sr=SAMPLE_RATE_HZ)[0]


def _librosa_write(folder: Path, utterance: Utterance) -> None:
    sf.write(folder / f"{utterance.id}.flac", _librosa(utterance), SAMPLE_RATE_HZ)


def _decode(utterance: Utterance) -> None:
    sf.read(utterance.audio, dtype="int16")


def _resample_write(folder: Path, utterance: Utterance) -> None:
    samples, sample_rate_hz = sf.read(utterance.audio, dtype="int16")
    resampled = soxr.resample(to_float(samples), sample_rate_hz, SAMPLE_RATE_HZ)
    encoded = io.BytesIO()
    sf.write(encoded, to_pcm16(resampled), SAMPLE_RATE_HZ, format="FLAC")
    (folder / f"{utterance.id}.flac").write_bytes(encoded.getbuffer())


if __name__ == "__main__":
    sys.exit(main())
