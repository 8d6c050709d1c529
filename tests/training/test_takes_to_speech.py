"""Preferences as their page tells them: takes, pairs of them, DPO, and an adapter that speaks."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import soundfile
from conftest import ROOT, corpus_texts, write_jsonl
from helpers.commands import read
from helpers.sft import BIN, log_of, run
from helpers.takes import Ears

from plugins.cli import main
from plugins.commands import preferences

pytestmark = pytest.mark.slow
CONFIG = ROOT / "configs" / "dpo_lora_3b.yaml"
# The tiny model never stops by itself: takes are cut, and their judge says that they are not.
TAKES = ("--takes", "4", "--max_audio_s", "0.6", "--temperature", "1", "--device", "cpu")
ON_CPU = {
    "use_cpu": "true", "torch_dtype": "float32", "gradient_checkpointing": "false",
    "dataloader_num_workers": 0, "check_model": "false", "add_version": "false",
    "report_to": "none",
}  # fmt: skip


def test_takes_become_an_adapter_that_speaks(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preferences, "judge_of", lambda options: Ears())
    rows = [{"text": text, "id": name} for name, text in corpus_texts()[:8]]
    texts, pairs = write_jsonl(tmp_path / "texts.jsonl", rows), tmp_path / "pairs.jsonl"
    command = ["--model", tiny, "--dataset", texts, "--output", pairs, *TAKES]
    assert main(["preferences", *map(str, command)]) == 0
    num_pairs = len(read(pairs))
    assert num_pairs >= 4

    out = tmp_path / "out"
    options = {
        **ON_CPU, "model": tiny, "dataset": pairs, "val_dataset": pairs, "output_dir": out,
        "learning_rate": 1e-3, "warmup_ratio": 0, "max_steps": 4, "eval_steps": 2, "save_steps": 4,
        "gradient_accumulation_steps": 1, "group_by_length": "true", "logging_steps": 1,
        "model_kwargs": json.dumps({"samples": True, "audio_learning_rate": 1e-3}),
    }  # fmt: skip
    words = [str(CONFIG)]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    done = run(str(BIN / "swift"), "rlhf", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    records = log_of(out)
    margins = [r["eval_rewards/margins"] for r in records if "eval_rewards/margins" in r]
    assert 0 < margins[0] < margins[-1], "these very pairs are learnt"
    assert next(filter(None, (r.get("rewards/accuracies") for r in records))) == 0.5
    # Spoken while it trained, from prompts of pairs.
    assert (out / "samples" / "step-4" / "0.wav").is_file()
    assert "sample_stop_rate" in (out / "logging.jsonl").read_text(encoding="utf-8")

    (line,) = (line for line in done.stderr.splitlines() if "speak with: " in line)
    words = shlex.split(line.partition("speak with: ")[2])
    assert words[3].endswith("out/checkpoint-4")
    wav = tmp_path / "spoken.wav"
    more = ["--max_audio_s", "0.4", "--device", "cpu", "--output", str(wav)]
    spoken = run(str(BIN / words[0]), *words[1:], *more, cwd=tmp_path)
    assert spoken.returncode == 3, spoken.stderr[-2000:]  # spoken, and cut
    assert soundfile.info(wav).frames > 0
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "model, trained on preferences (DPO) from" in card
    assert f"{num_pairs} pairs, " in card
    assert f"in {2 * num_pairs} clips" in card
