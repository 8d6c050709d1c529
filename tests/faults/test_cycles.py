"""Starts and stops of one training, twenty of them or two hundred: nothing of them is left."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from conftest import corpus_rows, write_jsonl
from faults.runs import Runs, adapter_of, options
from helpers.sft import coded, flags

from plugins.training.signals import STOPPED

LAST = "checkpoint-30"
OPTIONS = options(
    save_total_limit=1,
    max_steps=30,
    save_steps=10,
    dataloader_num_workers=1,
    resume_from_checkpoint="auto",
)


@pytest.mark.slow
@pytest.mark.parametrize("num_cycles", [20, pytest.param(200, marks=pytest.mark.exhaustive)])
def test_starts_and_stops_leave_nothing(
    num_cycles: int, tiny: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SIGTERM at any moment, then the same command again; each training that gets to its end ends
    alike."""
    dataset = write_jsonl(tmp_path / "train.jsonl", coded(tiny, corpus_rows(5)))
    # As short as can be: data workers have their sockets there.
    scratch = tmp_path_factory.mktemp("tmp")

    def cycles(seed: int) -> tuple[Counter[int], set[str]]:
        """Half of them, in a folder of their own: how they ended, and with which adapters."""
        folder, generator = tmp_path / str(seed), random.Random(seed)
        command = flags(tiny, dataset, folder / "out", **OPTIONS)
        statuses: Counter[int] = Counter()
        adapters: set[str] = set()
        folder.mkdir()
        runs = Runs(folder / "log", TMPDIR=str(scratch), HF_HOME=str(folder / "hf"))
        try:
            for cycle in range(num_cycles // 2):
                fault = {}
                # The last cycle is not disturbed, so that one end is compared at least.
                if cycle < num_cycles // 2 - 1:
                    fault["sigterm_after_s"] = generator.uniform(0, 3)
                status = runs.sft(command, **fault)
                statuses[status] += 1
                assert status in {0, STOPPED, -15}, runs.end()
                if status == 0:
                    (checkpoint,) = (folder / "out").glob("checkpoint-*")
                    assert checkpoint.name == LAST
                    adapters.add(adapter_of(checkpoint))
                    shutil.rmtree(folder / "out")
                assert not psutil.Process(runs.process.pid).children(recursive=True)
        finally:
            runs.close()
        return statuses, adapters

    with ThreadPoolExecutor(2) as threads:
        (statuses, adapters), (others, other_adapters) = threads.map(cycles, (0, 1))
    statuses += others
    print(f"{num_cycles} cycles ended with {dict(statuses)}")
    assert len(adapters | other_adapters) == 1
    assert statuses[STOPPED] > num_cycles / 10, "signals too early or too late to stop a training"
    assert list(scratch.iterdir()) == []
    assert [*tmp_path.rglob("*.lock"), *Path(tempfile.gettempdir()).glob("*.lock")] == []
