"""A canonical row -> Dialogue: what it says in the model's own terms.

In: a row as `plugins.corpora.canonical` leaves it:

    {"messages": [{"role": "system", "loss": True,
                   "content": "<|scene_desc_start|> Indoor quiet <|scene_desc_end|>"},
                  {"role": "user", "content": "Please speak: Hello world", "loss": True},
                  {"role": "assistant", "content": "", "loss": True}],
     "audios": ["/data/target.wav"], "reference_audio": ["/data/voice.wav"], ...}

Out: turns, references, instruction and scene, normalised to what the original's example writes,
unless the prompt is raw. It knows neither tokens nor MS-SWIFT, and opens no recording.

With `clean_text`, texts to speak (all user turns) are written as the original's example writes
them. What that takes as it stands, transcripts of references and the scene, is brought to one
Unicode form only, and so are the texts of assistant turns, which nobody speaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from plugins.corpora.canonical import (
    AUDIO_TAG,
    KEY_COLUMNS,
    ROW_SOURCE,
    RowError,
    require_other_recordings,
    without_old_prefix,
)
from plugins.data.codes import clips_of
from plugins.data.dialogue import AudioClip, Dialogue, Reference, Turn
from plugins.data.scene import read_system
from plugins.data.text import clean_transcript, unified
from plugins.errors import problem
from plugins.settings import HiggsAudioSettings


def dialogue_from_row(
    row: Mapping[str, Any], settings: HiggsAudioSettings, *, training: bool = True
) -> Dialogue:
    """A canonical row in the model's terms. Clips keep their path, and codes where the row brings
    them.

    training: assistant turns that the row does not mark with `"loss": false` are targets, and there
    must be one; without it, a row may be a text whose clip there is not yet. Raises UserError for
    empty text, clips that do not match the assistant turns, codes of the wrong shape."""
    source = row[ROW_SOURCE]
    raw = row["raw_prompt"] or settings.raw_prompt
    clean = settings.clean_text and not raw
    system, messages = _split_system(row["messages"])
    if clean and system is not None:
        system = unified(system)
    references = _references(row, source, clean=clean)
    # In the order of the assistant turns, which take them one by one.
    targets = clips_of(row, "audios", "audio_codes", source)
    # Faults are told by the number that the message has in the row.
    first_index = len(row["messages"]) - len(messages)
    if not training and _is_unanswered(row):
        messages = messages[:-1]
    turns = tuple(
        _turns(messages, iter(targets), source, raw=raw, clean=clean, first_index=first_index)
    )
    _require_all_used(targets, turns, source)
    if training and not any(turn.trained for turn in turns):
        roles = [message["role"] for message in messages]
        raise problem(
            source=source,
            field="messages",
            value=roles,
            reason="has no turn to train on",
            remedy="add an assistant turn",
        )
    # Here and not in the canonical row: who asks for speech may have taken the answer away first.
    try:
        require_other_recordings(row["reference_audio"], row["audios"])
    except RowError as error:
        raise error.at(source) from None
    if not raw:
        instruction, scene = read_system(system, turns, references, source)
        return Dialogue(turns, references, instruction, scene, source)
    # A voice without transcript is heard in the system message, and a raw prompt gets none of ours.
    if system is None and any(reference.text is None for reference in references):
        raise problem(
            source=source,
            field="reference_audio",
            value=row["reference_audio"],
            reason="has no place in a raw prompt without system message",
            remedy="add reference_text or a system message",
        )
    return Dialogue(turns, references, system, None, source)


def _is_unanswered(row: Mapping[str, Any]) -> bool:
    """A text alone (``{"text": ...}``) is read with an empty turn behind it, for a clip that there
    is not."""
    clips = row["audios"] or row["audio_codes"] or row.get(KEY_COLUMNS["audio_codes"])
    last = row["messages"][-1]
    return not clips and last["role"] == "assistant" and not last["content"].strip()


def text_to_say(text: str, *, raw: bool, clean: bool) -> str:
    """The text of a user turn as the model is shown it: the one place for training and for all that
    speak."""
    if raw:
        return text
    if not clean:
        return without_old_prefix(text).strip()
    # First one form: an invisible character before the prefix would hide it.
    return clean_transcript(without_old_prefix(unified(text)))


def _split_system(
    messages: list[dict[str, Any]],
) -> tuple[str | None, list[dict[str, Any]]]:
    """The text of the system message, if there is one, and the other messages."""
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages


def _turns(
    messages: list[dict[str, Any]],
    clips: Iterator[AudioClip],
    source: str,
    *,
    raw: bool,
    clean: bool,
    first_index: int,
) -> Iterator[Turn]:
    """Assistant turns take clips in order: one if their content is empty, else one per <audio>
    tag."""
    for i, message in enumerate(messages, start=first_index):
        content: str = message["content"]
        if message["role"] == "assistant":
            parts = _spoken_parts(content, clips, source, f"messages[{i}]", clean=clean)
            yield Turn("assistant", tuple(parts), trained=message["loss"])
            continue
        text = text_to_say(content, raw=raw, clean=clean)
        if not text.strip():
            raise problem(
                source=source,
                field=f"messages[{i}].content",
                value=content,
                reason="is empty",
                remedy="give the text to speak",
            )
        yield Turn("user", (text,))


def _spoken_parts(
    content: str, clips: Iterator[AudioClip], source: str, message: str, *, clean: bool
) -> Iterator[str | AudioClip]:
    """The texts of an assistant turn and, between each two, the next of `clips`."""
    # Nothing written stands for one clip.
    texts = (content if content.strip() else AUDIO_TAG).split(AUDIO_TAG)
    for i, text in enumerate(texts):
        if i > 0:
            clip = next(clips, None)
            if clip is None:
                raise problem(
                    source=source,
                    field="audios",
                    value=None,
                    reason=f"has no clip for {message}",
                    remedy="give one clip per turn",
                )
            yield clip
        if clean:
            text = unified(text)
        if text:
            yield text


def _require_all_used(targets: list[AudioClip], turns: tuple[Turn, ...], source: str) -> None:
    num_used = sum(len(list(turn.clips())) for turn in turns)
    if num_used != len(targets):
        raise problem(
            source=source,
            field="audios",
            value=[clip.path for clip in targets],
            reason=f"are {len(targets)} clips for {num_used} assistant turn(s) that take one",
            remedy=f'give each clip an assistant turn with empty content, or one "{AUDIO_TAG}" tag',
        )


def _references(row: Mapping[str, Any], source: str, *, clean: bool) -> tuple[Reference, ...]:
    clips = clips_of(row, "reference_audio", "reference_codes", source)
    texts = list(row["reference_text"])
    assert len(texts) <= len(clips), f"{source}: {len(texts)} texts, {len(clips)} clips"
    texts += [""] * (len(clips) - len(texts))
    references = []
    for clip, text in zip(clips, texts, strict=True):
        if clean:
            text = unified(text)  # not cleaned: nobody speaks it
        references.append(Reference(clip, text.strip() or None))
    return tuple(references)
