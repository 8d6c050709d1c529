"""Makes plain `swift sft --model_type higgs-audio-v2-3b ...` find our plugin: the start-up hook of an installation.

A `.pth` file (setup.py) puts a finder into every interpreter of the environment that imports this module when MS-SWIFT
loads its arguments, and not before. Our register.py then joins the `external_plugins` of runs with our model types, as
if it had been given: `args.json` names it and workers load it. What a checkpoint's own `args.json` names is not taken
over: MS-SWIFT would execute files that whoever made the checkpoint has chosen. Other models' runs stay as they are.
HIGGS_AUDIO_AUTOLOAD=0 switches all of it off.
"""

from __future__ import annotations

import json
import logging
import os
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

REGISTER_FILE = Path(__file__).resolve().parent / "plugins" / "register.py"
_OURS = REGISTER_FILE.parts[-2:]
MODEL_TYPES = "higgs-audio-"  # what they begin with


def find_spec(name: str, path: Any, target: Any) -> ModuleSpec | None:
    """MS-SWIFT's own module of arguments, and our patch as soon as it has run."""
    spec = PathFinder.find_spec(name, path, target)
    if spec is not None and REGISTER_FILE.is_file():
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            del loader.exec_module  # which hides the class's own
            execute(module)
            _patch_arguments(getattr(module, "BaseArguments", None))

        loader.exec_module = exec_module
    return spec


def _patch_arguments(arguments: Any) -> None:
    """Wrap the two methods of MS-SWIFT 4.6 that fill and read `external_plugins`, as it has no entry points.

    A version without these methods is left alone.
    """
    import_plugins = getattr(arguments, "_import_external_plugins", None)
    load_saved = getattr(arguments, "load_args_from_ckpt", None)
    if import_plugins is None or load_saved is None:
        return

    def without_theirs(self: Any) -> Any:
        saved = json.loads(Path(self.ckpt_dir, "args.json").read_text(encoding="utf-8"))
        # `BaseArguments.from_pretrained` comes here with an object that has no attributes yet.
        model_type = getattr(self, "model_type", None) or saved.get("model_type")
        if not getattr(self, "external_plugins", None) and str(model_type).startswith(MODEL_TYPES):
            self.external_plugins = [str(REGISTER_FILE)]
            others = [each for each in saved.get("external_plugins") or [] if Path(each).parts[-2:] != _OURS]
            if others:
                left_out = f"{self.ckpt_dir}/args.json names plugins that are not loaded: {others}"
                logging.getLogger("swift").warning(f"{left_out}; give those you trust with --external_plugins")
        return load_saved(self)

    def with_ours(self: Any) -> Any:
        named = self.external_plugins or []
        named = [named] if isinstance(named, str) else list(named)
        # Whoever names a plugins/register.py wants that one: it may be of another checkout.
        is_named = any(Path(os.path.abspath(plugin)).parts[-2:] == _OURS for plugin in named)
        if str(self.model_type).startswith(MODEL_TYPES) and not is_named:
            self.external_plugins = [str(REGISTER_FILE), *named]
        return import_plugins(self)

    arguments._import_external_plugins = with_ours
    arguments.load_args_from_ckpt = without_theirs
