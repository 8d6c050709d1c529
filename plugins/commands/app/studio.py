"""What all tabs share: the workspace, the models that may be named, the desk, the devices."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass

from plugins.commands.app.actions import Models
from plugins.commands.app.desk import Desk
from plugins.commands.app.workspace import Workspace


@dataclass(frozen=True)
class Studio:
    workspace: Workspace
    models: Models
    desk: Desk
    devices: tuple[str, ...]  # those for jobs, the first one first


def open_studio(options: Namespace) -> Studio:
    """Loads the model of the command line, if there is one. Raises UserError for a workspace that
    is no folder."""
    workspace = Workspace(options.workspace)
    given = tuple(filter(None, (options.model, options.adapters, options.codec)))
    return Studio(workspace, Models(workspace, given), Desk(options, workspace), _devices())


def _devices() -> tuple[str, ...]:
    import torch

    return (*(f"cuda:{i}" for i in range(torch.cuda.device_count())), "cpu")


def gib_of(device: str) -> float | None:
    """Memory of a GPU; None for a CPU."""
    if device == "cpu":
        return None
    import torch

    return float(torch.cuda.mem_get_info(device)[1]) / 2**30
