"""Our entry: the seed document's flags in MS-SWIFT's names, our settings as flags, one line for
each mistake; and the shell's line that goes on with a run."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.checkpoints import checkpoint
from helpers.commands import in_child
from helpers.sft import BIN

from plugins.errors import UserError
from plugins.train import main
from plugins.training.arguments import (
    FORMER,
    REGISTER_FILE,
    check_flags,
    check_output_dir,
    real_command,
    resolve_resume,
    resume_command,
    take_settings,
    translate,
    with_plugin,
)


def test_flags_of_the_seed_document() -> None:
    built_in = "--trainer_type higgs_audio --data_collator higgs_audio"
    seed = f"--sft_type lora --model_id_or_path m {built_in} --lora_target_modules q_proj"
    swift = "--tuner_type lora --model m --target_modules q_proj"
    assert translate(seed.split()) == swift.split()


def test_another_trainer_is_refused() -> None:
    with pytest.raises(
        UserError,
        match="--trainer_type: 'mine' is not available; use 'higgs_audio' or leave it out",
    ):
        translate(["--trainer_type", "mine"])


def test_a_list_of_values_stays_together() -> None:
    """From YAML a list arrives as several words; the second must not become a value of another
    flag."""
    words = ["--dataset", "a.jsonl", "--audio_codebook_weights", *"21111111", "--lora_rank", "8"]
    assert take_settings(words) == ["--dataset", "a.jsonl", "--lora_rank", "8"]
    assert os.environ["AUDIO_CODEBOOK_WEIGHTS"] == "2,1,1,1,1,1,1,1"


def test_our_plugin_joins_those_of_the_user() -> None:
    assert with_plugin(["--lora_rank", "8"]) == [
        "--lora_rank",
        "8",
        "--external_plugins",
        REGISTER_FILE,
    ]
    assert with_plugin(["--external_plugins", "a.py"]) == [
        "--external_plugins",
        REGISTER_FILE,
        "a.py",
    ]
    assert with_plugin(["--external_plugins", REGISTER_FILE]) == [
        "--external_plugins",
        REGISTER_FILE,
    ]


def test_settings_do_not_outlive_a_run() -> None:
    with pytest.raises(UserError, match="'--nonsense' is unknown"):
        main(["--audio_learning_rate", "1e-4", "--nonsense", "1"])
    assert "AUDIO_LEARNING_RATE" not in os.environ


def test_settings_go_into_the_environment() -> None:
    rest = take_settings(
        ["--audio_learning_rate", "1e-4", "--lora_rank", "8", "--raw_prompt", "true"]
    )
    assert rest == ["--lora_rank", "8"]
    assert (os.environ["AUDIO_LEARNING_RATE"], os.environ["RAW_PROMPT"]) == ("1e-4", "true")


def test_a_setting_of_the_wrong_kind_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="audio_learning_rate: 'fast' has the wrong kind"):
        take_settings(["--audio_learning_rate", "fast"])


def test_a_setting_without_value_is_refused() -> None:
    with pytest.raises(UserError, match="--codec has no value"):
        take_settings(["--lora_rank", "8", "--codec"])


def test_an_unknown_flag_is_named_with_the_nearest_one(tmp_path: object) -> None:
    flags = ["--model", str(tmp_path), "--dataset", "x.jsonl", "--audio_learing_rate", "1e-4"]
    with pytest.raises(
        UserError, match="'--audio_learing_rate' is unknown; did you mean 'audio_learning_rate'"
    ):
        main(flags)


@pytest.mark.parametrize("flag", FORMER)
def test_flags_of_earlier_ms_swift_are_answered_with_their_new_names(flag: str) -> None:
    """`--train_type lora` was answered with "did you mean 'task_type'?"."""
    from swift.arguments import SftArguments

    known = SftArguments.__dataclass_fields__
    assert flag.removeprefix("--") not in known
    assert FORMER[flag].split()[0].strip("-,") in known
    with pytest.raises(UserError) as error:
        main([f"{flag}=lora", "--dataset", "x.jsonl"])
    expected = f"flag: '{flag}' is of an earlier MS-SWIFT; give {FORMER[flag]} instead"
    assert str(error.value) == f"command line: {expected}"


def test_the_line_that_resumes_has_the_words_that_python_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that a script had started was resumed by a line without any of its arguments."""
    from swift.pipelines import SwiftSft

    heard: list[str] = []

    def run(self: object, rest: list[str]) -> None:
        heard.append(resume_command(sys.argv, Path("out/checkpoint-7")))
        heard.append(real_command(sys.argv))
        raise UserError("heard")

    monkeypatch.setattr(SwiftSft, "__init__", run)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.jsonl").touch()
    given = ["--audio_learning_rate", "1e-4", "--model", "a/b", "--dataset", "a b.jsonl"]
    before = sys.argv
    with pytest.raises(UserError, match="heard"):
        main(given)
    words = "--audio_learning_rate 1e-4 --model a/b --dataset 'a b.jsonl'"
    resumed, real = (line.split(" sft ", 1)[1] for line in heard)
    assert real == words
    assert resumed.startswith(f"{words} --resume_from_checkpoint out/checkpoint-7 ")
    assert sys.argv is before


# --- checkpoints ---


def test_auto_goes_on_in_the_folder_of_the_run(tmp_path: Path) -> None:
    found = checkpoint(tmp_path / "v0-20260101-000000" / "checkpoint-2")
    words = [
        "--resume_from_checkpoint",
        "auto",
        "--dataset",
        "a",
        "b",
        "--output_dir",
        str(tmp_path),
        "--system",
        "",
    ]
    kept = ["--dataset", "a", "b", "--system", ""]
    where = ["--resume_from_checkpoint", str(found), "--output_dir", str(found.parent)]
    assert resolve_resume(words) == [*kept, *where, "--add_version", "false"]


def test_auto_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    words = [
        "--output_dir",
        str(tmp_path / "new"),
        "--resume_from_checkpoint",
        "auto",
        "--lora_rank",
        "8",
    ]
    assert resolve_resume(words) == ["--output_dir", str(tmp_path / "new"), "--lora_rank", "8"]


def test_auto_needs_to_know_where() -> None:
    with pytest.raises(
        UserError, match="options: output_dir is not given, so `auto` has nowhere to look"
    ):
        resolve_resume(["--resume_from_checkpoint", "auto"])


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"resume_from_checkpoint: '.*gone' is no folder; name another"
    ):
        resolve_resume(["--resume_from_checkpoint", str(tmp_path / "gone")])


def test_under_plain_swift_auto_is_a_path(tmp_path: Path) -> None:
    """MS-SWIFT 4.6 makes a path of it before it loads any plugin: if this fails, `auto` can work
    there too."""
    from helpers.sft import flags
    from swift.arguments import SftArguments
    from swift.utils import parse_args

    words = flags(
        tmp_path, tmp_path / "train.jsonl", tmp_path / "out", resume_from_checkpoint="auto"
    )
    with pytest.raises((FileNotFoundError, ValueError), match="auto"):
        parse_args(SftArguments, words)


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    (tmp_path / "file").touch()

    def refused() -> None:
        if os.getuid() == 0:
            os.setuid(65534)  # nothing is read-only for root
        for path in (tmp_path, tmp_path / "new" / "run", tmp_path / "file" / "run"):
            with pytest.raises(
                UserError,
                match=r"^options: output_dir: '.*' cannot be written \(.*\); name another",
            ):
                check_output_dir(["--output_dir", str(path)])

    try:
        assert in_child(refused) == 0
        check_output_dir(["--output_dir", str(Path.home() / "new")])
    finally:
        tmp_path.chmod(0o755)


# --- the line that goes on ---


@pytest.fixture
def _active(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of this interpreter, as a shell has it after `activate`."""
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")


PYTHON_FILES = {
    "swift": "/site-packages/swift/cli/sft.py",
    "higgs-audio": str(ROOT / "plugins" / "train.py"),
}


@pytest.mark.usefixtures("_active")
@pytest.mark.parametrize("name", PYTHON_FILES)
def test_the_resume_command_is_what_was_typed_but_for_the_folder(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where a shell finds another program of that name, or none, it is the one of this
    environment."""
    typed = [
        "--model",
        "a b",
        "--output_dir",
        "out",
        "--add_version",
        "true",
        "--lora_rank",
        "8",
        "--val",
        "x",
        "y",
    ]
    line = resume_command(
        [PYTHON_FILES[name], *typed, "--resume_from_checkpoint", "old"], Path("out/v0/checkpoint-7")
    )
    assert line == (
        f"{name} sft --model 'a b' --lora_rank 8 --val x y"
        " --resume_from_checkpoint out/v0/checkpoint-7 --output_dir out/v0 --add_version false"
    )
    monkeypatch.setenv("PATH", "/nowhere")
    assert resume_command([PYTHON_FILES[name]], Path("out/checkpoint-7")).startswith(
        f"{BIN / name} sft --resume"
    )


@pytest.mark.usefixtures("_active")
def test_a_training_on_preferences_is_resumed_as_one() -> None:
    for name, file in (("swift", "rlhf.py"), ("higgs-audio", "train.py")):
        program = str(Path(PYTHON_FILES[name]).with_name(file))
        argv = [program, "--model", "m", "--rlhf_type", "dpo"]
        line = resume_command(argv, Path("out/checkpoint-7"))
        assert line.startswith(f"{name} rlhf --model m --rlhf_type dpo --resume_from_checkpoint")


def test_flags_of_preferences_are_known_where_they_are_meant() -> None:
    check_flags(["--rlhf_type", "dpo", "--beta", "0.5", "--rpo_alpha", "1"])
    with pytest.raises(UserError, match=r"'--beta' is unknown; .*`higgs-audio sft --help`"):
        check_flags(["--beta", "0.5"])
    with pytest.raises(UserError, match=r"'--betta' is unknown; did you mean 'beta'.* rlhf --help"):
        check_flags(["--rlhf_type", "dpo", "--betta", "0.5"])


@pytest.mark.usefixtures("_active")
def test_the_resume_command_names_the_yaml_file_processes_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MS-SWIFT puts the flags in the place of the file; what the file says in `ENV:` would be lost
    with it."""
    config = tmp_path / "run.yaml"
    config.write_text("ENV:\n  OMP_NUM_THREADS: 1\nmodel: m\nlora_rank: 8\n", encoding="utf-8")
    variables = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1"}
    variables |= {"SWIFT_CONFIG_FILE": str(config), "OMP_NUM_THREADS": "1"}
    variables |= {"AUDIO_LEARNING_RATE": "0.1", "AUDIO_LOSS_WEIGHT": "2"}
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    kwargs = ["--model_kwargs", '{"audio_loss_weight": 2}']
    argv = [PYTHON_FILES["swift"], "--model", "m", "--lora_rank", "8", *kwargs]
    words = shlex.split(resume_command(argv, Path("out/checkpoint-7")))
    assert words[:6] == [
        "AUDIO_LEARNING_RATE=0.1",
        "NPROC_PER_NODE=4",
        "swift",
        "sft",
        str(config),
        "--model_kwargs",
    ]


@pytest.mark.usefixtures("_active")
def test_the_real_command_is_what_was_typed_but_for_the_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a flag, as a variable, in `--model_kwargs`, or in the YAML file, which then cannot stand
    in the command."""
    monkeypatch.setenv("DRY_RUN", "true")  # where each of them ends up
    program, typed = PYTHON_FILES["higgs-audio"], ["--model", "m", "--lora_rank", "8"]
    assert (
        real_command([program, *typed, "--dry_run", "true"])
        == "higgs-audio sft --model m --lora_rank 8"
    )
    assert (
        real_command([program, "--dry_run=true", *typed])
        == "higgs-audio sft --model m --lora_rank 8"
    )
    kwargs = ["--model_kwargs", '{"dry_run": true, "audio_loss_weight": 2}']
    line = real_command([PYTHON_FILES["swift"], *typed, *kwargs])
    assert shlex.split(line) == [
        "swift",
        "sft",
        *typed,
        "--model_kwargs",
        '{"audio_loss_weight": 2}',
    ]
    config = tmp_path / "run.yaml"
    monkeypatch.setenv("SWIFT_CONFIG_FILE", str(config))
    config.write_text("model: m\nlora_rank: 8\n", encoding="utf-8")
    assert real_command([program, *typed, "--dry_run"]) == f"higgs-audio sft {config}"
    config.write_text("model: m\nlora_rank: 8\ndry_run: true\n", encoding="utf-8")
    assert (
        real_command([program, *typed, "--dry_run", "true"])
        == "higgs-audio sft --model m --lora_rank 8"
    )
