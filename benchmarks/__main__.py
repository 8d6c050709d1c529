"""All that is claimed to be fast, in one run: `python -m benchmarks` prints a table and writes
JSON.

P-a, P-b, P-c, P6, P10   preparing a corpus, and reading its codes   benchmarks/prepare.py
P1, P5                   rows -> batches                                  benchmarks/collate.py
P2a, P2b, P3, P4         the step                                         benchmarks/step.py
P9, P9-b                 speaking                                         benchmarks/decode.py

Each asserts that ours gives what its peer gives before it times the two, by turns, in the same run.
`limit` is what the arithmetic, the bytes or the libraries below allow. Each part also runs alone,
where it has a command."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, line_of, machine, table, write_json

# In this order: prepare forks its workers from a process without torch.
PARTS = {
    "prepare": ("P-a", "P-b", "P-c", "P10", "P6"),
    "collate": ("P1", "P5"),
    "step": ("P2a", "P2b", "P3", "P4"),
    "decode": ("P9", "P9-b"),
}
IDS = [*chain.from_iterable(PARTS.values())]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--ids", nargs="+", choices=IDS, default=IDS, metavar="ID", help=f"of {', '.join(IDS)}"
    )
    parser.add_argument("--rounds", type=int, default=9, help="of all arms (default: %(default)s)")
    parser.add_argument(
        "--boson_python",
        type=Path,
        help="an interpreter with boson-multimodal, instead of a new venv",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "all.json")
    args = parser.parse_args(argv)
    header = machine()
    report: dict[str, Any] = {**header, "rounds": args.rounds, "comparisons": [], "parts": {}}
    for part, ids in PARTS.items():
        chosen = [name for name in ids if name in args.ids]
        if not chosen:
            continue
        if find_spec(f"benchmarks.{part}") is None:
            print(
                f"benchmarks/{part}.py is not there: {', '.join(chosen)} left out", file=sys.stderr
            )
            continue
        started_s = time.monotonic()
        measured = run_part(part, chosen, num_rounds=args.rounds, boson_python=args.boson_python)
        report["comparisons"] += measured.pop("comparisons")
        report["parts"][part] = {**measured, "took_s": round(time.monotonic() - started_s)}
        write_json(args.output, report)  # what was measured is not lost with a later part
    print(line_of(header))
    took = ", ".join(f"{part} {done['took_s']} s" for part, done in report["parts"].items())
    print(f"{args.rounds} rounds; took {took}")
    print(f"\n{table(report['comparisons'])}\n")
    return 0


def run_part(
    part: str, ids: Sequence[str], *, num_rounds: int, boson_python: Path | None
) -> dict[str, Any]:
    """Its report, with the records of `measure.compare` in `comparisons`, those of `ids`."""
    options: dict[str, Any] = {
        "prepare": {"ids": ids},
        "collate": {"ids": ids, "boson_python": boson_python},
    }
    # Imported when its turn comes: see PARTS.
    run = import_module(f"benchmarks.{part}").run
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), num_rounds=num_rounds, **options.get(part, {}))
    # The other parts cannot leave out comparisons; they are left out here.
    records = [record for record in report["comparisons"] if record["id"] in ids]
    return {**report, "comparisons": records}


if __name__ == "__main__":
    sys.exit(main())
