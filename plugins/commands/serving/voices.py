"""Names of models and voices -> the LoRA weights that speak, and the reference that is cloned.

A name that a client sends is looked up, never opened: nothing here joins it to a path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plugins.audio.waveforms import AUDIO_SUFFIXES
from plugins.errors import UserError, did_you_mean, problem
from plugins.files.lines import text_lines
from plugins.speaking.voices import Voice

DEFAULT, BASE = "default", "base"
# Clients that know OpenAI's models only send these.
ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")


class Unknown(Exception):
    """There is no such model or voice."""


class Unheard(Exception):
    """A voice of the folder whose recording or transcript is no good: no fault of who asks."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Choice:
    """Who speaks."""

    adapter: str | None  # None: the base's own weights
    voice: Voice | None = None


class Voices:
    """model: the name of the base. adapters: names of loaded LoRA weights; the one that is called
    "default", or the only one, speaks where none is named. folder: of recordings, each with its
    transcript beside it (`ann.wav`, `ann.txt`); what is put there is heard at once."""

    def __init__(self, model: str, adapters: Sequence[str], folder: Path | None) -> None:
        self._model, self._adapters, self._folder = model, tuple(adapters), folder
        self._own: str | None = None
        if DEFAULT in adapters:
            self._own = DEFAULT
        elif len(adapters) == 1:
            self._own = adapters[0]
        if folder is not None and not folder.is_dir():
            raise problem(
                source="options",
                field="voices",
                value=str(folder),
                reason="is no folder",
                remedy="give a folder of recordings, each with its transcript in a .txt beside it",
            )
        taken = {*self._adapters, DEFAULT, BASE}
        for file in self._files():
            if file.stem in taken:
                raise problem(
                    source="options",
                    field="voices",
                    value=file.name,
                    reason=f"has a name that is taken ({file.stem})",
                    remedy="give the file another name",
                )
            taken.add(file.stem)

    def models(self) -> list[str]:
        return [*dict.fromkeys((self._model, *self._adapters, *ALIASES))]

    def names(self) -> dict[str, str]:
        """Each voice, and what it is."""
        names = {DEFAULT: "adapter" if self._own else "base"}
        if self._adapters:
            names[BASE] = "base"
        names |= dict.fromkeys(self._adapters, "adapter")
        for file in self._files():
            names.setdefault(file.stem, "reference")
        return names

    def references(self) -> dict[str, Voice]:
        """All that the folder holds. Raises UserError for a transcript that cannot be read."""
        references: dict[str, Voice] = {}
        for file in self._files():
            if file.stem not in references:
                references[file.stem] = _voice(file)
        return references

    def choose(self, model: str, voice: str) -> Choice:
        """Reads the folder. Raises Unknown, Unheard, and UserError for a model and a voice that are
        two adapters."""
        if model not in self.models():
            raise Unknown(_unknown("model", model, self.models()))
        adapter = model if model in self._adapters else self._own
        if voice == DEFAULT:
            return Choice(adapter)
        if voice == BASE and BASE not in self._adapters:
            return Choice(None)
        if voice in self._adapters:
            if model in self._adapters and model != voice:
                raise problem(
                    source="request",
                    field="voice",
                    value=voice,
                    reason=f"is another adapter than the model {model!r}",
                    remedy="name one of the two",
                )
            return Choice(voice)
        for file in self._files():
            if file.stem == voice:
                try:
                    return Choice(adapter, _voice(file))
                except UserError as error:
                    raise Unheard(voice) from error
        raise Unknown(_unknown("voice", voice, self.names()))

    def _files(self) -> list[Path]:
        if self._folder is None:
            return []
        files = []
        for file in sorted(self._folder.iterdir()):
            is_audio = file.suffix.lower() in AUDIO_SUFFIXES and not file.name.startswith(".")
            if is_audio and file.is_file():
                files.append(file)
        return files


def _voice(file: Path) -> Voice:
    transcript = file.with_suffix(".txt")
    text = None
    if transcript.is_file():
        text = " ".join(line for _, line in text_lines(transcript)).strip() or None
    return Voice(str(file), text)


def _unknown(field: str, value: str, known: Sequence[str] | dict[str, str]) -> str:
    remedy = did_you_mean(value, known)
    return str(
        problem(source="request", field=field, value=value, reason="is unknown", remedy=remedy)
    )
