"""Test rows -> items (L3): what every system has to say, with the prompt of training, and what it
is compared with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plugins.corpora.canonical import ROW_SOURCE, canonical_row
from plugins.data.clips import check_clips
from plugins.data.dialogue import AudioClip, Dialogue
from plugins.data.rows import dialogue_from_row, text_to_say
from plugins.data.sources import read_rows
from plugins.data.text import has_words
from plugins.errors import problem
from plugins.evaluation import formats
from plugins.evaluation.text import words_to_say
from plugins.files.disk import file_hash
from plugins.files.lines import text_lines
from plugins.settings import HiggsAudioSettings

_MAX_NAME = 100  # characters of an id, which names files


@dataclass(frozen=True)
class Item:
    """One thing to say."""

    id: str  # plain enough to name a file, unique
    text: str  # the words of the row, without tags; the prompt may clean them (`clean_text`)
    dialogue: Dialogue  # ends with the turn to be answered
    truth: str | None = None  # the recording of it
    speaker: str | None = None  # as the row names the voice

    @property
    def reference(self) -> str | None:
        """The recording of the voice to clone."""
        return next(
            (each.clip.path for each in self.dialogue.references if each.clip.path is not None),
            None,
        )

    def content(self) -> list[Any]:
        """JSON of everything that the prompt holds, recordings by their bytes: equal contents,
        equal prompts."""
        dialogue = self.dialogue
        turns = [[turn.role, *map(_content, turn.parts)] for turn in dialogue.turns]
        references = [[_content(each.clip), each.text] for each in dialogue.references]
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
        items.append(_item(dialogue, _asked(row, settings), labels, taken))
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
        rows = read_rows(
            source, settings, check=lambda each: check_clips(each, settings), training=False
        )
        labels = _labels(source)
        return [(row, labels.get(row[ROW_SOURCE], {})) for row in rows]
    found: list[tuple[dict[str, Any], Mapping[str, Any]]] = []
    for place, listed_row in listed:
        row = canonical_row(listed_row, place, settings, beside=beside)
        check_clips(dialogue_from_row(row, settings, training=False), settings)
        found.append((row, listed_row))
    if not found:
        raise problem(
            source=source,
            field="rows",
            value=0,
            reason="there is no row",
            remedy="name a list with lines",
        )
    return found


def _asked(row: Mapping[str, Any], settings: HiggsAudioSettings) -> str:
    """The text to say as the row writes it, cleaned or not: what was heard is compared with it."""
    users = [message["content"] for message in row["messages"] if message["role"] == "user"]
    return (
        text_to_say(users[-1], raw=row["raw_prompt"] or settings.raw_prompt, clean=False)
        if users
        else ""
    )


def _labels(source: str) -> dict[str, Mapping[str, Any]]:
    """Canonical rows do not keep what training does not read."""
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
    named = labels.get("id")
    id_ = _plain(
        str(named)
        if named not in (None, "")
        else Path(truth).stem
        if truth
        else place.rpartition(":")[2]
    )
    if id_ in taken:
        if named not in (None, ""):
            raise problem(
                source=place,
                field="id",
                value=named,
                reason="is another row's too",
                remedy="give each row an id of its own",
            )
        id_ = next(
            name for number in range(2, len(taken) + 3) if (name := f"{id_}-{number}") not in taken
        )
    speaker = labels.get("speaker")
    return Item(
        id_, words_to_say(text), dialogue, truth, None if speaker in (None, "") else str(speaker)
    )


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)[-_MAX_NAME:].lstrip("._") or "item"


def _content(part: str | AudioClip) -> Any:
    if isinstance(part, str):
        return part
    codes = None if part.codes is None else part.codes.tolist()
    return [None if part.path is None else file_hash(part.path), codes]
