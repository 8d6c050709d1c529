"""Makes plain `swift sft --model_type higgs-audio-v2-3b ...` find our plugin: the start-up hook of
an installation.

A `.pth` file (setup.py) puts a finder into every interpreter of the environment that imports this
module when MS-SWIFT is imported, and not before. When MS-SWIFT loads its arguments, our register.py
joins the `external_plugins` of runs with our model types, as if it had been given: `args.json`
names it and workers load it. The `swift` command of such a run becomes the run's own process, so
that signals reach it (plugins/training/launcher.py). Where MS-SWIFT itself cannot be imported, one
line below the traceback says why.

MS-SWIFT also takes arguments over from the `args.json` of an adapter or a checkpoint, plugins that
it imports among them. Whatever such a file says, it may not choose code, files or a hub's
repository: only the command line tells whose run it is, since a folder can call itself anything.
Runs with `--model_type` of another model stay as they are, and so do those whose `args.json` names
nothing of the kind. HIGGS_AUDIO_AUTOLOAD=0 switches all of it off."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from traceback import walk_tb
from types import SimpleNamespace
from typing import Any

REGISTER_FILE = Path(__file__).resolve().parent / "plugins" / "register.py"
_OURS = REGISTER_FILE.parts[-2:]
MODEL_TYPES = "higgs-audio-"  # what they begin with
_PUBLISHED = ("bosonai/higgs-audio-v2-generation-3B-base", "bosonai/higgs-tts-2-3b-base")
_TRAINING = {"sft", "pt", "rlhf"}  # of MS-SWIFT's commands

# Of transformers itself: any other name is a repository of a hub, whose kernel would be run.
_ATTENTION = (
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attn",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
)
_BASE = "_higgs_audio_base"  # the base that only args.json names, until the plugins are imported
# MS-SWIFT opens the file that such a text names.
_FIELDS_OF_TEXT = ("system", "new_special_tokens", "rope_scaling")


def find_spec(name: str, path: Any, target: Any) -> ModuleSpec | None:
    """One of MS-SWIFT's modules that the finder waits for, and our patch as soon as it has run."""
    if not REGISTER_FILE.is_file():
        return None
    if name == "swift":
        _explain_failed_import()
        _require_type(Path(*sys.argv[:1]), sys.argv[1:])
        _end_cleanly(Path(*sys.argv[:1]), sys.argv[1:])
        return None
    spec = PathFinder.find_spec(name, path, target)
    if spec is not None:
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            del loader.exec_module  # which hides the class's own
            execute(module)
            if name == "swift.cli.main":
                _patch_launcher(module)
            else:
                _patch_arguments(getattr(module, "BaseArguments", None))

        loader.exec_module = exec_module
    return spec


@cache
def _explain_failed_import() -> None:
    """Below the traceback of an import of MS-SWIFT that ends the process: what of the installation
    is at fault."""
    show = sys.excepthook

    def show_with_cause(kind: Any, error: Any, trace: Any) -> None:
        show(kind, error, trace)
        if isinstance(error, Exception) and _is_importing_swift(trace):
            with suppress(ImportError):  # what is left of an installation that was removed
                from plugins.files.installation import failed_import

                cause = failed_import()
                if cause is not None:
                    print(f"error: {cause}", file=sys.stderr)

    sys.excepthook = show_with_cause


def _is_importing_swift(trace: Any) -> bool:
    """Whether a module of MS-SWIFT was running its top level when the error came."""
    for frame, _ in walk_tb(trace):
        module = str(frame.f_globals.get("__name__"))
        if frame.f_code.co_name == "<module>" and module.split(".")[0] == "swift":
            return True
    return False


def _end_cleanly(program: Path, words: list[str]) -> None:
    """Before the imports that take most of a start: signals of a training of ours, in `swift` and
    in its trainer, and the GPU memory of the latter."""
    is_trainer = program.parts[-3:-1] == ("swift", "cli") and program.stem in _TRAINING
    is_launcher = program.name == "swift" and not _TRAINING.isdisjoint(words[:1])
    if (is_trainer and _is_ours(words)) or (is_launcher and _is_ours(words[1:])):
        from plugins.training import launcher, signals

        signals.end_cleanly()
        if is_trainer:  # of somebody's own torchrun; else the launcher has done it
            launcher.let_memory_grow()


def _is_ours(words: list[str]) -> bool:
    """Whether the words after `swift COMMAND` name one of our model types, our plugin, or a
    checkpoint of ours."""
    parts = _parts(words)
    for name, value in itertools.pairwise(parts):
        if name.lstrip("-") == "model_type":
            return value.startswith(MODEL_TYPES)
    plugin = os.sep.join(_OURS)
    return any(part.endswith(plugin) or _is_saved_by_ours(part) for part in parts)


def _parts(words: list[str]) -> list[str]:
    """Names and values of options, those of a file in their place."""
    parts: list[str] = []
    for word in words:
        parts += word.split("=", 1)
    if parts and parts[0].endswith((".yaml", ".yml", ".json")) and Path(parts[0]).is_file():
        # MS-SWIFT takes a file in the place of options. No parser of YAML is imported for it.
        text = Path(parts[0]).read_text(encoding="utf-8", errors="replace")
        parts[:1] = [word.strip("{\"',}") for word in text.replace(":", " ").split()]
    return parts


def _require_type(program: Path, words: list[str]) -> None:
    """End the process in one line if `swift COMMAND` names a model of ours and no model type.

    MS-SWIFT knows our models only by their type, and would say pages."""
    if program.name != "swift" or _is_ours(words[1:]):
        return
    parts = _parts(words[1:])
    if "--model_type" in parts or "model_type" in parts:
        return
    for name, value in itertools.pairwise(parts):
        if name.lstrip("-") == "model" and (value in _PUBLISHED or _holds_ours(value)):
            remedy = f"add --model_type {MODEL_TYPES}v2-3b (or -7b)"
            if words[0] in _TRAINING:
                ours = "rlhf" if words[0] == "rlhf" else "sft"
                remedy += f", or use `higgs-audio {ours}`, which needs none"
            sys.exit(f"error: command line: --model: {value!r} has no --model_type; {remedy}")


def _holds_ours(folder: str) -> bool:
    file = os.path.join(folder, "config.json")
    if not os.path.isfile(file):
        return False
    text = Path(file).read_text(encoding="utf-8", errors="replace")
    return bool(re.search(r'"model_type":\s*"higgs_audio(_v2)?"', text))


def _is_saved_by_ours(folder: str) -> bool:
    file = os.path.join(folder, "args.json")
    if not os.path.isfile(file):  # unlike pathlib's, never an error: most words name no folder
        return False
    text = Path(file).read_text(encoding="utf-8", errors="replace")
    return f'"model_type": "{MODEL_TYPES}' in text


def _patch_launcher(main: Any) -> None:
    """MS-SWIFT 4.6 starts a run with `subprocess.run` in `cli_main`: that of our models instead
    becomes its process."""
    if not hasattr(main, "cli_main") or getattr(main, "subprocess", None) is not subprocess:
        return

    def run(command: list[str], *args: Any, **kwargs: Any) -> Any:
        if _is_ours(command[1:]):
            from plugins.training import launcher

            launcher.launch(command)
        return subprocess.run(command, *args, **kwargs)

    main.subprocess = SimpleNamespace(run=run)


def _patch_arguments(arguments: Any) -> None:
    """Wrap the two methods of MS-SWIFT 4.6 that fill and read `external_plugins`, as it has no
    entry points.

    A version without these methods is left alone.
    """
    import_plugins = getattr(arguments, "_import_external_plugins", None)
    load_saved = getattr(arguments, "load_args_from_ckpt", None)
    if import_plugins is None or load_saved is None:
        return

    def load_checked(self: Any) -> None:
        # `BaseArguments.from_pretrained` comes here with an object that has no attributes yet; it
        # imports nothing.
        is_lookup = not hasattr(self, "external_plugins")
        if is_lookup or (self.model_type is not None and not _is_our_type(self.model_type)):
            load_saved(self)
            return
        typed = dict(vars(self))
        load_saved(self)
        # What MS-SWIFT has taken, not what the file says: so no reading of it differs from
        # MS-SWIFT's.
        taken = {name: value for name, value in vars(self).items() if value != typed.get(name)}
        _check(self, taken)

    def with_ours(self: Any) -> Any:
        named = _listed(self.external_plugins or [])
        # Whoever names a plugins/register.py wants that one: it may be of another checkout.
        is_named = any(Path(os.path.abspath(plugin)).parts[-2:] == _OURS for plugin in named)
        if _is_our_type(self.model_type) and not is_named:
            self.external_plugins = [str(REGISTER_FILE), *named]
        result = import_plugins(self)
        if (base := vars(self).pop(_BASE, None)) is not None:
            _check_base(self, base)
        return result

    arguments._import_external_plugins = with_ours
    arguments.load_args_from_ckpt = load_checked


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_our_type(model_type: Any) -> bool:
    return str(model_type).startswith(MODEL_TYPES)


def _refusal(arguments: Any, field: str, value: Any, reason: str, flag: str) -> ValueError:
    """In the form of `plugins.errors.problem`, which cannot be imported here: the package may not
    be importable yet."""
    shown = repr(value)
    if len(shown) > 120:
        shown = shown[:115] + "..."
    return ValueError(
        f"{arguments.ckpt_dir}/args.json: {field}: {shown} {reason}; if you trust it, give {flag}"
    )


def _check(arguments: Any, taken: dict[str, Any]) -> None:
    """Raise ValueError for an argument of a checkpoint's args.json that chooses what is imported,
    fetched or opened."""
    is_ours = _is_our_type(arguments.model_type)

    def refuse(field: str, value: Any, reason: str) -> None:
        raise _refusal(arguments, field, value, reason, f"it with --{field}")

    if taken.get("external_plugins"):
        for plugin in _listed(taken["external_plugins"]):
            # Our own trainings name a register.py; that of this installation takes its place.
            if not (is_ours and isinstance(plugin, str) and Path(plugin).parts[-2:] == _OURS):
                refuse("external_plugins", plugin, "would be imported")
        arguments.external_plugins = []
    attention, method = taken.get("attn_impl"), taken.get("quant_method")
    if attention is not None and attention not in _ATTENTION:
        refuse("attn_impl", attention, "would be fetched from a hub and run")
    if is_ours and method not in (None, "bnb"):
        refuse("quant_method", method, "may fetch code from a hub")
    for field in _FIELDS_OF_TEXT:
        for text in _listed(taken.get(field)):
            if isinstance(text, str) and (text.endswith(".txt") or os.path.exists(text)):
                refuse(field, text, "is a file, which would be read")
    if "model" in taken:
        setattr(arguments, _BASE, str(taken["model"]))


def _check_base(arguments: Any, base: str) -> None:
    """Raise ValueError if `base`, which only args.json names, holds code that MS-SWIFT runs, or is
    to be fetched.

    Under our model types no code of a model runs, but any id would be fetched; others run what
    their repository holds."""
    from swift.model import MODEL_MAPPING
    from swift.utils import safe_snapshot_download

    known = set()
    for meta in MODEL_MAPPING.values():
        for group in meta.model_groups:
            for model in group.models:
                known |= {model.ms_model_id, model.hf_model_id}
    is_ours = _is_our_type(arguments.model_type)
    folder = base
    if not os.path.exists(base):
        if base in known:
            return
        if is_ours:
            reason = "is no folder here and no published model"
            raise _refusal(arguments, "model", base, reason, "it with --model")
        # As MS-SWIFT does next: configs only.
        where = {
            "revision": arguments.model_revision,
            "use_hf": arguments.use_hf,
            "hub_token": arguments.hub_token,
        }
        folder = safe_snapshot_download(base, download_model=False, **where)
    if not is_ours and (code := _code_in(Path(folder))):
        reason = f"holds code ({code}), which would be run"
        raise _refusal(arguments, "model", base, reason, "it with --model, and its --model_type")


def _code_in(folder: Path) -> str | None:
    """The name of a file of the model in `folder` that is code or names code, for
    `trust_remote_code=True`."""
    programs = sorted([*folder.glob("*.py"), *folder.glob("*/*.py")])
    if programs:
        return str(programs[0].relative_to(folder))
    for file in sorted(folder.glob("*.json")):
        if file.name in ("tokenizer.json", "vocab.json"):  # large, and nothing but words
            continue
        # Nested at any depth, and without recursion.
        try:
            waiting = [json.loads(file.read_text(encoding="utf-8"))]
        except (OSError, ValueError, RecursionError):
            continue  # transformers cannot read it either
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict) and value.get("auto_map"):
                return file.name
            if isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
    return None
