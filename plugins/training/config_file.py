"""The YAML file of a run: what `higgs-audio sft` is given first, and the doctor as `--config`.

words of a command line --config_first--> the same, the file in front, where MS-SWIFT wants it
file --read_config--> its settings
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from plugins.errors import UserError, problem

_SUFFIXES = (".yaml", ".yml", ".json")
_EXAMPLE = "configs/lora_3b.yaml of this kit is an example"


def config_first(words: Sequence[str]) -> list[str]:
    """`words` with the file of `--config FILE` in front; the file, wherever it stood, is read once.

    Raises UserError for a file that cannot be read, or words that are neither file nor flag."""
    rest, files = _without_config(words)
    if rest and not rest[0].startswith("-"):
        files.insert(0, rest.pop(0))
    if len(files) > 1:
        raise _wrong(files[1], f"is a second file beside {files[0]}", "give one")
    for file in files:
        if not file.endswith(_SUFFIXES):
            raise _wrong(file, "is neither a flag nor a YAML file", "write --FLAG VALUE")
        read_config(Path(file))
    return [*files, *rest]


def _without_config(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without `--config FILE`, and the files."""
    rest: list[str] = []
    files: list[str] = []
    waiting = iter(words)
    for word in waiting:
        flag, is_joined, value = word.partition("=")
        if flag != "--config":
            rest.append(word)
            continue
        file = value if is_joined else next(waiting, "")
        if not file or file.startswith("--"):
            raise problem(
                source="command line",
                field="--config",
                value=None,
                reason="has no value",
                remedy="name a YAML file after it",
            )
        files.append(file)
    return rest, files


def read_config(path: Path) -> dict[str, Any]:
    """Raises UserError if it is not there, no YAML, or holds something else than settings."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _wrong(path, f"not found (looked in {os.getcwd()})", "check the path") from None
    # ValueError: bytes that are no UTF-8, a date that is none. RecursionError: endless brackets.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = f"cannot be read ({' '.join(str(error).split())[:200]})"
        raise _wrong(path, reason, f"give a YAML file; {_EXAMPLE}") from None
    if not isinstance(config, dict) or not all(isinstance(name, str) for name in config):
        raise _wrong(path, "holds no settings", f"write `name: value` lines; {_EXAMPLE}")
    return config


def _wrong(file: Path | str, reason: str, remedy: str) -> UserError:
    return problem(
        source="command line", field="config", value=str(file), reason=reason, remedy=remedy
    )
