"""`make demo`: a small model, the embedded codec; prepare -> train -> speak -> score by commands
that users type.

The model starts at random and learns the embedded corpus by heart (`demo.rows`). Then it is asked
for

    learnt     the sentences, each in the voice that it has when nobody is named
    cloned     each in the other voice, after a reference that it was never trained with
    dialogue   two sentences that never stood together, hers and his

and `higgs-audio evaluate` tells how much of that a recogniser understands, beside the recordings
and the codec."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from demo import rows, tiny
from plugins.audio.codec import CODEC_FOLDER
from plugins.data.wording import INSTRUCTION, MULTI_SPEAKER_INSTRUCTION
from plugins.errors import UserError
from plugins.files.lines import text_lines
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "demo" / "corpus"
CODEC = ROOT / "demo" / "codec"
OUT = ROOT / "demo" / "out"
DATA = OUT / "data"
_FINISHED = OUT / "finished.json"
_WRITTEN = ("model", "data", "logs", "run", "learnt", "cloned", "spoken", "dialogue")
# Five million parameters.
_SIZE = {
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
}
_PREPARE = """
    --dataset_type custom --input_dir demo/corpus --csv_file demo/corpus/metadata.csv
    --speaker_column speaker --validate --encode_codes --codec demo/codec
    --output_file demo/out/data/clips.jsonl
"""
_CURVES = """
    loss loss_text loss_audio loss_audio_cb0 loss_audio_cb7 acc_audio_cb0 loss_aux
"""
_MAX_AUDIO_S = 8.0  # the longest clip has 4.6 s
_WHERE = """
listen    demo/out/learnt/audio/model/*.wav, demo/out/cloned/audio/model/*.wav, \
demo/out/spoken/dialogue.wav
beside    demo/out/learnt/audio/codec/*.wav: recordings through the codec; \
demo/corpus/wavs: themselves
pictures  demo/out/{learnt,cloned}/report.png, demo/out/run/images/*.png
curves    tensorboard --logdir demo/out/run/runs"""


def main() -> int:
    started_s = time.monotonic()
    if _FINISHED.is_file():
        stopped = json.loads(_FINISHED.read_text(encoding="utf-8"))["stopped"]
        _curves(OUT / "run" / "logging.jsonl")
        _summary(stopped)
        print(f"nothing was trained again: {OUT} holds a finished demo; `rm -r {OUT}` starts anew")
        return 0
    for name in _WRITTEN:  # of a run that did not finish; what else lies there stays
        shutil.rmtree(OUT / name, ignore_errors=True)
    build_model(OUT / "model")
    _run("prepare", sys.executable, "prepare_dataset.py", *_PREPARE.split())
    clips = _read(DATA / "clips.jsonl")
    _write("train", rows.trained(clips))
    _write("learnt", rows.plain(clips))
    _write("cloned", rows.cloned(clips))
    _run("train", _script("swift"), "sft", "configs/demo.yaml")
    # configs/demo.yaml saves once, at the end.
    (checkpoint,) = (OUT / "run").glob("checkpoint-*")
    # Greedy: what was learnt by heart has one most likely code at each step.
    model = ["--model", str(checkpoint.relative_to(ROOT)), "--temperature", "0"]
    model += ["--max_audio_s", str(_MAX_AUDIO_S)]
    _evaluate("learnt", *model)
    _evaluate("cloned", *model)
    stopped = _converse(checkpoint, rows.lines(clips))
    _evaluate("dialogue", "--generated", "demo/out/spoken")
    _curves(OUT / "run" / "logging.jsonl")
    _summary(stopped)
    _FINISHED.write_text(json.dumps({"stopped": stopped}) + "\n", encoding="utf-8")
    print(f"total {time.monotonic() - started_s:.0f} s")
    return 0


def build_model(folder: Path) -> None:
    """A random Higgs of five million parameters with the embedded codec; its tokenizer knows the
    corpus."""
    texts = [line.split("|")[1] for _, line in text_lines(CORPUS / "metadata.csv")]
    texts += [INSTRUCTION, MULTI_SPEAKER_INSTRUCTION]
    tokenizer = tiny.build_tokenizer(texts, num_merges=300)
    tiny.build_model(folder, tokenizer, **_SIZE)
    # Only what a codec is loaded from: demo/codec/ also holds its pictures and figures.
    (folder / CODEC_FOLDER).mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(CODEC / name, folder / CODEC_FOLDER)


def _write(name: str, written: Iterable[rows.Row]) -> None:
    with (DATA / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for row in written:
            file.write(json.dumps(row) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for _, line in text_lines(path)]


def _converse(checkpoint: Path, lines: Sequence[dict[str, str]]) -> bool:
    """Speak the dialogue; whether each line ended by itself."""
    speech = HiggsAudioGenerator.from_pretrained(str(checkpoint)).synthesize_multi_speaker(
        lines,
        output_path=OUT / "spoken" / "dialogue.wav",
        sampling=Sampling(temperature=0),
        max_audio_s=_MAX_AUDIO_S,
    )
    said = " ".join(line["text"] for line in lines)
    _write("dialogue", [{"id": "dialogue", "messages": [{"role": "user", "content": said}]}])
    return speech.stopped


def _evaluate(name: str, *arguments: str) -> None:
    files = ("--dataset", f"demo/out/data/{name}.jsonl", "--output", f"demo/out/{name}")
    _run(f"evaluate {name}", _script("higgs-audio"), "evaluate", *arguments, *files)


def _run(title: str, *command: str) -> None:
    """Run one step from the root, its output in demo/out/logs/. Raises UserError with the end of
    that log."""
    shown = shlex.join([Path(command[0]).name, *command[1:]])
    print(f"\n== {title}: {shown}", flush=True)
    log, started_s = OUT / "logs" / f"{title.replace(' ', '_')}.txt", time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    # The same numbers on every machine, and no look at the net for what lies here.
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.run(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
    # The whole log has pages of progress; its end says what went wrong.
    if process.returncode:
        end = "\n".join(log.read_text(encoding="utf-8").split("\n")[-15:])
        raise UserError(
            f"step '{title}' failed with exit code {process.returncode} (log: {log})\n{end}"
        )
    print(f"   {time.monotonic() - started_s:.0f} s", flush=True)


def _script(name: str) -> str:
    """Of this environment, which need not be the active one."""
    return str(Path(sys.executable).with_name(name))


def _curves(log: Path) -> None:
    # Evaluations and the end of the training are records of the same file.
    steps = [record for record in _read(log) if "loss_audio" in record]
    print(f"\n== summary\n{'curve':<16}{'first':>10}{'last':>10}")
    for name in _CURVES.split():
        print(f"{name:<16}{steps[0][name]:>10.4f}{steps[-1][name]:>10.4f}")


def _summary(stopped: bool) -> None:
    """What a recogniser understood, how much ended by itself, and whose voice it was."""
    summaries: dict[str, Any] = {}
    for name in ("learnt", "cloned", "dialogue"):
        text = (OUT / name / "summary.json").read_text(encoding="utf-8")
        summaries[name] = json.loads(text)
    print(f"\n{'':<12}{'word error rate':^36}{'stopped':>9}{'similarity':^23}")
    line = "{:<12}{:>11}{:>12}{:>12}{:>10}{:>13}{:>11}"
    print(line.format("", "originals", "codec", "spoken", "", "voice asked", "the other"))
    for name in ("learnt", "cloned"):
        summary = summaries[name]
        cells = (
            _share(_score(summary, "truth", "wer")),
            _share(_score(summary, "codec", "wer")),
            _share(_score(summary, "model", "wer")),
            _share(_score(summary, "model", "stopped")),
            _number(_score(summary, "model", "similarity")),
            _number(_score(summary, "model", "similarity_others")),
        )
        print(line.format(name, *cells))
    # Its recordings were never one clip: nothing to compare it with.
    spoken = _share(_score(summaries["dialogue"], "generated", "wer"))
    print(f"{'dialogue':<12}{'':>11}{'':>12}{spoken:>12}{_share(float(stopped)):>10}")
    for reason in summaries["learnt"]["missing"].values():
        print(f"missing: {reason}")
    print(_WHERE)


def _score(summary: dict[str, Any], system: str, name: str) -> float | None:
    score = summary["systems"][system]["scores"][name]
    if score is None:  # its package is not installed
        return None
    return float(score["mean"])


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
