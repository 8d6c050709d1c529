"""The words after `higgs-audio sft` -> MS-SWIFT's; and the shell's line that goes on with a run.

    flags of the seed document, our settings, `auto` --settled, resolve_resume--> MS-SWIFT's flags
    argv of a process --resume_command, real_command--> what is typed to resume, or to train

Settings travel in the environment. Imports neither torch nor MS-SWIFT before it is asked to work.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from plugins.errors import UserError, did_you_mean, problem
from plugins.settings import KNOBS, HiggsAudioSettings, joined

_PLUGINS = Path(__file__).resolve().parents[1]
REGISTER_FILE = str(_PLUGINS / "register.py")
TRAIN_FILE = _PLUGINS / "train.py"

# Flags of the seed document -> MS-SWIFT 4.6.
RENAMED = {
    "--sft_type": "--tuner_type",
    "--model_id_or_path": "--model",
    "--lora_target_modules": "--target_modules",
}
# Flags of MS-SWIFT 2 and 3 -> 4.6, in whose help they are no longer.
FORMER = {
    "--train_type": "--tuner_type",
    "--template_type": "--template",
    "--dtype": "--torch_dtype",
    "--use_flash_attn": "--attn_impl flash_attn",
    "--quantization_bit": "--quant_bits, with --quant_method bnb",
    "--bnb_4bit_comp_dtype": "--bnb_4bit_compute_dtype",
    "--batch_size": "--per_device_train_batch_size",
    "--eval_batch_size": "--per_device_eval_batch_size",
    "--dataset_test_ratio": "--split_dataset_ratio",
    "--val_dataset_ratio": "--split_dataset_ratio",
    "--lora_dropout_p": "--lora_dropout",
    "--lora_lr_ratio": "--lorap_lr_ratio",
    "--lora_modules_to_save": "--modules_to_save",
    "--neftune_alpha": "--neftune_noise_alpha",
    "--only_save_model": "--save_only_model",
    "--add_output_dir_suffix": "--add_version",
    "--streaming_buffer_size": "--shuffle_buffer_size",
    "--use_loss_scale": "--loss_scale",
    "--use_liger": "--use_liger_kernel",
    "--evaluation_strategy": "--eval_strategy",
    "--gc_kwargs": "--gradient_checkpointing_kwargs",
    "--metric": "--eval_metric",
    "--ckpt_dir": "--resume_from_checkpoint",
}
# Flags of the seed document whose value is built in: only that value is accepted.
BUILT_IN = {"--trainer_type": "higgs_audio", "--data_collator": "higgs_audio"}
# In the place of MS-SWIFT's own defaults: it would put a random other row in the place of one that
# fails, and the other nodes would wait 208 days for a rank that is dead.
# And it would ask ModelScope whether the folder of a model is the newest, seven seconds long where
# there is no network.
_DEFAULTS = {"--strict": "true", "--ddp_timeout": "1800", "--check_model": "false"}


def settled(arguments: Sequence[str]) -> list[str]:
    """MS-SWIFT's own flags; our settings are in the environment then.

    Raises UserError for a flag that nobody knows, a setting of the wrong kind, a wrong model."""
    rest = with_checkpoints(with_plugin(take_settings(translate(single_words(arguments)))))
    for flag, value in _DEFAULTS.items():
        if flag not in rest:
            rest += [flag, value]
    check_flags(rest)
    check_model(rest)
    return rest


def single_words(arguments: Sequence[str]) -> list[str]:
    """`--flag=value` as two words, so that every flag is looked at in the same way."""
    words: list[str] = []
    for argument in arguments:
        words += argument.split("=", 1) if argument.startswith("--") else [argument]
    return words


def with_plugin(arguments: list[str]) -> list[str]:
    """Our plugin first among `--external_plugins`: args.json then lets `swift export` and `swift
    infer` find it."""
    if "--external_plugins" not in arguments:
        return [*arguments, "--external_plugins", REGISTER_FILE]
    at = arguments.index("--external_plugins") + 1
    if REGISTER_FILE in {str(Path(value).resolve()) for value in arguments[at:]}:
        return arguments
    return [*arguments[:at], REGISTER_FILE, *arguments[at:]]


def translate(arguments: Sequence[str]) -> list[str]:
    """The seed document's flags and module names in MS-SWIFT's own. Raises UserError where one
    cannot be meant."""
    rest: list[str] = []
    for flag, values in _by_flag(arguments):
        if flag not in BUILT_IN:
            rest += _words(RENAMED.get(flag, flag), values)
        elif values != [BUILT_IN[flag]]:
            raise problem(
                source="command line",
                field=flag,
                value=" ".join(values),
                reason="is not available",
                remedy=f"use {BUILT_IN[flag]!r} or leave it out",
            )
    return rest


def take_settings(arguments: Sequence[str]) -> list[str]:
    """Move `--<knob> value` into the environment, where MS-SWIFT's `--model_kwargs` go too; return
    the rest."""
    rest: list[str] = []
    defaults = HiggsAudioSettings()
    for flag, values in _by_flag(arguments):
        knob = flag.removeprefix("--")
        if knob not in KNOBS:
            rest += _words(flag, values)
            continue
        # `--dry_run` alone is true, as an option of MS-SWIFT is not.
        if not values and isinstance(getattr(defaults, knob), bool):
            values = ["true"]
        if not values:
            raise problem(
                source="command line",
                field=flag,
                value=None,
                reason="has no value",
                remedy="give one after the flag",
            )
        os.environ[knob.upper()] = joined(knob, values)
    HiggsAudioSettings.from_env()  # raises for a value of the wrong kind
    return rest


def values_of(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Each flag with its values, the last of a flag that stands there twice, as argparse does."""
    return dict(_by_flag(arguments))


def _by_flag(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the words up to the next one; words before the first flag stand under ""."""
    flag, values = "", list[str]()
    for word in arguments:
        if not word.startswith("--"):
            values.append(word)
            continue
        if flag or values:
            yield flag, values
        flag, values = word, []
    if flag or values:
        yield flag, values


def _words(flag: str, values: list[str]) -> list[str]:
    return [flag, *values] if flag else values


def command_of(arguments: Sequence[str]) -> Literal["sft", "rlhf"]:
    """Which of MS-SWIFT's commands the flags are of."""
    return "rlhf" if "--rlhf_type" in single_words(arguments) else "sft"


def check_flags(arguments: Sequence[str]) -> None:
    """Raise UserError for a flag that MS-SWIFT does not know; it would say so only after making the
    output folder."""
    from swift.arguments import RLHFArguments, SftArguments

    command = command_of(arguments)
    takes = RLHFArguments if command == "rlhf" else SftArguments
    known = set(takes.__dataclass_fields__)
    for flag, _ in _by_flag(arguments):
        name = flag.removeprefix("--")
        if flag in FORMER and name not in known:
            raise problem(
                source="command line",
                field="flag",
                value=flag,
                reason="is of an earlier MS-SWIFT",
                remedy=f"give {FORMER[flag]} instead",
            )
        if flag and not {name, name.removeprefix("no_")} & known:
            names = {*known, *KNOBS, *(old.removeprefix("--") for old in RENAMED)}
            raise problem(
                source="command line",
                field="flag",
                value=flag,
                reason="is unknown",
                remedy=f"{did_you_mean(name, names)}; `higgs-audio {command} --help` lists flags",
            )


def check_model(arguments: Sequence[str]) -> None:
    """Raise UserError if the folder after `--model`, or `--ref_model`, is no Higgs-Audio V2, before
    MS-SWIFT runs its code."""
    from plugins.model.load import load_config

    for flag, values in _by_flag(arguments):
        if flag in ("--model", "--ref_model") and values and Path(values[0]).is_dir():
            load_config(Path(values[0]))


def check_output_dir(arguments: Sequence[str]) -> None:
    """Raise UserError if nothing can be written where `--output_dir` is, or is to be."""
    for flag, values in _by_flag(arguments):
        if flag != "--output_dir" or not values:
            continue
        place = Path(values[0]).expanduser().resolve()
        parent = next(folder for folder in (place, *place.parents) if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            reason = f"cannot be written ({parent})"
            raise _refused("output_dir", values[0], reason, "name another folder")


def final_output_dir(arguments: Sequence[str]) -> str | None:
    """The folder that is written to; None if MS-SWIFT has yet to choose it."""
    given = {flag: values[0] for flag, values in _by_flag(arguments) if values}
    is_chosen = given.get("--add_version", "true").lower() in {"false", "0", "no"}
    folder = given.get("--output_dir")
    return os.path.expanduser(folder) if folder and is_chosen else None


def with_checkpoints(arguments: Sequence[str]) -> list[str]:
    """The newest whole checkpoint in the place of a training's folder that is given as a model or
    as adapters. Raises UserError if none is whole."""
    from plugins.files.checkpoints import checkpoint_in

    rest: list[str] = []
    for flag, values in _by_flag(arguments):
        if flag in {"--model", "--adapters"}:
            option = flag.removeprefix("--")
            # In a YAML file no shell has seen a "~".
            places = map(os.path.expanduser, values)
            values = [checkpoint_in(place, option=option) for place in places]
        rest += _words(flag, values)
    return rest


def resolve_resume(arguments: list[str]) -> list[str]:
    """`--resume_from_checkpoint auto`, or the folder of a training, as its newest whole checkpoint;
    the folder of the run is written to again, unless `--output_dir` is another one.

    Raises UserError if a checkpoint that is named is not whole, here before MS-SWIFT loads anything
    of it."""
    from swift.utils import get_logger

    from plugins.files.checkpoints import is_run, newest
    from plugins.training.saves import require_whole

    given = {flag: values[0] for flag, values in _by_flag(arguments) if values}
    name, output_dir = given.get("--resume_from_checkpoint"), given.get("--output_dir")
    if name is None:
        return arguments
    place = output_dir if name == "auto" else name
    if place is None:
        reason = "is not given, so `auto` has nowhere to look"
        raise _refused("output_dir", None, reason, "give --output_dir")
    # MS-SWIFT expands `~` too, which a YAML file may say.
    run = Path(place).expanduser()
    if name != "auto" and not is_run(run):
        require_whole(run)
        return arguments
    logger = get_logger()
    checkpoint = newest(run, logger.warning)
    if checkpoint is None and name != "auto":
        reason = "is the folder of a training, and none of its checkpoints is whole"
        raise _refused("resume_from_checkpoint", name, reason, "leave it out to start anew")
    if checkpoint is None:
        logger.info(f"no whole checkpoint in {output_dir}: training starts anew")
        return _without(arguments, {"--resume_from_checkpoint"})
    if output_dir is None or Path(output_dir).expanduser().resolve() == run.resolve():
        return [*_without(arguments, _REPLACED), *_going_on(checkpoint)]
    kept = _without(arguments, {"--resume_from_checkpoint"})
    return [*kept, "--resume_from_checkpoint", str(checkpoint)]


def _refused(option: str, value: object, reason: str, remedy: str) -> UserError:
    return problem(source="options", field=option, value=value, reason=reason, remedy=remedy)


# --- the shell's line ---

_REPLACED = {"--resume_from_checkpoint", "--output_dir", "--add_version"}


def _going_on(checkpoint: Path) -> list[str]:
    folder = str(checkpoint.parent)
    where = ["--resume_from_checkpoint", str(checkpoint), "--output_dir", folder]
    return [*where, "--add_version", "false"]


def resume_command(argv: list[str], checkpoint: Path) -> str:
    """The shell's line that goes on from `checkpoint` in its own folder, for a process that was
    started with `argv`."""
    return _command(argv, _REPLACED, _going_on(checkpoint))


def real_command(argv: list[str]) -> str:
    """The shell's line that trains, for a process that was started with `argv` for a dry run."""
    words = _without(argv[1:], {"--dry_run"})
    for i, word in enumerate(words[1:], start=1):
        if words[i - 1] == "--model_kwargs" and '"dry_run"' in word:
            kwargs = json.loads(word)
            kwargs.pop("dry_run", None)
            words[i] = json.dumps(kwargs)
    return _command([argv[0], *words], {"--dry_run"}, [])


def speak_command(checkpoint: Path) -> str:
    """The shell's line that speaks with `checkpoint`."""
    name = os.path.relpath(checkpoint) if checkpoint.is_relative_to(Path.cwd()) else str(checkpoint)
    return shlex.join([typed("higgs-audio"), "speak", "--model", name, "--text", "Hello."])


def _without(words: Sequence[str], flags: set[str]) -> list[str]:
    """`words` without those flags and their values."""
    kept: list[str] = []
    for flag, values in _by_flag(words):
        if flag.partition("=")[0] not in flags:
            kept += _words(flag, values)
    return kept


def _command(argv: list[str], dropped: set[str], added: list[str]) -> str:
    program = Path(argv[0])
    if program.name in ("sft.py", "rlhf.py") and program.parent.name == "cli":
        command = [typed("swift"), program.stem]
    elif program == TRAIN_FILE:
        command = [typed("higgs-audio"), command_of(argv)]
    else:
        command = [sys.executable, *argv[:1]]
    # A launcher gives each rank its number as a flag.
    kept = _without(_with_yaml(argv[1:]), dropped | {"--local_rank", "--local-rank"})
    return shlex.join([*_variables(argv, dropped), *command, *kept, *added])


def _variables(argv: list[str], dropped: set[str]) -> Iterator[str]:
    """NAME=value in front of a command: settings that its flags do not say, and the ranks."""
    env = os.environ
    words = {*argv, *dropped}
    kwargs = " ".join(argv).lower()  # --model_kwargs are JSON
    for knob in KNOBS:
        is_said = f"--{knob}" in words or f'"{knob}"' in kwargs
        if knob.upper() in env and not is_said:
            yield f"{knob.upper()}={env[knob.upper()]}"
    if int(env.get("WORLD_SIZE", "1")) > 1:
        # torchrun's and DeepSpeed's name for the same number.
        ranks = env.get("LOCAL_WORLD_SIZE") or env.get("LOCAL_SIZE") or env["WORLD_SIZE"]
        yield f"NPROC_PER_NODE={ranks}"
    if int(env.get("GROUP_WORLD_SIZE", "1")) > 1:
        yield f"NNODES={env['GROUP_WORLD_SIZE']}"
        yield f"NODE_RANK={env['GROUP_RANK']}"
        yield f"MASTER_ADDR={env['MASTER_ADDR']}"
        yield f"MASTER_PORT={env['MASTER_PORT']}"


def typed(name: str) -> str:
    """A program of this environment, by its name if that is what a shell finds first, else by its
    path."""
    ours = Path(sys.executable).with_name(name)
    first = shutil.which(name)
    is_other = ours.is_file() and (first is None or not ours.samefile(first))
    return str(ours) if is_other else name


def _with_yaml(arguments: list[str]) -> list[str]:
    """MS-SWIFT starts its processes with the flags of a YAML file in its place; back to the file,
    if they lead."""
    from swift.cli.main import parse_yaml_args

    file = os.environ.get("SWIFT_CONFIG_FILE")
    if file is None or not Path(file).is_file():
        return arguments
    expanded = [file]
    parse_yaml_args(expanded)
    num_words = len(expanded)
    return [file, *arguments[num_words:]] if arguments[:num_words] == expanded else arguments
