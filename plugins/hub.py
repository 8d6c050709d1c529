"""Folder or Hub id -> folder. L1."""

from __future__ import annotations

from pathlib import Path

from plugins.errors import problem


def local_folder(path: str, *, option: str = "model") -> str:
    """`path` if it is a folder, else the local snapshot of that Hub id. Raises UserError if it is neither."""
    if Path(path).is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(path))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = f"is neither a folder nor a Hub id that can be downloaded ({type(error).__name__})"
        raise problem("options", option, path, reason, f"give the folder of a {option}") from error
