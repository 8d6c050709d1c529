"""`higgs-audio evaluate` of the tiny model and its LoRA weights: what they say, and what a kill
leaves of it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from helpers.commands import contents, in_child, read
from helpers.evaluation import evaluate, rows_to_say

from plugins.audio.marks import Mark, mark_in
from plugins.data.dialogue import Dialogue, Turn
from plugins.errors import UserError
from plugins.evaluation import formats
from plugins.evaluation.items import read_items
from plugins.evaluation.journal import Journal
from plugins.evaluation.speaking import seeded, speak_batch
from plugins.inference import HiggsAudioGenerator
from plugins.model import card as model_card
from plugins.model import load as checkpoint
from plugins.model.makers import name_of
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling


@pytest.fixture(scope="module")
def lora(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA weights that change what the tiny model says."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "audio_mlp.down_proj"], init_lora_weights=False
    )
    tuned = get_peft_model(checkpoint.native_model(str(tiny)), config)
    tuned.peft_config["default"].base_model_name_or_path = str(tiny)
    folder = tmp_path_factory.mktemp("lora")
    tuned.save_pretrained(folder)
    return folder


def test_one_that_cannot_be_spoken_does_not_harm_the_others(tiny: Path) -> None:
    generator = HiggsAudioGenerator.from_pretrained(str(tiny))
    dialogues, samplings = [], []
    for text in ("Hello there.", "word " * 3000, "Good bye."):
        dialogues.append(Dialogue((Turn("user", (text,)),)))
        samplings.append(seeded(Sampling(), 0, text))
    assert len(set(samplings)) == 3
    outcomes = speak_batch(generator, dialogues, samplings, 0.4)
    assert "leaves no room" in str(outcomes[1])
    (alone,) = speak_batch(generator, dialogues[2:], samplings[2:], 0.4)
    assert not isinstance(alone, UserError)
    assert torch.equal(alone.codes, outcomes[2].codes)  # type: ignore[union-attr]


def sound(file: Path) -> np.ndarray:
    """Samples, without what else the file says."""
    return sf.read(file)[0]


@pytest.mark.usefixtures("only_sound")
def test_base_tuned_codec_and_truth_side_by_side(
    tiny: Path, lora: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    empty = {model_card.METRICS: model_card.NO_METRICS}
    blank = model_card.card("x", base=None, summary="", speak="", sections=empty)
    (lora / "README.md").write_text(blank)
    assert evaluate("--model", lora, "--dataset", rows_to_say(tmp_path), "--output", out) == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["systems"]) == ["base", "tuned", "codec", "truth"]
    assert summary["items"] == 3
    for name in ("codec", "truth"):
        assert summary["systems"][name]["scores"]["duration_ratio"]["mean"] == pytest.approx(1.0)
    stopped = summary["systems"]["tuned"]["scores"]["stopped"]
    assert stopped == {"mean": 0.0, "low": 0.0, "high": 0.0, "items": 3}
    assert summary["systems"]["truth"]["scores"]["stopped"] is None
    assert summary["differences"]["tuned - base"]["duration_ratio"]["items"] == 3
    rows = read(out / "items.jsonl")
    assert [row["id"] for row in rows] == ["DEMO-0001", "DEMO-0002", "DEMO-0003"]
    assert rows[1]["systems"]["tuned"]["file"] == "audio/tuned/DEMO-0002.wav"
    base, tuned = out / "audio" / "base", out / "audio" / "tuned"
    name = "DEMO-0001.wav"
    assert not np.array_equal(sound(base / name), sound(tuned / name))
    # What a model said is marked; a recording is not, nor its way through the codec.
    marks = {folder: mark_in(out / "audio" / folder / name) for folder in ("codec", "truth")}
    assert marks == {"codec": None, "truth": None}
    assert mark_in(base / name) == Mark.of_today("model", None)
    assert mark_in(tuned / name) == Mark.of_today("model", name_of(str(lora)))
    report = (out / "report.md").read_text(encoding="utf-8")
    cells = "0.0 % [0.0, 0.0] | 0.0 % [0.0, 0.0] |  |  | +0.0 % [+0.0, +0.0]"
    assert f"| stopped by itself | higher | {cells} |" in report
    assert report in capsys.readouterr().out
    # The card's gap is filled with the report's table.
    completed = (lora / "README.md").read_text(encoding="utf-8")
    assert model_card.NO_METRICS not in completed
    filled = completed.split(f"<!-- higgs-audio {model_card.METRICS} -->\n")[1]
    assert filled.split("\n<!-- end")[0].strip() in report
    # Lists for other kits, read back by what reads theirs.
    again = read_items(str(out / "meta.lst"), HiggsAudioSettings())
    for item, row in zip(again, rows, strict=True):
        assert item.text == row["text"]
    assert again[0].dialogue.references[0].text == "Some words."
    assert formats.read_scp(tuned / "wav.scp")["DEMO-0001"] == str(tuned / name)

    # The generator that a user would call says the same.
    generator = HiggsAudioGenerator.from_pretrained(str(lora))
    item = read_items(str(tmp_path / "test.jsonl"), HiggsAudioSettings())[1]
    (speech,) = speak_batch(generator, [item.dialogue], [seeded(Sampling(), 0, item.id)], 0.4)
    assert not isinstance(speech, UserError)
    speech.save(tmp_path / "alone.wav")
    assert (tmp_path / "alone.wav").read_bytes() == (tuned / "DEMO-0002.wav").read_bytes()


def killed_at(put: int, *, torn: bool) -> Callable[..., None]:
    """`Journal.put` that kills the process at the given line, before it or in its middle."""
    original, count = Journal.put, [0]

    def put_or_die(self: Journal, key: str, value: Any) -> None:
        count[0] += 1
        if count[0] == put:
            # A line that is written in part, as a full buffer or a kill would leave it.
            if torn:
                self._file.write(json.dumps([key, value]).encode()[:-3])
                self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, key, value)

    return put_or_die


@pytest.mark.slow
@pytest.mark.usefixtures("only_sound")
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_bytes(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_to_say(tmp_path)
    arguments = ["--model", lora, "--dataset", rows, "--batch_size", 2, "--output"]
    assert evaluate(*arguments, tmp_path / "whole") == 0
    broken = tmp_path / "broken"
    # The first line is the settings; a line each for two batches of two systems follows.
    for put, torn in ((2, False), (2, True), (4, False)):
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "put", killed_at(put, torn=torn))
            assert in_child(lambda: evaluate(*arguments, broken)) == -signal.SIGKILL
        assert not (broken / "summary.json").exists()
    assert evaluate(*arguments, broken) == 0
    for name in ("summary.json", "report.md", "items.jsonl", "report.png", "progress.jsonl"):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

    # The same command once more does nothing; a clip that was changed or lost is said again.
    before = contents(broken)
    with monkeypatch.context() as patch:
        again = "everything has been said"
        patch.setattr(HiggsAudioGenerator, "speak", lambda *_, **__: pytest.fail(again))
        assert evaluate(*arguments, broken) == 0
    assert contents(broken) == before
    (broken / "audio" / "tuned" / "DEMO-0002.wav").unlink()
    sf.write(broken / "audio" / "base" / "DEMO-0003.wav", np.zeros(24_000), 24_000)
    assert evaluate(*arguments, broken) == 0
    after = contents(broken)
    # The journal grows, also where nothing that it tells has changed.
    log = "broken/progress.jsonl"
    assert after.pop(log).startswith(before.pop(log))
    assert after == before


@pytest.mark.usefixtures("only_sound")
def test_two_models_are_never_mixed(tiny: Path, lora: Path, tmp_path: Path, capsys: Any) -> None:
    rows, out = rows_to_say(tmp_path, 1), tmp_path / "out"
    assert evaluate("--model", tiny, "--dataset", rows, "--output", out) == 0
    before = contents(out)
    capsys.readouterr()
    same = ["--model", tiny]
    for change in (["--model", lora], [*same, "--seed", 1], [*same, "--temperature", 0]):
        assert evaluate("--dataset", rows, "--output", out, *change) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "what it was begun with" in line
        assert "give another --output" in line
    assert contents(out) == before
    # More rows are no other evaluation.
    assert evaluate("--model", tiny, "--dataset", rows_to_say(tmp_path, 2), "--output", out) == 0
    assert json.loads((out / "summary.json").read_text())["items"] == 2


@pytest.mark.usefixtures("only_sound")
def test_another_strength_is_another_evaluation(lora: Path, tmp_path: Path, capsys: Any) -> None:
    rows, half, none = rows_to_say(tmp_path, 1), tmp_path / "half", tmp_path / "none"
    arguments = ["--model", lora, "--dataset", rows, "--temperature", 0, "--adapter_scale"]
    assert evaluate(*arguments, 0.5, "--output", half) == 0
    assert "- adapter_scale: 0.5, of **tuned**" in capsys.readouterr().out
    assert evaluate(*arguments, 1, "--output", half) == 1
    refused = capsys.readouterr().err
    assert "tuned.adapter_scale: 0.5 is what it was begun with, not None" in refused
    assert evaluate(*arguments, 0, "--output", none) == 0
    clip = "DEMO-0001.wav"
    base, tuned = none / "audio" / "base" / clip, none / "audio" / "tuned" / clip
    assert np.array_equal(sound(base), sound(tuned)), "0 is the base"
    assert not np.array_equal(sound(half / "audio" / "tuned" / clip), sound(tuned))


@pytest.mark.usefixtures("only_sound")
def test_a_fully_trained_model_against_its_base(tiny: Path, lora: Path, tmp_path: Path) -> None:

    merged = tmp_path / "merged"
    model = checkpoint.with_adapters(checkpoint.native_model(str(tiny)), {"default": str(lora)})
    model.merge_and_unload().save_pretrained(merged)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (merged / name).write_bytes((tiny / name).read_bytes())
    rows, codec = rows_to_say(tmp_path, 2), tiny / "audio_tokenizer"
    arguments = ["--dataset", rows, "--codec", codec, "--temperature", 0]
    assert (
        evaluate("--model", merged, "--base", tiny, "--output", tmp_path / "full", *arguments) == 0
    )
    assert (
        evaluate("--model", tiny, "--adapters", lora, "--output", tmp_path / "lora", *arguments)
        == 0
    )
    for name in ("base", "tuned"):
        clip = Path("audio", name, "DEMO-0002.wav")
        merged_says, adapter_says = sound(tmp_path / "full" / clip), sound(tmp_path / "lora" / clip)
        assert np.array_equal(merged_says, adapter_says), "greedily both say the same"
