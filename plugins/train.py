"""Our own training entry: MS-SWIFT's, plus typed flags for our settings and the seed document's old names. L4.

    from plugins.train import main
    main(["--model_type", "higgs-audio-v2-3b", "--model", "...", "--dataset", "data/train.jsonl", "--sft_type", "lora"])

`higgs-audio sft` runs this file through MS-SWIFT's launcher, so YAML files and `NPROC_PER_NODE` work as there.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plugins.errors import UserError, did_you_mean, problem
from plugins.settings import KNOBS, HiggsAudioSettings

REGISTER_FILE = str(Path(__file__).resolve().parent / "register.py")

# Flags of the seed document -> MS-SWIFT 4.6.
RENAMED = {
    "--sft_type": "--tuner_type",
    "--model_id_or_path": "--model",
    "--lora_target_modules": "--target_modules",
}
# Flags of the seed document whose value is built in: only that value is accepted.
BUILT_IN = {"--trainer_type": "higgs_audio", "--data_collator": "higgs_audio"}


def main(argv: Sequence[str] | None = None) -> Any:
    """Train with MS-SWIFT flags, our settings as flags, or a YAML file first. Returns MS-SWIFT's result dictionary.

    Raises UserError on unknown flags, settings of the wrong kind, faulty rows and checkpoints.
    """
    from swift.cli.main import parse_yaml_args
    from swift.pipelines import SwiftSft

    from plugins.register import register_higgs_audio_all

    arguments = list(sys.argv[1:] if argv is None else argv)
    parse_yaml_args(arguments)
    # `--flag=value` as two words, so that every flag is looked at in the same way.
    words = [word for each in arguments for word in (each.split("=", 1) if each.startswith("--") else [each])]
    rest = take_settings(translate(words))
    check_flags(rest)
    register_higgs_audio_all()
    if "--external_plugins" not in rest:
        # Recorded in args.json, so that a plain `swift export` or `swift infer` finds the plugin later.
        rest += ["--external_plugins", REGISTER_FILE]
    return SwiftSft(rest).main()


def translate(arguments: Sequence[str]) -> list[str]:
    """The seed document's flags and module names in MS-SWIFT's own. Raises UserError where one cannot be meant."""
    result: list[str] = []
    skip = False
    for i, argument in enumerate(arguments):
        if skip:
            skip = False
            continue
        if argument in BUILT_IN:
            value = arguments[i + 1] if i + 1 < len(arguments) else None
            if value != BUILT_IN[argument]:
                raise problem(
                    "command line", argument, value, "is not available", f"use {BUILT_IN[argument]!r} or leave it out"
                )
            skip = True
            continue
        # The audio FFN is called `audio_mlp` in transformers' class.
        result.append(RENAMED.get(argument, argument.replace("audio_ffn", "audio_mlp")))
    return result


def take_settings(arguments: Sequence[str]) -> list[str]:
    """Move `--<knob> value` into the environment, where MS-SWIFT's `--model_kwargs` go too; return the rest."""
    rest: list[str] = []
    pending: str | None = None
    for argument in arguments:
        if pending is not None:
            os.environ[pending] = argument
            pending = None
        elif argument.startswith("--") and argument[2:] in KNOBS:
            pending = argument[2:].upper()
        else:
            rest.append(argument)
    if pending is not None:
        raise problem("command line", f"--{pending.lower()}", None, "has no value", "give one after the flag")
    HiggsAudioSettings.from_env()
    return rest


def check_flags(arguments: Sequence[str]) -> None:
    """Raise UserError for a flag that MS-SWIFT does not know; it would say so only after loading the model."""
    from swift.arguments import SftArguments

    known = {field.name for field in dataclasses.fields(SftArguments)}
    for argument in arguments:
        name = argument.removeprefix("--")
        if argument.startswith("--") and name.removeprefix("no_") not in known and name not in known:
            near = did_you_mean(name, {*known, *KNOBS, *(old.removeprefix("--") for old in RENAMED)})
            raise problem("command line", "flag", argument, "is unknown", near)


if __name__ == "__main__":
    # Started by its path (MS-SWIFT's launcher, torchrun): the folder of this file must not be an import root.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
