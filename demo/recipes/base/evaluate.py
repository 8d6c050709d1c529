"""Does it read: `python -m demo.recipes.base.evaluate MODEL FOLDER`.

Each voice, named in the scene and shown by a reference, says the held-out sentences, and those with
words that it does not know (`oov_`); `higgs-audio evaluate` tells what a recogniser hears. Writes
evaluation.json and the card into MODEL, what was said and a page to listen to into FOLDER. Needs
flite, Piper and the extra `evaluate`."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.commands import run, script
from demo.recipes.base import corpus, phrases
from plugins.audio import waveforms as audio
from plugins.data.tokens import SCENE_END, SCENE_START
from plugins.errors import UserError
from plugins.evaluation.report import ITEMS, SUMMARY
from plugins.evaluation.scores import METRICS, column
from plugins.evaluation.speaking import MODEL
from plugins.evaluation.statistics import estimate
from plugins.files import disk
from plugins.files.fingerprint import fingerprint
from plugins.files.lines import text_lines

_LISTS = {"": "heldout.txt", "oov_": "unknown.txt"}
_REFERENCE = "every morning the young farmer carried fresh milk to the market."
_OPTIONS = ("--temperature", "0", "--max_audio_s", "10", "--batch_size", "24")


def judge(model: Path, folder: Path) -> None:
    """Write evaluation.json and README.md into `model`."""
    # A folder for each model: what another one said is not taken over.
    folder = folder.absolute() / fingerprint(model)
    table, spoken = folder / "rows.jsonl", folder / "spoken"
    with disk.replace_when_done(table) as new:
        new.write_text("".join(json.dumps(row) + "\n" for row in rows(folder)), encoding="utf-8")
    files = ("--model", str(model.absolute()), "--dataset", str(table), "--output", str(spoken))
    run("evaluate", folder, script("higgs-audio"), "evaluate", *files, *_OPTIONS)
    summary = disk.read_json(spoken / SUMMARY, "delete it")
    if "transcript" in summary["missing"]:
        raise UserError(summary["missing"]["transcript"])
    groups: dict[str, list[Any]] = defaultdict(list)
    for _, line in text_lines(spoken / ITEMS):
        item = json.loads(line)
        groups[item["id"].rpartition("-")[0]].append(item)
    figures, heard = {"recogniser": summary["scorers"]["transcript"]}, {}
    for name, items in groups.items():
        figures |= figures_of(name, items)
        heard[name] = [_heard(item) for item in items]
    written = json.dumps({**figures, "heard": heard}, indent=1)
    (model / "evaluation.json").write_text(written + "\n", encoding="utf-8")
    card = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    (model / "README.md").write_text(card.format(**figures), encoding="utf-8")
    for name, value in figures.items():
        print(f"{name:<32}{value}")


def rows(folder: Path) -> list[dict[str, Any]]:
    """What is asked for, as users write it; `folder` gets the references."""
    rows = []
    for voice in corpus.VOICES:
        path = folder / f"{voice}.wav"
        said = corpus.at_rate_of_codec(corpus.speaker(voice).speak(_REFERENCE).samples, voice)
        audio.save_wav(path, said, audio.SAMPLE_RATE_HZ)
        reference = {"reference_audio": [str(path)], "reference_text": [_REFERENCE]}
        for prefix, name in _LISTS.items():
            for number, text in enumerate(phrases.lines(name)):
                asked = {"role": "user", "content": text}
                named = {
                    "id": f"{prefix}{voice}_named-{number:02d}",
                    "messages": [scene(voice), asked],
                }
                shown = {"id": f"{prefix}{voice}_shown-{number:02d}", "messages": [asked]}
                rows += [named, {**shown, **reference}]
    # One way after the other: what is alike is spoken in one batch.
    return sorted(rows, key=lambda row: row["id"])


def scene(voice: str) -> dict[str, str]:
    """The message that names a voice of the base."""
    return {"role": "system", "content": f"{SCENE_START}\n{voice}\n{SCENE_END}"}


def figures_of(name: str, items: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Word error rate, stop rate, similarity to the reference; of unknown words the share that is
    heard."""
    group = name.removeprefix("oov_")
    prefix, figures = name.removesuffix(group), {}
    for metric in METRICS:
        estimated = estimate(column(items, MODEL, metric))
        if metric.name in ("wer", "stopped", "similarity") and estimated is not None:
            figures[f"{prefix}{metric.name}_{group}"] = round(estimated.mean, 4)
    known, hits = {word.lower() for word in phrases.vocabulary()}, []
    for item in items:
        unknown = [word for word in phrases.words_of(item["text"]) if word not in known]
        hits += [word in phrases.words_of(_heard(item)) for word in unknown]
    if hits:
        figures[f"{prefix}words_{group}"] = round(sum(hits) / len(hits), 4)
    return figures


def _heard(item: Mapping[str, Any]) -> str:
    return item["systems"][MODEL]["transcript"]


if __name__ == "__main__":
    try:
        judge(*map(Path, sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
