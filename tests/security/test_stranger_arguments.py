"""Arguments that a folder brings along in args.json: the start-up hook of an installation lets none
of them choose what is imported, fetched or opened."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import swift.arguments
import swift.utils.utils
from helpers.security import KERNEL, TYPE, adapter_folder, hostile_code, rewrite
from helpers.sft import REGISTER
from swift.arguments import InferArguments
from swift.arguments.base_args import base_args
from swift.utils import parse_args

import higgs_audio_swift_autoload


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MS-SWIFT's class of arguments as it comes, though an installation's hook may have been
    there."""
    # A second copy of the module, which no hook has seen.
    spec = importlib.util.spec_from_file_location(
        f"{base_args.__name__}_as_it_comes", base_args.__file__
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("_import_external_plugins", "load_args_from_ckpt"):
        monkeypatch.setattr(base_args.BaseArguments, name, vars(module.BaseArguments)[name])
    # What was imported is imported again in data workers.
    monkeypatch.setattr(swift.utils.utils, "_external_files", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield base_args.BaseArguments
    forget_plugins()


def forget_plugins() -> None:
    """MS-SWIFT imports a file once, and counts one that wanted to end the process as imported."""
    for name in list(sys.modules):
        if name.startswith("_swift_external"):
            del sys.modules[name]


@pytest.fixture
def guard(unguarded: Any) -> Callable[[], None]:
    """What the start-up hook does."""
    return lambda: higgs_audio_swift_autoload._patch_arguments(unguarded)


def stranger(folder: Path, *, base: dict[str, Any] | None = None, **arguments: Any) -> str:
    """An adapter's folder with these `arguments` in its args.json, `hostile.py`, and a base with
    this config."""
    adapter_folder(folder)
    hostile_code(folder, folder / "executed")
    if base is not None:
        (folder / "base").mkdir()
        hostile_code(folder / "base", folder / "executed")
        rewrite(folder / "base" / "config.json", **base)
        arguments["model"] = str(folder / "base")
    rewrite(folder / "args.json", swift_version="4.6.0", tuner_type="lora", **arguments)
    return str(folder)


def filled(arguments: dict[str, Any], **paths: Path) -> dict[str, Any]:
    """`arguments` with the paths that their texts name in brackets, at any depth."""
    text = json.dumps(arguments)
    for name, path in paths.items():
        text = text.replace(f"<{name}>", str(path))
    return json.loads(text)


def check_refused(folder: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_args(InferArguments, ["--adapters", folder, "--use_hf", "true"])
    assert str(caught.value).startswith(f"{folder}/args.json: ")
    assert "\n" not in str(caught.value)
    assert not Path(folder, "executed").exists()


PLUGIN = "<folder>/hostile.py"
IMPORTED = "external_plugins: .* would be imported; if you trust it, give it with --external_plu"
CODE = r"model: '.*' holds code \(hostile\.py\), which would be run; .* give it with --model"
KERNEL_REFUSED = f"attn_impl: '{KERNEL}' would be fetched from a hub and run; .* --attn_impl"
CODED = {"model_type": "hostile", "auto_map": {"AutoConfig": "hostile.Config"}}
RUN = {
    # The case file of this fault, `adapter_args.json`.
    "no type": ({"external_plugins": [PLUGIN], "model_type": None}, IMPORTED),
    "type missing": ({"external_plugins": [PLUGIN]}, IMPORTED),
    "another type": ({"external_plugins": [PLUGIN], "model_type": "qwen3"}, IMPORTED),
    "type is nonsense": ({"external_plugins": [PLUGIN], "model_type": [1]}, IMPORTED),
    "our type": (
        {"external_plugins": [PLUGIN], "model_type": TYPE, "model": "<tiny>"},
        IMPORTED,
    ),
    "a text": ({"external_plugins": PLUGIN}, IMPORTED),
    "an object": ({"external_plugins": {PLUGIN: 1}}, IMPORTED),
    "base": ({"base": CODED}, CODE),
}


@pytest.mark.parametrize(("arguments", "message"), RUN.values(), ids=RUN)
def test_nothing_in_a_folder_decides_whether_its_code_is_run(
    arguments: dict[str, Any],
    message: str,
    tiny: Path,
    tmp_path: Path,
    guard: Callable[[], None],
    attempts: list[Any],
) -> None:
    """MS-SWIFT imports the plugins that an adapter's args.json names, and reads the base that it
    names with trust_remote_code=True. Its model type is what the stranger has written there: none,
    another's, ours."""
    folder = tmp_path / "adapter"
    stranger(folder, **filled(arguments, folder=folder, tiny=tiny))
    with contextlib.suppress(BaseException):
        parse_args(InferArguments, ["--adapters", str(folder), "--use_hf", "true"])
    assert (folder / "executed").exists(), "the proof of concept is none"
    (folder / "executed").unlink()
    forget_plugins()
    guard()
    check_refused(str(folder), message)
    assert attempts == []


# What these name is on a hub, in a file that is read, or imports nothing: a test cannot show it.
NAMED = {
    "register": (
        {"external_plugins": ["<folder>/plugins/register.py"], "model_type": "qwen3"},
        IMPORTED,
    ),
    "kernel": ({"attn_impl": KERNEL, "model": "<tiny>"}, KERNEL_REFUSED),
    "our kernel": (
        {"attn_impl": KERNEL, "model": "<tiny>", "model_type": TYPE},
        KERNEL_REFUSED,
    ),
    "method": (
        {"quant_method": "eetq", "model": "<tiny>", "model_type": TYPE},
        "quant_method: 'eetq' may fetch code from a hub",
    ),
    "system": (
        {"system": "secret.txt", "model": "<tiny>", "model_type": TYPE},
        "system: 'secret.txt' is a file, which would be read",
    ),
    "tokens": (
        {"new_special_tokens": ["secret.txt"], "model": "<tiny>"},
        "new_special_tokens: 'secret.txt' is a file, which would be read",
    ),
    "rope": (
        {"rope_scaling": "<tiny>/config.json", "model": "<tiny>"},
        r"rope_scaling: '.*config\.json' is a file, which would be read",
    ),
    "hub": (
        {"model": "evil/base", "model_type": TYPE},
        "model: 'evil/base' is no folder here and no published model; .* give it with --model",
    ),
    "elsewhere": (
        {"base": {"auto_map": {"AutoConfig": "evil/repo--code.Config"}}},
        r"model: '.*' holds code \(config\.json\), which would be run",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), NAMED.values(), ids=NAMED)
def test_what_args_json_names_is_neither_fetched_nor_read(
    arguments: dict[str, Any],
    message: str,
    tiny: Path,
    tmp_path: Path,
    guard: Callable[[], None],
    attempts: list[Any],
) -> None:
    folder = tmp_path / "adapter"
    stranger(folder, **filled(arguments, folder=folder, tiny=tiny))
    # The config names code of another repository: none lies in the folder.
    (folder / "base" / "hostile.py").unlink(missing_ok=True)
    guard()
    check_refused(str(folder), message)
    assert attempts == []


def test_every_command_that_takes_a_folder_is_guarded(
    tmp_path: Path, guard: Callable[[], None]
) -> None:
    plugin = tmp_path / "adapter" / "hostile.py"
    folder = stranger(tmp_path / "adapter", external_plugins=[str(plugin)])
    dataset = tmp_path / "data.jsonl"
    dataset.touch()
    guard()
    # Each has a class of arguments, derived from the one that is patched.
    commands = "App Deploy Eval Export Infer Rollout Sampling Sft RLHF"
    for command in commands.split():
        parsed = getattr(swift.arguments, f"{command}Arguments")
        for flag in ("--adapters", "--model"):
            arguments = [flag, folder, "--load_args", "true", "--dataset", str(dataset)]
            with pytest.raises(ValueError, match=r"external_plugins: .* would be imported"):
                parse_args(parsed, arguments)
    assert not Path(folder, "executed").exists()


def test_our_own_and_other_models_arguments_are_taken_over(
    tiny: Path, tmp_path: Path, guard: Callable[[], None]
) -> None:
    """A training of ours names the register.py of its installation; ours takes the place of that
    file, whatever it holds. Whoever types another model's type has MS-SWIFT's own behaviour."""
    guard()
    folder = tmp_path / "ours"
    theirs = folder / "plugins" / "register.py"
    saved = {"external_plugins": [str(theirs)], "model": str(tiny), "model_type": TYPE}
    argv = ["--adapters", stranger(folder, **saved)]
    # What a stranger has put there is not what runs.
    theirs.parent.mkdir()
    shutil.copy(folder / "hostile.py", theirs)
    parse_args(InferArguments, argv)
    parse_args(InferArguments, [*argv, "--external_plugins", REGISTER])
    assert not (folder / "executed").exists()
    other = stranger(tmp_path / "other", external_plugins=[str(tmp_path / "other" / "hostile.py")])
    with pytest.raises(SystemExit):
        parse_args(InferArguments, ["--adapters", other, "--model_type", "qwen3"])
    assert (tmp_path / "other" / "executed").exists()
