"""JSONL in: what `read_jsonl` takes is what training takes, and every other line is told by its
reason."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.trees import clip, heard, rejects, sorted_out, utterances

from plugins.corpora import Utterance, read_jsonl
from plugins.data import sources as row_sources
from plugins.errors import UserError
from plugins.prepare.cli import main
from plugins.settings import HiggsAudioSettings

TURNS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ""}]


def row(**changes: Any) -> dict[str, Any]:
    return {"messages": TURNS, "audios": ["a.wav"], "id": "u1", **changes}


def with_turns(*turns: tuple[str, Any], **changes: Any) -> dict[str, Any]:
    return row(messages=[{"role": role, "content": content} for role, content in turns], **changes)


def corpus(folder: Path, *lines: object) -> Path:
    """Clips a.wav, b.wav and c.wav, and a file with `lines`: rows, or text as it stands."""
    for name in ("a.wav", "b.wav", "c.wav"):
        clip(folder / name)
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            text = line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)
            file.write(f"{text}\n")
    return path


def test_own_output_comes_back_unchanged(tmp_path):
    """The rows that `prepare_dataset.py` writes, in the same order."""
    for name in ("x.wav", "y.wav"):
        clip(tmp_path / "wavs" / name)
    (tmp_path / "metadata.csv").write_text("x|One\ny|Zwei, ähem\n", encoding="utf-8")
    output = tmp_path / "out.jsonl"
    assert (
        main(
            [
                "--dataset_type",
                "ljspeech",
                "--input_dir",
                str(tmp_path),
                "--output_file",
                str(output),
            ]
        )
        == 0
    )
    results = list(read_jsonl(tmp_path, output))
    assert heard(results) == [("x", "One", None), ("y", "Zwei, ähem", None)]
    written = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [utterance.row for utterance in utterances(results)] == written


def test_everything_in_a_row_is_kept(tmp_path):
    """System message, scene, references, codes, names: losing one of them would train something
    else."""
    scene = (
        "Generate audio following instruction.\n\n<|scene_desc_start|>\nQuiet\n<|scene_desc_end|>"
    )
    full = with_turns(
        ("system", scene),
        ("user", "please speak:  Hello\n world"),
        ("assistant", "<audio>"),
        reference_audio=["b.wav", "c.wav"],
        reference_text=["B", None],
        reference_codes=None,
        audio_codes=[[[1] * 8]],
        speaker="anna",
        language="en",
        duration_s=0.1,
        dataset="mine",
        row_source="old.jsonl:7",
    )
    [utterance] = read_jsonl(tmp_path, corpus(tmp_path, full))
    # But for what says nothing of the row itself.
    del full["row_source"], full["reference_codes"]
    full["audios"] = [f"{tmp_path}/a.wav"]
    full["reference_audio"] = [f"{tmp_path}/b.wav", f"{tmp_path}/c.wav"]
    full["reference_text"] = ["B", ""]  # one spelling of no text
    assert utterance == Utterance(
        place=f"{tmp_path}/rows.jsonl:1",
        id="u1",
        text="Hello world",
        audio=tmp_path / "a.wav",
        speaker="anna",
        language="en",
        row=full,
    )


def test_other_spellings_of_a_plain_row(tmp_path):
    """MS-SWIFT's content lists, `audio` for `audios`, one path instead of a list, numbers for
    names, no id."""
    lists = with_turns(
        ("user", [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]),
        ("assistant", [{"type": "audio", "audio": "a.wav"}]),
        audios=None,
    )
    single = {
        "messages": TURNS,
        "audio": "a.wav",
        "reference_audio": "b.wav",
        "speaker": 7,
        "raw_prompt": False,
    }
    no_content = with_turns(("user", "Hello"), ("assistant", None), id=3)
    results = list(read_jsonl(tmp_path, corpus(tmp_path, lists, single, no_content)))
    assert heard(results) == [("u1", "Hello", None), ("a.wav", "Hello", "7"), ("3", "Hello", None)]
    plain = {"messages": TURNS, "audios": [f"{tmp_path}/a.wav"]}
    tagged = [TURNS[0], {"role": "assistant", "content": "<audio>"}]
    assert [utterance.row for utterance in utterances(results)] == [
        {**plain, "messages": tagged, "id": "u1"},
        {
            **plain,
            "reference_audio": f"{tmp_path}/b.wav",
            "speaker": "7",
            "raw_prompt": False,
            "id": "a.wav",
        },
        {**plain, "id": "3"},
    ]


def test_prefix_counts_as_text_in_a_raw_prompt_only(tmp_path):
    """Training strips it from every other prompt, so it is not spoken there."""
    turns = (("user", "Please speak: Hello"), ("assistant", ""))
    path = corpus(
        tmp_path,
        with_turns(*turns),
        with_turns(*turns, raw_prompt=True),
        with_turns(("user", ""), turns[1]),
    )
    assert [text for _, text, _ in heard(read_jsonl(tmp_path, path))] == [
        "Hello",
        "Please speak: Hello",
        "",
    ]


def test_bom_crlf_blank_lines_and_line_separators(tmp_path):
    """Line numbers count as an editor counts; U+2028 inside a text ends no line."""
    path = corpus(tmp_path)
    text = json.dumps(with_turns(("user", "one\u2028two"), ("assistant", "")), ensure_ascii=False)
    path.write_bytes(f"\ufeff{text}\r\n\r\n  \n{json.dumps(row(id='u2'))}".encode())
    results = list(read_jsonl(tmp_path, path))
    assert heard(results) == [("u1", "one two", None), ("u2", "Hello", None)]
    assert [result.place for result in results] == [f"{path}:1", f"{path}:4"]


FAULTS: dict[str, tuple[object, str, str]] = {
    "cut off": ('{"messages": [', "line is no JSON (Expecting value)", '{"messages": ['),
    "two rows": ("{} {}", "line is no JSON (Extra data)", "{} {}"),
    "endless nesting": ("[" * 200_000, "line is no JSON", "[" * 200),
    "number": ("17", "line is no JSON object", "17"),
    "half a character": (r'{"id": "\ud83d"}', "line escapes half a character", r'{"id": "\ud83d"}'),
    "mistyped column": (row(audoi="a.wav"), "column is unknown (did you mean 'audio'?)", "audoi"),
    "no messages": ({"audios": ["a.wav"]}, "messages is no list of messages", "null"),
    "flat row": (
        {"audio": "a.wav", "messages": "Hello"},
        "messages is no list of messages",
        "Hello",
    ),
    "no messages in it": (
        row(messages=["Hello"]),
        "messages has no role system, user or assistant",
        "Hello",
    ),
    "unanswered dialogue": (
        row(messages=[*TURNS, TURNS[0]], audios=["a.wav", "b.wav"]),
        "is no plain text-to-speech row (roles)",
        '["user", "assistant", "user"]',
    ),
    "no answer": (row(messages=TURNS[:1]), "is no plain text-to-speech row (roles)", '["user"]'),
    "late system": (
        with_turns(("user", "Hello"), ("system", "x"), ("assistant", "")),
        "messages.role is not the first message",
        "system",
    ),
    "written answer": (
        with_turns(("user", "Hello"), ("assistant", "Sure: <audio>")),
        "is no plain text-to-speech row (assistant text)",
        "Sure: <audio>",
    ),
    "two clips": (
        row(audios=["a.wav", "b.wav"]),
        "is no plain text-to-speech row (2 clips)",
        '["a.wav", "b.wav"]',
    ),
    "pair": (
        row(rejected_audios=["b.wav"]),
        "is no plain text-to-speech row (a pair of answers)",
        '["b.wav"]',
    ),
    "codes only": (
        row(audios=[], audio_codes=[[[1] * 8]]),
        "is no plain text-to-speech row (0 clips)",
        "[]",
    ),
    "clip named twice": (
        with_turns(("user", "Hello"), ("assistant", [{"type": "audio", "audio": "b.wav"}])),
        "audios are clips in addition to those in the contents",
        '["a.wav"]',
    ),
    "heard user": (
        with_turns(("user", "<audio>"), ("assistant", "")),
        "messages.content has audio in a user turn",
        "<audio>",
    ),
    "odd content": (
        with_turns(("user", [{"type": "image", "image": "x"}]), ("assistant", "")),
        "messages.content is neither a text nor an audio item",
        '{"type": "image", "image": "x"}',
    ),
    "untrained": (
        row(messages=[TURNS[0], {**TURNS[1], "loss": False}]),
        "has no turn to train on",
        '["user", "assistant"]',
    ),
    "number for a flag": (
        row(messages=[TURNS[0], {**TURNS[1], "loss": 1}]),
        "messages.loss is neither true nor false",
        "1",
    ),
    "text for a flag": (row(raw_prompt="no"), "raw_prompt is neither true nor false", "no"),
    "id that is no text": (row(id=["u1"]), "id is no text", '["u1"]'),
    "speaker that is no text": (row(speaker=True), "speaker is no text", "true"),
    "path that is no text": (
        row(audios=[{"path": "a.wav"}]),
        "audios is no path",
        '{"path": "a.wav"}',
    ),
    "missing clip": (row(audios=["gone.wav"]), "not found", "gone.wav"),
    "url": (row(audios=["https://x.org/a.wav"]), "is a URL", "https://x.org/a.wav"),
    "missing reference": (row(reference_audio="gone.wav"), "reference_audio not found", "gone.wav"),
    "target as reference": (
        row(reference_audio="a.wav"),
        "reference_audio is the target itself",
        "a.wav",
    ),
    "linked target as reference": (
        row(reference_audio="link.wav"),
        "reference_audio is the target itself",
        "a.wav",
    ),
    "reference text that is none": (
        row(reference_audio="b.wav", reference_text=[7]),
        "reference_text is no text",
        "7",
    ),
    "text without reference": (row(reference_text="B"), "reference_text has no reference", '["B"]'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_line_is_told_and_costs_no_other(tmp_path, fault):
    """The lines around it are read."""
    line, reason, value = FAULTS[fault]
    path = corpus(tmp_path, row(id="before"), line, row(id="after"))
    (tmp_path / "link.wav").symlink_to("a.wav")
    results = list(read_jsonl(tmp_path, path))
    assert [utterance.id for utterance in utterances(results)] == ["before", "after"]
    [rejected] = rejects(results)
    assert rejected.place == f"{path}:2"
    assert rejected.reason.startswith(reason)
    assert rejected.kind == reason.partition(" (")[0]
    assert str(rejected.value).removeprefix(f"{tmp_path}/") == value


@pytest.mark.parametrize("fault", FAULTS)
def test_what_training_takes_is_only_left_out_for_not_being_plain(tmp_path, monkeypatch, fault):
    """The light reading here and the whole one of training must agree on every fault."""
    (tmp_path / "link.wav").symlink_to("a.wav")
    path = corpus(tmp_path, FAULTS[fault][0])
    settings = HiggsAudioSettings()
    monkeypatch.chdir("/")
    plain = fault in (
        "dialogue",
        "written answer",
        "codes only",
        "pair",
        "speaker that is no text",
        "id that is no text",
    )
    if plain:
        row_sources.read_rows(str(path), settings, check=lambda dialogue: None)
    else:
        with pytest.raises(UserError):
            row_sources.read_rows(str(path), settings, check=lambda dialogue: None)


def test_training_takes_every_row_that_is_read(tmp_path):
    """As it stands in `Utterance.row`, from any folder."""
    path = corpus(
        tmp_path,
        row(),
        with_turns(
            ("system", "Be kind."),
            ("user", "Hello"),
            ("assistant", "<audio>"),
            reference_audio="b.wav",
        ),
        with_turns(
            ("user", [{"type": "text", "text": "x"}]),
            ("assistant", [{"type": "audio", "audio": "a.wav"}]),
        )
        | {"audios": None},
        row(
            reference_audio=["b.wav", "c.wav"], reference_text=["B"], speaker="anna", language="en"
        ),
    )
    plain = utterances(read_jsonl(tmp_path, path))
    assert len(plain) == 4
    out = tmp_path / "elsewhere" / "out.jsonl"
    out.parent.mkdir()
    out.write_text("".join(json.dumps(utterance.row) + "\n" for utterance in plain))
    read = row_sources.read_rows(str(out), HiggsAudioSettings(), check=lambda dialogue: None)
    assert [row["audios"] for row in read] == [[str(tmp_path / "a.wav")]] * 4
    assert read[3]["reference_audio"] == [str(tmp_path / "b.wav"), str(tmp_path / "c.wav")]


def test_lines_that_are_not_utf8(tmp_path):
    """One Latin-1 line among UTF-8 ones; a whole file in UTF-16, as some editors save it."""
    path = corpus(tmp_path, row(id="before"))
    with path.open("ab") as file:
        file.write('{"id": "café"}\n'.encode("latin-1") + json.dumps(row(id="after")).encode())
    assert sorted_out(read_jsonl(tmp_path, path)) == (
        ["before", "after"],
        [("", "line is not UTF-8", r'{"id": "caf\xe9"}')],
    )
    path.write_text(json.dumps(row()) + "\n", encoding="utf-16")
    read, rejected = sorted_out(read_jsonl(tmp_path, path))
    assert (read, rejected[0][1]) == ([], "line is not UTF-8")


def test_references_are_jailed_too(tmp_path):
    """A reference is heard by the model like any clip."""
    outside = clip(tmp_path / "outside.wav")
    path = corpus(
        tmp_path / "root",
        row(reference_audio="../outside.wav"),
        row(reference_audio=str(outside)),
        row(),
    )
    results = list(read_jsonl(path.parent, path, root=path.parent))
    assert Counter(reject.kind for reject in rejects(results)) == {
        'reference_audio holds "..", which the audio root forbids': 1,
        "reference_audio is absolute, which the audio root forbids": 1,
    }
    assert len(heard(read_jsonl(path.parent, path))) == 3


def test_a_link_to_a_name_that_is_not_utf8(tmp_path):
    """The link can be written into a row, what it leads to cannot."""
    path = corpus(tmp_path, row(audios=["link.wav"]), row(reference_audio="link.wav"))
    clip(tmp_path / "x.wav").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav"))
    (tmp_path / "link.wav").symlink_to(os.fsdecode(b"\xff.wav"))
    told = ("u1", "name is not UTF-8", rf"{tmp_path}/\udcff.wav")
    assert sorted_out(read_jsonl(tmp_path, path)) == ([], [told, told])


def test_missing_file(tmp_path):
    """Said at once, before any output."""
    with pytest.raises(UserError, match=r"^jsonl: jsonl_file: '.*rows\.jsonl' not found; "):
        list(read_jsonl(tmp_path, tmp_path / "rows.jsonl"))
