"""The per-clip function over a Ray cluster, for corpora beyond one machine. Needs the extra
`ray`.

In and out as in `plugins.prepare.run`, which writes the journal.

Every node must see the corpus and the output folder under the same paths. Chunks come back in
order, so that results are those of a local run, to the byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plugins.corpora import Utterance
from plugins.errors import problem
from plugins.prepare.clips import Outcome, Work
from plugins.prepare.run import CHUNK, run_chunk


def execute(
    work: Work, utterances: Sequence[Utterance], num_workers: int
) -> Iterator[list[Outcome]]:
    """As `plugins.prepare.run` maps locally, on the cluster of `RAY_ADDRESS`, or on one that is
    started here.

    num_workers: chunks at work at a time. Raises UserError if Ray is missing.
    """
    try:
        import ray
    except ImportError:
        raise problem(
            source="--executor",
            field="package",
            value="ray",
            reason="is not installed",
            remedy="run: pip install 'ray[data]'",
        ) from None
    if not ray.is_initialized():
        # The workers' Python finds this package where this one did.
        root = str(Path(__file__).resolve().parents[2])
        ray.init(log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": root}})
    chunks = []
    for start in range(0, len(utterances), CHUNK):
        chunks.append({"chunk": utterances[start : start + CHUNK]})
    if not chunks:
        return  # of nothing Ray makes no dataset
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    data = ray.data.from_items(chunks, override_num_blocks=len(chunks))
    work_ref = ray.put(work)

    def run(row: dict[str, Any]) -> dict[str, Any]:
        outcomes = run_chunk(ray.get(work_ref), row["chunk"])
        # Plain values: Ray's rows are Arrow's, which knows no class of ours.
        return {"outcomes": [outcome.to_json() for outcome in outcomes]}

    for row in data.map(run, concurrency=num_workers).iter_rows():
        yield list(map(Outcome.from_json, row["outcomes"]))
