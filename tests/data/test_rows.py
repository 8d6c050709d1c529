"""Rows of every accepted shape become the model's own prompt; what cannot be meant is one line with
a remedy."""

from pathlib import Path
from typing import Any

import pytest
from conftest import CORPUS, corpus_rows, write_jsonl

from plugins.corpora.canonical import canonical_row
from plugins.data.clips import check_clips
from plugins.data.dialogue import AudioClip, Dialogue
from plugins.data.rows import dialogue_from_row
from plugins.data.sources import read_rows as read_checked_rows
from plugins.data.wording import INSTRUCTION, MULTI_SPEAKER_INSTRUCTION
from plugins.errors import UserError
from plugins.settings import HiggsAudioSettings

A, B = (str(CORPUS / "wavs" / f"DEMO-000{i}.flac") for i in (1, 2))
SETTINGS = HiggsAudioSettings()
CODES = [[0] * 8, [1023] * 8]  # two frames of eight codebooks


def dialogue(row: dict[str, Any], settings: HiggsAudioSettings = SETTINGS) -> Dialogue:
    return dialogue_from_row(canonical_row(row, "t.jsonl:1", settings), settings)


def read_rows(path: str, settings: HiggsAudioSettings) -> list[dict[str, Any]]:
    return read_checked_rows(path, settings, check=lambda dialogue: check_clips(dialogue, settings))


def row(*messages: tuple[str, Any], **columns: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": role, "content": content} for role, content in messages],
        **columns,
    }


def clips(of: Dialogue) -> list[str | None]:
    return [part.path for turn in of.turns for part in turn.parts if isinstance(part, AudioClip)]


def test_row_of_the_seed_document_verbatim() -> None:
    seed = row(
        ("system", "<|scene_desc_start|> Indoor quiet <|scene_desc_end|>"),
        ("user", "Please speak: Hello world"),
        ("assistant", ""),
        audios=[A],
        reference_audio=B,
    )
    result = dialogue(seed)
    assert (result.instruction, result.scene) == (INSTRUCTION, "Indoor quiet")
    assert result.turns[0].parts == ("Hello world.",)
    assert clips(result) == [A]
    assert [turn.trained for turn in result.turns] == [False, True]
    assert [(ref.clip.path, ref.text) for ref in result.references] == [(B, None)]


def test_missing_system_turn_gets_the_models_instruction() -> None:
    assert dialogue(row(("user", "Hi"), ("assistant", ""), audios=[A])).instruction == INSTRUCTION


def test_two_speakers_without_system_turn_get_the_multi_speaker_instruction() -> None:
    result = dialogue(row(("user", "[SPEAKER0] Hi\n[SPEAKER1] Ho"), ("assistant", ""), audios=[A]))
    assert result.instruction == MULTI_SPEAKER_INSTRUCTION


def test_raw_prompt_is_taken_as_written() -> None:
    text = "Please speak: Hi "
    result = dialogue(row(("user", text), ("assistant", ""), audios=[A], raw_prompt=True))
    assert (result.instruction, result.turns[0].parts) == (None, (text,))


def test_assistant_turns_take_audios_in_order() -> None:
    result = dialogue(
        row(
            ("user", "1"),
            ("assistant", ""),
            ("user", "2"),
            ("assistant", "so: <audio>"),
            audios=[A, B],
        )
    )
    assert clips(result) == [A, B]
    assert result.turns[3].parts[0] == "so: "


def test_content_lists_of_ms_swift() -> None:
    content = [{"type": "text", "text": "so: "}, {"type": "audio", "audio": A}]
    assert clips(dialogue(row(("user", "1"), ("assistant", content)))) == [A]


def test_a_turn_with_loss_false_is_conditioning() -> None:
    first = row(("user", "1"), ("assistant", ""), ("user", "2"), ("assistant", ""), audios=[A, B])
    first["messages"][1]["loss"] = False
    assert [turn.trained for turn in dialogue(first).turns] == [False, False, False, True]


def test_codes_stand_in_for_audio() -> None:
    result = dialogue(row(("user", "1"), ("assistant", ""), audio_codes=[CODES]))
    clip = result.turns[1].parts[0]
    assert isinstance(clip, AudioClip)
    assert clip.codes is not None
    assert clip.codes.shape == (8, 2)
    assert clip.codes[:, 1].tolist() == [1023] * 8


def test_a_canonical_row_stays_as_it_is() -> None:
    """Rows pass twice: when the file is read and when the template meets them again."""
    seed = corpus_rows(1, reference_audio=B, reference_text="Glue.")[0]
    once = canonical_row(seed, "t.jsonl:1", SETTINGS)
    assert canonical_row(once, "t.jsonl:1", SETTINGS) == once


def test_relative_paths_are_found_beside_the_file_or_under_audio_root(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.flac").write_bytes(Path(A).read_bytes())
    path = write_jsonl(
        tmp_path / "t.jsonl", [row(("user", "1"), ("assistant", ""), audios=["clips/a.flac"])]
    )
    assert read_rows(str(path), SETTINGS)[0]["audios"] == [str(tmp_path / "clips" / "a.flac")]
    other = write_jsonl(
        tmp_path / "u.jsonl", [row(("user", "1"), ("assistant", ""), audios=["a.flac"])]
    )
    settings = HiggsAudioSettings(audio_root=str(tmp_path / "clips"))
    assert read_rows(str(other), settings)[0]["audios"] == [str(tmp_path / "clips" / "a.flac")]


def test_two_speakers_in_a_scene_get_the_multi_speaker_instruction() -> None:
    scene = "<|scene_desc_start|>\nSPEAKER0: feminine\nSPEAKER1: masculine\n<|scene_desc_end|>"
    result = dialogue(
        row(
            ("system", scene),
            ("user", "[SPEAKER0] Hi\n[SPEAKER1] Ho"),
            ("assistant", ""),
            audios=[A],
        )
    )
    assert result.instruction == MULTI_SPEAKER_INSTRUCTION
    assert result.scene == "SPEAKER0: feminine\nSPEAKER1: masculine"


def test_columns_can_be_renamed(tmp_path: Path) -> None:
    """MS-SWIFT's `--columns`."""
    path = write_jsonl(
        tmp_path / "t.jsonl", [row(("user", "1"), ("assistant", ""), voice=B, audios=[A])]
    )
    columns = {"voice": "reference_audio"}
    rows = read_checked_rows(str(path), SETTINGS, check=lambda _: None, columns=columns)
    assert rows[0]["reference_audio"] == [B]


def test_a_validation_file_that_ms_swift_split_off_is_accepted(tmp_path: Path) -> None:
    written = {**canonical_row(GOOD, "t.jsonl:9", SETTINGS), "dataset": "t.jsonl"}
    path = write_jsonl(tmp_path / "val_dataset.jsonl", [written])
    assert read_rows(str(path), SETTINGS)[0]["row_source"] == f"{path}:1"


GOOD = row(("user", "Hi"), ("assistant", ""), audios=[A])


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"reference_audio": None, "reference_text": ""}, []),
        ({"reference_audio": "", "reference_text": ""}, []),
        ({"reference_audio": "", "reference_text": None}, []),
        ({"reference_audio": [], "reference_text": ""}, []),
        ({"reference_audio": [None], "reference_text": [""]}, []),
        ({"reference_audio": [""], "reference_text": [None]}, []),
        ({"reference_text": " "}, []),
        ({"reference_audio": None, "reference_codes": None, "reference_text": []}, []),
        ({"reference_audio": "", "reference_codes": "", "reference_text": ""}, []),
        ({"audio_codes": "", "audio": None}, []),
        ({"reference_audio": B, "reference_text": ""}, [(B, None)]),
        ({"reference_audio": [B], "reference_text": ["x", ""]}, [(B, "x")]),
        ({"reference_audio": ["", B], "reference_text": ["", "x"]}, [(B, "x")]),
        ({"reference_audio": [B, None], "reference_text": ["x"]}, [(B, "x")]),
        (
            {"reference_audio": "", "reference_codes": [CODES], "reference_text": ["x"]},
            [(None, "x")],
        ),
    ],
)
def test_null_and_empty_references_are_none(
    columns: dict[str, Any], expected: list[tuple[str | None, str | None]]
) -> None:
    """As tables of others have them, with the same columns in every row."""
    result = dialogue({**GOOD, **columns})
    assert [(ref.clip.path, ref.text) for ref in result.references] == expected
    assert clips(result) == [A]


BAD_ROWS = {
    "missing audio": (
        {**GOOD, "audios": ["gone.wav"]},
        r"audios\[0\]: 'gone.wav' not found \(looked in ",
    ),
    "audio by url": (
        {**GOOD, "audios": ["https://x/a.wav"]},
        r"audios\[0\]: 'https://x/a.wav' .*download",
    ),
    "empty text": (
        row(("user", " "), ("assistant", ""), audios=[A]),
        r"messages\[0\]\.content: ' ' is empty; give",
    ),
    "only an old prefix": (
        row(("system", "x"), ("user", "Please speak: "), ("assistant", ""), audios=[A]),
        r"messages\[1\]\.content: 'Please speak: ' is empty",
    ),
    "two audios for one turn": (
        {**GOOD, "audios": [A, B]},
        r"audios: .* are 2 clips for 1 assistant turn\(s\)",
    ),
    "no audio for a turn": (
        row(("user", "Hi"), ("assistant", "")),
        r"audios has no clip for messages\[1\]",
    ),
    "wrong codebook count": (
        {**GOOD, "audio_codes": [[[1, 2, 3]]]},
        r"audio_codes\[0\]: \[1, 3\] is not \[F\]\[8\]; give a list of F frames of 8 codes",
    ),
    "code out of range": (
        {**GOOD, "audio_codes": [[[1024] * 8]]},
        r"audio_codes\[0\]: 1024 is outside 0..1023",
    ),
    "ragged codes": (
        {**GOOD, "audio_codes": [[[1] * 8, [1]]]},
        r"audio_codes\[0\]: .* is no rectangular list",
    ),
    "codes for one of two": (
        {**GOOD, "audio_codes": [CODES, CODES]},
        r"audio_codes: 2 entries for 1 clips",
    ),
    "unknown column": (
        {**GOOD, "refrence_audio": B},
        r"'refrence_audio' is unknown; did you mean 'reference_audio'",
    ),
    "reference is the target": (
        {**GOOD, "reference_audio": A},
        r"reference_audio: .* is the target itself",
    ),
    "transcript without reference": (
        {**GOOD, "reference_text": "x"},
        r"reference_text: .* has no reference \(1 transcripts for 0 clips\)",
    ),
    "transcript of an absent reference": (
        {**GOOD, "reference_audio": ["", B], "reference_text": ["x", "y"]},
        r"reference_text: .* has no reference \(2 transcripts for 1 clips\)",
    ),
    "unknown role": (row(("robot", "Hi")), r"messages\[0\]: .* has no role"),
    "system in the middle": (
        row(("user", "Hi"), ("system", "x"), ("assistant", ""), audios=[A]),
        r"messages\[1\]\.role: 'system' is not the first message",
    ),
    "nothing to train": (row(("user", "Hi")), r"messages: \['user'\] has no turn to train on"),
    "audio in a user turn": (
        row(
            ("user", [{"type": "audio", "audio": B}, {"type": "text", "text": "Hi"}]),
            ("assistant", ""),
        ),
        r"messages\[0\]\.content: '<audio>Hi' has audio in a user turn; put voices into ref",
    ),
    "clips here and there": (
        {**row(("user", "Hi"), ("assistant", [{"type": "audio", "audio": A}])), "audios": [B]},
        r"audios: .* are clips in addition to those in the contents",
    ),
    "text after the scene": (
        row(
            ("system", "<|scene_desc_start|>x<|scene_desc_end|> Slow."),
            ("user", "Hi"),
            ("assistant", ""),
            audios=[A],
        ),
        r"messages\[0\]\.content: .* has scene tags or text out of place",
    ),
    "raw prompt without a place for the reference": (
        {**GOOD, "raw_prompt": True, "reference_audio": B},
        r"reference_audio: .* has no place in a raw prompt without system message",
    ),
    "content of bare strings": (
        row(("user", ["Hi"])),
        r"messages\[0\]\.content: 'Hi' is neither a text nor an audio",
    ),
    "image": (
        row(("user", [{"type": "image", "image": "x"}])),
        r"is neither a text nor an audio item",
    ),
    "transcript as number": (
        {**GOOD, "reference_audio": B, "reference_text": 5},
        r"reference_text: 5 is no text",
    ),
    "raw_prompt as text": (
        {**GOOD, "raw_prompt": "false"},
        r"raw_prompt: 'false' is neither true nor false",
    ),
    "loss as number": (
        {
            **GOOD,
            "messages": [*GOOD["messages"][:1], {"role": "assistant", "content": "", "loss": 0}],
        },
        r"messages\[1\]\.loss: 0 is neither true nor false",
    ),
    "codes with fractions": (
        {**GOOD, "audio_codes": [[[1.7] * 8]]},
        r"audio_codes\[0\]: 1\.7.* is no integer",
    ),
    "no messages": ({"audios": [A]}, r"messages is no list of messages"),
    "too long": (
        {**GOOD, "audio_codes": [[[0] * 8] * 1025]},
        r"1025 codec frames, more than max_audio_length 1024; cut the clip or raise --max_audio",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row_is_one_line_with_file_row_field_value_and_remedy(
    case: str, tmp_path: Path
) -> None:
    bad, expected = BAD_ROWS[case]
    path = write_jsonl(tmp_path / "train.jsonl", [GOOD, bad, GOOD])
    with pytest.raises(UserError, match=expected) as error:
        read_rows(str(path), SETTINGS)
    message = str(error.value)
    assert message.startswith(f"{path}:2: ")
    assert "; " in message
    assert "\n" not in message


def test_all_bad_rows_are_named_at_once(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "train.jsonl", [{**GOOD, "audios": [f"gone{i}.wav"]} for i in range(25)]
    )
    with pytest.raises(UserError) as error:
        read_rows(str(path), SETTINGS)
    lines = str(error.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and 5 more"


def test_a_fault_that_all_rows_share_is_said_once(tmp_path: Path) -> None:
    """The same line twenty times, "and 500 more", when `codes/` was left behind."""
    key = "0123456789abcdef" * 2
    rows = [{**GOOD, "audio_codes": [f"codes#{key}"]} for _ in range(30)]
    path = write_jsonl(tmp_path / "train.jsonl", [*rows, {**GOOD, "audios": ["gone.wav"]}])
    with pytest.raises(UserError) as error:
        read_rows(str(path), SETTINGS)
    first, second = str(error.value).splitlines()
    assert first.startswith(f"{path}:1: audio_codes[0]: {tmp_path}: code cache: 'codes' not found")
    assert "move it there too, beside the rows, or run the same prepare command again" in first
    assert first.endswith("(and so in 29 more: 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ..., 30)")
    assert second.startswith(f"{path}:31: audios[0]: 'gone.wav' not found")


def test_broken_json_and_blank_lines(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", [GOOD])
    path.write_text("\ufeff" + path.read_text() + "\r\n{broken\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"{path}:3: line: '\{{broken' is no JSON"):
        read_rows(str(path), SETTINGS)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"messages": "\xe9"}\n')
    with pytest.raises(
        UserError, match=r"train\.jsonl:1: line: .* is not UTF-8; save the file as UTF-8"
    ):
        read_rows(str(path), SETTINGS)


def test_a_line_that_is_not_utf8_hides_no_other_fault(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{broken\n{"messages": "\xe9"}\n[]\n')
    with pytest.raises(UserError) as error:
        read_rows(str(path), SETTINGS)
    places = [line.partition(": ")[0] for line in str(error.value).split("\n")]
    assert places == [f"{path}:{number}" for number in (1, 2, 3)]


def test_empty_file_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", [])
    with pytest.raises(UserError, match="there is no row; prepare it again"):
        read_rows(str(path), SETTINGS)
