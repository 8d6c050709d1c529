"""A chat request to `swift deploy` -> a row; what was said -> a data URL.

A chat request is the row

    {"messages": [{"role": "system", "content": SCENE}, {"role": "user", "content": TEXT}]}

with a voice as `audio` or `audio_url` item of the user's content list, and the transcript of the
voice, where there is one, as `chat_template_kwargs: {"reference_text": ...}`: the one field of
MS-SWIFT's requests that is free. Nothing here reads a file or a URL that a client names."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from swift.template.template_inputs import StdTemplateInputs

from plugins.corpora.canonical import AUDIO_TAG
from plugins.data.tokens import SCENE_END, SCENE_START
from plugins.data.wording import INSTRUCTION, MULTI_SPEAKER_INSTRUCTION
from plugins.errors import UserError, did_you_mean, problem
from plugins.files.temporary import temporary_folder
from plugins.speaking.speech import Speech
from plugins.speaking.voices import require_short

_OPTIONS = ("reference_text",)


@contextmanager
def uploads_of_request() -> Iterator[Path]:
    """A folder for what a request brings as audio. Errors inside lose its name: a client knows its
    recordings by their number, and the server's folders are nobody's business."""
    with temporary_folder("request") as folder:
        try:
            yield folder
        except UserError as error:
            message = str(error).replace(f"{folder}/", "").replace(str(folder), "the request")
            raise UserError(message) from None


def chat_row(inputs: StdTemplateInputs, folder: Path) -> dict[str, Any]:
    """The row that a chat request means. What it brings as audio is written into `folder`."""
    for name in inputs.chat_template_kwargs:
        if name not in _OPTIONS:
            raise problem(
                source="request",
                field="chat_template_kwargs",
                value=name,
                reason="is unknown",
                remedy=did_you_mean(name, _OPTIONS),
            )
    _check_length(inputs)
    files = iter([_upload(value, folder / f"audio-{i}") for i, value in enumerate(inputs.audios)])
    row: dict[str, Any] = {"messages": [], "audios": [], "reference_audio": []}
    if inputs.system:
        row["messages"].append({"role": "system", "content": _scene(inputs.system)})
    for message in inputs.messages:
        content = message.get("content") or ""
        # MS-SWIFT leaves a tag where a message had audio, and the audio in one list, in order: a
        # user's is a voice to speak with, an assistant's was said before.
        if message["role"] == "user" and isinstance(content, str):
            row["reference_audio"] += islice(files, content.count(AUDIO_TAG))
            content = content.replace(AUDIO_TAG, "")
        row["messages"].append({**message, "content": content})
        if message["role"] == "assistant":
            row["audios"] += islice(files, content.count(AUDIO_TAG))
    if surplus := list(files):
        raise problem(
            source="request",
            field="audios",
            value=len(surplus),
            reason="are in no message",
            remedy="put audio into a message's content list",
        )
    return {**row, **inputs.chat_template_kwargs}


def _check_length(inputs: StdTemplateInputs) -> None:
    """Raise UserError for more text than one request may bring."""
    given = [inputs.system, *inputs.chat_template_kwargs.values()]
    given += [message.get("content") for message in inputs.messages]
    require_short([text for text in given if isinstance(text, str)])


def _scene(system: Any) -> Any:
    """A system message as a row has it: what is neither an instruction of the model's own nor
    tagged is a scene."""
    if (
        not isinstance(system, str)
        or SCENE_START in system
        or system.strip() in (INSTRUCTION, MULTI_SPEAKER_INSTRUCTION)
    ):
        return system
    return f"{SCENE_START}\n{system}\n{SCENE_END}"


def _upload(value: Any, file: Path) -> str:
    """The path of `file`, into which the bytes of a data URL or base64 text are written. Nothing
    else is read."""
    try:
        file.write_bytes(base64.b64decode(value.partition(";base64,")[2] or value, validate=True))
    except (AttributeError, ValueError):
        raise problem(
            source="request",
            field="audio",
            value=value,
            reason="is no audio in base64",
            remedy="send data:audio/wav;base64,...; URLs and paths are not read",
        ) from None
    return str(file)


def data_url(speech: Speech) -> str:
    """A WAV file in base64."""
    return f"data:audio/wav;base64,{base64.b64encode(speech.wav()).decode()}"
