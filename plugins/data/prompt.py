"""Dialogue -> token ids, labels and clips: the one prompt layout, for training and for speaking.

    <|begin_of_text|>
    <|start_header_id|>system<|end_header_id|>\\n\\n INSTRUCTION
        [\\n\\n <|scene_desc_start|> \\n SCENE \\n <|scene_desc_end|>] <|eot_id|>
    <|start_header_id|>user<|end_header_id|>\\n\\n TEXT <|eot_id|>
    <|start_header_id|>assistant<|end_header_id|>\\n\\n
        <|audio_out_bos|> AUDIO <|audio_eos|><|eot_id|>

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

from dataclasses import dataclass
from typing import Any

from plugins.audio.log_mel import num_positions
from plugins.data.dialogue import AudioClip, Dialogue, EncodedSample
from plugins.data.scene import SCENE_TAGS, reference_turns, scene_parts
from plugins.data.tokens import SCENE_END, SCENE_START, SpecialTokens
from plugins.delay_pattern import IGNORE_INDEX, num_delayed_frames
from plugins.errors import problem


def encode(
    dialogue: Dialogue, tokenizer: Any, tokens: SpecialTokens, *, open_turn: bool = False
) -> EncodedSample:
    """The token ids and labels of `dialogue`, whose clips must all have codes.

    open_turn: end with an assistant turn that has just been opened, up to its <|audio_out_bos|>:
    from there the model speaks."""
    writer = _Writer(tokenizer, tokens, EncodedSample([], [], source=dialogue.source))
    writer.ids([tokens.begin_of_text])
    # Without instruction there is no scene either: `rows` refuses references that would be in it.
    if dialogue.instruction is not None:
        writer.turn("system", _system_parts(dialogue, tokens))
    turns = (*reference_turns(dialogue), *dialogue.turns)
    for turn, next_turn in zip(turns, (*turns[1:], None), strict=True):
        goes_on = turn.role == "assistant" and next_turn and next_turn.role == "assistant"
        end = tokens.end_of_message if goes_on else tokens.end_of_turn
        writer.turn(turn.role, turn.parts, trained=turn.trained, end=end)
    if open_turn:
        writer.header("assistant")
        writer.ids([tokens.audio_bos])
    return writer.sample


def _system_parts(dialogue: Dialogue, tokens: SpecialTokens) -> tuple[str | int | AudioClip, ...]:
    """Instruction, then the scene block. Special ids are ints."""
    assert dialogue.instruction is not None
    scene_ids = {SCENE_START: tokens.scene_start, SCENE_END: tokens.scene_end}
    parts: list[str | int | AudioClip] = []
    # A raw prompt has its scene tags inside the instruction.
    for text in SCENE_TAGS.split(dialogue.instruction):
        parts.append(scene_ids.get(text, text))
    scene = scene_parts(dialogue)
    if scene:
        lead = "\n\n" if dialogue.instruction else ""
        parts += [lead, tokens.scene_start, *scene, "\n", tokens.scene_end]
    return tuple(parts)


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
        self,
        role: str,
        parts: tuple[str | int | AudioClip, ...],
        *,
        trained: bool = False,
        end: int | None = None,
    ) -> None:
        """One turn, closed by `end`, which is <|eot_id|> if nothing is said."""
        self.header(role)
        # Texts side by side may share tokens: they are written when something else follows.
        pending = ""
        for part in parts:
            if isinstance(part, str):
                pending += part
                continue
            self.text(pending, trained=trained)
            pending = ""
            if isinstance(part, int):
                self.ids([part])
            elif role == "assistant":
                self.spoken(part, trained=trained)
            else:
                self.reference(part)
        self.text(pending, trained=trained)
        self.ids([self.tokens.end_of_turn if end is None else end], trained=trained)

    def spoken(self, clip: AudioClip, *, trained: bool) -> None:
        """A clip in an assistant turn."""
        self.ids([self.tokens.audio_bos], trained=trained)
        self.codes(clip, trained=trained)
        self.ids([self.tokens.audio_eos], trained=trained)

    def codes(self, clip: AudioClip, *, trained: bool) -> None:
        """The placeholders of a clip, never trained as text: its codes have labels of their own."""
        assert clip.codes is not None, f"{self.sample.source}: clip {clip.path} has no codes yet"
        # The first F + 2 hold the coarsest codebook from BOS to EOS, the last K - 1 the ends of the
        # others.
        num_codebooks, num_frames = clip.codes.shape
        num_delays = num_codebooks - 1
        num_others = num_delayed_frames(num_frames, num_codebooks) - num_delays
        self.ids([self.tokens.audio] * num_others + [self.tokens.audio_delay] * num_delays)
        self.sample.clips.append(clip.codes)
        self.sample.clips_trained.append(trained)

    def reference(self, clip: AudioClip) -> None:
        """A clip in a system message: its codes, or what an audio tower hears of it."""
        if self.tokens.tower is not None:
            self.heard(clip)
            return
        self.ids([self.tokens.reference_bos])
        self.codes(clip, trained=False)
        self.ids([self.tokens.audio_eos])

    def heard(self, clip: AudioClip) -> None:
        """The positions of the audio tower, 30 seconds at a time, and codes if the model has
        both."""
        tower, source = self.tokens.tower, self.sample.source
        assert tower is not None
        assert clip.waveform is not None, f"{source}: clip {clip.path} has no waveform yet"
        chunks = num_positions(len(clip.waveform))
        if len(chunks) > 1 and tower.with_codes:
            # The original repeats the tokens per chunk but not the codes, and fails.
            raise problem(
                source=source,
                field="reference_audio",
                value=clip.path,
                reason="is longer than the 30 s that this model hears at a time",
                remedy="cut it, or add reference_text",
            )
        for positions in chunks:
            self.ids([self.tokens.reference_bos] + [tower.placeholder] * positions)
            if tower.with_codes:
                self.codes(clip, trained=False)
            self.ids([self.tokens.audio_eos])
        self.sample.heard.append(clip.waveform)
