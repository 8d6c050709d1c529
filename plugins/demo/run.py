"""`make demo`: build the tiny model, then prepare -> train -> speak with the commands a user would type. L4."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from plugins import audio
from plugins.demo import tiny
from plugins.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "demo" / "corpus"
OUT = ROOT / "demo" / "out"


def build_model(folder: Path) -> None:
    """The tiny checkpoint, with a tokenizer and a codec fitted to the embedded corpus."""
    texts = [line.split("|")[1] for line in (CORPUS / "metadata.csv").read_text(encoding="utf-8").splitlines()]
    waveforms = [audio.load(path) for path in sorted((CORPUS / "wavs").glob("*.flac"))]
    tiny.build(folder, texts, waveforms)


def main() -> int:
    started_s = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    build_model(OUT / "model")
    _run("prepare", sys.executable, "prepare_dataset.py", "--dataset_type", "ljspeech", "--input_dir", "demo/corpus",
         "--output_file", "demo/out/data/demo_train.jsonl", "--split", "--validate")  # fmt: skip
    _run("train", _script("swift"), "sft", "configs/demo.yaml")
    spoken = [_speak(name, *arguments) for name, arguments in _requests().items()]
    _summary(OUT / "run" / "logging.jsonl", spoken, time.monotonic() - started_s)
    return 0


def _requests() -> dict[str, list[str]]:
    """Three requests: two sentences of the training set, and one with a reference clip."""
    rows = [json.loads(line) for line in (OUT / "data" / "demo_train.jsonl").read_text(encoding="utf-8").splitlines()]
    first, second = (row["messages"][-2]["content"] for row in rows[:2])
    clone = ["--reference_audio", rows[1]["audios"][0], "--reference_text", second]
    return {"sentence_1": ["--text", first], "sentence_2": ["--text", second], "cloned": ["--text", first, *clone]}


def _speak(name: str, *arguments: str) -> str:
    path = OUT / f"{name}.wav"
    (checkpoint,) = (OUT / "run").glob("checkpoint-*")
    command = ["speak", "--model", str(checkpoint.relative_to(ROOT)), *arguments, "--temperature", "0"]
    command += ["--max_audio_s", "6", "--output", str(path.relative_to(ROOT))]
    # Exit code 3: it spoke, but did not stop by itself. The summary says so.
    output = _run(f"speak {name}", _script("higgs-audio"), *command, ok=(0, 3))
    return output.strip().splitlines()[-1]


def _run(title: str, *command: str, ok: tuple[int, ...] = (0,)) -> str:
    """Run one step from the root, its stderr in demo/out/logs/. Raises UserError with the end of that log."""
    shown = shlex.join([Path(command[0]).name, *command[1:]])
    print(f"\n== {title}: {shown}", flush=True)
    log = OUT / "logs" / f"{title.replace(' ', '_')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
    if process.returncode not in ok:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise UserError(f"step '{title}' failed with exit code {process.returncode} (log: {log})\n{end}")
    return process.stdout


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _summary(log: Path, spoken: list[str], seconds: float) -> None:
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    train = [record for record in records if "loss_audio" in record]
    evaluated = [record for record in records if "eval_loss" in record]
    print("\n== summary")
    print(f"{'curve':<16}{'first':>10}{'last':>10}")
    for name in ("loss", "loss_text", "loss_audio", "loss_audio_cb0", "loss_audio_cb7", "acc_audio_cb0", "loss_aux"):
        print(f"{name:<16}{train[0][name]:>10.4f}{train[-1][name]:>10.4f}")
    print(f"{'eval_loss':<16}{evaluated[0]['eval_loss']:>10.4f}{evaluated[-1]['eval_loss']:>10.4f}   "
          "(an unseen sentence: the model only learns by heart)")  # fmt: skip
    print("\n".join(spoken))
    print("The tiny codec is random: the files hold noise of the right codes and lengths, not yet speech.")
    print(f"TensorBoard: tensorboard --logdir {log.parent.relative_to(ROOT)}/runs      total {seconds:.0f} s")
