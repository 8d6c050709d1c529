"""Takes of a text, heard -> the one to learn from, and one to learn against; as rows.

    takes --best_first, verdict--> Verdict --best_row, pair_row--> rows for `sft` and for DPO

The best take is one to learn from if it was said to its end in nearly the right words, and in about
the time of the others: else a pause or babble would be learnt with the words. To learn against is
the worst of those that are clearly worse: in their words, or by their voice, and better in neither
(as Koel-TTS pairs takes, arXiv 2502.05236). A take that was cut is none of them: its end is no end,
and a model that is taught to find it unlikely is taught not to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from plugins.corpora.canonical import KEY_COLUMNS, SPEAKER
from plugins.evaluation.items import Item
from plugins.hearing.takes import Take, best_first, odd_lengths

# Of the cosine of two voices: takes of one text differ by less, seeds by as much as the first.
_AS_LIKE, _LESS_LIKE = 0.02, 0.05


@dataclass(frozen=True)
class Verdict:
    """Numbers of takes; None: there is none, and `reason` says why."""

    best: int | None = None
    rejected: int | None = None
    reason: str | None = None


def verdict(takes: Sequence[Take], *, max_wer: float, margin: float) -> Verdict:
    """max_wer: of a take that is learnt from. margin: by how much the WER of one that is learnt
    against must be above it."""
    order = best_first(takes)
    first = takes[order[0]]
    if not first.duration_s:
        return Verdict(reason="no take says anything")
    if not first.stopped:
        return Verdict(reason="no take stopped by itself")
    right = [n for n in order if takes[n].stopped and (takes[n].wer or 0.0) <= max_wer]
    if not right:
        return Verdict(reason=f"no take has a WER of {100 * max_wer:g} % or less")
    is_odd = odd_lengths(takes)
    fit = [number for number in right if not is_odd[number]]
    if not fit:
        return Verdict(reason="takes in the right words are much longer or shorter than the others")
    best = fit[0]
    for number in reversed(order):
        if _is_worse(takes[number], takes[best], margin):
            return Verdict(best, number)
    return Verdict(best, reason="no take is clearly worse than the best")


def _is_worse(take: Take, best: Take, margin: float) -> bool:
    if not take.stopped:
        return False
    # Words are counted: 3 of 20 less 2 of 20 are 0.05, whatever floats say.
    more_errors = round((take.wer or 0.0) - (best.wer or 0.0), 9)
    less_like = 0.0
    if take.similarity is not None and best.similarity is not None:
        less_like = best.similarity - take.similarity
    if more_errors < 0 or less_like < -_AS_LIKE:
        return False
    return (more_errors >= margin and more_errors > 0) or less_like >= _LESS_LIKE


def best_row(item: Item, take: Tensor, earlier: Sequence[Tensor] = ()) -> dict[str, Any]:
    """The row of `item` with `take`, codes (K, F), as its answer. earlier: codes of the clips in
    the turns before it, which are not trained."""
    written = item.row
    row: dict[str, Any] = {"id": item.id, "messages": _messages(written["messages"])}
    row["audio_codes"] = _inline([*earlier, take])
    for column in ("reference_audio", "reference_text", "reference_codes"):
        # Codes of a cache have a column of their own in canonical rows.
        value = written.get(KEY_COLUMNS.get(column, column)) or written.get(column)
        if value:
            row[column] = value
    if written.get("raw_prompt"):
        row["raw_prompt"] = True
    if item.speaker is not None:
        row[SPEAKER] = item.speaker
    return row


def pair_row(
    item: Item, take: Tensor, rejected: Tensor, earlier: Sequence[Tensor] = ()
) -> dict[str, Any]:
    """As `best_row`, with the other answer to the same prompt beside it."""
    row = best_row(item, take, earlier)
    return row | {
        "rejected_messages": row["messages"],
        "rejected_audio_codes": _inline([*earlier, rejected]),
    }


def _messages(written: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    prompt = list(written)
    if prompt[-1]["role"] == "assistant":
        prompt.pop()  # the recording of the text, or the place for it
    messages: list[dict[str, Any]] = []
    for message in prompt:
        messages.append({"role": message["role"], "content": message["content"]})
        if message["role"] == "assistant":
            messages[-1]["loss"] = False
    return [*messages, {"role": "assistant", "content": ""}]


def _inline(clips: Sequence[Tensor]) -> list[list[list[int]]]:
    """Codes (K, F) each, as rows have them: [F][K]."""
    return [codes.T.tolist() for codes in clips]
