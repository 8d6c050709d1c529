"""What a voice learns from ears: `python -m benchmarks.preferences`, after `make demo`.

    the demo's tuned model --takes of 800 sentences, heard--> best takes, pairs
        best takes --sft (rejection sampling)--> a model      pairs --rlhf (DPO)--> a model
        48 sentences that none of them saw --each of them--> word error rate, similarity, stops

All by the commands that users type, on two cores; speaking and hearing the takes is most of the
time (15 to 25 s per eight sentences). What is there already is not made again. Writes
docs/curves/preferences.json and .png."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from benchmarks.measure import ROOT, machine, write_json
from demo.commands import run as command
from demo.commands import script
from demo.recipes.base import phrases
from demo.run import BASE, OUT, VOICE
from plugins.audio.codec import CODEC_FOLDER, Codec
from plugins.audio.waveforms import SAMPLE_RATE_HZ
from plugins.evaluation import run as work
from plugins.evaluation.items import read_items
from plugins.evaluation.journal import Journal
from plugins.evaluation.scores import METRICS, column, score
from plugins.evaluation.speaking import systems
from plugins.evaluation.statistics import Estimate, difference, estimate
from plugins.files.fingerprint import fingerprint
from plugins.files.lines import text_lines
from plugins.hearing import scorers
from plugins.hearing.takes import load_judge
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling

TAKES, TEXTS, HELD_OUT = 8, 800, 100  # of the last texts the pairs are not trained on
GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=0.5)
BEST_OF = Sampling(temperature=0.5, best_of=TAKES)
MAX_AUDIO_S = 10.0
_SCORES = ("wer", "similarity", "stopped", "duration_ratio")
_SCORERS, _SECOND = ("sound", "transcript", "voice"), "second"


@dataclass(frozen=True)
class Run:
    """command: of higgs-audio, with its options. rows: what it trains on."""

    command: str
    rows: str
    steps: int
    options: Mapping[str, Any]


# Steps, loss and weight were chosen by 96 other sentences.
RUNS = {
    "sft": Run("sft", "best", 128, {}),
    "dpo": Run("rlhf", "pairs", 64, {"beta": 0.1, "rpo_alpha": 1}),
}
_TRAINED = {"learning_rate": 3e-4, "audio_learning_rate": 3e-4}
_LOGGED = {"logging_steps": 8, "eval_strategy": "steps", "eval_steps": 8}
# Who speaks, and how: a take, or the best of several.
HOW = {"greedy": GREEDY, "drawn": DRAWN, "best of 8": BEST_OF}
_CURVES = ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")


# --- rows ---


def prepare(folder: Path) -> None:
    """The tuned model as one folder, texts to learn from, and sentences to judge by."""
    (checkpoint,) = (OUT / "run").glob("checkpoint-*")
    model = ("--model", str(BASE), "--adapters", str(checkpoint), "--output", str(folder / "tuned"))
    _higgs_audio("export", folder, "export", *model)
    _write(folder / "texts.jsonl", ({"id": id_, "text": text} for id_, text in _texts()))
    _write(folder / "judged.jsonl", _judged(folder / "recordings"))


def _texts() -> list[tuple[str, str]]:
    drawn = phrases.sentences(random.Random(7))
    texts: dict[str, str] = {}
    while len(texts) < TEXTS:
        text = next(drawn)
        if len(text.split()) > 3 and not phrases.gives_away(text):
            texts.setdefault(text, f"text-{len(texts):04d}")
    return [(id_, text) for text, id_ in texts.items()]


def _judged(folder: Path) -> list[dict[str, Any]]:
    """The base's held-out sentences, each with a recording in the new voice."""
    from demo.recipes.codec.corpus import speak

    _, *known = (line.split("|") for _, line in text_lines(VOICE / "unseen.csv"))
    recorded = {text: VOICE / audio for audio, text, _ in known}
    (voice,) = {name for _, _, name in known}
    folder.mkdir(exist_ok=True)
    rows = []
    for number, text in enumerate(phrases.lines("heldout.txt")):
        audio = recorded.get(text)
        if audio is None:
            audio = folder / f"{number:02d}.flac"
            sf.write(audio, speak(text, voice), SAMPLE_RATE_HZ)
        asked = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        row = {"id": f"{number:02d}", "messages": asked, "audios": [str(audio)], "speaker": voice}
        rows.append(row)
    return rows


def take(folder: Path) -> None:
    """`best.jsonl` and `pairs.jsonl`, and of the last texts `held_out.jsonl`."""
    _higgs_audio(
        "takes",
        folder,
        *("preferences", "--model", str(folder / "tuned"), "--takes", str(TAKES)),
        *("--dataset", str(folder / "texts.jsonl"), "--output", str(folder / "all.jsonl")),
        *("--temperature", str(DRAWN.temperature), "--max_audio_s", str(MAX_AUDIO_S)),
        *("--batch_size", "8"),
    )
    last = f"text-{TEXTS - HELD_OUT:04d}"
    pairs = [json.loads(line) for _, line in text_lines(folder / "all.jsonl")]
    _write(folder / "pairs.jsonl", (row for row in pairs if row["id"] < last))
    _write(folder / "held_out.jsonl", (row for row in pairs if row["id"] >= last))
    best = [json.loads(line) for _, line in text_lines(folder / "all_best.jsonl")]
    _write(folder / "best.jsonl", (row for row in best if row["id"] < last))


def train(name: str, folder: Path) -> Path:
    """Its adapter."""
    run = RUNS[name]
    output = folder / "runs" / name
    if not list(output.glob("checkpoint-*")):
        options = {
            "model": folder / "tuned",
            "dataset": folder / f"{run.rows}.jsonl",
            "val_dataset": folder / "held_out.jsonl",
            "output_dir": output,
            "report_to": "none",
            "max_steps": run.steps,
            "save_steps": run.steps,
            **_TRAINED,
            **_LOGGED,
            **run.options,
        }
        given = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        _higgs_audio(name, folder, run.command, "configs/demo.yaml", *given)
    (checkpoint,) = output.glob("checkpoint-*")
    return checkpoint


def _higgs_audio(title: str, folder: Path, *words: str) -> None:
    command(title, folder / "logs", script("higgs-audio"), *words)


def _write(path: Path, rows: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


# --- what was heard ---


class Judged:
    """48 sentences by each system, and what is heard of them; all in one journal."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self._folder, self._journal = folder, journal
        path = folder / "tuned" / CODEC_FOLDER
        self._codec, self._identity = Codec(str(path)), fingerprint(path)
        self._scorers = [one for one in scorers.load_scorers()[0] if one.name in _SCORERS]
        self._scorers.append(second_recogniser())
        self._judge, _ = load_judge()
        self._items = read_items(str(folder / "judged.jsonl"), HiggsAudioSettings())
        self._columns: dict[str, list[work.Clip]] = {}

    def say(self, model: str, adapters: Path | None = None) -> None:
        """All that `model` says, in every way of HOW. adapters: None for the tuned model itself."""
        *_, system = systems(
            str(self._folder / "tuned"),
            adapters=None if adapters is None else str(adapters),
            codec=self._codec,
            judge=self._judge,
        )
        for how, sampling in HOW.items():
            name = f"{model}, {how}"
            self._columns[name] = work.say(
                replace(system, name=re.sub(r"\W+", "_", name)),
                self._items,
                self._folder / "spoken",
                self._journal,
                sampling=sampling,
                seed=0,
                max_audio_s=MAX_AUDIO_S,
                batch_size=12,
                codec=self._identity,
            )

    def figures(self) -> dict[str, dict[str, Any]]:
        """Of each system its scores, (mean, low, high), and how they differ from those of one take
        of the tuned model; of several takes, how much they differ from each other."""
        rows, second = self._rows("transcript"), self._rows(_SECOND)
        by_name = {metric.name: metric for metric in METRICS}
        columns = {"wer_second": (second, by_name["wer"])}
        columns |= {name: (rows, by_name[name]) for name in _SCORES}
        result: dict[str, dict[str, Any]] = {}
        for name, clips in self._columns.items():
            _, how = name.split(", ")
            # The best of several is compared with one, drawn alike.
            peer = f"tuned, {'greedy' if how == 'greedy' else 'drawn'}"
            of: dict[str, Any] = {}
            for key, (scored, metric) in columns.items():
                ours, theirs = column(scored, name, metric), column(scored, peer, metric)
                of[key] = _written(estimate(ours))
                if name != peer:
                    of[f"{key} - tuned"] = _written(difference(ours, theirs))
            if how not in ("greedy", "drawn"):
                of |= _diversity(clips)
            result[name] = of
        return result

    def _rows(self, recogniser: str) -> list[dict[str, Any]]:
        paths = [Path(str(item.truth)) for item in self._items]
        for clips in self._columns.values():
            paths += [clip.path for clip in clips if clip.path]
        heard = {}
        for path, what in work.hear(paths, self._scorers, self._journal).items():
            heard[path] = {**what, "transcript": what[recogniser]}
        return score(self._items, self._columns, heard, language="en", transcribed=True)


def second_recogniser() -> scorers.Scorer:
    """One that has chosen nothing: takes were ranked by the first one's ears."""
    import moonshine_voice

    def load() -> scorers.Hear:
        model = Path(moonshine_voice.__file__).parent / "assets" / "tiny-en"
        transcriber = moonshine_voice.Transcriber(
            model, moonshine_voice.ModelArch.TINY, options={"vad_threshold": "0.0"}
        )

        def hear(samples: np.ndarray) -> str:
            heard = transcriber.transcribe_without_streaming(samples.tolist(), scorers.RATE_HZ)
            return " ".join(line.text for line in heard.lines)

        return hear

    return scorers.Scorer(_SECOND, f"moonshine tiny-en {version('moonshine-voice')}", load)


def _diversity(clips: Sequence[work.Clip]) -> dict[str, float]:
    """Of the takes of a text, the mean over texts: how many transcripts differ, and the spread of
    durations, as a share of their mean."""
    transcripts, spreads = [], []
    for clip in clips:
        durations = [take["duration_s"] for take in clip.takes]
        transcripts.append(len({take["transcript"] for take in clip.takes}))
        spreads.append(float(np.std(durations) / np.mean(durations)))
    return {
        "transcripts": round(float(np.mean(transcripts)), 2),
        "duration_spread": round(float(np.mean(spreads)), 4),
    }


def _written(of: Estimate | None) -> list[float | None] | None:
    if of is None:
        return None
    return [None if value is None else round(value, 4) for value in (of.mean, of.low, of.high)]


# --- what is written ---


def took(folder: Path) -> dict[str, Any]:
    """What became of the texts, and the word error rates of their takes."""
    wers, best = [], []
    for _, line in text_lines(folder / "all_takes" / "takes.jsonl"):
        row = json.loads(line)
        of_text = [take["wer"] for take in row["takes"]]
        wers += of_text
        best.append(min(of_text))
    kept = {}
    for name in ("best", "pairs", "held_out"):
        kept[name] = sum(1 for _ in text_lines(folder / f"{name}.jsonl"))
    means = {"wer": float(np.mean(wers)), "wer_of_best": float(np.mean(best))}
    return {"texts": TEXTS, **kept, **{name: round(mean, 4) for name, mean in means.items()}}


def curves_of(run: Path) -> dict[str, list[list[float]]]:
    """(step, value) of what is logged; of the held-out pairs with `eval_` in front."""
    curves: dict[str, list[list[float]]] = {}
    for _, line in text_lines(run / "logging.jsonl"):
        record = json.loads(line)
        for name in (*_CURVES, "loss_audio"):
            for key in (name, f"eval_{name}"):
                if key in record:
                    step = int(record["global_step/max_steps"].partition("/")[0])
                    curves.setdefault(key, []).append([step, round(record[key], 4)])
    return curves


def draw(
    path: Path,
    figures: Mapping[str, Mapping[str, Any]],
    curves: Mapping[str, Sequence[Sequence[float]]],
) -> None:
    """Word error rates by both recognisers, and two curves of DPO."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context("default"):  # the user's matplotlibrc must not change the picture
        figure = Figure(figsize=(11, 3.4), dpi=80, layout="constrained")
        bars, accuracy, logps = figure.subplots(1, 3, width_ratios=(5, 3, 3))
        places = np.arange(len(figures))
        keys = {"wer": "the one that ranked takes", "wer_second": "one that did not"}
        for number, (key, title) in enumerate(keys.items()):
            means, lows, highs = np.array([of[key] for of in figures.values()]).T
            bars.barh(
                places + 0.4 * number,
                100 * means,
                0.38,
                xerr=100 * np.array([means - lows, highs - means]),
                error_kw={"elinewidth": 0.8},
                label=title,
            )
        bars.set_yticks(places + 0.2, list(figures))
        bars.invert_yaxis()
        bars.set(title="word error rate, %, by two recognisers")
        bars.legend(fontsize=7)
        for axes, names, title in (
            (accuracy, ("rewards/accuracies",), "DPO: pairs the right way round"),
            (logps, ("logps/chosen", "logps/rejected"), "DPO: log p of held-out clips"),
        ):
            for name in names:
                shown = [f"eval_{name}"] if axes is logps else [name, f"eval_{name}"]
                for key in shown:
                    steps, values = zip(*curves[key], strict=True)
                    label = "held out" if key.startswith("eval_") else "trained"
                    axes.plot(steps, values, label=label if axes is accuracy else name[6:])
            axes.set(title=title, xlabel="steps")
            axes.legend(fontsize=7)
        FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """For docs/preferences.md."""
    lines = ["| who speaks | WER | by another recogniser | similarity | stops | transcripts of 8 |"]
    lines.append("|---|" + "---:|" * 5)
    for name, of in figures.items():
        cells = [_cell(of, "wer"), _cell(of, "wer_second"), f"{of['similarity'][0]:.3f}"]
        cells += [f"{100 * of['stopped'][0]:.0f} %", f"{of.get('transcripts', '')}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(of: Mapping[str, Any], key: str) -> str:
    """A share with, where there is one, its difference from the tuned model's."""
    text = f"{100 * of[key][0]:.1f} %"
    if (change := of.get(f"{key} - tuned")) is not None:
        mean, low, high = (100 * value for value in change)
        text += f" ({mean:+.1f}, {low:+.1f} to {high:+.1f})"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.preferences", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--work", type=Path, default=OUT / "preferences", help="models, speech")
    folder: Path = parser.parse_args(argv).work.resolve()
    # Now, not after half an hour of speaking.
    if not list((OUT / "run").glob("checkpoint-*")):
        parser.error("there is no tuned model yet: run `make demo` first")
    if find_spec("moonshine_voice") is None:
        parser.error("there is no second recogniser: pip install moonshine-voice==0.0.73")
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "judged.jsonl").exists():
        prepare(folder)
    if not (folder / "best.jsonl").exists():
        take(folder)
    with Journal(folder / "journal.jsonl", {}) as journal:
        judged = Judged(folder, journal)
        judged.say("tuned")
        for name in RUNS:
            judged.say(name, train(name, folder))
        figures = judged.figures()
    curves = {name: curves_of(folder / "runs" / name) for name in RUNS}
    output = ROOT / "docs" / "curves"
    draw(output / "preferences.png", figures, curves["dpo"])
    content = {"takes": took(folder), "heard": figures, "curves": curves}
    write_json(output / "preferences.json", {**machine(), **content})
    print(table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
