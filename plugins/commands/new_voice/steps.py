"""The steps of a voice in their order: what each runs, what it hangs on, what it leaves.

    recordings --rows--> data/ --doctor--> proved --training--> adapter/ --evaluation--> a page

With `--hours` a few steps are taken before the training to measure their speed. The state says
which steps are done with these inputs; a step that was cut short runs again by the same line, and
the command behind it goes on where it was."""

from __future__ import annotations

import html
import json
import shutil
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plugins.commands.new_voice import adapter, places, process, recipe, verdict
from plugins.commands.new_voice.state import State
from plugins.corpora import Rejected
from plugins.errors import UserError, problem
from plugins.files.disk import read_json, replace_when_done
from plugins.files.lines import text_lines
from plugins.prepare.slicing.corpus import Recording, recordings_of
from plugins.prepare.slicing.scripts import script_beside
from plugins.training.config_file import read_config
from plugins.training.saves import set_aside
from plugins.training.signals import STOPPED

ROWS, DOCTOR, SPEED = "rows", "doctor", "speed"
TRAINING, EVALUATION = "training", "evaluation"
_MOST_HEARD = 30  # held-out clips that are spoken by both models
_MAX_AUDIO_S = 20.0  # clips are of 15 s at most: who speaks longer does not stop
_FEW_STEPS = 4  # that tell the speed of all
_PAGE = """\
<!DOCTYPE html>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url=evaluation/report.html">
<title>{name}</title>
<p><a href="evaluation/report.html">{name}: base against tuned, to be heard</a></p>
"""


def again(words: Sequence[str]) -> str:
    """The shell's line of this very command."""
    return process.shown(words)


class Voice:
    """What is made, and how far it is."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.places = places.check(options)
        self.folder = self.places.folder
        self.steps = [ROWS, DOCTOR, TRAINING, EVALUATION]
        if options.hours is not None:
            self.steps.insert(2, SPEED)

    def check(self) -> None:
        """Raises UserError where the recordings cannot be enough, before the folder is made."""
        found = recordings_of(Path(self.options.recordings))
        self.recordings = [entry for entry in found if isinstance(entry, Recording)]
        minutes, is_known = places.minutes_of([one.path for one in self.recordings])
        self.recorded_minutes = minutes
        if is_known and (fault := verdict.too_short(minutes, self.options.min_minutes)):
            raise fault
        import torch  # takes seconds: last

        device = self.options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = str(device)

    def hold(self) -> None:
        self.places.hold()
        self.state = State(self.folder)

    def make(self) -> None:
        """All steps. Raises UserError where one fails, with the reason."""
        self._refuse_other_recordings()
        self._rows()
        self._write_settings()
        self._doctor()
        max_steps = None if self.options.max_steps is None else self._longest()
        if SPEED in self.steps:
            max_steps = self._speed()
        self._training(max_steps)
        self._evaluation()
        with replace_when_done(self.places.page) as temporary:
            temporary.write_text(_PAGE.format(name=html.escape(self.places.name)), encoding="utf-8")

    # --- the steps ---

    def _rows(self) -> None:
        options, rows = self.options, self.places.rows
        share = f"{recipe.amount_of(self.recorded_minutes).held_out:g}"
        words = ["prepare", "--dataset_type", "recordings", "--input_dir", options.recordings]
        words += ["--output_file", str(rows), "--split", "--val_ratio", share]
        words += ["--test_ratio", share, "--validate", "--check_transcripts", "--encode_codes"]
        words += ["--codec", self._codec(), "--device", self.device]
        # Who speaks is not asked where the user has said it.
        words += ["--single_speaker", options.name] if options.one_voice else ["--diarize", "auto"]
        words += _flags(language=options.language, asr=options.asr)
        inputs = self._rows_inputs()
        outputs = [rows, self.places.validation, self.places.test, self.places.counts]
        started_s = time.time()
        code = self._run(ROWS, words, inputs, outputs)
        if code:
            is_new = self._is_written_since(self.places.rejected, started_s)
            if is_new and not self.places.rows.exists():
                self._judge(verdict.NOTHING_FIT, see=self.places.rejected)
            raise self._failed(ROWS, code)
        if code is not None:
            self.state.finish(ROWS, {})
        self.report = read_json(self.places.counts, "remove it and start the same command again")
        self._judge(self.report, see=self.places.heard)
        if self.minutes < recipe.FEWEST_MINUTES:
            few = f"{self.minutes:.1f} minutes of speech are few"
            print(f"warning: {few}; docs/recipe.md begins at {recipe.FEWEST_MINUTES:g}")

    def _judge(self, report: Mapping[str, Any], *, see: Path) -> None:
        """Raises UserError if these recordings will not do. see: where they are heard."""
        fault = verdict.unfit(
            report,
            self._rejected_kinds(),
            fewest_minutes=self.options.min_minutes,
            language=self.options.language or "en",
            see=str(see),
        )
        if fault:
            raise fault

    def _write_settings(self) -> None:
        where = self.places
        text = recipe.training_file(
            file=str(where.settings),
            minutes=self.minutes,
            model=self.options.model,
            is_folder=Path(self.options.model).is_dir(),
            codec=self.options.codec,
            dataset=str(where.rows),
            val_dataset=str(where.validation),
            output_dir=str(where.training),
            on_gpu=self.device != "cpu",
        )
        with replace_when_done(where.settings) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _doctor(self) -> None:
        findings: list[str] = []
        words = ["doctor", "--config", str(self.places.settings), "--device", self.device]
        words += _flags(codec=self.options.codec)
        code = self._run(DOCTOR, words, self._training_inputs(), [], line=findings.append)
        if code:
            failed = [finding for finding in findings if finding.startswith("failed")]
            if not failed:
                raise self._failed(DOCTOR, code)
            raise problem(
                source=self._title(DOCTOR),
                field="finding",
                value=None,
                reason=failed[0].removeprefix("failed").strip(),
                remedy="mend it and start the same command again",
            )
        if code is not None:
            self.state.finish(DOCTOR, {})

    def _speed(self) -> int:
        """How many steps a training of `--hours` has, measured by its first ones."""
        hours, longest = self.options.hours, self._longest()
        words = ["sft", str(self.places.settings), "--max_steps", str(_FEW_STEPS)]
        words += ["--output_dir", str(self.places.speed), "--save_strategy", "no"]
        words += ["--eval_strategy", "no", "--samples", "false", "--report_to", "none"]
        inputs = self._training_inputs()
        code = self._run(SPEED, words, inputs, [])
        if code:
            raise self._failed(SPEED, code)
        if code is not None:
            step_s = adapter.seconds_per_step(self.places.speed)
            shutil.rmtree(self.places.speed, ignore_errors=True)
            self.state.finish(SPEED, {"seconds per step": round(step_s, 3)})
        record = self.state.record(SPEED)
        assert record is not None
        step_s = float(record.outcome["seconds per step"])
        steps = recipe.steps_in(hours, step_s=step_s, longest=longest)
        print(f"{step_s:.2f} s a step: {steps} of {longest} steps fit into {hours:g} hours")
        if steps < min(recipe.NUM_SAVES, longest):
            raise problem(
                source="options",
                field="hours",
                value=hours,
                reason=f"has room for {steps} steps of {step_s:.0f} s, fewer than"
                f" {recipe.NUM_SAVES}",
                remedy="give more, or a GPU",
            )
        return steps

    def _training(self, max_steps: int | None) -> None:
        where = self.places
        words = ["sft", str(where.settings), "--resume_from_checkpoint", "auto"]
        words += _flags(max_steps=max_steps)
        inputs = self._training_inputs() | {"max_steps": max_steps}
        changed = self.state.changes(TRAINING, inputs)
        if changed and where.training.exists():
            self._start_anew(changed)
        outputs = [where.training, where.adapter / adapter.WEIGHTS]
        code = self._run(TRAINING, words, inputs, outputs)
        if code:
            raise self._failed(TRAINING, code)
        if code is None:
            return
        best = adapter.best_of(where.training)
        if where.adapter.exists():  # of a run that was killed behind it
            shutil.rmtree(where.adapter)
        adapter.publish(
            where.training / best["checkpoint"],
            where.adapter,
            name=where.name,
            model=self.options.model,
        )
        self.state.finish(TRAINING, best)

    def _evaluation(self) -> None:
        where, options = self.places, self.options
        words = ["evaluate", "--model", str(where.adapter), "--dataset", str(where.test)]
        words += ["--output", str(where.evaluation), "--limit", str(_MOST_HEARD)]
        words += ["--max_audio_s", f"{_MAX_AUDIO_S:g}", "--device", self.device]
        words += _flags(language=options.language, asr=options.evaluation_asr, codec=options.codec)
        inputs = {
            "adapter": self.state.content_of(where.adapter / adapter.WEIGHTS),
            "test rows": self.state.content_of(where.test),
            "language": options.language,
            "evaluation_asr": options.evaluation_asr,
            **self._model_inputs(),
        }
        if self.state.changes(EVALUATION, inputs) and where.evaluation.exists():
            print(f"{where.evaluation} is {set_aside(where.evaluation)} from now on")
        outputs = [where.evaluation / "report.html", where.evaluation / "summary.json"]
        code = self._run(EVALUATION, words, inputs, outputs)
        if code:
            raise self._failed(EVALUATION, code)
        if code is not None:
            self.state.finish(EVALUATION, {})

    # --- what they hang on ---

    @property
    def minutes(self) -> float:
        """Of speech that is fit."""
        return 60 * float(self.report["accepted"]["hours"])

    def _codec(self) -> str:
        from plugins.audio.codec import find_codec

        return find_codec([self.options.model], self.options.codec)

    def _rows_inputs(self) -> dict[str, Any]:
        options, content_of = self.options, self.state.content_of
        inputs: dict[str, Any] = {}
        for recording in self.recordings:
            inputs[f"recording {recording.id}"] = content_of(recording.path)
            script = script_beside(recording.path)
            if script is not None:
                inputs[f"script {script.name} of {recording.id}"] = content_of(script)
        inputs |= {"name": options.name, "language": options.language, "asr": options.asr}
        inputs["one_voice"] = options.one_voice
        return inputs | self._contents("codec", self._codec())

    def _model_inputs(self) -> dict[str, Any]:
        inputs = self._contents("model", self.options.model)
        return inputs | self._contents("codec", self._codec())

    def _contents(self, title: str, model: str) -> dict[str, Any]:
        """A model by its files, one of the Hub by its name."""
        folder = Path(model)
        if not folder.is_dir():
            return {title: model}
        contents = {}
        for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
            contents[f"{title} file {path.name}"] = self.state.content_of(path)
        return contents

    def _training_inputs(self) -> dict[str, Any]:
        where, inputs = self.places, self._model_inputs()
        inputs["training rows"] = self.state.content_of(where.rows)
        inputs["validation rows"] = self.state.content_of(where.validation)
        for name, value in read_config(where.settings).items():
            if name not in recipe.PLACES:  # what is there is compared, not where
                inputs[f"setting {name}"] = value
        return inputs

    def _longest(self) -> int:
        """Steps of the recipe's training, or of `--max_steps`."""
        num_rows = sum(1 for _ in text_lines(self.places.rows))
        steps = recipe.num_steps(num_rows, recipe.amount_of(self.minutes).epochs)
        return min(steps, self.options.max_steps or steps)

    def _rejected_kinds(self) -> Mapping[str, int]:
        kinds: Counter[str] = Counter()
        for _, line in text_lines(self.places.rejected):
            row = json.loads(line)
            kinds[Rejected(row["file"], row["id"], row["reason"], row["value"]).kind] += 1
        return kinds

    # --- changes ---

    def _refuse_other_recordings(self) -> None:
        """Before rows are made again of which a training has begun."""
        changed = self.state.changes(ROWS, self._rows_inputs())
        if changed and self.places.training.exists() and not self.options.redo:
            raise self._changed(changed)

    def _start_anew(self, changed: Sequence[str]) -> None:
        if not self.options.redo:
            raise self._changed(changed)
        for folder in (self.places.training, self.places.adapter):
            if folder.exists():
                print(f"{folder} is {set_aside(folder)} from now on")
        self.state.forget(TRAINING)

    def _changed(self, changed: Sequence[str]) -> UserError:
        shown = "; ".join(changed[:5]) + ("; ..." if len(changed) > 5 else "")
        return problem(
            source=str(self.folder),
            field="training",
            value=None,
            reason=f"was begun with something else: {shown}",
            remedy="undo that, give another --name, or train anew with --redo, which keeps what is"
            " there beside",
        )

    # --- running ---

    def _title(self, step: str) -> str:
        return f"step {self.steps.index(step) + 1} of {len(self.steps)}: {step}"

    def _run(
        self,
        step: str,
        words: Sequence[str],
        inputs: Mapping[str, Any],
        outputs: Sequence[Path],
        line: Callable[[str], None] | None = None,
    ) -> int | None:
        """The exit code of the command; None: it was done before, with the same inputs."""
        print(f"\n== {self._title(step)}", flush=True)
        if self.state.is_done(step, inputs, outputs):
            print(f"done before: {process.shown(words)}")
            return None
        for change in self.state.changes(step, inputs):
            print(f"done again: {change}")
        self.state.begin(step, inputs)
        print(f"$ {process.shown(words)}", flush=True)
        started_s = time.monotonic()
        try:
            return process.run(words, title=self._title(step), line=line)
        finally:
            self.state.spend(step, time.monotonic() - started_s)

    def _failed(self, step: str, code: int) -> UserError:
        how, remedy = f"ended with exit code {code}, for the reason above", "mend it and "
        if code < 0:
            how, remedy = f"was killed by signal {-code} (out of memory?)", ""
        elif code == STOPPED:
            how, remedy = "was stopped by somebody else", ""
        return UserError(f"{self._title(step)} {how}; {remedy}start the same command again")

    def _is_written_since(self, path: Path, started_s: float) -> bool:
        return path.is_file() and path.stat().st_mtime >= started_s - 1


def _flags(**values: object) -> list[str]:
    """`--name value` of those that are given."""
    words = []
    for name, value in values.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return words
