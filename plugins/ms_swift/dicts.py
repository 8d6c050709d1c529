"""What MS-SWIFT carries between its hooks <-> rows and samples.

In: `StdTemplateInputs`, in which it hands over a row, and the dict that a dataset brings back. Out:
a row as `plugins.data.rows` reads it, an `EncodedSample`. It knows neither prompts nor audio."""

from __future__ import annotations

from typing import Any

from swift.template.template_inputs import StdTemplateInputs

from plugins.corpora.canonical import ROW_SOURCE
from plugins.data.dialogue import EncodedSample


def row_of(inputs: StdTemplateInputs) -> dict[str, Any]:
    """The row that MS-SWIFT has taken apart."""
    messages = list(inputs.messages)
    if inputs.system is not None:
        messages.insert(0, {"role": "system", "content": inputs.system})
    return {"messages": messages, "audios": inputs.audios, **inputs.extra_kwargs}


def dict_of(sample: EncodedSample, *, has_tower: bool) -> dict[str, Any]:
    """What `_encode` returns. No key may end in "length": MS-SWIFT would take it for one."""
    encoded = {
        "input_ids": sample.input_ids,
        "labels": sample.labels,
        "clips": sample.clips,
        "clips_trained": sample.clips_trained,
        ROW_SOURCE: sample.source,
    }
    if has_tower:
        encoded["heard"] = sample.heard
    return encoded


def encoded_answers(encoded: dict[str, Any]) -> list[dict[str, Any]]:
    """What `_encode` returned for each answer of an encoded row: two of a pair, whose names
    MS-SWIFT has put a word in front of; else one."""
    if "input_ids" in encoded:
        return [encoded]
    answers = []
    for prefix in ("chosen_", "rejected_"):
        answer = {}
        for name, value in encoded.items():
            if name.startswith(prefix):
                answer[name.removeprefix(prefix)] = value
        answers.append(answer)
    return answers


def sample_of(encoded: dict[str, Any]) -> EncodedSample:
    """What `_encode` returned, after MS-SWIFT has carried it through a dataset."""
    return EncodedSample(
        encoded["input_ids"],
        encoded["labels"],
        encoded["clips"],
        encoded["clips_trained"],
        encoded.get(ROW_SOURCE, "row"),
        encoded.get("heard") or [],
    )
