"""Dialogue -> token ids, labels and clips: the one prompt layout, for training and for speaking.
L1.

    <|begin_of_text|>
    <|start_header_id|>system<|end_header_id|>\\n\\n INSTRUCTION
        [\\n\\n <|scene_desc_start|> \\n SCENE \\n <|scene_desc_end|>] <|eot_id|>
    <|start_header_id|>user<|end_header_id|>\\n\\n TEXT <|eot_id|>
    <|start_header_id|>assistant<|end_header_id|>\\n\\n <|audio_out_bos|> AUDIO <|audio_eos|><|eot_id|>

AUDIO stands for one clip of F codec frames and takes F + 2 placeholders <|AUDIO_OUT|> and K - 1
placeholders of delay, one per delayed frame. A reference with a transcript is a finished turn pair
before the others, one without a transcript stands in the scene as `SPEAKERn: AUDIO`, opened by
<|audio_bos|>, between the voices that the scene describes in words (`SPEAKER0: feminine`); a model
with an audio tower hears it there through positions of the tower, <|AUDIO|>, and, if its config
says so, through codes after them. Labels follow the original implementation: in trained assistant
turns the text, <|audio_out_bos|>, <|audio_eos|> and <|eot_id|>; nothing else. Between two assistant
turns <|eom_id|> stands in the place of <|eot_id|>.

This file knows no JSON row and no audio file: clips arrive as codes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal

from torch import Tensor

from plugins.audio.log_mel import num_positions
from plugins.data.tokens import SCENE_END, SCENE_START, SpecialTokens
from plugins.data.wording import INSTRUCTION
from plugins.delay_pattern import IGNORE_INDEX, num_delayed_frames
from plugins.errors import problem

SCENE_TAGS = re.compile(f"({re.escape(SCENE_START)}|{re.escape(SCENE_END)})")
# A line of the scene that describes a voice.
VOICE_IN_WORDS = re.compile(r"^\[?SPEAKER(\d+)\]?:.*$", re.MULTILINE)


@dataclass(frozen=True)
class AudioClip:
    """One clip: where it comes from and, once encoded, its codes (K, F) int64.

    waveform (N,) float32 at 16 kHz: only for clips that an audio tower hears. Of codes that come
    from the cache: key; codec, the fingerprint of the one that made them; encoded_ns, when the
    cache was written (ns since the epoch)."""

    path: str | None = None
    codes: Tensor | None = None
    waveform: Tensor | None = None
    key: str | None = None
    codec: str | None = None
    encoded_ns: int = 0


@dataclass(frozen=True)
class Turn:
    """What one speaker of the conversation says: texts and clips in order."""

    role: Literal["user", "assistant"]
    parts: tuple[str | AudioClip, ...]
    trained: bool = False


@dataclass(frozen=True)
class Reference:
    """A voice to clone. With `text`, its transcript, it becomes a finished turn pair, else part of
    the scene."""

    clip: AudioClip
    text: str | None = None


@dataclass(frozen=True)
class Dialogue:
    """One training row or one request, in the model's own terms."""

    turns: tuple[Turn, ...]
    references: tuple[Reference, ...] = ()
    instruction: str | None = INSTRUCTION  # None: no system turn at all
    scene: str | None = None
    source: str = "request"  # `file:line` of the row, for error messages

    def clips(self) -> Iterator[AudioClip]:
        """Every clip, references first."""
        yield from (reference.clip for reference in self.references)
        yield from (
            part for turn in self.turns for part in turn.parts if isinstance(part, AudioClip)
        )

    def targets(self) -> Iterator[AudioClip]:
        """The clips that are trained."""
        yield from (
            part
            for turn in self.turns
            if turn.trained
            for part in turn.parts
            if isinstance(part, AudioClip)
        )

    def map_clips(self, encode: Callable[[AudioClip], AudioClip]) -> Dialogue:
        """The same dialogue with every clip replaced by `encode(clip)`."""

        def encode_part(part: str | AudioClip) -> str | AudioClip:
            return encode(part) if isinstance(part, AudioClip) else part

        return replace(
            self,
            turns=tuple(
                replace(turn, parts=tuple(map(encode_part, turn.parts))) for turn in self.turns
            ),
            references=tuple(
                replace(reference, clip=encode(reference.clip)) for reference in self.references
            ),
        )

    def map_heard(self, change: Callable[[AudioClip], AudioClip]) -> Dialogue:
        """The same dialogue with every clip that stands in the system message replaced by
        `change(clip)`."""
        references = (
            reference
            if reference.text is not None
            else replace(reference, clip=change(reference.clip))
            for reference in self.references
        )
        return replace(self, references=tuple(references))


@dataclass(frozen=True)
class EncodedSample:
    """One sequence before collation. Clips are not delayed yet: the collator does that."""

    input_ids: list[int]  # (S,)
    labels: list[int]  # (S,), -100 where not trained; not shifted
    clips: list[Tensor] = field(
        default_factory=list
    )  # each (K, F), in the order of their placeholders
    clips_trained: list[bool] = field(default_factory=list)
    source: str = "request"
    heard: list[Tensor] = field(
        default_factory=list
    )  # waveforms (N,) for the audio tower, in order


def encode(
    dialogue: Dialogue, tokenizer: Any, tokens: SpecialTokens, *, open_turn: bool = False
) -> EncodedSample:
    """The token ids and labels of `dialogue`, whose clips must all have codes.

    open_turn: end with an assistant turn that has just been opened, up to its <|audio_out_bos|>:
    from there the model speaks."""
    writer = _Writer(tokenizer, tokens, EncodedSample([], [], source=dialogue.source))
    writer.ids([tokens.begin_of_text])
    if dialogue.instruction is not None:  # `rows` refuses references that would have no place then
        writer.turn("system", _system_parts(dialogue, tokens))
    turns = (*_reference_turns(dialogue), *dialogue.turns)
    for turn, next_turn in zip(turns, (*turns[1:], None), strict=True):
        goes_on = (
            turn.role == "assistant" and next_turn is not None and next_turn.role == "assistant"
        )
        writer.turn(turn.role, turn.parts, trained=turn.trained, goes_on=goes_on)
    if open_turn:
        writer.header("assistant")
        writer.ids([tokens.audio_bos])
    return writer.sample


def _reference_turns(dialogue: Dialogue) -> Iterator[Turn]:
    for speaker, reference in zip(_speakers(dialogue), dialogue.references, strict=True):
        if reference.text is None:
            continue
        tag = f"[SPEAKER{speaker}] " if len(dialogue.references) > 1 else ""
        yield Turn("user", (tag + reference.text,))
        yield Turn("assistant", (reference.clip,))


def _speakers(dialogue: Dialogue) -> list[int]:
    """The speaker's number of each reference: those are skipped that the scene gives to voices in
    words."""
    taken = _voices_in_words(dialogue) if _has_clip_in_scene(dialogue) else {}
    free = (number for number in count() if number not in taken)
    return [next(free) for _ in dialogue.references]


def _voices_in_words(dialogue: Dialogue) -> dict[int, str]:
    return {int(line[1]): line[0] for line in VOICE_IN_WORDS.finditer(dialogue.scene or "")}


def _has_clip_in_scene(dialogue: Dialogue) -> bool:
    return any(reference.text is None for reference in dialogue.references)


def _system_parts(dialogue: Dialogue, tokens: SpecialTokens) -> tuple[Any, ...]:
    """Instruction, then the scene block with the voices that have no transcript. Special ids are
    ints."""
    assert dialogue.instruction is not None
    scene_ids = {SCENE_START: tokens.scene_start, SCENE_END: tokens.scene_end}
    # A raw prompt has its scene tags inside the instruction.
    parts: list[Any] = [
        scene_ids.get(part, part) for part in SCENE_TAGS.split(dialogue.instruction)
    ]
    if dialogue.scene is not None or _has_clip_in_scene(dialogue):
        lead = "\n\n" if dialogue.instruction else ""
        parts += [lead, tokens.scene_start, *_scene_parts(dialogue), "\n", tokens.scene_end]
    return tuple(parts)


def _scene_parts(dialogue: Dialogue) -> Iterator[str | AudioClip]:
    """The scene as it was written; if clips stand in it, then every voice after it, in the order of
    the speakers."""
    if not _has_clip_in_scene(dialogue):
        yield f"\n{dialogue.scene}"
        return
    if scene := VOICE_IN_WORDS.sub("", dialogue.scene or "").strip():
        yield f"\n{scene}\n"
    voices: dict[int, tuple[str | AudioClip, ...]] = {
        speaker: (line,) for speaker, line in _voices_in_words(dialogue).items()
    }
    for speaker, reference in zip(_speakers(dialogue), dialogue.references, strict=True):
        if reference.text is None:
            voices[speaker] = (f"SPEAKER{speaker}: ", reference.clip)
    for speaker in sorted(voices):
        yield "\n"
        yield from voices[speaker]


@dataclass
class _Writer:
    """Appends to one sample. Adjacent texts are tokenised as one, special tokens inside a text stay
    text."""

    tokenizer: Any
    tokens: SpecialTokens
    sample: EncodedSample

    def ids(self, ids: list[int], *, trained: bool = False) -> None:
        self.sample.input_ids.extend(ids)
        self.sample.labels.extend(ids if trained else [IGNORE_INDEX] * len(ids))

    def text(self, text: str, *, trained: bool = False) -> None:
        # split_special_tokens: a transcript that contains "<|eot_id|>" must not end the turn.
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        self.ids(encoded["input_ids"], trained=trained)

    def header(self, role: str) -> None:
        self.ids([self.tokens.header_start])
        self.text(role)
        self.ids([self.tokens.header_end])
        self.text("\n\n")

    def turn(
        self, role: str, parts: tuple[Any, ...], *, trained: bool = False, goes_on: bool = False
    ) -> None:
        self.header(role)
        pending = ""
        for part in parts:
            if isinstance(part, str):
                pending += part
                continue
            self.text(pending, trained=trained)
            pending = ""
            if isinstance(part, AudioClip) and role == "assistant":
                self.ids([self.tokens.audio_bos], trained=trained)
                self.codes(part, trained=trained)
                self.ids([self.tokens.audio_eos], trained=trained)
            elif isinstance(part, AudioClip):
                self.reference(part)
            else:
                self.ids([part])
        self.text(pending, trained=trained)
        self.ids(
            [self.tokens.end_of_message if goes_on else self.tokens.end_of_turn], trained=trained
        )

    def codes(self, clip: AudioClip, *, trained: bool) -> None:
        tokens = self.tokens
        assert clip.codes is not None, f"{self.sample.source}: clip {clip.path} has no codes yet"
        num_codebooks, num_frames = clip.codes.shape
        num_placeholders = num_delayed_frames(num_frames, num_codebooks)
        num_delays = num_codebooks - 1
        self.ids(
            [tokens.audio] * (num_placeholders - num_delays) + [tokens.audio_delay] * num_delays
        )
        self.sample.clips.append(clip.codes)
        self.sample.clips_trained.append(trained)

    def reference(self, clip: AudioClip) -> None:
        """A clip in a system message: its codes, or what an audio tower hears of it, 30 seconds at
        a time."""
        tower = self.tokens.tower
        if tower is None:
            self.ids([self.tokens.reference_bos])
            self.codes(clip, trained=False)
            self.ids([self.tokens.audio_eos])
            return
        assert clip.waveform is not None, (
            f"{self.sample.source}: clip {clip.path} has no waveform yet"
        )
        chunks = num_positions(len(clip.waveform))
        if len(chunks) > 1 and tower.with_codes:
            # The original repeats the tokens per chunk but not the codes, and fails.
            reason = "is longer than the 30 s that this model hears at a time"
            raise problem(
                source=self.sample.source,
                field="reference_audio",
                value=clip.path,
                reason=reason,
                remedy="cut it, or add reference_text",
            )
        for positions in chunks:
            self.ids([self.tokens.reference_bos] + [tower.placeholder] * positions)
            if tower.with_codes:
                self.codes(clip, trained=False)
            self.ids([self.tokens.audio_eos])
        self.sample.heard.append(clip.waveform)
