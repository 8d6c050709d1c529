"""What the fields of a tab say -> the command that does it. Words of a command line; knows no
Gradio and starts nothing.

Values are checked by the command itself, which says what is wrong in one line. Here only what a
shell's user could do and a visitor must not: name a file outside of the workspace, or a flag."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.commands.app.jobs import Action
from plugins.commands.app.presets import Preset
from plugins.commands.app.workspace import Workspace, safe_name
from plugins.errors import UserError, problem
from plugins.settings import KNOBS, joined

RECORDINGS, ROWS, RUNS = "recordings", "rows", "runs"
EVALUATIONS, EXPORTS = "evaluations", "exports"
LISTS = {"custom": "csv_file", "gpt_sovits": "list_file", "jsonl": "jsonl_file"}
# Rows and lists may name files too: of the workspace, in which every command is run.
_ROOT = "."
_INSIDE = {"AUDIO_ROOT": _ROOT}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Models:
    """Which models and codecs may be named: folders of the workspace, Hub ids, and those that the
    command line of the page has named, wherever they lie."""

    workspace: Workspace
    given: Collection[str] = ()

    def word(self, typed: str, *, field: str) -> str:
        """Raises UserError for any other."""
        name = typed.strip()
        if name in self.given:
            return name
        is_hub_id = _HUB_ID.fullmatch(name) and ".." not in name
        if is_hub_id and not (self.workspace.root / name).exists():
            return name
        return self.workspace.word(self.workspace.existing(name, field=field, folder=True))


def prepare(models: Models, form: Mapping[str, Any]) -> Action:
    """Fields: kind, folder, list, name, speaker, diarize, language, asr, check, split, references,
    encode, codec, device."""
    workspace, kind = models.workspace, form["kind"]
    words = ["prepare", "--dataset_type", kind]
    if kind == "huggingface":
        words += ["--input_dir", models.word(form["folder"], field="folder")]
    else:
        folder = workspace.existing(form["folder"], field="folder", folder=True)
        words += ["--input_dir", workspace.word(folder), "--audio_root", _ROOT]
    if flag := LISTS.get(kind):
        words += [f"--{flag}", workspace.word(workspace.existing(form["list"], field="list"))]
    output = f"{ROWS}/{_name(form['name'])}_train.jsonl"
    words += ["--output_file", output, "--validate"]
    speaker = form["speaker"].strip()
    if speaker:
        words += ["--single_speaker", _value("speaker", speaker)]
    elif form["diarize"] and kind == "recordings":
        words += ["--diarize", "auto"]
    listens = kind == "recordings" or form["check"]
    for name in ("check", "split", "references", "encode"):
        flag = {"check": "check_transcripts", "encode": "encode_codes"}.get(name, name)
        if form[name]:
            words.append(f"--{flag}")
    if listens and form["language"].strip():
        words += ["--language", _value("language", form["language"])]
    if listens and form["asr"].strip():
        words += ["--asr", models.word(form["asr"], field="asr")]
    if form["encode"] and form["codec"].strip():
        words += ["--codec", models.word(form["codec"], field="codec")]
    device = "cpu"
    if form["encode"] or listens:
        device = form["device"]
        words += ["--device", device]
    return Action("prepare", tuple(words), output, device)


def train(models: Models, form: Mapping[str, Any], preset: Preset) -> Action:
    """Fields: base, rows, validation, run, device, and `settings`: flag -> text, empty where the
    preset's value is to hold.

    The same words start a run and go on with it: they name its folder and the newest checkpoint in
    it."""
    workspace = models.workspace
    run = f"{RUNS}/{_name(form['run'])}"
    words = ["sft", str(preset.file), "--model", models.word(form["base"], field="base")]
    words += ["--dataset", _rows(workspace, form["rows"], "rows")]
    if form["validation"]:
        words += ["--val_dataset", _rows(workspace, form["validation"], "validation")]
    words += ["--audio_root", _ROOT, "--output_dir", run, "--add_version", "false"]
    words += ["--resume_from_checkpoint", "auto"]
    settings = {name: value.strip() for name, value in form["settings"].items() if value.strip()}
    env = {}
    if form["device"] == "cpu":
        words += ["--use_cpu", "true"]
        settings.setdefault("torch_dtype", "float32")  # half of it is slower on a CPU
    elif form["device"].startswith("cuda:"):
        env["CUDA_VISIBLE_DEVICES"] = _gpu(int(form["device"].removeprefix("cuda:")))
    for name, value in settings.items():
        words += [f"--{name}", _setting(models, name, value)]
    return Action("sft", tuple(words), run, form["device"], env)


def doctor(models: Models, form: Mapping[str, Any], preset: Preset) -> Action:
    """Fields as of `train`: what is proved before it."""
    workspace = models.workspace
    words = ["doctor", "--config", str(preset.file)]
    words += ["--model", models.word(form["base"], field="base")]
    words += ["--dataset", _rows(workspace, form["rows"], "rows")]
    if form["validation"]:
        words += ["--val_dataset", _rows(workspace, form["validation"], "validation")]
    words += ["--device", form["device"]]
    return Action("doctor", tuple(words), "nothing is written", form["device"], _INSIDE)


def evaluate(models: Models, form: Mapping[str, Any]) -> Action:
    """Fields: model, rows, name, limit, max_audio_s, language, device."""
    output = f"{EVALUATIONS}/{_name(form['name'])}"
    words = ["evaluate", "--model", models.word(form["model"], field="model")]
    words += ["--dataset", _rows(models.workspace, form["rows"], "rows"), "--output", output]
    if form["limit"]:
        words += ["--limit", str(int(form["limit"]))]
    words += ["--max_audio_s", f"{float(form['max_audio_s']):g}"]
    if form["language"].strip():
        words += ["--language", _value("language", form["language"])]
    words += ["--device", form["device"]]
    return Action("evaluate", tuple(words), output, form["device"], _INSIDE)


def export(models: Models, form: Mapping[str, Any]) -> Action:
    """Fields: model, name, dtype."""
    output = f"{EXPORTS}/{_name(form['name'])}"
    words = ["export", "--model", models.word(form["model"], field="model"), "--output", output]
    if form["dtype"]:
        words += ["--dtype", form["dtype"]]
    return Action("export", tuple(words), output)


def convert(models: Models, form: Mapping[str, Any]) -> Action:
    """Fields: model (a folder), name, to."""
    workspace = models.workspace
    output = f"{EXPORTS}/{_name(form['name'])}"
    source = workspace.word(workspace.existing(form["model"], field="model", folder=True))
    return Action("convert", ("convert", source, output, "--to", form["to"]), output)


def _gpu(number: int) -> str:
    """The name, for a command, of a GPU that torch counts in this process."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[number] if number < len(visible) else str(number)


def _rows(workspace: Workspace, typed: str | None, field: str) -> str:
    return workspace.word(workspace.existing(typed or "", field=field, folder=False))


def _name(typed: str) -> str:
    """Of one file or folder that is made."""
    if not typed.strip():
        raise problem(
            source="page", field="name", value=None, reason="is missing", remedy="write one"
        )
    if re.search(r"[\\/]", typed):
        raise _refused("name", typed, "has a slash", "write a name, not a path")
    return safe_name(typed)


def _setting(models: Models, name: str, value: str) -> str:
    """As one word."""
    if name == "sample_texts":
        lines = [line.strip() for line in value.split("\n") if line.strip()]
        value = joined(name, lines)
    if name == "codec":
        return models.word(value, field=name)
    assert name not in KNOBS or name != "audio_root", "a path of its own"
    return _value(name, value)


def _value(field: str, typed: str) -> str:
    """What stands behind a flag. Raises UserError for what would be another flag there."""
    value = typed.strip()
    if value.startswith("-") and not re.fullmatch(r"-[\d.]+(e-?\d+)?", value):
        raise _refused(field, value, "looks like a flag", "write a value")
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise _refused(field, value, "holds a control character", "write it in one line")
    return value


def _refused(field: str, value: str, reason: str, remedy: str) -> UserError:
    return problem(source="page", field=field, value=value, reason=reason, remedy=remedy)


def name_for(path: str) -> str:
    """A name to suggest for what is made of `path`."""
    stem = re.sub(r"_train$", "", Path(path or "voice").stem)
    return re.sub(r"[^\w.-]+", "_", stem).strip("._") or "voice"
