"""Data workers that cannot start, that die, and that must not outlive the training."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from helpers.processes import TIMEOUT_S, TRAIN, ended, running, torchrun, training, written

from plugins.errors import UserError
from plugins.training import workers


@pytest.mark.parametrize("num_bytes", [75, 76])
def test_a_temporary_folder_too_long_for_workers_is_refused(
    num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where multiprocessing's own sockets fail; torch would print that and wait for ever."""
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        folder = Path(base, "x" * (num_bytes - len(base) - 1))
        folder.mkdir()
        listen = (
            "from multiprocessing.connection import Listener; Listener(family='AF_UNIX').close()"
        )
        env = {**os.environ, "TMPDIR": str(folder)}
        works = (
            subprocess.run([sys.executable, "-c", listen], env=env, capture_output=True).returncode
            == 0
        )
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        workers.check_temporary_folder(0)
        with (
            nullcontext()
            if works
            else pytest.raises(UserError, match=r"TMPDIR: .* too long for the sockets")
        ):
            workers.check_temporary_folder(1)
    assert works == (num_bytes == 75)


def test_named_rows_travel_into_spawned_workers(tiny: Path) -> None:
    collator = pickle.loads(pickle.dumps(workers.NamedRows(len)))
    assert collator.collate is len


DEADLY_WORKER = """
import os
from torch.utils.data import get_worker_info
from plugins.ms_swift.template import HiggsAudioTemplate
original_collator = HiggsAudioTemplate._data_collator
def collator(self, *args, **kwargs):
    self.batches = getattr(self, "batches", 0) + 1
    if get_worker_info() is not None and self.batches > 20:  # the preflight has counted some
        os._exit({code})
    return original_collator(self, *args, **kwargs)
if original_collator.__module__ != __name__:
    HiggsAudioTemplate._data_collator = collator
"""


@pytest.mark.slow
@pytest.mark.parametrize(("code", "ranks"), [(1, 1), (0, 1), (1, 2)])
def test_a_worker_that_ends_ends_the_run(
    code: int, ranks: int, tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    deadly = written(tmp_path / "deadly_worker.py", DEADLY_WORKER.format(code=code))
    arguments = training(tiny, dataset, tmp_path / "out", deadly, dataloader_num_workers=1)
    with running(
        *(torchrun(*arguments) if ranks > 1 else [sys.executable, TRAIN, *arguments])
    ) as process:
        output = ended(process, TIMEOUT_S)
    assert process.returncode not in {0, None}
    assert "DataLoader worker" in output
    assert "exited unexpectedly" in output


FAILING = """
from plugins.trainer import HiggsAudioTrainer
def training_step(self, *args, **kwargs):
    raise LookupError("planted")
HiggsAudioTrainer.training_step = training_step
"""


@pytest.mark.slow
def test_an_exception_does_not_wait_for_its_workers(
    tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    """Python keeps the traceback of the last exception, and with it the loader whose workers
    outlive signals."""
    plugin = written(tmp_path / "failing.py", FAILING)
    arguments = training(tiny, dataset, tmp_path / "out", plugin, dataloader_num_workers=2)
    with running(sys.executable, TRAIN, *arguments) as process:
        output = ended(process, 60)
    assert process.returncode == 1
    assert "LookupError: planted" in output
