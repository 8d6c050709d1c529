"""Prompts of the original implementation -> tests/golden/prompts.json.

In: the variants below, each as messages of boson-multimodal 0.1.1 and as the JSONL row that means
the same to us. Out: per variant the row, the original's `input_tokens` and `label_tokens`, and
whether it is a generation prompt. Knows nothing of `plugins`: it runs in a venv of its own, because
the original needs transformers 4.46.

    python3 -m venv boson
    boson/bin/pip install torch==2.14.1 transformers==4.46.3 pandas dacite loguru librosa \
        omegaconf einops langid vector_quantize_pytorch jieba soundfile tiktoken
    boson/bin/pip install --no-deps boson-multimodal==0.1.1 llama-models==0.3.0
    boson/bin/python tests/golden/make/prompts.py

The tokens are those of the package's `prepare_chatml_sample`. The messages follow
`prepare_generation_context` of boson-ai/higgs-audio, examples/generation.py (commit 03dcdf6), which
is not part of the package: what it writes into the system message and the order of its turns, not
its clean-up of the transcript. Every text here is one that this clean-up leaves as it is, unless
the variant says otherwise. """

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boson_multimodal.data_types import AudioContent, ChatMLSample, Message, TextContent
from boson_multimodal.dataset.chatml_dataset import prepare_chatml_sample
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

GOLDEN = Path(__file__).resolve().parents[1]

INSTRUCTION = "Generate audio following instruction."
CONVERTER_INSTRUCTION = (
    "You are an AI assistant designed to convert text into speech.\n"
    "If the user's message includes a [SPEAKER*] tag, do not read out the tag and generate speech"
    " for the following text, using the specified voice.\n"
    "If no speaker tag is present, select a suitable voice on your own."
)
SCENE = "Audio is recorded from a quiet room."
VOICES = "SPEAKER0: feminine\nSPEAKER1: masculine"
PROFILE = "feminine, middle-aged, warm and unhurried, with a slight echo"

TEXT = "The harbour lights went out one by one."
NEXT_TEXT = "Only the ferry kept its lamps burning!"
REFERENCE_TEXT = "We walked home along the river, didn't we?"
OTHER_REFERENCE_TEXT = "Nobody had counted the boats that evening."
TAGGED_TEXT = "[SPEAKER0] Did you see the boats?\n[SPEAKER1] Only the last of them."
UNICODE_TEXT = (
    "Grüße aus Zürich: 東京で会いましょう!\nÇa coûte 12,50 € – naïve?\n\nПривет, мир 🎧, नमस्ते."
)

# Slots 0..9 of Llama-3, then the names that the published tokenizer gives to its reserved tokens.
NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|audio_out_bos|>",
    "<|reserved_special_token_6|>",
    "<|AUDIO|>",
    "<|AUDIO_OUT|>",
    "<|reserved_special_token_9|>",
    "<|scene_desc_start|>",
    "<|scene_desc_end|>",
)

SPEAKER_TURN = "<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|>"


@dataclass(frozen=True)
class Variant:
    """One prompt, twice: the original's messages and our row."""

    messages: list[Message]
    row: dict[str, Any]
    start_index: int | None = None  # messages before it are conditioning
    speaking: bool = False  # a generation prompt: no labels


def codes(num_frames: int) -> list[list[int]]:
    """Fake codes [F][8] of a clip: only their number matters to the prompt, their values tell clips
    apart."""
    frames = []
    for frame in range(num_frames):
        first = 100 * num_frames + 8 * frame
        frames.append(list(range(first, first + 8)))
    return frames


def scene_block(*paragraphs: str) -> str:
    return "<|scene_desc_start|>\n" + "\n\n".join(paragraphs) + "\n<|scene_desc_end|>"


def instruction_and(*paragraphs: str) -> str:
    return f"{INSTRUCTION}\n\n{scene_block(*paragraphs)}"


# The original's messages.


def system(text: str) -> Message:
    return Message("system", text)


def user(text: str) -> Message:
    return Message("user", text)


def spoken() -> Message:
    return Message("assistant", AudioContent(audio_url=""))


def system_with_clips(*pieces: str) -> Message:
    """The reference clips stand between the pieces of text."""
    contents: list[Any] = [TextContent(pieces[0])]
    for piece in pieces[1:]:
        contents += [AudioContent(audio_url=""), TextContent(piece)]
    return Message("system", contents)


# Our rows.


def row(*turns: tuple[str, Any], clips: int = 1, **columns: Any) -> dict[str, Any]:
    """A row whose targets are `clips` clips of one, two ... frames."""
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, "audio_codes": [codes(n) for n in range(1, clips + 1)], **columns}


def asked(text: str = TEXT, *, instruction: str | None = None, **columns: Any) -> dict[str, Any]:
    """The usual row: one text and its clip, after a system message if `instruction` is given."""
    head = [] if instruction is None else [("system", instruction)]
    return row(*head, ("user", text), ("assistant", ""), **columns)


def unanswered(spoken_row: dict[str, Any]) -> dict[str, Any]:
    """The same row as a request: without its last assistant turn and that turn's clip."""
    return spoken_row | {
        "messages": spoken_row["messages"][:-1],
        "audio_codes": spoken_row["audio_codes"][:-1],
    }


ONE_REFERENCE = {"reference_codes": [codes(4)], "reference_text": REFERENCE_TEXT}
TWO_REFERENCES = {
    "reference_codes": [codes(4), codes(5)],
    "reference_text": [REFERENCE_TEXT, OTHER_REFERENCE_TEXT],
}
ONE_REFERENCE_TURNS = [user(REFERENCE_TEXT), spoken()]
TWO_REFERENCE_TURNS = [
    user(f"[SPEAKER0] {REFERENCE_TEXT}"),
    spoken(),
    user(f"[SPEAKER1] {OTHER_REFERENCE_TEXT}"),
    spoken(),
]
TARGET = [user(TEXT), spoken()]
TAGGED_TARGET = [user(TAGGED_TEXT), spoken()]


def single_speaker() -> dict[str, Variant]:
    return {
        "plain": Variant([system(INSTRUCTION), *TARGET], asked(instruction=INSTRUCTION)),
        "missing_system": Variant([system(INSTRUCTION), *TARGET], asked()),
        "scene": Variant(
            [system(instruction_and(SCENE)), *TARGET], asked(instruction=instruction_and(SCENE))
        ),
        "scene_raw_prompt": Variant(
            [system(instruction_and(SCENE)), *TARGET],
            asked(instruction=instruction_and(SCENE), raw_prompt=True),
        ),
        # The seed document's row: no instruction, loose scene tags, "Please speak:". We write the
        # layout of the scene.
        "scene_loose_row": Variant(
            [system(instruction_and(SCENE)), *TARGET],
            asked(
                f"Please speak: {TEXT}",
                instruction=f"<|scene_desc_start|> {SCENE} <|scene_desc_end|>",
            ),
        ),
        # The blank line is one that the clean-up would remove.
        "unicode_multiline": Variant(
            [system(INSTRUCTION), user(UNICODE_TEXT), spoken()],
            asked(UNICODE_TEXT, instruction=INSTRUCTION),
        ),
    }


def one_reference() -> dict[str, Variant]:
    in_scene = {"reference_codes": [codes(4)]}
    return {
        "clone_scene": Variant(
            [system(instruction_and(SCENE)), *ONE_REFERENCE_TURNS, *TARGET],
            asked(instruction=instruction_and(SCENE), **ONE_REFERENCE),
            start_index=3,
        ),
        # examples/generation.py writes no system turn for a reference without scene: not even the
        # instruction.
        "clone": Variant([*ONE_REFERENCE_TURNS, *TARGET], asked(**ONE_REFERENCE), start_index=2),
        "clone_raw_prompt": Variant(
            [*ONE_REFERENCE_TURNS, *TARGET], asked(raw_prompt=True, **ONE_REFERENCE), start_index=2
        ),
        "clone_instruction": Variant(
            [system(INSTRUCTION), *ONE_REFERENCE_TURNS, *TARGET],
            asked(instruction=INSTRUCTION, **ONE_REFERENCE),
            start_index=3,
        ),
        "reference_in_system_scene": Variant(
            [
                system_with_clips(
                    f"{INSTRUCTION}\n\n<|scene_desc_start|>\n{SCENE}\n\nSPEAKER0: ",
                    "\n<|scene_desc_end|>",
                ),
                *TARGET,
            ],
            asked(instruction=instruction_and(SCENE), **in_scene),
        ),
        "reference_in_system": Variant(
            [
                system_with_clips(
                    f"{INSTRUCTION}\n\n<|scene_desc_start|>\nSPEAKER0: ", "\n<|scene_desc_end|>"
                ),
                *TARGET,
            ],
            asked(**in_scene),
        ),
        # A voice described in words (`--ref_audio profile:NAME`).
        "voice_in_words": Variant(
            [system(instruction_and(SCENE, f"SPEAKER0: {PROFILE}")), *TARGET],
            asked(instruction=instruction_and(SCENE, f"SPEAKER0: {PROFILE}")),
        ),
    }


def several_speakers() -> dict[str, Variant]:
    """Without clips: voices in words, or none."""
    converter_scene = f"{CONVERTER_INSTRUCTION}\n\n{scene_block(SCENE, VOICES)}"
    converter = f"{CONVERTER_INSTRUCTION}\n\n{scene_block(VOICES)}"
    turns_of_lines = []
    rows_of_lines = []
    for line in TAGGED_TEXT.split("\n"):
        turns_of_lines += [user(line), spoken()]
        rows_of_lines += [("user", line), ("assistant", "")]
    return {
        "speakers_scene": Variant(
            [system(converter_scene), *TAGGED_TARGET],
            asked(TAGGED_TEXT, instruction=converter_scene),
        ),
        # Only the scene is given: the instruction follows from the tags in the text.
        "speakers": Variant(
            [system(converter), *TAGGED_TARGET], asked(TAGGED_TEXT, instruction=scene_block(VOICES))
        ),
        # A text cut at its speakers (`--chunk_method speaker`): no turn has more than one tag.
        "speakers_one_per_turn": Variant(
            [system(converter), *turns_of_lines],
            row(("system", scene_block(VOICES)), *rows_of_lines, clips=2),
        ),
        # examples/generation.py invents alternating voices.
        "speakers_missing_system": Variant([system(converter), *TAGGED_TARGET], asked(TAGGED_TEXT)),
        "speakers_scene_without_voices": Variant(
            [system(converter_scene), *TAGGED_TARGET],
            asked(TAGGED_TEXT, instruction=scene_block(SCENE)),
        ),
    }


def several_references() -> dict[str, Variant]:
    return {
        "speakers_clone_scene": Variant(
            [system(instruction_and(SCENE)), *TWO_REFERENCE_TURNS, *TAGGED_TARGET],
            asked(TAGGED_TEXT, instruction=instruction_and(SCENE), **TWO_REFERENCES),
            start_index=5,
        ),
        "speakers_clone": Variant(
            [*TWO_REFERENCE_TURNS, *TAGGED_TARGET],
            asked(TAGGED_TEXT, **TWO_REFERENCES),
            start_index=4,
        ),
        "speakers_clone_raw_prompt": Variant(
            [*TWO_REFERENCE_TURNS, *TAGGED_TARGET],
            asked(TAGGED_TEXT, raw_prompt=True, **TWO_REFERENCES),
            start_index=4,
        ),
        "speakers_clone_instruction": Variant(
            [system(INSTRUCTION), *TWO_REFERENCE_TURNS, *TAGGED_TARGET],
            asked(TAGGED_TEXT, instruction=INSTRUCTION, **TWO_REFERENCES),
            start_index=5,
        ),
    }


def several_voices_in_system() -> dict[str, Variant]:
    in_scene = {"reference_codes": [codes(4), codes(5)]}
    head = f"{INSTRUCTION}\n\n<|scene_desc_start|>\n"
    return {
        "speakers_in_system_scene": Variant(
            [
                system_with_clips(
                    f"{head}{SCENE}\n\nSPEAKER0: ", "\nSPEAKER1: ", "\n<|scene_desc_end|>"
                ),
                *TAGGED_TARGET,
            ],
            asked(TAGGED_TEXT, instruction=instruction_and(SCENE), **in_scene),
        ),
        "speakers_in_system": Variant(
            [
                system_with_clips(f"{head}SPEAKER0: ", "\nSPEAKER1: ", "\n<|scene_desc_end|>"),
                *TAGGED_TARGET,
            ],
            asked(TAGGED_TEXT, **in_scene),
        ),
        # One voice in words, the other as a clip (`--ref_audio profile:NAME,OTHER`).
        "speakers_in_system_mixed": Variant(
            [
                system_with_clips(f"{head}SPEAKER0: {PROFILE}\nSPEAKER1: ", "\n<|scene_desc_end|>"),
                *TAGGED_TARGET,
            ],
            asked(
                TAGGED_TEXT,
                instruction=instruction_and(f"SPEAKER0: {PROFILE}"),
                reference_codes=[codes(4)],
            ),
        ),
        "speakers_in_system_mixed_scene": Variant(
            [
                system_with_clips(
                    f"{head}{SCENE}\n\nSPEAKER0: ", f"\nSPEAKER1: {PROFILE}\n<|scene_desc_end|>"
                ),
                *TAGGED_TARGET,
            ],
            asked(
                TAGGED_TEXT,
                instruction=instruction_and(SCENE, f"SPEAKER1: {PROFILE}"),
                reference_codes=[codes(4)],
            ),
        ),
    }


def several_turns() -> dict[str, Variant]:
    dialogue = [system(INSTRUCTION), *TARGET, user(NEXT_TEXT), spoken()]
    turns = [
        ("system", INSTRUCTION),
        ("user", TEXT),
        ("assistant", ""),
        ("user", NEXT_TEXT),
        ("assistant", ""),
    ]
    conditioning = row(*turns, clips=2)
    conditioning["messages"][2]["loss"] = False
    asking = [system(INSTRUCTION), user(TEXT)]
    text_then_audio = Message(
        "assistant", [TextContent("Gladly, here it is.\n"), AudioContent(audio_url="")]
    )
    audio_then_text = Message(
        "assistant", [AudioContent(audio_url=""), TextContent("Was that all?")]
    )
    text_only = Message("assistant", "Gladly, in a moment.")
    return {
        "turns_all_trained": Variant(dialogue, row(*turns, clips=2)),
        "turns_first_conditioning": Variant(dialogue, conditioning, start_index=3),
        "text_then_audio": Variant(
            [*asking, text_then_audio],
            row(
                ("system", INSTRUCTION),
                ("user", TEXT),
                ("assistant", "Gladly, here it is.\n<audio>"),
            ),
        ),
        "audio_then_text": Variant(
            [*asking, audio_then_text],
            row(("system", INSTRUCTION), ("user", TEXT), ("assistant", "<audio>Was that all?")),
        ),
        "text_turn_before_audio_turn": Variant(
            [*asking, text_only, user(NEXT_TEXT), spoken()],
            row(*turns[:2], ("assistant", "Gladly, in a moment."), *turns[3:]),
        ),
        # Between two assistant turns the original writes <|eom_id|>, not <|eot_id|>.
        "assistant_twice": Variant(
            [*asking, text_only, spoken()],
            row(*turns[:2], ("assistant", "Gladly, in a moment."), ("assistant", "")),
        ),
    }


def requests(trained: dict[str, Variant]) -> dict[str, Variant]:
    """Generation prompts: the trained variants without their last turn, where that is one clip
    after a user turn."""
    prompts = {}
    for name, variant in trained.items():
        *before, last = variant.messages
        if isinstance(last.content, AudioContent) and before[-1].role == "user":
            prompt = Variant(before, unanswered(variant.row), speaking=True)
            prompts[f"speaking_{name}"] = prompt
    return prompts


def all_variants() -> dict[str, Variant]:
    trained = single_speaker() | one_reference() | several_speakers() | several_references()
    trained |= several_voices_in_system() | several_turns()
    return trained | requests(trained)


def golden(variant: Variant, tokenizer: Any) -> dict[str, Any]:
    """The original's ids. Its label of a clip's placeholder is the placeholder: the test leaves it
    out."""
    sample = ChatMLSample(messages=variant.messages, start_index=variant.start_index)
    input_tokens, label_tokens, _, _ = prepare_chatml_sample(sample, tokenizer)
    assert input_tokens is not None, sample  # the original prints its errors and gives None
    if variant.speaking:
        # examples/generation.py ends with the empty line after the header, and its model has to
        # choose <|audio_out_bos|> by itself; the package's serve engine appends it
        # (`force_audio_gen=True`). So do we.
        input_tokens += tokenizer.encode(SPEAKER_TURN, add_special_tokens=False)
        label_tokens = None
    return {
        "row": variant.row,
        "speaking": variant.speaking,
        "input_tokens": input_tokens,
        "label_tokens": label_tokens,
    }


def llama_tokenizer() -> Any:
    """The published tokenizer: Llama-3's, with audio names for reserved tokens (as
    tests/conftest.py)."""
    spec = importlib.util.find_spec("llama_models")
    assert spec is not None, "llama_models is missing: see the docstring of this file"
    assert spec.submodule_search_locations
    vocabulary = next(Path(spec.submodule_search_locations[0]).rglob("llama3/**/tokenizer.model"))
    names = [f"<|reserved_special_token_{i}|>" for i in range(256)]
    others = [name for name in names if name not in NAMED]
    specials = [*NAMED, *others[: 256 - len(NAMED)]]
    converter = TikTokenConverter(vocab_file=str(vocabulary), additional_special_tokens=specials)
    return PreTrainedTokenizerFast(tokenizer_object=converter.converted())


def check_tokenizer(tokenizer: Any) -> None:
    """Assert that it gives the ids that the golden collator batches were made with."""
    cases = json.loads((GOLDEN / "collator" / "meta.json").read_text(encoding="utf-8"))
    for name, case in cases.items():
        if "turns" not in case:
            continue
        messages = []
        for role, content in case["turns"]:
            if not isinstance(content, str):
                content = [AudioContent(**clip) for clip in content]
            messages.append(Message(role, content))
        sample = ChatMLSample(messages=messages, start_index=case["start_index"])
        input_tokens, label_tokens, _, _ = prepare_chatml_sample(sample, tokenizer)
        assert input_tokens == case["input_tokens"], name
        assert label_tokens == case["label_tokens"], name


def main() -> None:
    tokenizer = llama_tokenizer()
    check_tokenizer(tokenizer)
    results = {name: golden(variant, tokenizer) for name, variant in all_variants().items()}
    lines = [f"{json.dumps(name)}: {json.dumps(result)}" for name, result in results.items()]
    (GOLDEN / "prompts.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(results)} variants")


if __name__ == "__main__":
    main()
