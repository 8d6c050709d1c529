"""`python -m benchmarks.serve --model DIR`: the server under load, beside the same requests one by
one.

Starts `higgs-audio serve` and asks it, over HTTP, as its clients do:

alone        the requests one after the other: seconds of speech per second, first byte of a stream
streams      the first byte of a stream while three other clients are served
load         `--clients` at a time for `--seconds`: errors, waits, seconds of speech per second
memory       of the server's process, before and after `--requests` requests

It asserts nothing: it prints what was measured, beside what is promised, and writes JSON."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.measure import ROOT, line_of, machine, write_json

TEXTS = (
    "The harbour lights went out one by one.",
    "Hello.",
    "She had left the letter on the kitchen table, and nobody had read it since.",
    "It will rain tomorrow.",
    "Please turn off the lights when you leave the house, and close the windows upstairs.",
    "Who is there?",
)
_SAMPLE_BYTES_PER_S = 2 * 24_000


@dataclass
class Spoken:
    """Of some requests."""

    waits_s: list[float] = field(default_factory=list)
    firsts_s: list[float] = field(default_factory=list)  # first bytes
    speeches_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Server:
    """`higgs-audio serve` in a process of its own."""

    def __init__(self, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", "plugins", "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("the server did not start: see its error above")
        self.url = line.split()[0]

    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


def ask(client: httpx.Client, url: str, number: int, spoken: Spoken) -> None:
    """Request `number`, always the same one; what came of it goes into `spoken`."""
    body = {"input": TEXTS[number % len(TEXTS)], "seed": number, "response_format": "pcm"}
    started_s = time.perf_counter()
    num_bytes, first_s = 0, None
    try:
        with client.stream("POST", f"{url}/audio/speech", json=body) as answer:
            answer.raise_for_status()
            for piece in answer.iter_bytes():
                if first_s is None:
                    first_s = time.perf_counter() - started_s
                num_bytes += len(piece)
    except httpx.HTTPError as error:
        spoken.errors.append(f"{type(error).__name__}: {error}")
        return
    spoken.waits_s.append(time.perf_counter() - started_s)
    spoken.firsts_s.append(first_s or 0.0)
    spoken.speeches_s.append(num_bytes / _SAMPLE_BYTES_PER_S)


def together(url: str, num_clients: int, goes_on: Callable[[int], bool]) -> Spoken:
    """goes_on: whether request number n is still to be sent."""
    spoken, lock, numbers = Spoken(), threading.Lock(), iter(range(10**9))

    def work() -> None:
        with httpx.Client(timeout=600) as client:
            while True:
                with lock:
                    number = next(numbers)
                if not goes_on(number):
                    return
                ask(client, url, number, spoken)

    threads = [threading.Thread(target=work) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return spoken


def measured(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    url = server.url
    # What is made at the first request, and the memory of a full batch.
    together(url, options.clients, lambda number: number < 2 * options.clients)
    before_mb = server.memory_mb()

    started_s = time.perf_counter()
    alone = together(url, 1, lambda number: number < 2 * len(TEXTS))
    alone_rate = sum(alone.speeches_s) / (time.perf_counter() - started_s)
    print(f"alone: {alone_rate:.2f} s of speech per second", file=sys.stderr)

    four = together(url, 4, lambda number: number < 8 * len(TEXTS))

    started_s = time.perf_counter()
    end_s = started_s + options.seconds
    load = together(url, options.clients, lambda _: time.perf_counter() < end_s)
    load_rate = sum(load.speeches_s) / (time.perf_counter() - started_s)
    print(f"load: {load_rate:.2f} s of speech per second", file=sys.stderr)

    for part in (alone, four, load):
        if not part.waits_s:  # nothing that could be measured
            sys.exit(f"no request was answered: {part.errors[0]}")
    num_done = sum(len(spoken.waits_s) for spoken in (alone, four, load))
    rest = together(url, options.clients, lambda number: number < options.requests - num_done)
    after_mb = server.memory_mb()
    errors = [*alone.errors, *four.errors, *load.errors, *rest.errors]
    return {
        "alone_speech_per_s": alone_rate,
        "load_speech_per_s": load_rate,
        "ratio": load_rate / alone_rate,
        "load_requests": len(load.waits_s),
        "wait_median_s": median(load.waits_s),
        "wait_longest_s": max(load.waits_s),
        "first_byte_alone_s": median(alone.firsts_s),
        "first_byte_of_four_s": median(four.firsts_s),
        "memory_before_mb": before_mb,
        "memory_after_mb": after_mb,
        "errors": errors,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve",
        description="The server under load. Further flags go to `higgs-audio serve`.",
    )
    parser.add_argument("--clients", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=500, help="(default: %(default)s)")
    output = ROOT / "benchmarks" / "results" / "serve.json"
    parser.add_argument("--output", type=Path, default=output, help="(default: %(default)s)")
    options, others = parser.parse_known_args(argv)
    os.environ.pop("HIGGS_AUDIO_TOKEN", None)
    header = machine()
    server = Server(others)
    try:
        report = measured(server, options)
    finally:
        server.end()
    write_json(options.output, {**header, "options": others, **report})
    print(line_of(header))
    ratio = report["wait_longest_s"] / report["wait_median_s"]
    first = report["first_byte_of_four_s"] / report["first_byte_alone_s"]
    grown = report["memory_after_mb"] - report["memory_before_mb"]
    print(f"errors                        {len(report['errors'])} (0)")
    print(f"speech per second, to alone   {report['ratio']:.2f} (at least 2)")
    print(f"longest wait, to the median   {ratio:.2f} (below 3)")
    print(f"first byte of four, to alone  {first:.2f} (below 2)")
    print(f"memory, grown by              {grown:.0f} MB (flat)")
    for error in report["errors"][:3]:
        print(json.dumps(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
