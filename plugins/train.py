"""Our own training entry: MS-SWIFT's, plus typed flags for our settings and the seed document's old
names. L4.

    from plugins.train import main main(["--model_type", "higgs-audio-v2-3b", "--model", "...",
    "--dataset", "data/train.jsonl", "--sft_type", "lora"])

`higgs-audio sft` runs this file through MS-SWIFT's launcher, so YAML files and `NPROC_PER_NODE`
work as there."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plugins.errors import UserError, did_you_mean, problem
from plugins.files.installation import explained
from plugins.settings import KNOBS, HiggsAudioSettings, joined
from plugins.training import signals

REGISTER_FILE = str(Path(__file__).resolve().parent / "register.py")

# Flags of the seed document -> MS-SWIFT 4.6.
RENAMED = {
    "--sft_type": "--tuner_type",
    "--model_id_or_path": "--model",
    "--lora_target_modules": "--target_modules",
}
# Flags of the seed document whose value is built in: only that value is accepted.
BUILT_IN = {"--trainer_type": "higgs_audio", "--data_collator": "higgs_audio"}


@explained()
def main(argv: Sequence[str] | None = None) -> Any:
    """Train with MS-SWIFT flags, our settings as flags, or a YAML file first. Returns MS-SWIFT's
    result dictionary.

    Raises UserError on unknown flags, settings of the wrong kind, faulty rows and checkpoints,
    and if MS-SWIFT or what it and we stand on cannot be imported.
    """
    from swift.cli.main import parse_yaml_args
    from swift.pipelines import SwiftSft

    from plugins.register import register_higgs_audio_all

    arguments = list(sys.argv[1:] if argv is None else argv)
    # Settings travel as environment variables, and MS-SWIFT leaves its own folder of events there
    # for good.
    names = [*(knob.upper() for knob in KNOBS), "TENSORBOARD_LOGGING_DIR"]
    before = {name: os.environ.get(name) for name in names}
    try:
        parse_yaml_args(arguments)
        # `--flag=value` as two words, so that every flag is looked at in the same way.
        words = [
            word
            for each in arguments
            for word in (each.split("=", 1) if each.startswith("--") else [each])
        ]
        rest = with_plugin(take_settings(translate(words)))
        if "--strict" not in rest:
            # MS-SWIFT's default puts a random other row in the place of one that fails.
            rest += ["--strict", "true"]
        if "--ddp_timeout" not in rest:
            # MS-SWIFT's default is 208 days: for so long the other nodes would wait for a rank that
            # is dead.
            rest += ["--ddp_timeout", "1800"]
        check_flags(rest)
        check_model(rest)
        register_higgs_audio_all()
        check_output_dir(rest)
        rest = resolve_resume(rest)
        return SwiftSft(rest).main()
    finally:
        # A second run in this process must not inherit them.
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def with_plugin(arguments: list[str]) -> list[str]:
    """Our plugin first among `--external_plugins`: args.json then lets `swift export` and `swift
    infer` find it."""
    if "--external_plugins" not in arguments:
        return [*arguments, "--external_plugins", REGISTER_FILE]
    at = arguments.index("--external_plugins") + 1
    named = {str(Path(value).resolve()) for value in arguments[at:]}
    return (
        arguments if REGISTER_FILE in named else [*arguments[:at], REGISTER_FILE, *arguments[at:]]
    )


def translate(arguments: Sequence[str]) -> list[str]:
    """The seed document's flags and module names in MS-SWIFT's own. Raises UserError where one
    cannot be meant."""
    result: list[str] = []
    for flag, values in _by_flag(arguments):
        if flag in BUILT_IN:
            if values != [BUILT_IN[flag]]:
                remedy = f"use {BUILT_IN[flag]!r} or leave it out"
                raise problem(
                    source="command line",
                    field=flag,
                    value=" ".join(values),
                    reason="is not available",
                    remedy=remedy,
                )
            continue
        name = RENAMED.get(flag, flag)
        result += [name, *values] if name else values
    return result


def take_settings(arguments: Sequence[str]) -> list[str]:
    """Move `--<knob> value` into the environment, where MS-SWIFT's `--model_kwargs` go too; return
    the rest."""
    rest: list[str] = []
    for flag, values in _by_flag(arguments):
        knob = flag.removeprefix("--")
        if knob not in KNOBS:
            rest += [flag, *values] if flag else values
            continue
        if not values and isinstance(getattr(HiggsAudioSettings(), knob), bool):
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
    HiggsAudioSettings.from_env()
    return rest


def _by_flag(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each flag with the words up to the next one; words before the first flag stand under ""."""
    grouped: list[tuple[str, list[str]]] = [("", [])]
    for word in arguments:
        if word.startswith("--"):
            grouped.append((word, []))
        else:
            grouped[-1][1].append(word)
    return grouped if grouped[0][1] else grouped[1:]


def check_flags(arguments: Sequence[str]) -> None:
    """Raise UserError for a flag that MS-SWIFT does not know; it would say so only after making the
    output folder."""
    from swift.arguments import SftArguments

    known = {field.name for field in dataclasses.fields(SftArguments)}
    for argument in arguments:
        name = argument.removeprefix("--")
        if (
            argument.startswith("--")
            and name.removeprefix("no_") not in known
            and name not in known
        ):
            near = did_you_mean(
                name, {*known, *KNOBS, *(old.removeprefix("--") for old in RENAMED)}
            )
            raise problem(
                source="command line",
                field="flag",
                value=argument,
                reason="is unknown",
                remedy=near,
            )


def check_output_dir(arguments: Sequence[str]) -> None:
    """Raise UserError if nothing can be written where `--output_dir` is, or is to be."""
    for flag, values in _by_flag(arguments):
        if flag == "--output_dir" and values:
            place = Path(values[0]).resolve()
            parent = next(folder for folder in (place, *place.parents) if folder.exists())
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise problem(
                    source="options",
                    field="output_dir",
                    value=values[0],
                    reason=f"cannot be written ({parent})",
                    remedy="name another folder",
                )


def resolve_resume(arguments: list[str]) -> list[str]:
    """`--resume_from_checkpoint auto` as the newest whole checkpoint, its run's folder being
    written to again.

    Raises UserError if a checkpoint that is named is not whole, here before MS-SWIFT loads anything
    of it."""
    from swift.utils import get_logger

    from plugins.training.saves import newest, require_whole

    given = {flag: values[0] for flag, values in _by_flag(arguments) if values}
    name, output_dir = given.get("--resume_from_checkpoint"), given.get("--output_dir")
    if name is None:
        return arguments
    if name != "auto":
        require_whole(Path(name))
        return arguments
    if output_dir is None:
        raise problem(
            source="options",
            field="output_dir",
            value=None,
            reason="is not given, so `auto` has nowhere to look",
            remedy="give --output_dir",
        )
    logger = get_logger()
    checkpoint = newest(Path(output_dir), logger.warning)
    replaced = {
        "--resume_from_checkpoint",
        *(("--output_dir", "--add_version") if checkpoint else ()),
    }
    kept = [
        [flag, *values] if flag else values
        for flag, values in _by_flag(arguments)
        if flag not in replaced
    ]
    rest = [word for words in kept for word in words]
    if checkpoint is None:
        logger.info(f"no whole checkpoint in {output_dir}: training starts anew")
        return rest
    return [*rest, "--resume_from_checkpoint", str(checkpoint), "--output_dir", str(checkpoint.parent),
            "--add_version", "false"]  # fmt: skip


def check_model(arguments: Sequence[str]) -> None:
    """Raise UserError if the folder after `--model` is no Higgs-Audio V2, before MS-SWIFT runs its
    code."""
    from plugins.model.load import load_config

    for flag, values in _by_flag(arguments):
        if flag == "--model" and values and Path(values[0]).is_dir():
            load_config(Path(values[0]))


if __name__ == "__main__":
    # Started by its path (MS-SWIFT's launcher, torchrun): the folder of this file must not be an
    # import root.
    sys.path[:] = [
        entry
        for entry in sys.path
        if Path(entry or ".").resolve() != Path(__file__).resolve().parent
    ]
    signals.end_cleanly()
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
