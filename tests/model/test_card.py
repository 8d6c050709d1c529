"""The card of a training: what it says, what it keeps to itself, and that what a user wrote into it
stays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from helpers.sampled import SampledRun

from plugins.commands.export import model_card as exported_card
from plugins.files.checkpoints import damage
from plugins.model.card import BASE_3B, METRICS, NO_METRICS, TRAINING, card, complete
from plugins.settings import HiggsAudioSettings
from plugins.training import card as training_card


@pytest.fixture
def written(sampled: SampledRun) -> Any:
    """The card as the training left it; tests may change it."""
    path = sampled.folder / "README.md"
    text = path.read_text(encoding="utf-8")
    yield text
    path.write_text(text, encoding="utf-8")


def test_it_says_what_was_trained_on_what_and_how(sampled: SampledRun, written: str) -> None:
    statistics = training_card.measure(sampled.trainer.train_dataset, HiggsAudioSettings())
    assert statistics is not None
    minutes = sum(statistics.clips) / 25 / 60
    assert (
        f"| training data | 8 rows, {minutes:.2f} min of speech in 8 clips, 2 speaker(s) |"
        in written
    )
    assert "in 4 clips, 1 speaker(s) |" in written
    assert "| steps | 4 of up to 2 rows, 1.00 epochs |" in written
    for setting in (
        "lora_rank 4",
        "lora_dropout 0.1",
        "learning_rate 0.001",
        "seed 42",
        "auxiliary_loss_weight 0.001",
    ):
        assert setting in written
    # MS-SWIFT sets fp16 for float32 weights; on this CPU nothing was computed in it.
    assert sampled.trainer.args.fp16
    assert "dtype torch.float32" in written
    assert "fp16" not in written
    assert "bf16" not in written
    assert re.search(
        r"\| made with \| higgs-audio-swift \S+, Python \S+, ms-swift 4\.6\.\d, transformers 5",
        written,
    )
    losses = [record["loss_audio"] for record in sampled.records if "loss_audio" in record]
    assert f"| loss_audio | {losses[0]:.4g} | {losses[-1]:.4g} |" in written
    assert "| sample_stop_rate | " in written


def test_it_links_the_first_and_the_last_samples(sampled: SampledRun, written: str) -> None:
    links = re.findall(r"\]\((samples/\S+\.wav)\)", written)
    assert links == [f"samples/step-{step}/{i}.wav" for step in (0, 4) for i in (0, 1)]
    assert all((sampled.folder / link).is_file() for link in links)


def test_licences_consent_and_what_the_hub_reads(written: str) -> None:
    front = yaml.safe_load(written.split("---\n")[1])
    assert (front["license"], front["library_name"], front["pipeline_tag"]) == (
        "other",
        "peft",
        "text-to-speech",
    )
    assert "base_model" not in front, "nobody knows the tiny model's name"
    assert "Boson AI's" in written
    assert "**not filled in yet**" in written, "the data's licences are the user's to state"
    assert "only with the consent of the person" in written


def test_it_tells_nothing_of_this_machine(sampled: SampledRun, written: str) -> None:
    for path in (sampled.folder, sampled.model, sampled.train, ROOT, Path.home()):
        assert str(path) not in written
    assert not re.search(r"(?<![\w.:/])/\w+/", written), "an absolute path"


def test_what_a_user_wrote_stays_when_the_training_goes_on(
    sampled: SampledRun, written: str
) -> None:
    edited = written.replace("**not filled in yet**", "CC-BY-4.0, by me").replace(
        "| steps | 4 of", "| steps | 1 of"
    )
    (sampled.folder / "README.md").write_text(edited, encoding="utf-8")
    training_card.write(sampled.trainer)
    assert (sampled.folder / "README.md").read_text(encoding="utf-8") == edited.replace(
        "| 1 of", "| 4 of"
    )


def test_a_card_of_somebody_else_stays(sampled: SampledRun, written: str) -> None:
    (sampled.folder / "README.md").write_text("# Mine\n", encoding="utf-8")
    training_card.write(sampled.trainer)
    assert (sampled.folder / "README.md").read_text(encoding="utf-8") == "# Mine\n"


def test_evaluation_completes_the_card_of_a_checkpoints_training_in_place(
    sampled: SampledRun, written: str
) -> None:
    """And the checkpoint stays whole: its own README, of peft, is one of the files that its hashes
    cover."""
    checkpoint = sampled.folder / "checkpoint-4"
    for table in ("| WER | 4 \\% |", "| WER | 3 % |"):
        assert complete(checkpoint, {METRICS: table}) == sampled.folder.resolve() / "README.md"
        assert (sampled.folder / "README.md").read_text(encoding="utf-8") == written.replace(
            NO_METRICS, table
        )
    assert damage(checkpoint) is None
    assert complete(sampled.folder, {METRICS: NO_METRICS}) is not None


def test_line_ends_of_a_card_stay_and_one_in_another_encoding_is_left_alone(tmp_path: Path) -> None:
    card = "# Mine\r\n\r\n<!-- higgs-audio metrics -->\nx\n<!-- end of metrics -->\r\n"
    (tmp_path / "README.md").write_bytes(card.encode())
    assert complete(tmp_path, {METRICS: "y"}) is not None
    assert (tmp_path / "README.md").read_bytes() == card.replace("\nx\n", "\ny\n").encode()
    (tmp_path / "README.md").write_bytes("# Café".encode("latin-1") + card.encode())
    assert complete(tmp_path, {METRICS: "y"}) is None


def test_no_card_above_a_training_is_touched(sampled: SampledRun, tmp_path: Path) -> None:
    above = card("x", base=None, summary="", speak="", sections={METRICS: NO_METRICS})
    (tmp_path / "README.md").write_text(above, encoding="utf-8")
    (tmp_path / "v0").mkdir()
    assert complete(tmp_path / "v0", {METRICS: "| WER |"}) is None
    assert complete(tmp_path, {TRAINING: "no place for it"}) is None
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == above


def test_a_card_that_cannot_be_written_costs_no_training(
    sampled: SampledRun, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    (sampled.folder / "README.md").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        training_card.write(sampled.trainer)
    assert not (sampled.folder / "README.md").exists()


def test_an_exported_model_has_room_for_metrics_too() -> None:
    text = exported_card("x", base=BASE_3B, adapters=True, parameters=1, dtype="bfloat16")
    section = f"<!-- higgs-audio metrics -->\n{NO_METRICS}\n<!-- end of metrics -->"
    assert f"## Metrics\n\n{section}\n\n## Speak" in text
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == BASE_3B


def test_the_commit_is_that_of_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", training_card.commit() or "")
    monkeypatch.setattr(training_card, "_ROOT", tmp_path)
    assert training_card.commit() is None
