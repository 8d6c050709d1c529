"""The report of a preparation and its rejections -> why the recordings will not do, or None.

In: what `higgs-audio prepare` has written. Out: a `UserError`, one reason with one remedy. Listens
to nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from plugins.errors import UserError, problem
from plugins.prepare.slicing.judging import NOT_UNDERSTOOD

# The report of a preparation that has left no clip, and so none.
NOTHING_FIT: Mapping[str, Any] = {"speakers": {}, "accepted": {"clips": 0, "hours": 0.0}}
_ONE_VOICE = 0.95  # share of the speech; the others may be mistakes of the diarisation
_MOST = 0.5  # of all clips
_WRONG_WORDS = ("transcript: ", *NOT_UNDERSTOOD)
_NOISE = ("SNR below", "clipped", "DC offset")


def too_short(recorded_minutes: float, fewest_minutes: float) -> UserError | None:
    """Before anything is heard: there cannot be more speech than sound."""
    if recorded_minutes >= fewest_minutes:
        return None
    if not recorded_minutes:
        return _unfit("folder", None, "holds no recording that can be read", "check RECORDINGS")
    return _unfit(
        "minutes",
        round(recorded_minutes, 1),
        f"are fewer than the {fewest_minutes:g} of speech that a voice needs",
        "record more",
    )


def unfit(
    report: Mapping[str, Any],
    kinds: Mapping[str, int],
    *,
    fewest_minutes: float,
    language: str,
    see: str,
) -> UserError | None:
    """report: of the accepted clips, ``report.json``. kinds: reason -> rejected clips. see: the
    page or list on which a user hears them."""
    if others := _other_voices(report["speakers"]):
        return others
    accepted = report["accepted"]
    rejected = Counter(dict(kinds))
    num_wrong = _count(rejected, _WRONG_WORDS)
    if num_wrong > _MOST * (accepted["clips"] + rejected.total()):
        return _unfit(
            "clips",
            num_wrong,
            f"of {accepted['clips'] + rejected.total()} are not understood as {language}:"
            " another language, or nothing that a recogniser can follow",
            f"give --language and --asr, or clearer recordings; listen: {see}",
        )
    minutes = 60 * accepted["hours"]
    if minutes >= fewest_minutes:
        return None
    reason = f"of speech are fit, fewer than the {fewest_minutes:g} that a voice needs"
    remedy = "record more"
    if rejected.total():
        shown = ", ".join(f"{count} {kind}" for kind, count in rejected.most_common(3))
        reason += f" (rejected clips: {shown})"
        remedy = f"record more; listen to the rejected: {see}"
    if _count(rejected, _NOISE) > _MOST * rejected.total():
        remedy = f"record in a quiet room, without music; listen to the rejected: {see}"
    return _unfit("minutes", round(minutes, 1), reason, remedy)


def _other_voices(speakers: Mapping[str, Mapping[str, Any]]) -> UserError | None:
    hours = sorted((totals["hours"] for totals in speakers.values()), reverse=True)
    total = sum(hours)
    if not total or hours[0] >= _ONE_VOICE * total:
        return None
    shares = ", ".join(f"{100 * part / total:.0f} %" for part in hours[:5])
    return _unfit(
        "voices",
        len(hours),
        f"speak ({shares} of the speech), and one is learned at a time",
        "leave the recordings of others out, or say that it is one with --one_voice",
    )


def _count(kinds: Mapping[str, int], beginnings: tuple[str, ...]) -> int:
    return sum(count for kind, count in kinds.items() if kind.startswith(beginnings))


def _unfit(field: str, value: object, reason: str, remedy: str) -> UserError:
    return problem(source="recordings", field=field, value=value, reason=reason, remedy=remedy)
