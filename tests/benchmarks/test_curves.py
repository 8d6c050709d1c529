"""benchmarks/curves.py: what is planted is what its name says and the checks find it; numbers and
pictures are read from what a run leaves. What the curves look like no test can hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks import curves
from benchmarks.planted import RUNS
from plugins import collator
from plugins.audio.codec import NUM_CODES
from plugins.data.dialogue import AudioClip, Dialogue, Turn
from plugins.data.prompt import encode
from plugins.data.tokens import SpecialTokens
from plugins.model.load import load_config
from plugins.training import samples
from plugins.training.preflight.labels import audit

EOS = 1025
SKIPPED = -100
# Labels of codebook 0 of three frames, codes 1, 2, 3; the delay adds one frame in front and eight
# behind.
RIGHT = [SKIPPED, 1, 2, 3, EOS] + 7 * [SKIPPED]
PLANTED = {
    "unshifted": [SKIPPED, SKIPPED, 1, 2, 3, EOS] + 6 * [SKIPPED],
    "shifted_twice": [1, 2, 3, EOS] + 8 * [SKIPPED],
    "no_eos": [SKIPPED, 1, 2, 3] + 8 * [SKIPPED],
    "no_delay": RIGHT,
}
LOG = [
    {"sample_stop_rate": 0.0, "sample_seconds": 3.0, "global_step/max_steps": "0/4"},
    {
        "loss": 8.0,
        "loss_text": 1.0,
        "loss_audio": 7.0,
        "acc_audio_cb0": 0.0,
        "global_step/max_steps": "1/4",
    },
    {
        "loss": 5.5,
        "loss_text": 0.5,
        "loss_audio": 5.0,
        "acc_audio_cb0": 0.2,
        "global_step/max_steps": "4/4",
    },
    {"eval_loss": 6.0, "eval_loss_audio": 6.0, "global_step/max_steps": "4/4"},
    {"sample_stop_rate": 1.0, "sample_seconds": 1.0, "global_step/max_steps": "4/4"},
    {"train_runtime": 1.0, "global_step/max_steps": "4/4"},
    {"log_history": []},
]


@pytest.fixture(autouse=True)
def _mended(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("apply_delays", "delay_labels_of"):
        monkeypatch.setattr(collator, name, getattr(collator, name))
    monkeypatch.setattr(samples, "MAX_AUDIO_S", samples.MAX_AUDIO_S)


def batch_of(tiny: Path, codes: torch.Tensor) -> tuple[Any, Any, SpecialTokens, Any]:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokens = SpecialTokens.from_config(load_config(tiny), tokenizer)
    turns = (Turn("user", ("a canoe",)), Turn("assistant", (AudioClip(codes=codes),), trained=True))
    sample = encode(Dialogue(turns), tokenizer, tokens)
    return sample, collator.collate([sample], tokens, training=True), tokens, tokenizer


def test_labels_are_right_without_a_plant(tiny: Path) -> None:
    sample, batch, tokens, tokenizer = batch_of(tiny, torch.tensor([[1, 2, 3]]).repeat(8, 1))
    assert batch["audio_labels"][0, :, 0].tolist() == RIGHT
    assert audit(sample, batch, tokens, tokenizer) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_plant_changes_labels_as_it_says_and_the_audit_finds_it(name: str, tiny: Path) -> None:
    plant = RUNS[name].plant
    assert plant is not None
    plant()
    sample, batch, tokens, tokenizer = batch_of(tiny, torch.tensor([[1, 2, 3]]).repeat(8, 1))
    assert batch["audio_labels"][0, :, 0].tolist() == PLANTED[name]
    shift = 0 if name == "no_delay" else 7
    last = PLANTED[name] if shift == 0 else [SKIPPED] * shift + PLANTED[name]
    assert batch["audio_labels"][0, :, 7].tolist() == last[:12]
    assert audit(sample, batch, tokens, tokenizer)


def test_without_delay_a_frame_is_one_step(tiny: Path) -> None:
    plant = RUNS["no_delay"].plant
    assert plant is not None
    plant()
    codes = torch.arange(24).view(8, 3)
    _, batch, tokens, _ = batch_of(tiny, codes)
    assert batch["audio_input_ids"][0, 1:4].T.equal(codes)
    assert (batch["audio_input_ids"][0, 4:] == tokens.stream_eos).all()


def test_each_failure_differs_from_the_healthy_run() -> None:
    healthy = RUNS["healthy"]
    assert (healthy.plant, healthy.takes, dict(healthy.options)) == (None, "train", {})
    for name in RUNS.keys() - {"healthy"}:
        run = RUNS[name]
        assert run.plant is not None or run.takes != "train" or run.options, name


def test_the_floor_is_the_entropy_of_the_noise() -> None:
    codes = torch.zeros(8, 2000, dtype=torch.long)
    found = curves.noisy(codes, torch.Generator().manual_seed(0))
    assert float((found != codes).float().mean()) == pytest.approx(curves.NOISE, abs=0.01)
    chances = torch.full((NUM_CODES,), curves.NOISE / NUM_CODES, dtype=torch.double)
    chances[0] += 1 - curves.NOISE
    entropy = float(-(chances * chances.log()).sum())
    assert curves.floor([codes[:, :9], codes[:, :29]]) == pytest.approx(entropy * 38 / 40)


def test_curves_are_read_and_drawn(tmp_path: Path) -> None:
    log = tmp_path / "logging.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in LOG), encoding="utf-8")
    found = curves.read_curves(log)
    assert found["loss_audio"] == [(1, 7.0), (4, 5.0)]
    assert found["eval_loss_audio"] == [(4, 6.0)]
    assert found["sample_stop_rate"] == [(0, 0.0), (4, 1.0)]
    picture = tmp_path / "pictures" / "no_eos.png"
    curves.draw(picture, "end of stream not trained", found, found, 2.3)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 60_000
    spoken = {"stop_rate": 0.5, "codes_right": 0.25}
    printed = curves.table({"no_eos": {"curves": found, "spoken": spoken}})
    assert (
        printed.splitlines()[-1]
        == "| end of stream not trained | 0.50 | 5.00 | 6.00 | 0.20 | 50% | 25% |"
    )


@pytest.mark.slow
def test_two_steps_of_a_run_leave_all_curves(tmp_path: Path) -> None:
    curves.prepare(tmp_path)
    curves.train("no_eos", tmp_path, max_steps=2, eval_steps=1, logging_steps=1, save_steps=2)
    found = curves.read_curves(tmp_path / "no_eos" / "logging.jsonl")
    assert set(found) == set(curves.CURVES)
    assert [step for step, _ in found["sample_stop_rate"]] == [0, 1, 2]
    assert 6.5 < found["loss_audio"][0][1] < 7.5  # untrained: ln 1026 is 6.93
    spoken = json.loads((tmp_path / "no_eos" / "spoken.json").read_text(encoding="utf-8"))
    assert spoken.keys() == {"stop_rate", "codes_right"}
    assert spoken["stop_rate"] == 0
