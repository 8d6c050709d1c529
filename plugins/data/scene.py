"""The scene of a system message: its tags, the voices that it describes in words, and the numbers
of the speakers.

In: a system message as a row has it. Out: instruction and scene (`read_system`), and the parts of
the scene block with the clips of the voices to clone among them (`scene_parts`):

    Quiet

    SPEAKER0: feminine
    SPEAKER1: AUDIO

Here alone speakers are numbered (`speaker_numbers`). Knows no token ids."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import count, cycle, islice

from plugins.data.dialogue import AudioClip, Dialogue, Reference, Turn
from plugins.data.text import SPEAKER_TAG
from plugins.data.tokens import SCENE_END, SCENE_START
from plugins.data.wording import INSTRUCTION, MULTI_SPEAKER_INSTRUCTION
from plugins.errors import problem

SCENE_TAGS = re.compile(f"({re.escape(SCENE_START)}|{re.escape(SCENE_END)})")
# A line of the scene that describes a voice.
_VOICE_IN_WORDS = re.compile(r"^\[?SPEAKER(\d{1,4})\]?:.*$", re.MULTILINE)


def read_system(
    system: str | None, turns: Sequence[Turn], references: Sequence[Reference], source: str
) -> tuple[str | None, str | None]:
    """Instruction and scene of a system message, however loosely its scene tags are set, or what
    the original's examples write in the place of a missing one.

    Instruction None: no system turn. Raises UserError, naming the row at `source`."""
    before, *rest = SCENE_TAGS.split(system or "")
    # Either no tag at all, or: start tag, scene, end tag, nothing more.
    if rest and (len(rest) != 4 or rest[0] == rest[2] or rest[3].strip()):
        remedy = f"write the instruction first, then one {SCENE_START} SCENE {SCENE_END}"
        raise problem(
            source=source,
            field="messages[0].content",
            value=system,
            reason="has scene tags or text out of place",
            remedy=remedy,
        )
    instruction = before.strip()
    scene = rest[1].strip() or None if rest else None
    tags = _speaker_tags(turns)
    _require_named_speakers(scene, tags, references, source)
    if instruction:
        return instruction, scene
    # Nobody has said whose voices they are.
    if len(tags) > 1 and not references:
        return MULTI_SPEAKER_INSTRUCTION, _with_voices(scene, tags)
    if references and scene is None and not _has_clip_in_scene(references):
        # The finished turns say it all: the original writes no system turn here.
        return None, None
    return INSTRUCTION, scene


def speaker_numbers(references: Sequence[Reference], scene: str | None) -> list[int]:
    """The speaker's number of each reference, counted from 0. Where clips stand in the scene, the
    numbers are skipped that it gives to voices in words."""
    taken = voices_in_words(scene) if _has_clip_in_scene(references) else {}
    free = (number for number in count() if number not in taken)
    return list(islice(free, len(references)))


def voices_in_words(scene: str | None) -> dict[int, str]:
    """Number -> line of each voice that the scene describes."""
    voices = {}
    for line in _VOICE_IN_WORDS.finditer(scene or ""):
        voices[int(line[1])] = line[0]
    return voices


def scene_parts(dialogue: Dialogue) -> list[str | AudioClip]:
    """What stands between the scene tags, but for the newline that ends it; [] if there is no
    scene.

    The scene as it was written; if clips stand in it, then every voice after it, in the order of
    the speakers."""
    if not _has_clip_in_scene(dialogue.references):
        return [] if dialogue.scene is None else [f"\n{dialogue.scene}"]
    voices: dict[int, list[str | AudioClip]] = {}
    for number, line in voices_in_words(dialogue.scene).items():
        voices[number] = [line]
    numbers = speaker_numbers(dialogue.references, dialogue.scene)
    for number, reference in zip(numbers, dialogue.references, strict=True):
        if reference.text is None:
            voices[number] = [f"SPEAKER{number}: ", reference.clip]
    parts: list[str | AudioClip] = []
    # The lines of voices are written anew, in order with the clips.
    rest = _VOICE_IN_WORDS.sub("", dialogue.scene or "").strip()
    if rest:
        parts.append(f"\n{rest}\n")
    for number in sorted(voices):
        parts += ["\n", *voices[number]]
    return parts


def reference_turns(dialogue: Dialogue) -> Iterator[Turn]:
    """The finished turn pair of each reference with a transcript; tagged if there are several
    voices."""
    numbers = speaker_numbers(dialogue.references, dialogue.scene)
    for number, reference in zip(numbers, dialogue.references, strict=True):
        if reference.text is None:
            continue
        tag = f"[SPEAKER{number}] " if len(numbers) > 1 else ""
        yield Turn("user", (tag + reference.text,))
        yield Turn("assistant", (reference.clip,))


def _has_clip_in_scene(references: Sequence[Reference]) -> bool:
    return any(reference.text is None for reference in references)


def _speaker_tags(turns: Sequence[Turn]) -> set[str]:
    """``[SPEAKER0]`` and the like in the texts of `turns`."""
    tags: set[str] = set()
    for turn in turns:
        for part in turn.parts:
            if isinstance(part, str):
                tags.update(SPEAKER_TAG.findall(part))
    return tags


def _require_named_speakers(
    scene: str | None, tags: set[str], references: Sequence[Reference], source: str
) -> None:
    """A clip takes the first number that the scene does not describe: the text must name it, or it
    means nobody."""
    if not voices_in_words(scene):
        return
    numbers = speaker_numbers(references, scene)
    for number, reference in zip(numbers, references, strict=True):
        if reference.text is None and f"[SPEAKER{number}]" not in tags:
            reason = (
                f"would be SPEAKER{number}, whom the text does not name: the scene describes the"
                " others in words"
            )
            raise problem(
                source=source,
                field="reference_audio",
                value=reference.clip.path or "codes",
                reason=reason,
                remedy="leave the voice out of the scene, or tag the text",
            )


def _with_voices(scene: str | None, tags: set[str]) -> str:
    """The original's default where nobody says who speaks: feminine and masculine voices in
    turn."""
    if scene is not None and voices_in_words(scene):
        return scene
    speakers = sorted(tag.strip("[]") for tag in tags)
    voices = zip(speakers, cycle(("feminine", "masculine")), strict=False)
    described = "\n".join(f"{speaker}: {voice}" for speaker, voice in voices)
    return f"{scene}\n\n{described}" if scene else described
