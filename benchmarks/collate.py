"""P1: our collator against boson-multimodal's. P5: what part of the positions that are computed is
padding.

P1  rows collated per second, 8 rows of F frames each; both on one thread, as a worker of a data
    loader has. `limit`: the finished batch copied once.
P5  positions of rows / positions of batches, over an epoch of 13,100 rows whose lengths are drawn
    in the shape of LJSpeech and of VCTK. Batches are those of MS-SWIFT's own classes, of 8 rows;
    packs are counted as 2048 positions each, full or not (what is computed is only what is in them:
    nothing is padded). A round is a seed, and a share stands where other comparisons have a rate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from itertools import chain, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.boson import Peer, peer, python_of
from benchmarks.measure import ROOT, Arm, Comparison, Rates, alternate, compare
from plugins.collator import collate
from plugins.data.dialogue import EncodedSample
from plugins.data.tokens import SpecialTokens
from plugins.delay_pattern import IGNORE_INDEX, num_delayed_frames

BATCH = 8
FRAMES = (75, 250, 750)
BATCHES_PER_ROUND = 200
NUM_ROWS = 13_100  # of LJSpeech
MAX_LENGTH = 2048
CORPORA = ("LJSpeech", "VCTK")

# Of the published tokenizer and config.
TOKENS = SpecialTokens(
    begin_of_text=128000,
    header_start=128006,
    header_end=128007,
    end_of_turn=128009,
    end_of_message=128008,
    scene_start=128018,
    scene_end=128019,
    audio_bos=128013,
    reference_bos=128013,
    audio_eos=128012,
    audio=128016,
    audio_delay=128014,
    pad=128001,
    stream_bos=1024,
    stream_eos=1025,
    num_codebooks=8,
    codebook_size=1026,
)
_PROMPT = 23  # tokens of a plain prompt without its text and its audio
_TOKENS_PER_S = 3.4  # of Llama-3 in read English: 2.6 words (LJSpeech's statistics) of 1.3 tokens

COLLATE = [Comparison("P1", f"F={f}", f"boson, F={f}", 4, limit=f"copy, F={f}") for f in FRAMES]


def _padding() -> Iterator[Comparison]:
    for corpus, ours in product(CORPORA, ("packed", "grouped by length")):
        arm, full = f"{corpus}, {ours}", f"{corpus}, no padding"
        yield Comparison("P5", arm, full, 0.95)
        yield Comparison("P5", arm, f"{corpus}, random", 1, limit=full)


PADDING = list(_padding())
# Runs in a venv of its own.
BOSON = ROOT / "tests" / "golden" / "make" / "collator.py"


def run(
    folder: Path,
    *,
    num_rounds: int,
    ids: Sequence[str] = ("P1", "P5"),
    boson_python: Path | None = None,
) -> dict[str, Any]:
    """ids: which of the two. boson_python: an interpreter that has boson-multimodal; without, a
    venv is made for it."""
    rates: Rates = {}
    report: dict[str, Any] = {}
    if "P1" in ids:
        python = boson_python or python_of(ROOT / "benchmarks" / "venvs" / "boson")
        with peer(python, BOSON) as boson, one_thread():
            report["boson"] = boson.ask()
            rates |= alternate(collate_arms(boson, folder), num_rounds)
    if "P5" in ids:
        rates |= useful_shares(num_rounds)
    comparisons = [claim for claim in (*COLLATE, *PADDING) if claim.id in ids]
    return {**report, "comparisons": compare(comparisons, rates), "per_s": rates}


# P1.


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def collate_arms(boson: Peer, folder: Path) -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    for num_frames in FRAMES:
        samples, file = samples_of(num_frames, seed=0), folder / f"rows-{num_frames}.npz"
        write_rows(samples, file)
        boson.ask(file=str(file))  # reads the rows, writes its batch beside them
        batch = collate(samples, TOKENS, training=True)
        with np.load(f"{file}.out.npz") as theirs:
            assert_equal(batch, theirs)
        arms[f"F={num_frames}"] = _repeated(partial(collate, samples, TOKENS, training=True))
        arms[f"boson, F={num_frames}"] = _asked(boson, file)
        arms[f"copy, F={num_frames}"] = _repeated(partial(_copied, batch))
    return arms


def _repeated(do: Callable[[], Any]) -> Arm:
    def arm(i: int) -> int:
        for _ in range(BATCHES_PER_ROUND):
            do()
        return BATCHES_PER_ROUND * BATCH

    return arm


def _asked(boson: Peer, file: Path) -> Arm:
    return lambda i: BATCHES_PER_ROUND * boson.ask(file=str(file), batches=BATCHES_PER_ROUND)


def _copied(batch: dict[str, Tensor]) -> list[Tensor]:
    return list(map(torch.clone, batch.values()))


def samples_of(num_frames: int, *, seed: int) -> list[EncodedSample]:
    """A batch of plain rows with one trained clip each, and texts of about its length."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for i in range(BATCH):
        num_text = round(num_frames / 25 * _TOKENS_PER_S) + i
        text = torch.randint(1000, 100_000, (_PROMPT - 4 + num_text,), generator=generator).tolist()
        codes = torch.randint(1024, (8, num_frames), generator=generator)
        audio = [TOKENS.audio] * (num_frames + 2) + [TOKENS.audio_delay] * 7
        ending = [TOKENS.audio_eos, TOKENS.end_of_turn]
        ids = [TOKENS.begin_of_text, *text, TOKENS.audio_bos, *audio, *ending]
        # Trained is the start of the audio, and what ends it and the turn.
        labels = [IGNORE_INDEX] * len(ids)
        labels[len(text) + 1] = TOKENS.audio_bos
        labels[-2:] = ending
        samples.append(EncodedSample(ids, labels, [codes], [True]))
    return samples


def write_rows(samples: Sequence[EncodedSample], file: Path) -> None:
    """As the original has them: one placeholder per clip, which its model expands. Trained ones
    have a label there."""
    arrays: dict[str, np.ndarray] = {}
    for i, sample in enumerate(samples):
        ids, labels = torch.tensor(sample.input_ids), torch.tensor(sample.labels)
        kept = _collapsed(ids)
        labels = labels.where(ids != TOKENS.audio, TOKENS.audio)
        arrays |= {
            f"ids{i}": ids[kept].numpy(),
            f"labels{i}": labels[kept].numpy(),
            f"codes{i}": sample.clips[0].numpy(),
        }
    np.savez(file, **arrays)


def _collapsed(ids: Tensor) -> Tensor:
    """(S,) bool: everything but the second to last placeholder of each clip."""
    # A placeholder whose left neighbour is none begins a clip.
    is_audio = (ids == TOKENS.audio) | (ids == TOKENS.audio_delay)
    return ~is_audio | ~torch.nn.functional.pad(is_audio[:-1], (1, 0))


def assert_equal(ours: dict[str, Tensor], theirs: Mapping[str, np.ndarray]) -> None:
    """Frames and their labels as they are, ids and labels of texts with one placeholder per
    clip."""
    mask = ours["audio_input_ids_mask"]
    np.testing.assert_array_equal(ours["audio_input_ids"][mask].T, theirs["audio_out_ids"])
    np.testing.assert_array_equal(ours["audio_labels"][mask].T, theirs["label_audio_ids"])
    for row, ids in enumerate(ours["input_ids"]):
        real, there = ours["attention_mask"][row].bool(), theirs["attention_mask"][row].astype(bool)
        kept = _collapsed(ids[real])
        np.testing.assert_array_equal(ids[real][kept], theirs["input_ids"][row][there])
        np.testing.assert_array_equal(
            ours["labels"][row][real][kept], theirs["label_ids"][row][there]
        )


# P5.


def useful_shares(num_rounds: int, num_rows: int = NUM_ROWS) -> Rates:
    """Arm -> per seed the part of all positions in an epoch that belongs to a row. Not a rate: it
    does not vary with the machine, only with the order of the rows."""
    shares: Rates = {}
    for corpus in CORPORA:
        for seed in range(num_rounds):
            lengths = lengths_like(corpus, num_rows, seed=seed)
            totals = {
                "no padding": sum(lengths),
                "random": _positions(lengths, seed=seed, grouped=False),
                "grouped by length": _positions(lengths, seed=seed, grouped=True),
                "packed": _packed_positions(lengths),
            }
            for arm, total in totals.items():
                shares.setdefault(f"{corpus}, {arm}", []).append(sum(lengths) / total)
    return shares


def durations_like(corpus: str, num_rows: int, *, seed: int) -> np.ndarray:
    """Seconds per clip (num_rows,).

    LJSpeech: mean 6.57 s between 1.11 and 10.10 s, as its own statistics say, with a standard
    deviation of 2.2 s. VCTK: mean 3.6 s (44 hours of 44 thousand clips), log-normal with a standard
    deviation of 1.2 s, at least 1.2 s. Both standard deviations are assumed."""
    generator = np.random.default_rng(seed)
    if corpus == "LJSpeech":
        low, high, mean, deviation = 1.11, 10.10, 6.57, 2.2
        # A beta distribution of this mean and deviation, stretched from [0, 1].
        centre = (mean - low) / (high - low)
        concentration = centre * (1 - centre) * ((high - low) / deviation) ** 2 - 1
        a, b = centre * concentration, (1 - centre) * concentration
        return low + (high - low) * generator.beta(a, b, num_rows)
    mean, deviation = 3.6, 1.2
    # Of the logarithm: the deviation of a log-normal grows with its mean.
    sigma = np.sqrt(np.log1p((deviation / mean) ** 2))
    return generator.lognormal(np.log(mean) - sigma**2 / 2, sigma, num_rows).clip(1.2, None)


def lengths_like(corpus: str, num_rows: int, *, seed: int) -> list[int]:
    """Positions per row: prompt, text and delayed frames."""
    seconds = durations_like(corpus, num_rows, seed=seed)
    frames = num_delayed_frames(np.ceil(seconds * 25).astype(int), TOKENS.num_codebooks)
    return (_PROMPT + np.round(seconds * _TOKENS_PER_S).astype(int) + frames).tolist()


def _positions(lengths: list[int], *, seed: int, grouped: bool) -> int:
    """Of all padded batches of an epoch."""
    from swift.dataloader import BatchSamplerShard

    options: dict[str, Any] = {"shuffle": True, "drop_last": False, "data_seed": seed}
    if grouped:
        # MS-SWIFT keeps a list of lengths per row.
        options |= {"group_by_length": True, "lengths": [[length] for length in lengths]}
    total = 0
    for batch in BatchSamplerShard(len(lengths), BATCH, **options):
        total += len(batch) * max(lengths[i] for i in batch)
    return total


def _packed_positions(lengths: list[int]) -> int:
    """Of all packs of `--packing true`, each as long as the longest may be."""
    from swift.dataset import PackingDataset

    class Rows(list):
        """Lengths, with the column of that name."""

        def __getitem__(self, key: Any) -> Any:
            if key == "lengths":
                return [[length] for length in self]
            return super().__getitem__(key)

    template = SimpleNamespace(max_length=MAX_LENGTH)
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # its progress bar
        packs = PackingDataset(template, Rows(lengths))
    assert sorted(chain.from_iterable(packs.packed_idx)) == list(range(len(lengths)))
    assert max(packs.packed_length) <= MAX_LENGTH
    return len(packs) * MAX_LENGTH
