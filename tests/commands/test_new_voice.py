"""`higgs-audio new-voice` without its commands: plan, refusals, what is done already, what has
changed. Each command is replaced by the files that it leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import yaml
from conftest import ROOT
from helpers.checkpoints import RUN

from plugins.cli import main
from plugins.commands.new_voice import process, recipe
from plugins.prepare.outputs import rejected_path, split_path
from plugins.training.saves import reserve, seal

MINUTES = 6.0
HOURS = MINUTES / 60


class Commands:
    """In the place of `process.run`: the files of each command, as if it had done its work."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []
        self.speakers = {"speaker1": HOURS}
        self.rejected: list[str] = []
        self.findings = ["ok      dataset: 40 rows"]
        self.codes: dict[str, int] = {}
        self.best: str | None = "checkpoint-5"
        self.step_s = 2.0

    @property
    def names(self) -> list[str]:
        return [line[0] for line in self.lines]

    def run(
        self, words: Sequence[str], *, title: str, line: Callable[[str], None] | None = None
    ) -> int:
        self.lines.append(list(words))
        code = self.codes.get(words[0], 0)
        if words[0] == "doctor":
            assert line is not None
            for finding in self.findings:
                line(finding)
        elif code == 0 or words[0] == "prepare":
            getattr(self, f"_{words[0]}")(list(words))
        return code

    def _prepare(self, words: list[str]) -> None:
        rows = Path(after(words, "--output_file"))
        rows.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for reason in self.rejected:
            lines.append(json.dumps({"file": "a", "id": "a", "reason": reason, "value": 1}))
        rejected_path(rows).write_text("".join(line + "\n" for line in lines))
        if self.codes.get("prepare"):
            return
        talks = sorted(Path(after(words, "--input_dir")).iterdir())
        heard = hashlib.sha256(b"".join(talk.read_bytes() for talk in talks)).hexdigest()
        for side, count in (("train", 40), ("val", 4), ("test", 4)):
            text = ""
            for i in range(count):
                text += json.dumps({"id": f"{side}{i}", "heard": heard}) + "\n"
            split_path(rows, side).write_text(text)
        content = {
            "accepted": {"clips": 48, "hours": sum(self.speakers.values())},
            "rejected": {"clips": len(self.rejected), "reasons": {}},
            "splits": {"train": {"clips": 40}, "val": {"clips": 4}, "test": {"clips": 4}},
            "speakers": {name: {"hours": hours} for name, hours in self.speakers.items()},
        }
        rows.with_suffix(".report.json").write_text(json.dumps(content))

    def _sft(self, words: list[str]) -> None:
        if "--output_dir" in words:  # a few steps, for their speed
            log = Path(after(words, "--output_dir")) / "logging.jsonl"
            log.parent.mkdir(parents=True)
            lines = []
            for step in (1, 2, 3, 4):
                elapsed_s = 30 + self.step_s * step  # the first one loads and warms up
                speed = {"train_speed(s/it)": elapsed_s / step}
                lines.append({"loss": 1.0, "global_step/max_steps": f"{step}/4", **speed})
            log.write_text("".join(json.dumps(line) + "\n" for line in lines))
            return
        folder = Path(yaml.safe_load(Path(words[1]).read_text())["output_dir"])
        for step in (5, 10):
            checkpoint = folder / f"checkpoint-{step}"
            reserve(checkpoint, RUN, pytest.fail)
            (checkpoint / "adapter_model.safetensors").write_bytes(bytes([step]))
            (checkpoint / "adapter_config.json").write_text("{}")
            (checkpoint / "higgs_audio_settings.json").write_text("{}")
            best = self.best and str(folder / self.best)
            state = {"global_step": step, "best_model_checkpoint": best}
            (checkpoint / "trainer_state.json").write_text(json.dumps(state))
            seal(checkpoint, resumable=True)
        marked = "<!-- higgs-audio training -->\ncurves\n<!-- end of training -->\n"
        (folder / "README.md").write_text(f"# training\n{marked}")

    def _evaluate(self, words: list[str]) -> None:
        folder = Path(after(words, "--output"))
        folder.mkdir()
        systems = {}
        for name in ("base", "tuned", "truth"):
            metrics = {"wer": {"mean": 0.5}, "similarity": {"mean": 0.7}, "stopped": None}
            systems[name] = {"scores": metrics}
        paired = {"wer": {"low": -0.3, "high": -0.1}, "similarity": {"low": -0.1, "high": 0.1}}
        differences = {"tuned - base": paired}
        content = {"items": 4, "systems": systems, "differences": differences}
        (folder / "summary.json").write_text(json.dumps(content))
        (folder / "report.html").write_text("page")


def after(words: Sequence[str], flag: str) -> str:
    return words[list(words).index(flag) + 1]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Commands:
    commands = Commands()
    monkeypatch.setattr(process, "run", commands.run)
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "talks" / "a.wav")
    return commands


def record(path: Path, minutes: float = MINUTES, *, value: float = 0.1) -> None:
    path.parent.mkdir(exist_ok=True)
    sf.write(path, np.full(round(minutes * 60 * 100), value), 100)


@pytest.fixture
def make(commands: Commands, tiny: Path) -> Callable[..., int]:
    def run(*more: str, name: str = "ann") -> int:
        return main(["new-voice", "talks", "--name", name, "--model", str(tiny), *more])

    return run


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


# --- the plan ---


def test_settings_are_those_of_the_recipe() -> None:
    """But for what speech and machine decide, and for the saves of a run of few steps."""
    ours = recipe.settings_for(recipe.AMOUNTS[-1], on_gpu=True)
    theirs = yaml.safe_load((ROOT / "configs" / "lora_3b.yaml").read_text(encoding="utf-8"))
    for name in ("model", "use_hf", "dataset", "output_dir", "group_by_length"):
        del theirs[name]
    changed = {name for name in theirs if ours.get(name) != theirs[name]}
    assert changed == {"logging_steps", "save_steps"}
    added = set(ours) - set(theirs)
    assert added == {
        "add_version",
        "eval_strategy",
        "eval_steps",
        "metric_for_best_model",
        "greater_is_better",
    }


@pytest.mark.parametrize(("minutes", "epochs"), [(5, 10), (30, 10), (31, 5), (61, 3), (900, 3)])
def test_more_speech_takes_fewer_epochs(minutes: float, epochs: int) -> None:
    assert recipe.amount_of(minutes).epochs == epochs


def test_the_page_says_the_table() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith("`higgs-audio new-voice`"))
    first, second, third = (amount.epochs for amount in recipe.AMOUNTS)
    assert f"{first} epochs up to {recipe.AMOUNTS[0].up_to_minutes} minutes" in line
    assert f"{second} up to an hour, {third} beyond" in line


def test_all_steps_then_nothing(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make() == 0
    out = capsys.readouterr().out
    assert commands.names == ["prepare", "doctor", "sft", "evaluate"]
    for number, step in enumerate(("rows", "doctor", "training", "evaluation"), start=1):
        assert f"== step {number} of 4: {step}" in out
    assert after(commands.lines[0], "--val_ratio") == "0.1"
    assert "6.0 minutes in 48 clips: 40 train, 4 val, 4 test" in out
    assert "warning: 6.0 minutes of speech are few; docs/recipe.md begins at 10" in out
    (wer,) = (line for line in out.splitlines() if line.startswith("WER"))
    assert wer.split() == ["WER", *["50.0", "%"] * 3, "*"]
    assert "step 5 of 10" in out
    adapter = Path("ann/adapter")
    assert (adapter / "adapter_model.safetensors").read_bytes() == bytes([5])  # the best one
    card = (adapter / "README.md").read_text()
    assert "# ann" in card
    assert "curves" in card
    assert "higgs-audio metrics" in card, "room for the table of the evaluation"
    assert 'href="evaluation/report.html"' in Path("ann/report.html").read_text()
    assert make() == 0
    assert len(commands.lines) == 4
    assert capsys.readouterr().out.count("done before: ") == 4


def test_what_failed_goes_on_by_the_same_command(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.codes["sft"] = 1
    assert make() == 1
    assert "step 3 of 4: training ended with exit code 1" in error_of(capsys)
    commands.codes.clear()
    assert make() == 0
    assert commands.names == ["prepare", "doctor", "sft", "sft", "evaluate"]
    assert commands.lines[2] == commands.lines[3]


def test_without_validation_loss_it_is_the_newest(
    make: Callable[..., int], commands: Commands
) -> None:
    commands.best = None
    assert make() == 0
    assert Path("ann/adapter/adapter_model.safetensors").read_bytes() == bytes([10])


def test_hours_become_steps(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make("--hours", "0.01") == 0  # 27 s of steps
    speed, training = (line for line in commands.lines if line[0] == "sft")
    assert after(speed, "--max_steps") == "4"
    assert after(training, "--max_steps") == "13"
    assert "2.00 s a step: 13 of 30 steps fit into 0.01 hours" in capsys.readouterr().out
    assert not Path("ann/speed").exists()
    assert make("--hours", "0.01") == 0
    assert len(commands.lines) == 5, "nothing is measured again"


def test_too_few_hours(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.step_s = 60
    assert make("--hours", "0.1") == 1
    assert "has room for 4 steps of 60 s, fewer than 10" in error_of(capsys)
    assert commands.names == ["prepare", "doctor", "sft"]


def test_more_hours_than_needed(make: Callable[..., int], commands: Commands) -> None:
    assert make("--hours", "100", "--max_steps", "6") == 0
    assert after(commands.lines[3], "--max_steps") == "6"


# --- data that will not do ---


def test_too_little_is_recorded(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    record(Path("talks/a.wav"), 2)
    assert make() == 1
    assert error_of(capsys) == (
        "error: recordings: minutes: 2.0 are fewer than the 5 of speech that a voice needs;"
        " record more"
    )
    assert not commands.lines
    assert not Path("ann").exists()


def test_nothing_is_recorded(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("talks/a.wav").write_text("no sound")
    assert make() == 1
    assert "recordings: folder holds no recording that can be read" in error_of(capsys)


@pytest.mark.parametrize(
    ("speakers", "rejected", "reason"),
    [
        ({"a": 0.06, "b": 0.04}, [], "voices: 2 speak (60 %, 40 % of the speech)"),
        ({"a": 0.06}, [], "minutes: 3.6 of speech are fit, fewer than the 5"),
        (
            {"a": 0.06},
            ["SNR below min_snr_db (3.0 dB)"] * 9,
            "(rejected clips: 9 SNR below min_snr_db); record in a quiet room, without music",
        ),
        (
            {"a": 0.09},
            ["confidence below min_confidence (0.31)"] * 60,
            "clips: 60 of 108 are not understood as en: another language",
        ),
        (
            {"a": 0.09},
            ["transcript: other words are heard than are written"] * 60,
            "clips: 60 of 108 are not understood as en",
        ),
    ],
)
def test_unfit_recordings(
    speakers: dict[str, float],
    rejected: list[str],
    reason: str,
    make: Callable[..., int],
    commands: Commands,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands.speakers, commands.rejected = speakers, rejected
    assert make() == 1
    assert reason in error_of(capsys)
    assert commands.names == ["prepare"]
    # It is not asked to listen again, and says the same.
    assert make() == 1
    assert reason in error_of(capsys)
    assert commands.names == ["prepare"]


def test_who_says_that_it_is_one_voice_is_believed(
    make: Callable[..., int], commands: Commands
) -> None:
    commands.speakers = {"a": 0.097, "b": 0.003}  # nor is a single clip another voice
    assert make("--one_voice") == 0
    assert after(commands.lines[0], "--single_speaker") == "ann"
    assert "--diarize" not in commands.lines[0]


def test_nothing_is_fit(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.codes["prepare"] = 1
    commands.rejected = ["another language than --language (fr)"] * 5
    assert make("--language", "de") == 1
    assert "5 of 5 are not understood as de" in error_of(capsys)


def test_the_doctor_says_no(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.codes["doctor"] = 1
    commands.findings = ["ok      labels: 4 rows", "failed  codec: two frames too many"]
    assert make() == 1
    assert error_of(capsys) == (
        "error: step 2 of 4: doctor: finding codec: two frames too many; mend it and start the same"
        " command again"
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--name", "../ann"], "name: '../ann' cannot be the name of a folder"),
        (["--output", "talks/ann"], "lies within the recordings (talks)"),
        (["--hours", "0"], "hours: 0.0 is no time"),
        (["--hours", "nan"], "hours: nan is no time"),
        (["--min_minutes", "0"], "min_minutes: 0.0 is below 1"),
        (["--asr", "large-v3"], "asr: 'large-v3' needs the language"),
        (["--model", "./nowhere"], "model: './nowhere' not found"),
        (["--model", "lora"], "is a LoRA, on which no other one is trained"),
    ],
)
def test_options_that_cannot_be_meant(
    words: list[str],
    reason: str,
    make: Callable[..., int],
    commands: Commands,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("lora").mkdir()
    Path("lora/adapter_config.json").write_text("{}")
    assert make(*words) == 1
    assert reason in capsys.readouterr().err
    assert not commands.lines


def test_a_folder_of_others_is_left_alone(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("ann").mkdir()
    Path("ann/thesis.tex").write_text("years of work")
    assert make() == 1
    assert "holds files that are not of a voice (thesis.tex)" in error_of(capsys)
    assert make("--output", "voices/ann") == 0
    assert Path("voices/ann/adapter/README.md").is_file()


# --- what has changed ---


def test_other_recordings_after_a_training(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make() == 0
    record(Path("talks/b.wav"))
    record(Path("talks/a.wav"), value=0.2)
    assert make() == 1
    assert "recording a.wav has changed; recording b.wav is new" in error_of(capsys)
    assert len(commands.lines) == 4, "the rows of the training are still there"
    assert make("--redo") == 0
    assert commands.names[4:] == ["prepare", "doctor", "sft", "evaluate"]
    for folder in ("training.1", "adapter.1", "evaluation.1"):
        assert Path("ann", folder).exists()


def test_a_touched_recording_is_no_other_one(make: Callable[..., int], commands: Commands) -> None:
    assert make() == 0
    Path("talks/a.wav").touch()
    assert make() == 0
    assert len(commands.lines) == 4


def test_recordings_may_be_added_before_a_training(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.speakers = {"a": 0.01}
    assert make() == 1
    record(Path("talks/b.wav"))
    commands.speakers = {"a": 0.1}
    assert make() == 0
    assert "done again: recording b.wav is new" in capsys.readouterr().out
    assert commands.names == ["prepare", "prepare", "doctor", "sft", "evaluate"]


def test_other_options_after_a_training(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make("--max_steps", "5") == 0
    assert make("--max_steps", "6") == 1
    assert "max_steps was 5 and is 6" in error_of(capsys)
    counts = Path("ann/data/ann_train.report.json")
    before = counts.read_text()
    counts.write_text(before.replace("0.1", "0.7"))  # 42 minutes: fewer epochs
    assert make("--max_steps", "5") == 1
    assert "setting num_train_epochs was 10 and is 5" in error_of(capsys)
    counts.write_text(before)
    assert make("--max_steps", "6", "--redo") == 0
    assert commands.names[-1] == "sft", "the same weights come out: nothing else is new"
    assert Path("ann/training.1/checkpoint-5").is_dir()


def test_corrected_rows_are_trained_on(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.codes["sft"] = 1
    assert make() == 1
    rows = Path("ann/data/ann_train.jsonl")
    rows.write_text(rows.read_text().replace("train7", "corrected"))
    commands.codes.clear()
    assert make() == 0
    assert commands.names == ["prepare", "doctor", "sft", "doctor", "sft", "evaluate"]
    assert "corrected" in rows.read_text()
    rows.write_text(rows.read_text().replace("train8", "corrected"))
    assert make() == 1
    assert "training rows has changed" in error_of(capsys)


def test_another_base_after_a_training(
    make: Callable[..., int],
    tiny: Path,
    commands: Commands,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By its files: a copy elsewhere is the same model."""
    assert make() == 0
    shutil.copytree(tiny, tmp_path / "base")
    assert make("--model", "base", "--redo") == 0
    other = Path("base/config.json")
    other.write_text(other.read_text() + "\n")
    assert make("--model", "base") == 1
    assert "model file config.json has changed" in error_of(capsys)


def test_who_judges_may_change(make: Callable[..., int], commands: Commands) -> None:
    assert make() == 0
    assert make("--evaluation_asr", "openai/whisper-small") == 0
    assert commands.names[4:] == ["evaluate"]
    assert Path("ann/evaluation.1/report.html").is_file()


def test_a_lost_adapter_is_made_again(make: Callable[..., int], commands: Commands) -> None:
    assert make() == 0
    Path("ann/adapter/adapter_model.safetensors").unlink()
    assert make() == 0
    assert commands.names[4:] == ["sft"]  # which finds that nothing is left to do


def test_a_state_of_others(
    make: Callable[..., int], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("ann").mkdir()
    for content in ("{}", '{"steps": [1], "hashes": {}}', '{"steps": {"rows": 1}}', "[", "\0"):
        Path("ann/new_voice.json").write_text(content)
        assert make() == 1
        assert "new_voice.json" in error_of(capsys)
