"""What LoRA makes of a voice that the embedded base never heard: by clips, rank and steps, and with
known failures. Figures and a picture for docs/recipe.md.

    python -m benchmarks.voices          # some 40 minutes of one core; needs flite

Recordings of flite's `rms` --prepare_dataset.py--> rows --the real trainer, in a process of its own
per run--> checkpoints --> 24 sentences that neither base nor LoRA saw, and 8 in each voice of the
base --> docs/curves/voices.json, voices.png, a table. Killed, it goes on where it was."""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile as sf

from benchmarks import planted
from benchmarks.measure import ROOT, machine, write_json
from demo.commands import run as command
from demo.recipes.base import corpus, phrases
from demo.recipes.base.evaluate import scene
from demo.run import BASE, VOICE
from plugins.audio.codec import CODEC_FOLDER, Codec
from plugins.audio.waveforms import SAMPLE_RATE_HZ
from plugins.evaluation import run as work
from plugins.evaluation import speaking
from plugins.evaluation.items import Item, read_items
from plugins.evaluation.journal import Journal
from plugins.evaluation.scores import METRICS, column, score
from plugins.evaluation.statistics import estimate
from plugins.files.fingerprint import fingerprint
from plugins.hearing import scorers
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling

COUNTS = (10, 40, 160)
RANKS = (4, 32)
STEPS = (30, 90, 180)
STRENGTHS = (0.3, 0.5, 0.7)  # beside 1
_KNOWN = 8  # sentences of each voice of the base
_SCORERS = ("sound", "transcript", "voice")
_SCORES = ("wer", "similarity", "stopped", "duration_ratio")


@dataclass(frozen=True)
class Run:
    """title: what is wrong with it, if anything is. steps: at which it is judged."""

    title: str
    clips: int = 40
    rank: int = 32
    rate: float = 1e-3
    steps: tuple[int, ...] = STEPS[:2]
    plant: Callable[[], None] | None = None
    text_only: bool = False


_GRID = {
    f"clips{clips}_rank{rank}": Run(f"{clips} clips, rank {rank}", clips, rank, steps=STEPS)
    for clips in COUNTS
    for rank in RANKS
}
RUNS = {
    **_GRID,
    "high_rate": Run("rate 2e-2", rate=2e-2),
    **{
        name: Run(planted.RUNS[name].title, plant=planted.RUNS[name].plant)
        for name in ("unshifted", "shifted_twice", "no_eos", "no_delay")
    },
    "text_only": Run("audio not trained", text_only=True),
}


# --- data ---


def prepare(folder: Path) -> None:
    """`N.jsonl` for each of COUNTS, `unseen.jsonl`, `known.jsonl`."""
    _record(folder / "recordings", max(COUNTS))
    with open(folder / "recordings" / "metadata.csv", encoding="utf-8") as file:
        head, *lines = file.read().splitlines()
    for count in COUNTS:
        table = folder / "recordings" / f"{count}.csv"
        table.write_text("\n".join([head, *lines[:count]]) + "\n", encoding="utf-8")
        _rows(folder / f"{count}.jsonl", table, folder / "recordings")
    _rows(folder / "unseen.jsonl", VOICE / "unseen.csv", VOICE)
    with open(folder / "known.jsonl", "w", encoding="utf-8") as file:
        for voice in corpus.VOICES:
            for number, text in enumerate(phrases.lines("heldout.txt")[24 : 24 + _KNOWN]):
                asked = [scene(voice), {"role": "user", "content": text}]
                row = {"id": f"{voice}-{number:02d}", "messages": asked, "speaker": voice}
                file.write(json.dumps(row) + "\n")


def _record(folder: Path, count: int) -> None:
    """The demo's recordings, and as many more of the same voice as `count` asks for."""
    from demo.recipes.codec.corpus import speak

    rows = []
    with open(VOICE / "metadata.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="|"):
            rows.append((VOICE / row["audio"], row["text"], row["speaker"]))
    voice = rows[0][2]
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    drawn = phrases.draw(random.Random(0), 4 * count)
    while len(rows) < count:
        text = " ".join([next(drawn).capitalize(), next(drawn).capitalize()])
        if phrases.gives_away(text):
            continue
        path = folder / "wavs" / f"{len(rows):03d}.flac"
        sf.write(path, speak(text, voice), SAMPLE_RATE_HZ)
        rows.append((path, text, voice))
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="|", lineterminator="\n").writerows(
            [("audio", "text", "speaker"), *rows]
        )


def _rows(output: Path, table: Path, root: Path) -> None:
    """Without references: the voice is then what the model speaks when nothing else is asked."""
    codec = str(BASE / CODEC_FOLDER)
    command(
        f"prepare {output.stem}",
        output.parent / "logs",
        *(sys.executable, "prepare_dataset.py", "--dataset_type", "custom"),
        *("--input_dir", str(root), "--csv_file", str(table), "--speaker_column", "speaker"),
        *("--encode_codes", "--codec", codec, "--output_file", str(output)),
    )


# --- one run, in a process of its own ---


def train(name: str, folder: Path) -> None:
    """Train run `name` as configs/demo.yaml does, into `folder/runs/name`."""
    from plugins.train import main as sft

    run = RUNS[name]
    if run.plant is not None:
        run.plant()
    options = {
        "dataset": folder / f"{run.clips}.jsonl",
        "output_dir": folder / "runs" / name,
        "lora_rank": run.rank,
        "lora_alpha": 2 * run.rank,
        "learning_rate": run.rate,
        "audio_learning_rate": run.rate,
        # Each checkpoint stands for a run of as many steps.
        "lr_scheduler_type": "constant_with_warmup",
        "max_steps": run.steps[-1],
        "save_steps": STEPS[0],
        "report_to": "none",
        "preflight": "false",  # it refuses the labels that are planted here
    }
    if run.text_only:
        options["audio_loss_weight"] = 0
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    sft([str(ROOT / "configs" / "demo.yaml"), *given])


# --- what came of it ---


class Judge:
    """Who speaks, and what is heard of it; all in one journal."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self._folder, self._journal = folder, journal
        path = str(BASE / CODEC_FOLDER)
        self._codec, self._identity = Codec(path), fingerprint(Path(path))
        self._scorers = [one for one in scorers.load_scorers()[0] if one.name in _SCORERS]
        settings = HiggsAudioSettings()
        self._unseen = read_items(str(folder / "unseen.jsonl"), settings)
        self._known = read_items(str(folder / "known.jsonl"), settings)
        self._truths = work.hear(
            [Path(str(item.truth)) for item in self._unseen], self._scorers, journal
        )

    def base(self) -> dict[str, float]:
        return self._judge(*speaking.systems(str(BASE), codec=self._codec))

    def tuned(self, name: str, checkpoint: Path, strength: float = 1.0) -> dict[str, float]:
        _, tuned = speaking.systems(
            str(BASE), adapters=str(checkpoint), codec=self._codec, adapter_scale=strength
        )
        return self._judge(speaking.System(name, tuned.depends_on, tuned.generator))

    def of_codec(self) -> dict[str, float]:
        clips = work.round_trips(
            self._codec, self._identity, self._unseen, self._folder, self._journal, name="codec"
        )
        return self._scores(self._unseen, clips)

    def _judge(self, system: speaking.System) -> dict[str, float]:
        figures = self._scores(self._unseen, self._say(system, self._unseen))
        known = self._scores(self._known, self._say(system, self._known))
        return {**figures, "known_wer": known["wer"], "known_stopped": known["stopped"]}

    def _say(self, system: speaking.System, items: Sequence[Item]) -> list[work.Clip]:
        return work.say(
            system,
            items,
            self._folder / "spoken",
            self._journal,
            sampling=Sampling(temperature=0),
            seed=0,
            max_audio_s=12.0,
            batch_size=24,
            codec=self._identity,
        )

    def _scores(self, items: Sequence[Item], clips: Sequence[work.Clip]) -> dict[str, float]:
        heard = work.hear([clip.path for clip in clips if clip.path], self._scorers, self._journal)
        rows = score(
            items, {"it": clips}, {**self._truths, **heard}, language="en", transcribed=True
        )
        means = {}
        for metric in METRICS:
            found = estimate(column(rows, "it", metric))
            if metric.name in _SCORES and found is not None:
                means[metric.name] = round(found.mean, 4)
        return means


def judged(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and steps -> what was heard, trained first if need be."""
    with Journal(folder / "journal.jsonl", {}) as journal:
        judge = Judge(folder, journal)
        yield "codec", judge.of_codec()
        yield "base", judge.base()
        for name, run in RUNS.items():
            _train_apart(name, folder)
            for steps in run.steps:
                checkpoint = folder / "runs" / name / f"checkpoint-{steps}"
                yield f"{name} {steps}", judge.tuned(f"{name}_{steps}", checkpoint)
        strong = folder / "runs" / "clips40_rank32" / f"checkpoint-{STEPS[1]}"
        for strength in STRENGTHS:
            title = f"clips40_rank32 {STEPS[1]} x {strength}"
            yield title, judge.tuned(f"strength{strength}", strong, strength)


def _train_apart(name: str, folder: Path) -> None:
    """A defect is planted into a whole process."""
    if (folder / "runs" / name / f"checkpoint-{RUNS[name].steps[-1]}").is_dir():
        return
    own = ("-m", "benchmarks.voices", "--train", name, "--work", str(folder))
    command(f"train {name}", folder / "logs", sys.executable, *own)


def last_losses(folder: Path, name: str) -> dict[str, float]:
    """The mean of the last three lines of the log."""
    lines = (folder / "runs" / name / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "loss_audio" in record][-3:]
    return {
        key: round(sum(record[key] for record in records) / len(records), 3)
        for key in ("loss_audio", "loss_audio_cb0")
    }


def draw(path: Path, results: Mapping[str, Mapping[str, float]]) -> None:
    """Word error rate, similarity and the base's own voices over steps, a line per run."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        "wer": "word error rate, new sentences",
        "similarity": "similarity to the new voice",
        "known_wer": "word error rate, the base's voices",
    }
    with style.context("default"):  # the user's matplotlibrc must not change the picture
        figure = Figure(figsize=(11, 3.2), dpi=80, layout="constrained")
        for axes, (key, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            for name, run in _GRID.items():
                values: list[float | None] = [results["base"][key]]
                values += [results[f"{name} {steps}"].get(key) for steps in run.steps]
                color = f"C{COUNTS.index(run.clips)}"
                line = ":" if run.rank == RANKS[0] else "-"
                axes.plot([0, *run.steps], values, f"{line}o", color=color, label=run.title)
            if key in results["codec"]:
                axes.axhline(results["codec"][key], color="0.6", label="the codec itself")
            axes.set(title=title, xlabel="steps")
        figure.axes[1].legend(fontsize=7)
        FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    lines = ["| run | WER | similarity | stops | duration | WER of the base's voices |"]
    lines.append("|---|" + "---:|" * 5)
    for name, figures in results.items():
        shown = [
            _percent(figures.get("wer")),
            "" if "similarity" not in figures else f"{figures['similarity']:.2f}",
            _percent(figures.get("stopped")),
            "" if "duration_ratio" not in figures else f"{figures['duration_ratio']:.2f}",
            _percent(figures.get("known_wer")),
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.voices", description=__doc__.splitlines()[0]
    )
    default = ROOT / "demo" / "out" / "voices"
    parser.add_argument("--work", type=Path, default=default, help="recordings, models, speech")
    parser.add_argument("--train", choices=RUNS, help=argparse.SUPPRESS)  # in this process
    args = parser.parse_args(argv)
    folder: Path = args.work.resolve()
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    if args.train:
        train(args.train, folder)
        return 0
    if not (folder / "known.jsonl").exists():
        prepare(folder)
    results = {}
    for name, figures in judged(folder):
        results[name] = figures
        print(name, figures, flush=True)
    losses = {name: last_losses(folder, name) for name in RUNS}
    output = ROOT / "docs" / "curves"
    draw(output / "voices.png", results)
    write_json(output / "voices.json", {**machine(), "heard": results, "losses": losses})
    print(f"\n{table(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
