"""Preparing a corpus, and reading its codes, against the plain way of doing it: `python -m
benchmarks.prepare`.

P-a  headers of all clips                              librosa.load(f, sr=24000), clip by clip, in one process
P-b  every sample decoded and checked                  the same loop
P-c  checked, resampled, written as FLAC               the same loop, each clip written by soundfile, also as FLAC
P10  codes out of the cache, of 13,100 rows            json.loads of rows with the codes in them
P6   row -> EncodedSample with codes from the cache    the same with the codec, of the published size, random weights

The clips are generated into a temporary folder and lie in the page cache when they are read. Of R
rounds, each decodes another R-th of the clips, with workers all of them, whose start a real corpus
does not notice; headers are read of all clips in each round. Arms with workers are what a user
runs: all that prepare_dataset.py does for a clip, in its two worker processes, from their start to
their end. The others show how much of that is the second process. `limit` is the same job reduced
to what any implementation does: soundfile's decoder, soxr, soundfile's encoder. What is compared is
first asserted to be equal. What needs torch imports it, after the rounds of audio: the command
forks its workers from a process without."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
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
from typing import TYPE_CHECKING, Any

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
    machine,
    table,
    write_json,
)
from plugins.audio.waveforms import SAMPLE_RATE_HZ, load, to_float, to_pcm16
from plugins.corpora import Utterance
from plugins.prepare.clips import Outcome, Work
from plugins.prepare.quality import samples_hash
from plugins.prepare.run import CHUNK, journal_of, run_all, run_chunk

if TYPE_CHECKING:
    from plugins.data.dialogue import EncodedSample

WORKERS = 2
NUM_CLIPS = 2000
NUM_ROWS = 13_100  # of LJSpeech
_FORMATS = ((44_100, "wav"), (44_100, "flac"), (48_000, "wav"), (48_000, "flac"))
_SHORT_S, _NUM_SHORT = 3.5, 3  # the clips that the codec encodes in each round
_PASSES = 50  # over these clips from the cache: one takes a millisecond
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
IDS = tuple(dict.fromkeys(each.id for each in (*AUDIO, *CODES, *EPOCH)))


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
        ids = [each for each in IDS if each != "P6" or not args.no_codec]
        report = run(
            Path(folder), num_rounds=args.rounds, ids=ids, num_clips=args.clips, num_rows=args.rows
        )
    report = {**header, "clips": args.clips, "rows": args.rows, "rounds": args.rounds, **report}
    print(", ".join(f"{name} {value}" for name, value in header.items()))
    share = -(-args.clips // args.rounds)
    print(
        f"{args.clips} clips, {args.rounds} rounds; per round {share} clips in one process, all of them with workers"
    )
    print(
        f"and for headers; codes of {args.rows} rows; limit: the decoder, resampler and encoder alone"
    )
    print(f"\n{table(report['comparisons'])}\n")
    print("cache: {bytes_per_s:.1f} bytes per second of audio".format(**report["cache"]))
    print(
        "P6 left out (--no_codec)"
        if args.no_codec
        else f"P6: {_NUM_SHORT} clips below {_SHORT_S} s a round"
    )
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
    chosen = [each for each in (*AUDIO, *CODES, *EPOCH) if each.id in ids]
    rates: Rates = {}
    report: dict[str, Any] = {}
    with_audio = any(each in AUDIO for each in chosen)
    utterances = make_clips(
        folder / "clips", num_clips if with_audio else min(num_clips, _FEW_CLIPS)
    )
    if with_audio:
        rates |= alternate(audio_arms(utterances, folder, num_rounds), num_rounds)
    if "P10" in ids:
        durations_s = [utterance_duration_s(utterance) for utterance in utterances]
        arms, report["cache"] = code_arms(list(islice(cycle(durations_s), num_rows)), folder)
        rates |= alternate(arms, num_rounds)
    if "P6" in ids:
        build_codec(folder / "codec")
        short = [each for each in utterances if utterance_duration_s(each) < _SHORT_S]
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
        sample_rate_hz, suffix = _FORMATS[
            generator.integers(len(_FORMATS))
        ]  # not in turn: shares are taken in steps
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
    syllables = np.clip(
        0.6 + np.sin(2 * np.pi * 4 * time_s) + 0.5 * np.sin(2 * np.pi * 0.7 * time_s), 0.02, None
    )
    sound = voice * syllables
    sound = sound / np.abs(sound).max() + 0.001 * generator.standard_normal(len(time_s))
    return sound / np.abs(sound).max()


def utterance_duration_s(utterance: Utterance) -> float:
    return float(sf.info(utterance.audio).duration)


# P-a, P-b, P-c.


def audio_arms(utterances: Sequence[Utterance], folder: Path, num_rounds: int) -> dict[str, Arm]:
    headers, full = Work(level="header"), Work(level="full")
    check_equal(utterances[:8], folder / "checked")

    def share(i: int) -> Sequence[Utterance]:
        return utterances[i::num_rounds]

    def target(arm: str, i: int) -> Path:
        path = folder / arm / str(i)
        path.mkdir(parents=True)
        return path

    def here(work: Callable[[Utterance], Any], chosen: Iterable[Utterance]) -> int:
        return sum(1 for _ in map(work, chosen))

    def processing(arm: str, i: int) -> Work:
        return Work(level="full", audio_dir=target(arm, i))

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
        return sum(1 for _ in pool.map(work, utterances, chunksize=CHUNK))


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


# P10.


def code_arms(
    durations_s: Sequence[float], folder: Path
) -> tuple[dict[str, Arm], dict[str, float]]:
    """Random codes of clips of these lengths, in a cache and in JSON rows. Also what the cache
    takes on disk."""
    import torch

    from plugins.audio.code_cache import CacheWriter, CodeCache
    from plugins.audio.codec import FRAMES_PER_S, NUM_CODEBOOKS, NUM_CODES

    generator = np.random.default_rng(0)
    lengths = [int(np.ceil(duration_s * FRAMES_PER_S)) for duration_s in durations_s]
    codes = [generator.integers(0, NUM_CODES, (NUM_CODEBOOKS, length)) for length in lengths]
    keys = [hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in range(len(codes))]
    cache, inline = folder / "codes", folder / "inline.jsonl"
    with CacheWriter(cache, codec="random") as writer:
        for key, codes_KxF in zip(keys, codes, strict=True):
            writer.add(key, codes_KxF)
        writer.commit()
    inline.write_text(
        "".join(json.dumps({"audio_codes": codes_KxF.T.tolist()}) + "\n" for codes_KxF in codes)
    )

    def cached() -> Iterable[np.ndarray]:
        opened = CodeCache(cache)
        return (opened[key] for key in keys)

    def lists() -> Iterable[list[list[int]]]:
        with inline.open(encoding="utf-8") as lines:
            yield from (json.loads(line)["audio_codes"] for line in lines)

    for ours, listed, expected in zip(cached(), lists(), codes, strict=True):
        assert np.array_equal(ours, expected)
        assert np.array_equal(np.array(listed).T, expected)
    arms: dict[str, Arm] = {
        "cached codes": lambda i: sum(1 for _ in cached()),
        "JSON lists": lambda i: sum(1 for _ in lists()),
        "cached codes, tensors": lambda i: sum(
            torch.from_numpy(each.astype("int64")).dim() == 2 for each in cached()
        ),
        "JSON lists, tensors": lambda i: sum(
            torch.tensor(each).T.contiguous().dim() == 2 for each in lists()
        ),
    }
    num_bytes = sum(path.stat().st_size for path in cache.iterdir())
    return arms, {"bytes_per_s": num_bytes / sum(durations_s)}


# P6.


def build_codec(folder: Path) -> None:
    """A codec of the published shape. Its codebooks are random too: as they start, all zero, every
    code would be 0."""
    import torch
    from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel

    ratios = [8, 5, 4, 2, 3]
    acoustic = {"downsampling_ratios": ratios, "upsampling_ratios": ratios}
    config = HiggsAudioV2TokenizerConfig(
        target_bandwidths=[0.5, 1, 1.5, 2], acoustic_model_config=acoustic
    )
    torch.manual_seed(0)
    model: Any = HiggsAudioV2TokenizerModel(config)
    for quantizer in model.quantizer.quantizers:
        torch.nn.init.normal_(quantizer.codebook.embed)
    model.save_pretrained(folder)


def epoch_arms(utterances: Sequence[Utterance], codec_folder: Path, folder: Path) -> dict[str, Arm]:
    """The way of a row from a loaded dataset to its sample, as `HiggsAudioTemplate` goes it."""
    import torch

    from demo.tiny import build_config, build_tokenizer
    from plugins.audio.codec import NUM_CODEBOOKS, Codec
    from plugins.corpora.canonical import canonical_row
    from plugins.data.clips import check_clips, with_clips
    from plugins.data.prompt import encode
    from plugins.data.rows import dialogue_from_row
    from plugins.data.tokens import SpecialTokens
    from plugins.prepare.encode import encode_rows
    from plugins.settings import HiggsAudioSettings

    settings = HiggsAudioSettings()
    tokenizer = build_tokenizer(utterance.text for utterance in utterances)
    tokens = SpecialTokens.from_config(build_config(tokenizer), tokenizer)
    codec = Codec(str(codec_folder))
    plain = [_row(utterance) for utterance in utterances]
    coded = [_row(utterance) for utterance in utterances]
    encode_rows(
        coded, folder=folder / "epoch_codes", codec=str(codec_folder), device="cpu", beside=folder
    )

    def canonical(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            canonical_row(row, f"row {i}", settings, beside=folder) for i, row in enumerate(rows)
        ]

    def sample(row: dict[str, Any]) -> EncodedSample:
        dialogue = dialogue_from_row(row, settings)
        check_clips(dialogue, settings)
        return encode(with_clips(dialogue, codec, tokens), tokenizer, tokens)

    plain, coded = canonical(plain), canonical(coded)
    for ours, expected in zip(map(sample, coded), map(sample, plain), strict=True):
        assert ours.input_ids == expected.input_ids
        assert ours.labels == expected.labels
        assert torch.equal(ours.clips[0], expected.clips[0])
        assert ours.clips[0].unique().numel() > NUM_CODEBOOKS, (
            "the codec says the same all the time"
        )
    return {
        "codec in the epoch": lambda i: sum(1 for _ in map(sample, plain)),
        "cached epoch": lambda i: sum(1 for _ in map(sample, coded * _PASSES)),
    }


def _row(utterance: Utterance) -> dict[str, Any]:
    messages = [{"role": "user", "content": utterance.text}, {"role": "assistant", "content": ""}]
    return {"messages": messages, "audios": [str(utterance.audio)]}


if __name__ == "__main__":
    sys.exit(main())
