"""What happened, in the words that Prometheus reads (text format 0.0.4)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PREFIX = "higgs_audio"


class Histogram:
    """Of seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum_s = 0.0

    def add(self, value_s: float) -> None:
        place = sum(value_s > edge for edge in _SECONDS)
        self._counts[place] += 1
        self._sum_s += value_s

    def lines(self, name: str) -> list[str]:
        lines, total = [], 0
        for edge, count in zip((*map(str, _SECONDS), "+Inf"), self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{edge}"}} {total}')
        return [*lines, f"{name}_sum {self._sum_s:.6f}", f"{name}_count {total}"]


class Metrics:
    """Of the speech requests of one server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()  # by status; "gone": the client left
        self._audio_s = 0.0
        self._first, self._whole = Histogram(), Histogram()

    def count(self, status: int | str) -> None:
        with self._lock:
            self._requests[str(status)] += 1

    def first_audio(self, waited_s: float) -> None:
        with self._lock:
            self._first.add(waited_s)

    def spoken(self, audio_s: float, took_s: float) -> None:
        with self._lock:
            self._audio_s += audio_s
            self._whole.add(took_s)

    def text(self, gauges: Mapping[str, float]) -> str:
        """gauges: what is so now, by name; names that end in "total" only grow."""
        with self._lock:
            lines = [f"# TYPE {_PREFIX}_requests_total counter"]
            for status, number in sorted(self._requests.items()):
                lines.append(f'{_PREFIX}_requests_total{{status="{status}"}} {number}')
            lines.append(f"# TYPE {_PREFIX}_audio_seconds_total counter")
            lines.append(f"{_PREFIX}_audio_seconds_total {self._audio_s:.3f}")
            for name, histogram in (
                ("first_audio_seconds", self._first),
                ("request_seconds", self._whole),
            ):
                lines.append(f"# TYPE {_PREFIX}_{name} histogram")
                lines += histogram.lines(f"{_PREFIX}_{name}")
        for name, value in gauges.items():
            kind = "counter" if name.endswith("total") else "gauge"
            lines.append(f"# TYPE {_PREFIX}_{name} {kind}")
            lines.append(f"{_PREFIX}_{name} {value:g}")
        return "\n".join(lines) + "\n"
