"""What a user may choose about the clips that a recording is cut into, and about what is doubtful.

Where the limit of confidence comes from: of Asterisk's English prompts, joined, the tiny English
Whisper is sure to 0.78 and more; of the French, Spanish and Italian ones, which it hears as
English, to 0.3 to 0.4 in the median, and most that pass 0.6 repeat themselves."""

from __future__ import annotations

from dataclasses import dataclass

from plugins.prepare.quality import check_bounds, flag_problem, knob


@dataclass(frozen=True)
class Slicing:
    """Of a recording. All bounds are inclusive."""

    min_clip_s: float = knob(
        2.0, "shortest clip cut from a recording", "s", float, bounds=(0.5, 30)
    )
    max_clip_s: float = knob(15.0, "longest clip cut from a recording", "s", float, bounds=(4, 28))
    clip_padding_s: float = knob(
        0.2,
        "what is left before and after the speech, where the pause is twice as long",
        "s",
        float,
        bounds=(0, 1),
    )
    min_confidence: float = knob(
        0.6,
        "lowest confidence of the recogniser in a clip's words; another language than its own"
        " stays below",
        "",
        float,
        bounds=(0, 1),
    )
    min_snr_db: float = knob(
        8.0,
        "lowest ratio of speech to what sounds in its pauses, music for one",
        "dB",
        float,
        bounds=(-20, 60),
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.min_clip_s > self.max_clip_s / 2:
            reason = f"is above half of --max_clip_s ({self.max_clip_s:g})"
            remedy = "lower it: a recording cannot be cut so evenly"
            raise flag_problem("min_clip_s", self.min_clip_s, reason, remedy)
