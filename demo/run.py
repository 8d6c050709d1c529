"""`make demo`: a base that reads, and 40 recordings of a voice that it never heard; LoRA; and the
voice says what neither has heard. All by commands that users type.

    prepare    40 recordings -> rows with codes, each alone and after another one (its reference)
    doctor     is all as it must be?
    train      LoRA on the base, configs/demo.yaml
    plain      24 new sentences, nobody named: the base in a voice of its own, the tuned one in the
               new voice
    shown      the same after a recording of the new voice: what the base can do untrained
    dialogue   the new voice and one of the base's, by turns

`higgs-audio evaluate` tells how much of that a recogniser understands, how much ends by itself and
whose voice it is, beside the recordings and the codec, and writes pages to listen to."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from demo.commands import ROOT, run, script
from plugins.files.lines import text_lines
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling

BASE = ROOT / "demo" / "base"
CODEC = ROOT / "demo" / "codec"
VOICE = ROOT / "demo" / "voice"
OUT = ROOT / "demo" / "out"
DATA, LOGS = OUT / "data", OUT / "logs"
FINISHED = OUT / "finished.json"
_WRITTEN = ("data", "logs", "run", "plain", "shown", "spoken")
_PREPARE = """
    --dataset_type custom --input_dir demo/voice --speaker_column speaker --validate
    --encode_codes --codec demo/base/audio_tokenizer
"""
# Of the table: what it is, in which evaluation, by which name.
_LINES = (
    ("the recordings", "plain", "truth"),
    ("the recordings through the codec", "plain", "codec"),
    ("base", "plain", "base"),
    ("base after a recording", "shown", "base"),
    ("tuned", "plain", "tuned"),
    ("tuned after a recording", "shown", "tuned"),
)
_SAMPLING = Sampling(temperature=0.0)
_MAX_AUDIO_S = 12.0  # the longest recording has 6
_CURVES = ("loss_audio", "loss_audio_cb0", "loss_audio_cb7", "acc_audio_cb0")
_WHERE = """
listen    demo/out/shown/report.html, demo/out/plain/report.html: all systems side by side
          demo/out/spoken/dialogue.wav
recordings demo/voice/wavs
curves    tensorboard --logdir demo/out/run/runs"""


def main() -> int:
    started_s = time.monotonic()
    if FINISHED.is_file():
        _summary()
        print(f"nothing was trained again: {OUT} holds a finished demo; `rm -r {OUT}` starts anew")
        return 0
    for name in _WRITTEN:  # of a run that did not finish; what else lies there stays
        shutil.rmtree(OUT / name, ignore_errors=True)
    _prepare("alone", "metadata.csv")
    _prepare("referenced", "metadata.csv", "--references")
    _prepare("unseen", "unseen.csv")
    run("doctor", LOGS, script("higgs-audio"), "doctor", "--config", "configs/demo.yaml")
    run("train", LOGS, script("swift"), "sft", "configs/demo.yaml")
    # configs/demo.yaml saves once, at the end.
    (checkpoint,) = (OUT / "run").glob("checkpoint-*")
    reference, *_ = _read("alone")
    asked = _read("unseen")
    _write("plain", asked)
    _write("shown", (_after(row, reference) for row in asked))
    for name in ("plain", "shown"):
        _evaluate(name, checkpoint)
    stopped = _converse(checkpoint, reference, asked)
    FINISHED.write_text(json.dumps({"dialogue_stopped": stopped}) + "\n", encoding="utf-8")
    _summary()
    print(f"total {time.monotonic() - started_s:.0f} s")
    return 0


def _prepare(name: str, table: str, *options: str) -> None:
    files = ("--csv_file", f"demo/voice/{table}", "--output_file", f"demo/out/data/{name}.jsonl")
    run(
        f"prepare {name}",
        LOGS,
        sys.executable,
        "prepare_dataset.py",
        *_PREPARE.split(),
        *files,
        *options,
    )


def _after(row: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """The row, asked for after a recording of the voice."""
    return {
        **row,
        "reference_audio": reference["audios"],
        "reference_text": [_text(reference)],
        "reference_codes": reference["audio_codes"],
    }


def _evaluate(name: str, checkpoint: Path) -> None:
    model = (
        "--model",
        str(BASE.relative_to(ROOT)),
        "--adapters",
        str(checkpoint.relative_to(ROOT)),
    )
    drawing = ("--temperature", str(_SAMPLING.temperature), "--max_audio_s", str(_MAX_AUDIO_S))
    files = ("--dataset", f"demo/out/data/{name}.jsonl", "--output", f"demo/out/{name}")
    run(f"evaluate {name}", LOGS, script("higgs-audio"), "evaluate", *model, *drawing, *files)


def _converse(
    checkpoint: Path, reference: Mapping[str, Any], asked: Iterable[Mapping[str, Any]]
) -> bool:
    """The new voice and one of the base's, by turns; whether each line ended by itself."""
    _, (_, partner) = text_lines(VOICE / "partner.csv")
    audio, said, name = partner.split("|")
    voices = {
        reference["speaker"]: (reference["audios"][0], _text(reference)),
        name: (str(VOICE / audio), said),
    }
    lines = []
    for row, speaker in zip(asked, [*voices] * 2, strict=False):
        lines.append({"speaker": speaker, "text": _text(row)})
    generator = HiggsAudioGenerator.from_pretrained(str(BASE), adapters=str(checkpoint))
    speech = generator.synthesize_multi_speaker(
        lines,
        voices,
        separately=True,
        output_path=OUT / "spoken" / "dialogue.wav",
        sampling=_SAMPLING,
        max_audio_s=_MAX_AUDIO_S,
    )
    return speech.stopped


def _text(row: Mapping[str, Any]) -> str:
    """What is said in a row that is one clip."""
    return str(row["messages"][0]["content"])


def _write(name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    with (DATA / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def _read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for _, line in text_lines(DATA / f"{name}.jsonl")]


def _summary() -> None:
    """What a recogniser understood, how much ended by itself, and how near the voice came."""
    steps = []
    for _, line in text_lines(OUT / "run" / "logging.jsonl"):
        record = json.loads(line)
        # Evaluations and the end of the training are records of the same file.
        if "loss_audio" in record:
            steps.append(record)
    print(f"\n== summary\n{'curve':<16}{'first':>10}{'last':>10}")
    for name in _CURVES:
        print(f"{name:<16}{steps[0][name]:>10.4f}{steps[-1][name]:>10.4f}")
    scores = {}
    for name in ("plain", "shown"):
        text = (OUT / name / "summary.json").read_text(encoding="utf-8")
        scores[name] = json.loads(text)
    print(f"\n{'24 new sentences':<32}{'word error rate':>16}{'stopped':>10}{'similarity':>12}")
    for title, name, system in _LINES:
        of_system = scores[name]["systems"][system]["scores"]
        cells = (
            _share(of_system["wer"]),
            _share(of_system["stopped"]),
            _number(of_system["similarity"]),
        )
        print("{:<32}{:>16}{:>10}{:>12}".format(title, *cells))
    stopped = json.loads(FINISHED.read_text(encoding="utf-8"))["dialogue_stopped"]
    print(f"the dialogue {'ended' if stopped else 'did not end'} by itself")
    for reason in scores["plain"]["missing"].values():
        print(f"missing: {reason}")
    print(_WHERE)


def _share(score: Mapping[str, Any] | None) -> str:
    """Without a score its package is not installed, or it says nothing of this system."""
    return "-" if score is None else f"{100 * score['mean']:.1f} %"


def _number(score: Mapping[str, Any] | None) -> str:
    return "-" if score is None else f"{score['mean']:.3f}"
