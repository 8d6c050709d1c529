"""What curves look like when all is well and in each known failure: pictures for docs/recipe.md,
and their numbers.

    python -m benchmarks.curves          # nine minutes on one quiet core; needs matplotlib

Half of each clip of tests/corpus, in many takes --rows with codes--> the real trainer, in a process
of its own per run, with a failure planted --logging.jsonl--> curves --> docs/curves/NAME.png beside
the healthy run, curves.json, a table.

The model is the tests' tiny one, trained from random weights; from 16 sentences it cannot learn to
read others, so it is evaluated on takes that it has not seen. In a take a quarter of all codes is
replaced by others, drawn evenly, for nobody says a sentence twice in the same codes: no honest loss
falls below the entropy of that (`floor`), and only a model that learns its takes by heart, or is
shown the answer, goes below."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import ROOT, machine, write_json
from benchmarks.planted import RUNS
from demo import tiny
from plugins.audio import waveforms as audio
from plugins.audio.codec import CODEC_FOLDER, NUM_CODES, Codec

CORPUS = ROOT / "tests" / "corpus"
NOISE = 0.25  # share of codes that are replaced
NUM_TAKES = {"train": 120, "few": 2, "validation": 1}  # of each of the 16 sentences
MAX_AUDIO_S = 3.0  # of a sample
TRUTH = "truth.json"  # of the folder of models and logs
OPTIONS = {
    "model_type": "higgs-audio-v2-3b",
    "tuner_type": "full",
    "torch_dtype": "float32",
    "use_cpu": "true",
    "check_model": "false",
    "add_version": "false",
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "max_steps": 240,
    "seed": 42,
    "logging_steps": 10,
    "eval_steps": 30,
    "save_steps": 240,
    "report_to": "none",
    "dataloader_num_workers": 0,
    "samples": "true",
    "preflight": "false",  # the preflight refuses the labels that are planted here
}
CURVES = (
    "loss_text",
    "loss_audio",
    "eval_loss_audio",
    "acc_audio_cb0",
    "sample_stop_rate",
    "sample_seconds",
)
Curves = dict[str, list[tuple[int, float]]]  # name -> (step, value)


# --- data ---


def noisy(codes: Tensor, generator: torch.Generator) -> Tensor:
    """codes (K, F) -> as many, a share of NOISE of them drawn anew, evenly."""
    replaced = torch.rand(codes.shape, generator=generator) < NOISE
    return torch.where(replaced, torch.randint(NUM_CODES, codes.shape, generator=generator), codes)


def floor(clean: Sequence[Tensor]) -> float:
    """Nats per trained prediction that remain for who knows everything but the noise; the end of
    stream has none."""
    # A code may be replaced by itself.
    other = NOISE / NUM_CODES
    right = 1 - NOISE + other
    entropy = -right * math.log(right) - (NUM_CODES - 1) * other * math.log(other)
    num_frames = sum(codes.shape[1] for codes in clean)
    return entropy * num_frames / (num_frames + len(clean))


def prepare(folder: Path) -> float:
    """Model, takes for each kind of NUM_TAKES, and `truth.json`: the codes without noise. Returns
    the floor."""
    clips = {}
    for line in (CORPUS / "metadata.csv").read_text(encoding="utf-8").splitlines():
        clip, text, _ = line.split("|")
        clips[text] = CORPUS / "wavs" / f"{clip}.flac"
    tiny.build(folder / "model", clips, list(map(audio.load, clips.values())))
    codec, truth = Codec(str(folder / "model" / CODEC_FOLDER)), {}
    for text, path in clips.items():
        codes = codec.encode_file(str(path))
        truth[text] = codes[:, : codes.shape[1] // 2]  # half a clip: a step takes half the time
    generator = torch.Generator().manual_seed(0)
    for name, num_takes in NUM_TAKES.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for text, codes in truth.items():
                for _ in range(num_takes):
                    take = _row(text, noisy(codes, generator))
                    file.write(json.dumps(take) + "\n")
    clean = {text: codes.tolist() for text, codes in truth.items()}
    (folder / TRUTH).write_text(json.dumps(clean), encoding="utf-8")
    return floor(list(truth.values()))


def _row(text: str, codes: Tensor) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
    return {"messages": messages, "audio_codes": [codes.T.tolist()]}


# --- one run, in a process of its own ---


def train(name: str, folder: Path, **options: Any) -> None:
    """Train run `name` into `folder/name`, whose `spoken.json` says what the model then can."""
    from plugins.train import main as sft
    from plugins.training import samples

    run, output = RUNS[name], folder / name
    if run.plant is not None:
        run.plant()
    # A model that does not stop speaks to the limit at each evaluation.
    samples.MAX_AUDIO_S = MAX_AUDIO_S
    validation = str(folder / "validation.jsonl")
    values = {
        **OPTIONS,
        "model": folder / "model",
        "dataset": folder / f"{run.takes}.jsonl",
        "val_dataset": validation,
        "sample_texts": validation,
        "output_dir": output,
        **run.options,
        **options,
    }
    # Here they learn alike, whatever a run says of the rate.
    values.setdefault("audio_learning_rate", values["learning_rate"])
    command: list[str] = []
    for option, value in values.items():
        command += [f"--{option}", str(value)]
    sft(command)
    checkpoint = output / f"checkpoint-{values['max_steps']}"
    write_json(output / "spoken.json", speak(checkpoint, folder / TRUTH))


def speak(checkpoint: Path, truth: Path) -> dict[str, float]:
    """The validation's sentences, greedily: the share that stops, and that of codes that are the
    truth's, each where it belongs."""
    from plugins.inference import HiggsAudioGenerator
    from plugins.speaking.sampling import Sampling

    expected: dict[str, list[list[int]]] = json.loads(truth.read_text(encoding="utf-8"))
    generator = HiggsAudioGenerator.from_pretrained(str(checkpoint))
    speeches = generator.generate(
        list(expected), sampling=Sampling(temperature=0), max_audio_s=MAX_AUDIO_S
    )
    right = total = 0
    for codes, speech in zip(map(torch.tensor, expected.values()), speeches, strict=True):
        # What is too short or too long is wrong from there on.
        num_frames = min(codes.shape[1], speech.codes.shape[1])
        right += int((codes[:, :num_frames] == speech.codes[:, :num_frames]).sum())
        total += codes.numel()
    return {
        "stop_rate": sum(speech.stopped for speech in speeches) / len(speeches),
        "codes_right": right / total,
    }


# --- curves ---


def read_curves(log: Path) -> Curves:
    """MS-SWIFT's logging.jsonl -> those of CURVES that are in it."""
    curves: Curves = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        step, _, _ = str(record.get("global_step/max_steps", "")).partition("/")
        if not step:  # the last lines say how the whole run went
            continue
        for name in CURVES:
            if name in record:
                curves.setdefault(name, []).append((int(step), round(record[name], 4)))
    return {name: curves[name] for name in CURVES if name in curves}


def draw(path: Path, title: str, curves: Curves, healthy: Curves, lowest: float) -> None:
    """Four panels, the healthy run in grey; dotted: chance and `floor`."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        "loss_text": ["loss_text"],
        "loss_audio, dashed: eval_loss_audio": ["loss_audio", "eval_loss_audio"],
        "sample_stop_rate": ["sample_stop_rate"],
        "sample_seconds": ["sample_seconds"],
    }
    with style.context("default"):  # the user's matplotlibrc must not change the picture
        figure = Figure(figsize=(10, 2.4), dpi=80, layout="constrained")
        for axes, (heading, names) in zip(
            figure.subplots(1, len(panels)), panels.items(), strict=True
        ):
            for label, run, color in (("healthy", healthy, "0.6"), (title, curves, "tab:red")):
                for name, line in zip(names, ("-", "--"), strict=False):
                    # (points, 2): steps and values. A run may have none of this curve.
                    points = np.array(run.get(name, [])).reshape(-1, 2)
                    axes.plot(*points.T, line, color=color, label=label)
            axes.set_title(heading, fontsize=8)
            axes.tick_params(labelsize=7)
        # The loss of who knows all but the noise, and of who knows nothing.
        for value in (lowest, math.log(NUM_CODES + 2)):
            figure.axes[1].axhline(value, color="black", linewidth=0.8, linestyle=":")
        figure.axes[1].set_ylim(bottom=0)
        figure.axes[2].set_ylim(-0.05, 1.05)
        figure.axes[0].legend(fontsize=7)
        path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})


def table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """One Markdown row per run: the curves' last values, and what was spoken greedily."""
    heads = ("loss_text", "loss_audio", "eval_loss_audio", "acc_audio_cb0")
    lines = [
        f"| run | {' | '.join(heads)} | stops | codes right |",
        "|---|" + "---:|" * (len(heads) + 2),
    ]
    for name, run in runs.items():
        last = " | ".join(f"{run['curves'][head][-1][1]:.2f}" for head in heads)
        spoken = f"{run['spoken']['stop_rate']:.0%} | {run['spoken']['codes_right']:.0%}"
        lines.append(f"| {RUNS[name].title} | {last} | {spoken} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curves", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "demo" / "out" / "curves", help="models and logs"
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "curves", help="pictures and numbers"
    )
    parser.add_argument("--plant", choices=RUNS, help=argparse.SUPPRESS)  # one run, in this process
    args = parser.parse_args(argv)
    if args.plant:
        train(args.plant, args.work)
        return 0
    # What draws: to miss it now, not after nine minutes.
    import_module("matplotlib")

    work: Path = args.work.resolve()
    if work.is_dir() and any(work.iterdir()) and not (work / TRUTH).is_file():
        parser.error(f"--work: {work} holds files of others, name a new folder")
    for name in ("model", *RUNS):  # of an earlier call
        shutil.rmtree(work / name, ignore_errors=True)
    header, lowest = machine(), prepare(work)
    runs = dict(_runs(work))
    healthy = runs["healthy"]["curves"]
    for name in runs.keys() - {"healthy"}:
        picture = args.output / f"{name}.png"
        draw(picture, RUNS[name].title, runs[name]["curves"], healthy, lowest)
    # On one line: there are a thousand numbers.
    numbers = json.dumps({**header, "floor": lowest, "runs": runs})
    (args.output / "curves.json").write_text(numbers + "\n", encoding="utf-8")
    print(f"\n{table(runs)}\n\nlowest honest loss_audio: {lowest:.2f}")
    return 0


def _runs(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for name, run in RUNS.items():
        started_s = time.monotonic()
        # A process of its own: a defect is planted into the whole of it.
        command = [sys.executable, "-m", "benchmarks.curves", "--plant", name]
        command += ["--work", str(folder)]
        with (folder / f"{name}.txt").open("w", encoding="utf-8") as log:
            subprocess.run(
                command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, check=True
            )
        took_s = round(time.monotonic() - started_s)
        print(f"{run.title}: {took_s} s", file=sys.stderr)
        spoken = json.loads((folder / name / "spoken.json").read_text(encoding="utf-8"))
        curves = read_curves(folder / name / "logging.jsonl")
        yield name, {"curves": curves, "spoken": spoken, "took_s": took_s}


if __name__ == "__main__":
    sys.exit(main())
