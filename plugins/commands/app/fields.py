"""What the fields of the page say -> what the generator is asked, and what it said -> a line to
read.

Knows no Gradio. Empty fields are those that nobody filled in.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from plugins.errors import problem
from plugins.hearing.takes import take_lines
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech
from plugins.speaking.voices import Voice

MAX_SEED = 2**31 - 1  # a browser's numbers are exact up to 2**53; this one can be read out


def sampling_of(
    temperature: float, top_k: int, top_p: float, seed: int | None, best_of: int = 1
) -> Sampling:
    """With a seed that can be told, drawn if none is given."""
    if seed is None:
        seed = secrets.randbelow(MAX_SEED)
    # A slider gives floats.
    return Sampling(float(temperature), int(top_k), float(top_p), seed=seed, best_of=int(best_of))


def voice_of(description: str, recording: str | None, transcript: str) -> dict[str, Any]:
    """Options of `HiggsAudioGenerator.generate`. Raises UserError for a voice that is given
    twice."""
    if description.strip() and recording:
        # The generator would take them for two speakers, SPEAKER0 and SPEAKER1.
        raise problem(
            source="request",
            field="voice in words",
            value=description.strip(),
            reason="is given beside a recording",
            remedy="give one of the two",
        )
    return {
        "voice_description": description.strip() or None,
        "reference_audio": recording,
        "reference_text": transcript.strip() or None,
    }


def lines_of(text: str) -> list[dict[str, str]]:
    """``Alice: Hello`` lines as `HiggsAudioGenerator.synthesize_multi_speaker` takes them.

    Raises UserError naming the first line without a speaker.
    """
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        # The first colon ends the name: a text may have more of them.
        speaker, colon, words = line.partition(":")
        if not colon or not speaker.strip():
            raise problem(
                source=f"line {number}",
                field="speaker",
                value=line.strip(),
                reason="is missing",
                remedy="write `Alice: Hello`",
            )
        lines.append({"speaker": speaker.strip(), "text": words.strip()})
    return lines


def voices_of(rows: Sequence[tuple[str, str | None, str]]) -> dict[str, Voice] | None:
    """Rows of (name, recording, transcript) -> the voice of each name; None if there is no
    recording at all.

    Raises UserError for a recording without a name, a name without a recording, and a name that is
    there twice."""
    voices: dict[str, Voice] = {}
    for number, (name, recording, transcript) in enumerate(rows, start=1):
        name, place = name.strip(), f"voice {number}"
        if recording and not name:
            raise problem(
                source=place,
                field="name",
                value=name,
                reason="is empty",
                remedy="write the name that the lines use",
            )
        if transcript.strip() and not recording:
            raise problem(
                source=place,
                field="recording",
                value=recording,
                reason="is missing",
                remedy="add the recording of this transcript",
            )
        if name in voices:
            raise problem(
                source=place,
                field="name",
                value=name,
                reason="is there twice",
                remedy="give each speaker one voice",
            )
        if recording:
            voices[name] = Voice(recording, transcript.strip() or None)
    return voices or None


def require_uploads(recordings: Iterable[str | None]) -> None:
    """Raise UserError for a recording that was deleted since it was uploaded."""
    for recording in recordings:
        if recording and not Path(recording).is_file():
            raise problem(
                source="request",
                field="recording",
                value=Path(recording).name,
                reason="is not there any more",
                remedy="upload it again",
            )


def line_of(speech: Speech, seed: int | None) -> str:
    """A line of Markdown under the player, and one for each take."""
    end = "stopped by itself"
    if speech.truncated:
        end = "**truncated**: cut at the limit, it did not stop by itself"
    factor = f"real-time factor {speech.real_time_factor:.2f}"
    line = f"{speech.duration_s:.2f} s · {factor} · seed {seed} · {end}"
    # Not what was heard: Markdown would take its marks for its own.
    marked = [take.replace(" *", " **kept**") for take in take_lines(speech.takes)]
    return "\n\n".join([line, *marked])
