"""What a voice learns from ears: `python -m benchmarks.preferences`, after `make demo`.

    the demo's tuned model --takes of 400 sentences, heard--> best takes, pairs
        best takes --sft (rejection sampling)--> a model      pairs --rlhf (DPO)--> a model
        48 sentences that none of them saw --each of them--> word error rate, similarity, stops

All by the commands that users type, on two cores, in about an hour; what is there already is not
made again. Writes docs/curves/preferences.json and .png."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

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

TAKES, TEXTS, HELD_OUT = 8, 400, 48  # of the last texts the pairs are not trained on
GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=0.5)
BEST_OF = Sampling(temperature=0.5, best_of=TAKES)
MAX_AUDIO_S = 10.0
_SCORES = ("wer", "similarity", "stopped", "duration_ratio")
_SCORERS, _SECOND = ("sound", "transcript", "voice"), "second"


@dataclass(frozen=True)
class Run:
    """command: of higgs-audio, with its options. rows: what it trains on."""

    title: str
    command: str
    rows: str
    options: Mapping[str, Any]


RUNS = {
    "sft": Run("rejection sampling", "sft", "best", {"learning_rate": 3e-4}),
    "dpo": Run("DPO", "rlhf", "pairs", {"learning_rate": 1e-4}),
}


# --- rows ---


def prepare(folder: Path) -> None:
    """The tuned model as one folder, texts to learn from, and sentences to judge by."""
    (checkpoint,) = (OUT / "run").glob("checkpoint-*")
    model = ("--model", str(BASE), "--adapters", str(checkpoint), "--output", str(folder / "tuned"))
    _higgs_audio("export", folder, "export", *model)
    _write(folder / "texts.jsonl", ({"id": id_, "text": text} for id_, text in _texts()))
    _write(folder / "judged.jsonl", _judged(folder / "recordings"))


def _texts() -> list[tuple[str, str]]:
    drawn, texts = phrases.sentences(random.Random(7)), {}
    while len(texts) < TEXTS:
        text = next(drawn)
        if len(text.split()) > 3 and not phrases.gives_away(text):
            texts[text] = f"text-{len(texts):04d}"
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

    def say(self, name: str, sampling: Sampling, adapters: Path | None = None) -> None:
        *_, system = systems(
            str(self._folder / "tuned"),
            adapters=None if adapters is None else str(adapters),
            codec=self._codec,
            judge=self._judge,
        )
        self._columns[name] = work.say(
            replace(system, name=name.replace(" ", "_")),
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
        """Of each system: its scores, and their differences from the tuned model's, spoken in the
        same way, as (mean, low, high)."""
        rows, second = self._rows("transcript"), self._rows(_SECOND)
        wer = next(metric for metric in METRICS if metric.name == "wer")
        columns = {"wer_second": (second, wer)}
        columns |= {metric.name: (rows, metric) for metric in METRICS if metric.name in _SCORES}
        result: dict[str, dict[str, Any]] = {}
        for name in self._columns:
            peer = f"tuned {name.rpartition(' ')[2]}"
            result[name] = {}
            for key, (of, metric) in columns.items():
                ours, theirs = column(of, name, metric), column(of, peer, metric)
                result[name][key] = _written(estimate(ours))
                if name != peer:
                    result[name][f"{key} - tuned"] = _written(difference(ours, theirs))
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
    import moonshine_voice  # pip install moonshine-voice==0.0.73; only this benchmark needs it

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


def _written(of: Estimate | None) -> list[float | None] | None:
    if of is None:
        return None
    return [None if value is None else round(value, 4) for value in (of.mean, of.low, of.high)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.preferences", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--work", type=Path, default=OUT / "preferences", help="models, speech")
    folder: Path = parser.parse_args(argv).work.resolve()
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "judged.jsonl").exists():
        prepare(folder)
    if not (folder / "best.jsonl").exists():
        take(folder)
    with Journal(folder / "journal.jsonl", {}) as journal:
        judged = Judged(folder, journal)
        judged.say("tuned greedy", GREEDY)
        judged.say("tuned drawn", DRAWN)
        judged.say("best of 8 drawn", BEST_OF)
        for name in RUNS:
            adapter = train(name, folder)
            judged.say(f"{name} greedy", GREEDY, adapter)
            judged.say(f"{name} drawn", DRAWN, adapter)
        figures = judged.figures()
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
