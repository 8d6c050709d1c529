"""The body of a request -> what is asked, or in one line why it is not spoken.

Fields are OpenAI's, and a few of ours that its clients send as `extra_body`. What is unknown is
refused: a setting that is spelt wrongly would be ignored for ever."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plugins.commands.serving.formats import FORMATS
from plugins.commands.serving.voices import DEFAULT
from plugins.errors import UserError, did_you_mean, problem
from plugins.files.lines import NoJson, parse_json
from plugins.speaking.sampling import Sampling

_STREAMS = ("audio", "sse")
_MAX_WORDS_CHARS = 1000  # of a scene or a transcript
_NUMBERS: dict[str, Callable[[str], float]] = {
    "seed": int,
    "top_k": int,
    "temperature": float,
    "top_p": float,
    "speed": float,
}
_TEXTS = (
    "model",
    "input",
    "voice",
    "instructions",
    "response_format",
    "stream_format",
    "reference_text",
)
# The model's own: a text cannot make one (`plugins.data.prompt`), but who writes one wants to.
_SPECIAL = re.compile(r"<\|[^|<>\s]{1,60}\|>")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Asked:
    text: str
    model: str | None  # None: the base
    voice: str
    scene: str | None
    format: str  # of `FORMATS`
    stream: str | None  # "audio", "sse"; None: the whole at once
    sampling: Sampling  # with a seed
    transcript: str | None = None  # of an uploaded reference


def fields_of_json(body: bytes) -> dict[str, Any]:
    """Raises UserError for what is no JSON object."""
    try:
        fields = parse_json(body.decode())
    except UnicodeDecodeError:
        raise _refused("body", None, "is not UTF-8", "send JSON in UTF-8") from None
    except NoJson as error:
        raise _refused("body", None, error.reason, "send one JSON object") from None
    if not isinstance(fields, dict):
        raise _refused("body", type(fields).__name__, "is no JSON object", "send one")
    return fields


def fields_of_form(form: Mapping[str, str]) -> dict[str, Any]:
    """The same fields from a form, where all values are texts."""
    fields: dict[str, Any] = dict(form)
    for name, number in _NUMBERS.items():
        if name in fields:
            try:
                fields[name] = number(fields[name])
            except ValueError:
                raise _refused(name, fields[name], "is no number", "give a number") from None
    return fields


def asked_of(fields: Mapping[str, Any], *, max_chars: int) -> Asked:
    """Raises UserError for what is missing, unknown, of a wrong kind, or too long."""
    known = (*_TEXTS, *_NUMBERS)
    for name in fields:
        if name not in known:
            remedy = did_you_mean(name, known)
            raise _refused(name[:100], None, "is no field of a speech request", remedy)
    # null is what clients send for a field that they leave out.
    given = {name: value for name, value in fields.items() if value is not None}
    voice = given.get("voice")
    if isinstance(voice, dict) and set(voice) == {"id"}:  # OpenAI's way to name an own voice
        given["voice"] = voice["id"]
    texts = {name: _text(name, given[name]) for name in _TEXTS if name in given}
    text = texts.get("input")
    if text is None or not text.strip():
        raise _refused("input", text, "is missing", "give the text to speak")
    _require_length("input", text, max_chars)
    for name in ("instructions", "reference_text"):
        _require_length(name, texts.get(name, ""), _MAX_WORDS_CHARS)
    _check_speed(given.get("speed", 1))
    name = _one_of("response_format", texts.get("response_format", "mp3"), FORMATS)
    stream = texts.get("stream_format")
    if stream is not None:
        _one_of("stream_format", stream, _STREAMS)
    elif name == "pcm":
        stream = "audio"  # it has no header that would have to know its length
    return Asked(
        text=text,
        model=texts.get("model"),
        voice=texts.get("voice", DEFAULT),
        scene=texts.get("instructions", "").strip() or None,
        format=name,
        stream=stream,
        sampling=_sampling(given),
        transcript=texts.get("reference_text", "").strip() or None,
    )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _refused(name, value, "is no text", "give a text")
    if found := _SPECIAL.search(value):
        reason = "is a special token of the model"
        raise _refused(name, found[0], reason, "write it in words, or leave it out")
    if found := _CONTROL.search(value):
        raise _refused(name, found[0], "is a control character", "leave it out")
    return value


def _require_length(name: str, text: str, most: int) -> None:
    if len(text) > most:
        reason = f"is too long ({len(text)} characters, of {most} at most)"
        raise _refused(name, text[:60], reason, "send it in parts")


def _check_speed(speed: Any) -> None:
    is_number = isinstance(speed, int | float) and not isinstance(speed, bool)
    if not is_number or speed != 1:
        reason = "is not available: the model speaks as fast as its voice does"
        raise _refused("speed", speed, reason, "leave it out, or give 1")


def _one_of(name: str, value: str, known: Any) -> str:
    if value not in known:
        raise _refused(name, value, "is not available", did_you_mean(value, known))
    return value


def _sampling(given: Mapping[str, Any]) -> Sampling:
    chosen = {}
    for name in ("seed", "temperature", "top_k", "top_p"):
        if name in given:
            chosen[name] = given[name]
    # Its own, so that an answer can say which it was.
    chosen.setdefault("seed", secrets.randbelow(2**31))
    return Sampling(**chosen)


def _refused(field: str, value: object, reason: str, remedy: str) -> UserError:
    return problem(source="request", field=field, value=value, reason=reason, remedy=remedy)
