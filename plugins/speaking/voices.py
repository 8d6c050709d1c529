"""Requests to speak -> dialogues: whose voice, in which scene, in which pieces.

In: texts, recordings and descriptions as a user gives them. Out: a `Script`, whose prompts are
dialogues in the words of training (`plugins.data.rows`). Faults of a reference that would give
noise instead of a voice are refused here. This file knows neither tokens nor the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from plugins.audio import waveforms as audio
from plugins.corpora.canonical import canonical_row
from plugins.data.dialogue import AudioClip, Dialogue, Turn
from plugins.data.rows import dialogue_from_row, text_to_say
from plugins.data.text import MAX_CHARS, has_words, pieces
from plugins.data.tokens import SCENE_END, SCENE_START
from plugins.errors import UserError, problem
from plugins.settings import HiggsAudioSettings

AnyPath = str | Path
# What a recording says, or a function that hears it: path -> text.
Transcript = str | Callable[[str], str]
Lines = Sequence[Mapping[str, str]]  # of a dialogue, each with "speaker" and "text"
# A word says little of a voice; nothing longer was trained on.
MIN_REFERENCE_S, MAX_REFERENCE_S = 1.0, 30.0
# Of one request to a page or a server, all its texts together: about 20 minutes of speech, in which
# nobody else is served.
MAX_REQUEST_CHARS = 20_000
# Spoken turns that the next one hears; each takes about as many positions as the next one will.
_CONTEXT_TURNS = 3
_SILENT = 10 ** (-60 / 20)  # peak 60 dB below full scale


@dataclass(frozen=True)
class Voice:
    """A recording to clone, best with its transcript, or a description in words ("warm, unhurried,
    elderly man")."""

    audio: AnyPath | None = None
    text: Transcript | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        if (self.audio is None) == (self.description is None):
            raise problem(
                source="voice",
                field="audio",
                value=self.audio,
                reason="needs either a recording or a description",
                remedy="give one of the two",
            )

    @classmethod
    def of(cls, given: Voice | AnyPath | tuple[AnyPath, Transcript]) -> Voice:
        """From a recording, or (recording, transcript)."""
        if isinstance(given, Voice):
            return given
        if isinstance(given, tuple):
            return cls(*given)
        return cls(given)


SpeakerVoices = Mapping[str, Voice | AnyPath | tuple[AnyPath, Transcript]] | None


@dataclass(frozen=True)
class Script:
    """What is spoken: what all its lines have in common, and the lines, each to be spoken in the
    hearing of the ones before it."""

    whole: Dialogue
    lines: tuple[str, ...]

    def next_line(self, spoken: Sequence[Tensor], *, max_frames: int) -> Dialogue:
        """The prompt for the line after those `spoken`, codes (K, F): it holds the last of them, as
        far as `max_frames` go, and the very first where no reference holds the voice."""
        has_voice = bool(self.whole.references)
        heard = list(range(max(0, len(spoken) - _CONTEXT_TURNS), len(spoken)))
        if heard and not has_voice:
            heard[0] = 0
        while heard and sum(spoken[i].shape[1] for i in heard) > max_frames:
            # The oldest goes first; but what holds the voice goes last.
            oldest = 0 if has_voice or len(heard) == 1 else 1
            del heard[oldest]
        turns: list[Turn] = []
        for i in heard:
            turns.append(Turn("user", (self.lines[i],)))
            turns.append(Turn("assistant", (AudioClip(codes=spoken[i]),)))
        turns.append(Turn("user", (self.lines[len(spoken)],)))
        return replace(self.whole, turns=tuple(turns))


@dataclass(frozen=True)
class Request:
    """How texts are to be spoken. Its methods raise UserError for a text without words and a line
    without a voice, and what `request` raises."""

    settings: HiggsAudioSettings  # whether texts are cleaned
    scene: str | None = None
    voices: tuple[Voice, ...] = ()  # SPEAKER0, SPEAKER1 ...
    max_chars: int = MAX_CHARS  # of a line of the script

    def script(self, text: str) -> Script:
        """`text`, in pieces that end at sentences."""
        _check_words(text, "request")
        whole = request(text, self.scene, self.voices, self.settings)
        # Cleaned as a whole, then cut: a piece has no mark that the text does not have.
        return Script(whole, tuple(pieces(last_text(whole), self.max_chars)))

    def conversation(self, dialogue: Lines, voices: SpeakerVoices) -> Script:
        """All lines in one script. voices: of each speaker; None: the model chooses."""
        settings = self.settings
        speakers = speakers_of(dialogue, voices)
        numbers = {speaker: number for number, speaker in enumerate(speakers)}
        turns: list[str] = []
        lines: list[str] = []
        for line in dialogue:
            text = line["text"]
            if len(numbers) > 1:
                text = f"[SPEAKER{numbers[line['speaker']]}] {text}"
            turn = text_to_say(text, raw=settings.raw_prompt, clean=settings.clean_text)
            turns.append(turn)
            lines += pieces(turn, self.max_chars)
        # Of speakers without a voice the model has to choose one: no line of the prompt is theirs.
        chosen = list(filter(None, speakers.values()))
        whole = request("\n".join(turns), self.scene, chosen, settings)
        return Script(whole, tuple(lines))

    def monologues(self, dialogue: Lines, voices: SpeakerVoices) -> list[Script]:
        """A script for each line, which knows its speaker's voice only."""
        speakers = speakers_of(dialogue, voices)
        scripts = []
        for line in dialogue:
            voice = speakers[line["speaker"]]
            alone = self
            if voice is not None:
                alone = replace(self, voices=(voice,))
            scripts.append(alone.script(line["text"]))
        return scripts


def request(
    text: str, scene: str | None, voices: Sequence[Voice], settings: HiggsAudioSettings
) -> Dialogue:
    """One user turn with `text`. `voices` are SPEAKER0, SPEAKER1 ... in this order; recordings have
    to come before descriptions.

    Raises UserError for an empty text, and for a recording that is missing, damaged, too short, too
    long or silent."""
    # canonical_row numbers the recordings, `_with_descriptions` goes on behind them.
    recorded = [voice for voice in voices if voice.audio is not None]
    assert list(voices[: len(recorded)]) == recorded, "recordings come first"
    messages = [{"role": "user", "content": text}]
    if scene is not None:
        _require_text(scene, "scene_description")
    scene = _with_descriptions(scene, voices)
    if scene:
        content = f"{SCENE_START}\n{scene}\n{SCENE_END}"
        messages.insert(0, {"role": "system", "content": content})
    references = [str(voice.audio) for voice in recorded]
    row = canonical_row({"messages": messages, "reference_audio": references}, "request", settings)
    # All of them, before a function is asked to hear one.
    for path in row["reference_audio"]:
        _check_reference(path)
    row["reference_text"] = list(map(_transcript, recorded, row["reference_audio"]))
    return dialogue_from_row(row, settings, training=False)


def _with_descriptions(scene: str | None, voices: Sequence[Voice]) -> str:
    lines = []
    for number, voice in enumerate(voices):
        if voice.description is not None:
            _require_text(voice.description, "voice_description")
            lines.append(f"SPEAKER{number}: {voice.description}")
    return "\n\n".join(filter(None, (scene, "\n".join(lines))))


def _transcript(voice: Voice, path: str) -> str:
    text = voice.text(path) if callable(voice.text) else voice.text
    if text is not None:
        _require_text(text, "reference_text")
    return text or ""


def last_text(dialogue: Dialogue) -> str:
    """What is to be spoken next."""
    return "".join(part for part in dialogue.turns[-1].parts if isinstance(part, str))


def voices_of(
    audio: AnyPath | Sequence[AnyPath] | None,
    text: Transcript | Sequence[Transcript] | None,
    description: str | None,
) -> tuple[Voice, ...]:
    """SPEAKER0, SPEAKER1 ..., the described one last. Raises UserError for more transcripts than
    recordings."""
    paths = list(_each(audio))
    texts: list[Transcript | None] = list(_each(text))
    if len(texts) > len(paths):
        raise problem(
            source="request",
            field="reference_text",
            value=texts,
            reason=f"are {len(texts)} transcripts for {len(paths)} references",
            remedy="give one per reference_audio",
        )
    texts += [None] * (len(paths) - len(texts))
    voices = list(map(Voice, paths, texts))
    if description is not None:
        voices.append(Voice(description=description))
    return tuple(voices)


def _each(given: Any) -> Iterator[Any]:
    """None, one thing or several."""
    if given is None:
        return
    if isinstance(given, str | Path) or callable(given):
        yield given
    else:
        yield from given


def speakers_of(dialogue: Lines, voices: SpeakerVoices) -> dict[str, Voice | None]:
    """Who speaks, in the order of their numbers: recorded voices before described ones.

    Raises UserError for a dialogue without lines and for a line without a voice or words."""
    if not dialogue:
        raise problem(
            source="dialogue",
            field="turns",
            value=[],
            reason="is empty",
            remedy="give at least one turn",
        )
    speakers: dict[str, Voice | None] = {}
    for i, line in enumerate(dialogue):
        speaker = line.get("speaker")
        if speaker is None or (voices is not None and speaker not in voices):
            known = ", ".join(voices or ()) or "nobody"
            raise problem(
                source=f"dialogue[{i}]",
                field="speaker",
                value=speaker,
                reason=f"has no voice (known: {known})",
                remedy="add one",
            )
        voice = None
        if voices is not None:
            voice = Voice.of(voices[speaker])
        # A speaker's first line gives the number.
        speakers.setdefault(speaker, voice)
    for i, line in enumerate(dialogue):
        _check_words(line.get("text", ""), f"dialogue[{i}]")

    # The prompt writes recordings before descriptions, and numbers them in its order.
    def is_described(item: tuple[str, Voice | None]) -> bool:
        return item[1] is not None and item[1].audio is None

    return dict(sorted(speakers.items(), key=is_described))


def _check_words(text: Any, source: str) -> None:
    _require_text(text, "text", source)
    if not has_words(text):
        raise problem(
            source=source,
            field="text",
            value=text,
            reason="has no letter or digit",
            remedy="give the text to speak",
        )


def require_short(texts: Sequence[str]) -> None:
    """Raise UserError for texts that would hold a server for too long: asked before anything is
    done with them."""
    num_chars = sum(map(len, texts))
    if num_chars > MAX_REQUEST_CHARS:
        raise problem(
            source="request",
            field="text",
            value=max(texts, key=len),
            reason=f"is too long ({num_chars} characters, of {MAX_REQUEST_CHARS} at most)",
            remedy="send it in parts",
        )


def _require_text(text: Any, field: str, source: str = "request") -> None:
    """Raise UserError for what is no text, or none that a tokenizer takes."""
    if not isinstance(text, str):
        raise problem(
            source=source, field=field, value=text, reason="is no text", remedy="give a text"
        )
    try:
        text.encode()
    except UnicodeEncodeError:  # as JSON can spell it
        reason = "holds half a character (a lone surrogate)"
        raise problem(
            source=source, field=field, value=text, reason=reason, remedy="write the text again"
        ) from None


def _check_reference(path: str) -> None:
    try:
        duration_s = audio.probe(path).duration_s
        if duration_s > MAX_REFERENCE_S:  # before decoding it
            raise _bad_reference(path, f"lasts {duration_s:.1f} s, more than {MAX_REFERENCE_S:g}")
        samples = audio.load(path)
    except audio.AudioError as error:
        raise _bad_reference(path, error.reason, error.remedy) from None
    duration_s = len(samples) / audio.SAMPLE_RATE_HZ
    if duration_s < MIN_REFERENCE_S:
        raise _bad_reference(path, f"lasts {duration_s:.1f} s, less than {MIN_REFERENCE_S:g}")
    if np.abs(samples).max() < _SILENT:
        raise _bad_reference(path, "is silent")


def _bad_reference(
    path: str, reason: str, remedy: str = "give 3 to 15 seconds of clear speech"
) -> UserError:
    # Its name only: a server answers with this, and its folders are nobody's business.
    name = Path(path).name
    return problem(
        source="request", field="reference_audio", value=name, reason=reason, remedy=remedy
    )
