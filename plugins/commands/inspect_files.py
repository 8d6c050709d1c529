"""`higgs-audio inspect`: whether audio files say that they are synthetic, and who made them.

Exit codes: 0 each says so, 1 one does not, or cannot be read."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import soundfile as sf

from plugins.audio.marks import mark_in


def run(options: Namespace) -> int:
    """The subcommand: its exit code."""
    are_marked = True
    for file in options.files:
        are_marked &= _inspect(file)
    return 0 if are_marked else 1


def _inspect(file: Path) -> bool:
    mark = mark_in(file)
    info = sf.info(str(file))
    about = f"{file}: {info.format} {info.subtype}, {info.samplerate} Hz, {info.duration:.2f} s"
    if mark is None:
        print(f"{about}: no mark (it may be synthetic all the same)")
        return False
    # A stranger's words: whatever a terminal would obey is shown, not sent.
    adapter = "" if mark.adapter is None else f", adapter {mark.adapter!r}"
    maker = f"{mark.software!r}, model {mark.model!r}{adapter}, {mark.date!r}"
    print(f"{about}: synthetic, by {maker}")
    return True
