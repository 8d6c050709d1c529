"""register_higgs_audio_all(), and the file for `--external_plugins`.

MS-SWIFT imports this *file* under a private name, where relative imports fail and classes would not
unpickle in spawned workers. So it makes the package importable, imports `plugins.*` absolutely and
defines no class."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent


def _make_importable() -> None:
    # MS-SWIFT puts this folder first on sys.path, where our `audio.py` or `loss.py` would shadow
    # other packages.
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != _PACKAGE]
    if str(_PACKAGE.parent) not in sys.path:
        sys.path.append(str(_PACKAGE.parent))
    import plugins

    imported = Path(plugins.__file__ or "").resolve().parent
    if imported != _PACKAGE:
        raise ImportError(
            f"another package named 'plugins' is in the way ({imported});"
            f" put {_PACKAGE.parent} on PYTHONPATH"
        )


def register_higgs_audio_all() -> None:
    """Register model types, template, dataset columns, optimizer and trainer with MS-SWIFT, and
    patch it. Idempotent.

    Raises UserError if MS-SWIFT, or what it and we stand on, cannot be imported.
    """
    _make_importable()
    from plugins.files.installation import explained

    with explained():
        from plugins import dataset_registration, model_registration, trainer
        from plugins.ms_swift import patches, template
        from plugins.training import options, run_lock, tuning

    dataset_registration.register_columns()
    template.register()
    model_registration.register()
    trainer.register()
    # Handed in, because `ms_swift` lies below `training`.
    for hook in (options.refuse_other_losses, run_lock.hold_output, tuning.settle):
        patches.install(before_tuning=hook)


def _tell_in_one_line() -> None:
    """In a process of MS-SWIFT's: what a user can mend ends it without a traceback."""
    from plugins.errors import UserError

    tell = sys.excepthook

    def tell_mistake(kind: Any, error: BaseException, trace: Any) -> None:
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        else:
            tell(kind, error, trace)

    sys.excepthook = tell_mistake


if __name__.startswith("_swift_external"):
    register_higgs_audio_all()
    _tell_in_one_line()
