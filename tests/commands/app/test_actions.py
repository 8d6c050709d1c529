"""What fields say -> commands that the kit's own parsers take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from plugins.cli import _parser
from plugins.commands.app import actions
from plugins.commands.app.actions import Models
from plugins.commands.app.presets import presets
from plugins.commands.app.workspace import Workspace
from plugins.errors import UserError
from plugins.prepare.flags import parse
from plugins.training.arguments import settled
from plugins.training.config_file import config_first

PREPARE: dict[str, Any] = {
    "kind": "recordings", "folder": "talks", "list": "", "name": "ann", "speaker": "",
    "diarize": False, "language": "", "asr": "", "check": False, "split": False,
    "references": False, "encode": False, "codec": "", "device": "cpu",
}  # fmt: skip
TRAIN: dict[str, Any] = {
    "base": "bosonai/higgs-audio-v2-generation-3B-base", "rows": "rows/a_train.jsonl",
    "validation": "", "run": "ann", "device": "cpu", "settings": {},
}  # fmt: skip
EVALUATE: dict[str, Any] = {
    "model": "base", "rows": "rows/a_train.jsonl", "name": "ann", "limit": 3, "max_audio_s": 8,
    "language": "en", "device": "cpu",
}  # fmt: skip


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    for folder in ("talks", "rows", "base"):
        (tmp_path / "studio" / folder).mkdir(parents=True)
    for file in ("rows/a_train.jsonl", "rows/a_val.jsonl", "talks/list.csv"):
        (tmp_path / "studio" / file).touch()
    monkeypatch.chdir(tmp_path / "studio")
    return Models(Workspace(tmp_path / "studio"), ("/models/given",))


@pytest.mark.parametrize("changed", [
    {}, {"speaker": "ann", "split": True}, {"diarize": True, "references": True},
    {"language": "en", "asr": "Systran/faster-whisper-small", "check": True},
    {"encode": True, "codec": "base", "device": "cuda:1"}, {"kind": "folder"},
    {"kind": "folder", "check": True, "language": "de", "asr": "a/b"},
    {"kind": "folder", "language": "de", "diarize": True, "asr": "a/b", "codec": "base"},
    {"kind": "custom", "list": "talks/list.csv"}, {"kind": "kaldi", "encode": True},
    {"kind": "jsonl", "list": "talks/list.csv"}, {"kind": "huggingface", "folder": "a/b"},
])  # fmt: skip
def test_preparations_are_the_command_s(models: Models, changed: dict[str, Any]) -> None:
    action = actions.prepare(models, {**PREPARE, **changed})
    args = parse(list(action.words[1:]), program="higgs-audio prepare")
    assert args.validate == "full"
    assert str(args.output_file) == action.makes == "rows/ann_train.jsonl"
    assert args.encode_codes == changed.get("encode", False)


def test_trainings_are_the_command_s(models: Models) -> None:
    lora = presets()["lora_3b"]
    settings = {"max_steps": "20", "learning_rate": " 1e-4 ", "sample_texts": "One.\n Two.\n",
                "lora_rank": "", "audio_codebook_weights": "2,1,1,1,1,1,1,1"}  # fmt: skip
    form = {**TRAIN, "validation": "rows/a_val.jsonl", "settings": settings}
    action = actions.train(models, form, lora)
    words = config_first(action.words[1:])
    assert words[0] == str(lora.file)
    rest = settled(words[1:])
    assert rest[rest.index("--max_steps") + 1] == "20"
    assert action.words[action.words.index("--sample_texts") + 1] == "One.|Two."
    assert "--lora_rank" not in action.words
    assert action.words[-10:][0] != action.makes == "runs/ann"
    gpu = actions.train(models, {**TRAIN, "device": "cuda:1"}, lora)
    assert gpu.env == {"CUDA_VISIBLE_DEVICES": "1"}
    assert "--use_cpu" not in gpu.words


def test_the_others_are_the_command_s(models: Models) -> None:
    parser = _parser()
    made = [
        actions.evaluate(models, EVALUATE),
        actions.evaluate(models, {**EVALUATE, "limit": 0, "model": "/models/given"}),
        actions.export(models, {"model": "base", "name": "x", "dtype": ""}),
        actions.export(models, {"model": "base", "name": "x", "dtype": "float16"}),
        actions.convert(models, {"model": "base", "name": "x", "to": "original"}),
        actions.doctor(models, TRAIN, presets()["lora_3b"]),
    ]
    for action in made:
        parser.parse_args(action.words)


@pytest.mark.parametrize(("changed", "message"), [
    ({"folder": "../talks"}, "folder: '../talks' leads out of the workspace"),
    ({"folder": "/etc"}, "folder: '/etc' leads out of the workspace"),
    ({"folder": "rows/a_train.jsonl"}, "is no folder"),
    ({"name": "../x"}, r"name: '\.\./x' has a slash; write a name, not a path"),
    ({"name": " "}, "name is missing"),
    ({"speaker": "--output_file=x"}, "speaker: '--output_file=x' looks like a flag"),
    ({"speaker": "a\x07"}, "holds a control character"),
    ({"language": "-x"}, "language: '-x' looks like a flag"),
    ({"asr": "/models/other"}, "leads out of the workspace"),
    ({"encode": True, "codec": "../../codec"}, "leads out of the workspace"),
    ({"kind": "custom", "list": "../list.csv"}, "leads out of the workspace"),
    ({"kind": "huggingface", "folder": "../b"}, "leads out of the workspace"),
])  # fmt: skip
def test_what_a_visitor_must_not_is_refused(
    models: Models, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        actions.prepare(models, {**PREPARE, **changed})


@pytest.mark.parametrize(("changed", "message"), [
    ({"base": "/models/other"}, "base: '/models/other' leads out of the workspace"),
    ({"base": "none"}, "base: 'none' is not there"),
    ({"base": "a/../../b"}, "leads out of the workspace"),
    ({"rows": "../rows.jsonl"}, "leads out of the workspace"),
    ({"rows": None}, "rows is missing"),
    ({"validation": "rows"}, "validation: 'rows' is a folder"),
    ({"settings": {"max_steps": "--external_plugins"}}, "max_steps: '--external_plugins' looks"),
    ({"settings": {"codec": "/models/other"}}, "leads out of the workspace"),
])  # fmt: skip
def test_no_training_reads_elsewhere(models: Models, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        actions.train(models, {**TRAIN, **changed}, presets()["lora_3b"])


def test_a_name_like_a_flag_stays_a_path(models: Models) -> None:
    (models.workspace.root / "-x").mkdir()
    action = actions.prepare(models, {**PREPARE, "folder": "-x"})
    assert action.words[4] == "./-x"


def test_names_are_suggested() -> None:
    names = [actions.name_for(path) for path in ("rows/ann_train.jsonl", "a b.jsonl", "", "..")]
    assert names == ["ann", "a_b", "voice", "voice"]


def test_settings_are_explained_in_the_command_s_own_words() -> None:
    from plugins.commands.app.presets import FIRST, MORE, default_of, explanation
    from plugins.training.sft_help import text

    shown = " ".join(text().split())
    for flag in (*FIRST, *MORE):
        assert f"--{flag}" in shown
        assert " ".join(explanation(flag).split()) in shown
    values = presets()["lora_3b"].values()
    assert default_of("lora_rank", values) == "32"
    assert default_of("audio_learning_rate", values) == "0.0001"
    assert default_of("clean_text", values) == "true"
    assert default_of("max_steps", values) == ""


def test_the_recipe_is_chosen_by_memory() -> None:
    from plugins.commands.app.presets import chosen, needs
    from plugins.model.config import HiggsAudioV2Config

    for gib, name in ((24, "lora_3b"), (12, "qlora_3b"), (4, None), (None, "lora_3b")):
        needed = needs(HiggsAudioV2Config(), gib=gib)
        assert chosen(needed) == name, gib
    assert 15 < (needed["lora_3b"].gib or 0) < 18


def test_the_words_start_the_real_command(models: Models) -> None:
    """From the folder of the workspace, by the program that jobs run."""
    from plugins.commands.app.jobs import PROGRAM

    (models.workspace.root / "plugins.py").write_text("raise SystemExit('a stranger s file')")
    (models.workspace.root / "torch.py").write_text("raise SystemExit('a stranger s file')")
    action = actions.prepare(models, {**PREPARE, "kind": "folder", "encode": True, "codec": "base"})
    done = subprocess.run(
        [*PROGRAM, *action.words],
        cwd=models.workspace.root,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert "stranger" not in done.stderr + done.stdout
    assert sys.executable == PROGRAM[0]
