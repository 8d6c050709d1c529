"""What this kit stands on: whether it can be imported, and the line that mends it.

Imports none of it before it is asked to: this file must load where torch does not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shlex
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packaging.specifiers import SpecifierSet

from plugins.errors import UserError, problem

PROJECT = "higgs-audio-swift"
# What our code is tested with. pyproject.toml asks for less: MS-SWIFT's metadata holds pip below
# 5.20, and whoever wants a newer one installs it with `--no-deps`.
TESTED_TRANSFORMERS = SpecifierSet(">=5.19,<5.25")
_PAIR = ("torch", "torchaudio")  # no wheel of torchaudio says which builds of torch it loads with

# Package, module, and what of it we cannot do without; each needs those before it.
_NEEDED = [
    ("torch", "torch", "Tensor"),
    ("torchaudio", "torchaudio", "functional"),
    ("transformers", "transformers", "HiggsAudioV2ForConditionalGeneration"),
    ("transformers", "transformers", "HiggsAudioV2TokenizerModel"),
    ("ms-swift", "swift.pipelines", "SwiftSft"),
]


@contextmanager
def explained() -> Iterator[None]:
    """Inside, an import that fails because of the installation raises the UserError of
    `failed_import`."""
    try:
        yield
    except Exception as error:
        # Whatever else went wrong inside is not ours to explain.
        if not _is_of_an_import(error):
            raise
        cause = failed_import()
        if cause is None:
            raise
        raise cause from error


def failed_import() -> UserError | None:
    """Cause and remedy for the first needed package that cannot be imported; None if all can. Takes
    seconds."""
    for package, module, name in _NEEDED:
        try:
            getattr(importlib.import_module(module), name)
        except Exception as error:  # a library that does not load raises what it likes
            return _failure(package, module, error)
    return None


def require_device(name: str) -> None:
    """Raise UserError for a device of torch that there is not here."""
    if name == "cpu":
        return
    import torch

    try:
        device = torch.device(name)
        if device.type == "cuda":
            # Counted, not used: who forks workers later must not have begun with it.
            if (device.index or 0) >= torch.cuda.device_count():
                raise RuntimeError(f"torch finds {torch.cuda.device_count() or 'no'} GPU here")
        else:
            torch.zeros(1, device=device).cpu()
    # NotImplementedError: "meta", which holds no numbers.
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        cause = str(error).partition("\n")[0][:100]
        raise problem(
            source="options",
            field="device",
            value=name,
            reason=f"cannot be used ({cause})",
            remedy="give cpu, cuda or cuda:N of a GPU that is there, or leave it out",
        ) from None


def version_of(package: str) -> str | None:
    """The installed version, None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_of_an_import(error: BaseException) -> bool:
    """An ImportError, or anything else that was raised while some module was being executed."""
    if isinstance(error, ImportError):
        return True
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "<module>":
            return True
    return False


def _failure(package: str, module: str, error: BaseException) -> UserError:
    if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
        return problem(
            source="installation",
            field="package",
            value=package,
            reason="is not installed",
            remedy=f"run: {_install(package)}",
        )
    # transformers says which class it was about to load, and only its cause why that failed.
    while error.__cause__ is not None:
        error = error.__cause__
    message = textwrap.shorten(str(error), 200, placeholder=" ...")
    cause = f"{type(error).__name__}: {message}"
    remedy = _install(package)
    reason = f"cannot be imported ({cause})"
    if package in _PAIR:
        # pip keeps what fits by its number, also the build of another CUDA.
        remedy = f"pip uninstall -y {' '.join(_PAIR)} && {remedy}"
        reason = f"cannot be imported beside torch {version_of('torch')} ({cause})"
    return problem(
        source="installation",
        field="package",
        value=f"{package} {version_of(package)}",
        reason=reason,
        remedy=f"run: {remedy}",
    )


def _install(package: str) -> str:
    """The shell's line that installs what pyproject.toml asks of `package`, of torch and torchaudio
    together."""
    try:
        requirements = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        root = Path(__file__).resolve().parents[2]
        return f"pip install -e {shlex.quote(str(root))}"
    names = _PAIR if package in _PAIR else (package,)
    needed = []
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement)[0]
        if name in names:
            needed.append(requirement)
    return f"pip install {shlex.join(needed)}"
