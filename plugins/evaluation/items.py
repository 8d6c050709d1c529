"""Test rows -> items: what every system has to say, with the prompt of training, and what it is
compared with. Who says it, and how well, is not known here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plugins.corpora.canonical import ROW_SOURCE, SPEAKER, canonical_row
from plugins.data.clips import check_clips
from plugins.data.dialogue import AudioClip, Dialogue
from plugins.data.rows import dialogue_from_row, text_to_say
from plugins.data.sources import read_rows
from plugins.data.text import has_words
from plugins.errors import problem
from plugins.evaluation import formats
from plugins.files.disk import file_hash
from plugins.files.lines import text_lines
from plugins.hearing.text import words_to_say
from plugins.settings import HiggsAudioSettings

_MAX_NAME = 100  # characters of an id, which names files
_MAX_BYTES = 200  # of them: file systems take 255, with what is put around an id


@dataclass(frozen=True)
class Item:
    """One thing to say."""

    id: str  # plain enough to name a file, unique
    text: str  # the words of the row, without tags; the prompt may clean them (`clean_text`)
    dialogue: Dialogue  # ends with the turn to be answered
    truth: str | None = None  # the recording of it
    speaker: str | None = None  # as the row names the voice
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)  # canonical

    @property
    def reference(self) -> str | None:
        """The recording of the voice to clone."""
        for reference in self.dialogue.references:
            if reference.clip.path is not None:
                return reference.clip.path
        return None

    def content(self) -> list[Any]:
        """JSON of everything that the prompt holds, recordings by their bytes: equal contents,
        equal prompts."""
        dialogue = self.dialogue
        turns = [[turn.role, *map(_content, turn.parts)] for turn in dialogue.turns]
        references = [[_content(voice.clip), voice.text] for voice in dialogue.references]
        return [self.id, dialogue.instruction, dialogue.scene, references, turns]


def read_items(
    source: str, settings: HiggsAudioSettings, *, limit: int | None = None
) -> list[Item]:
    """The first `limit` items of a JSONL file, a folder of recordings, a Hugging Face dataset
    (`plugins.data.sources`), a Seed-TTS-eval list (.lst), or a folder with wav.scp and text.

    Of a row the last turn is said, and a clip that it holds is the truth. Raises UserError naming
    the row that has nothing to say, and if two rows have one id."""
    items: list[Item] = []
    taken: set[str] = set()
    for row, labels in _rows(source, settings)[:limit]:
        dialogue = dialogue_from_row(row, settings, training=False)
        item = _item(dialogue, _asked(row, settings), labels, taken)
        items.append(replace(item, row=row))
        taken.add(items[-1].id)
    return items


def _rows(
    source: str, settings: HiggsAudioSettings
) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
    """Each canonical row, checked, with the row it was, for `id` and `speaker`."""
    path = Path(source)
    if path.suffix == ".lst":
        listed, beside = formats.read_meta(path), path.resolve().parent
    elif (path / formats.SCP).is_file():
        listed, beside = formats.read_kaldi(path), path.resolve()
    else:
        # Everything else is read by what training reads its data with.
        rows = read_rows(
            source, settings, check=lambda dialogue: check_clips(dialogue, settings), training=False
        )
        labels = _labels(source)
        named: list[tuple[dict[str, Any], Mapping[str, Any]]] = []
        for row in rows:
            # The speaker by whichever name the row has it; the id as it was written.
            written = labels.get(row[ROW_SOURCE], {})
            named.append((row, {**written, "speaker": row.get(SPEAKER) or written.get("speaker")}))
        return named
    pairs: list[tuple[dict[str, Any], Mapping[str, Any]]] = []
    for place, listed_row in listed:
        row = canonical_row(listed_row, place, settings, beside=beside)
        check_clips(dialogue_from_row(row, settings, training=False), settings)
        pairs.append((row, listed_row))
    if not pairs:
        reason, remedy = "there is no row", "name a list with lines"
        raise problem(source=source, field="rows", value=0, reason=reason, remedy=remedy)
    return pairs


def _asked(row: Mapping[str, Any], settings: HiggsAudioSettings) -> str:
    """The text to say as the row writes it, cleaned or not: what was heard is compared with it."""
    for message in reversed(row["messages"]):
        if message["role"] == "user":
            raw = row["raw_prompt"] or settings.raw_prompt
            return text_to_say(message["content"], raw=raw, clean=False)
    return ""


def _labels(source: str) -> dict[str, Mapping[str, Any]]:
    """FILE:NUMBER -> the row as written: canonical rows do not keep what training does not read."""
    if not source.endswith(".jsonl"):
        return {}
    return {place: json.loads(line) for place, line in text_lines(source)}


def _item(dialogue: Dialogue, written: str, labels: Mapping[str, Any], taken: set[str]) -> Item:
    place, truth = dialogue.source, None
    last = dialogue.turns[-1]
    if last.role == "assistant":
        if len(last.parts) != 1 or not isinstance(last.parts[0], AudioClip):
            raise problem(
                source=place,
                field="messages",
                value="the last turn",
                reason="holds more than one clip",
                remedy="give it one recording",
            )
        truth = last.parts[0].path
        # The answer is what is to be spoken: no system may read it in its prompt.
        dialogue = replace(dialogue, turns=dialogue.turns[:-1])
    asked = dialogue.turns[-1] if dialogue.turns else None
    text = "" if asked is None or asked.role != "user" else written
    if not has_words(words_to_say(text)):
        raise problem(
            source=place,
            field="messages",
            value=text,
            reason="leaves nothing to say",
            remedy="end it with the text, or the text and its clip",
        )
    id_ = _id(place, labels.get("id"), truth, taken)
    speaker = labels.get("speaker")
    if speaker is not None:  # numbers are names too
        speaker = str(speaker) or None
    return Item(id_, words_to_say(text), dialogue, truth, speaker)


def _id(place: str, named: object, truth: str | None, taken: set[str]) -> str:
    """By the row's own id, else its recording's name, else its line; numbered if that is taken."""
    if named not in (None, ""):
        id_ = _plain(str(named))
        # Plain names may collide where written ones do not: numbering would hide which is which.
        if id_ in taken:
            reason, remedy = "is another row's too", "give each row an id of its own"
            raise problem(source=place, field="id", value=named, reason=reason, remedy=remedy)
        return id_
    first = id_ = _plain(Path(truth).stem if truth else place.rpartition(":")[2])
    number = 2
    while id_ in taken:
        id_ = f"{first}-{number}"
        number += 1
    return id_


def _plain(name: str) -> str:
    # The end of a long name tells it from its neighbours; a leading dot would hide the file.
    plain = re.sub(r"[^\w.-]+", "_", name)[-_MAX_NAME:]
    return plain.encode()[-_MAX_BYTES:].decode(errors="ignore").lstrip("._") or "item"


def _content(part: str | AudioClip) -> Any:
    if isinstance(part, str):
        return part
    # By its bytes, not its path: a data set that was moved is the same one.
    codes = None if part.codes is None else part.codes.tolist()
    return [None if part.path is None else file_hash(part.path), codes]
