"""A row with a rejected answer beside the chosen one -> two canonical rows that differ in it.

    {"messages", "audios" or "audio_codes", ...                the chosen answer, a row as any other
     "rejected_audios" or "rejected_audio_codes"}              the clips of the rejected one
     "rejected_messages"                                       or as contents that name them

Both answer the same prompt. In a table the rejected clips, and where they were read, stand in the
columns of `IN_TABLE`, which MS-SWIFT takes for those of a row whose other columns are the chosen
one's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugins.corpora.canonical import AUDIO_TAG, KEY_COLUMNS, ROW_SOURCE, canonical_row
from plugins.corpora.shapes import RowError, in_our_shape
from plugins.settings import HiggsAudioSettings

# Column of the clips of an answer -> that of the rejected answer's.
REJECTED = {
    name: f"rejected_{name}" for name in ("audios", "audio_codes", KEY_COLUMNS["audio_codes"])
}
# Of a table: what of a rejected answer is not the chosen one's.
IN_TABLE = {**REJECTED, ROW_SOURCE: f"rejected_{ROW_SOURCE}"}
_MESSAGES = "rejected_messages"


def canonical_pair(
    row: Mapping[str, Any], source: str, settings: HiggsAudioSettings, *, beside: Path | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The canonical rows of the chosen and of the rejected answer, the latter at `source
    (rejected)`.

    Raises UserError as `canonical_row`, and for answers that cannot be compared."""
    chosen = canonical_row(row, source, settings, beside=beside)
    place = f"{source} (rejected)"
    try:
        answer = {**chosen, **_answer(row)}
        if answer["messages"] is None:
            answer["messages"] = chosen["messages"]
        rejected = canonical_row(answer, place, settings, beside=beside)
        _check(chosen, rejected)
    except RowError as error:
        raise error.at(place) from None
    # Equal but for tags, and which turns are trained.
    return chosen, {**rejected, "messages": chosen["messages"]}


def with_rejected(chosen: dict[str, Any], rejected: Mapping[str, Any]) -> dict[str, Any]:
    """Both of `canonical_pair` as one row of a table."""
    return {**chosen, **{column: rejected[name] for name, column in IN_TABLE.items()}}


def answers_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The canonical rows of the answers of a row of a table, the chosen one first: of a pair two,
    else one."""
    chosen = dict(row)
    if not row.keys() >= set(IN_TABLE.values()):
        return [chosen]
    own = {name: chosen.pop(column) for name, column in IN_TABLE.items()}
    return [chosen, {**chosen, **own}]


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """Messages, None if they are the chosen ones, and clips of the rejected answer."""
    answer: dict[str, Any] = {name: row.get(column) for name, column in REJECTED.items()}
    answer["messages"] = row.get(_MESSAGES)
    if not any(answer.values()):
        raise RowError(
            field=REJECTED["audios"],
            value=None,
            reason="is missing: a preference compares two answers",
            remedy=f"give it, or {REJECTED['audio_codes']}, beside the chosen clips",
        )
    if answer["messages"] is not None:
        answer["messages"] = in_our_shape({"messages": answer["messages"]})["messages"]
    return answer


def _check(chosen: Mapping[str, Any], rejected: Mapping[str, Any]) -> None:
    """Raise RowError if prompts differ, or clips do not."""
    if _prompt(chosen) != _prompt(rejected):
        raise RowError(
            field=_MESSAGES,
            value=[message["content"] for message in rejected["messages"]],
            reason="differ from messages in more than their clips",
            remedy="give both answers to one prompt",
        )
    # A recording and its codes are the same clip, however one of two rows names it.
    for name, clips in _clips(rejected).items():
        if clips and clips == _clips(chosen)[name]:
            reason, remedy = "are the chosen clips themselves", "leave the row out"
            raise RowError(field=REJECTED[name], value=None, reason=reason, remedy=remedy)


def _prompt(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is said, by whom; which turns are trained the chosen answer says for both."""
    turns = []
    for message in row["messages"]:
        content = message["content"]
        if message["role"] == "assistant" and not content.strip():
            content = AUDIO_TAG  # an empty turn is one clip
        turns.append((message["role"], content))
    return turns


def _clips(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    """As recordings, and as codes, of which people know one column."""
    codes = row["audio_codes"] or row[KEY_COLUMNS["audio_codes"]]
    return {"audios": list(map(os.path.realpath, row["audios"])), "audio_codes": codes}
