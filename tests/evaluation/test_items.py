"""Rows and lists of other kits -> items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from conftest import CORPUS, corpus_rows, write_jsonl

from plugins.data.dialogue import Turn
from plugins.errors import UserError
from plugins.evaluation import formats
from plugins.evaluation.items import read_items
from plugins.settings import HiggsAudioSettings

SETTINGS = HiggsAudioSettings()


def test_a_list_of_seed_tts_eval(tmp_path: Path) -> None:
    for name in ("prompt.wav", "target.wav"):
        sf.write(tmp_path / name, 0.1 * np.sin(np.arange(48_000) / 20), 24_000)
    # With and without the recording, the suffix, the prompt's words and the prompt.
    lines = [
        "one|What the prompt says.|prompt.wav|Hello there.|target.wav",
        "two.wav|What the prompt says.|prompt.wav|Good bye.",
        "three|No transcript of it.|prompt.wav",
        "four|In any voice.",
    ]
    (tmp_path / "meta.lst").write_text("\n".join(lines) + "\n", encoding="utf-8")
    one, two, three, four = read_items(str(tmp_path / "meta.lst"), SETTINGS)
    assert (one.id, two.id, three.id, four.id) == ("one", "two", "three", "four")
    assert one.truth == str(tmp_path / "target.wav")
    assert (two.truth, two.text, two.reference) == (None, "Good bye.", str(tmp_path / "prompt.wav"))
    assert two.dialogue.references[0].text == "What the prompt says."
    assert three.dialogue.references[0].text is None
    assert four.reference is None

    # What would begin another field or line is taken out.
    prompt = {"prompt": two.reference, "prompt_text": "What the prompt says."}
    rows = [
        {"id": "two", "text": "Good | bye.", **prompt},
        {"id": "four", "text": "In any\nvoice.", "prompt": None},
    ]
    formats.write_meta(tmp_path / "again.lst", rows)
    again = read_items(str(tmp_path / "again.lst"), SETTINGS)
    assert (again[0].text, again[1].text) == ("Good bye.", "In any voice.")
    assert again[0].dialogue.references == two.dialogue.references


def test_lists_of_versa(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(24_000) / 20), 24_000)
    formats.write_kaldi(tmp_path / "wav.scp", {"a": "a.wav"})
    formats.write_kaldi(tmp_path / "text", {"a": "Hello \n there."})
    (item,) = read_items(str(tmp_path), SETTINGS)
    assert (item.id, item.text, item.truth) == ("a", "Hello there.", str(tmp_path / "a.wav"))
    # As tools other than ours write them.
    (tmp_path / "wav.scp").write_bytes(b"\xef\xbb\xbfa\ta.wav\r\n\r\n")
    (tmp_path / "text").write_bytes(b"a \t Hello there.\r\n")
    assert read_items(str(tmp_path), SETTINGS)[0].text == "Hello there."


@pytest.mark.parametrize(
    ("scp", "error"),
    [
        (b"a sox a.wav -t wav - |\n", r"path: .* is a command; run it"),
        (b"a x.ark:12\n", r"path: 'x.ark:12' is a part of a file; copy it out"),
        (b"a\n", r"path: '' has no path; write KEY PATH"),
        (b"a a.wav\r\na b.wav\n", r"key: 'a' is there twice"),
        (b"a caf\xe9.wav\n", r"line: 'a' is not UTF-8; save"),
    ],
)
def test_faulty_lists_of_versa(tmp_path: Path, scp: bytes, error: str) -> None:
    (tmp_path / "text").write_text("a Hello.\n", encoding="utf-8")
    (tmp_path / "wav.scp").write_bytes(scp)
    with pytest.raises(UserError, match=rf"wav\.scp:[12]: {error}"):
        read_items(str(tmp_path), SETTINGS)


def test_rows_become_items(tmp_path: Path) -> None:
    rows = corpus_rows(3)
    rows[0]["id"] = "the first/one"
    rows[1]["messages"][1]["content"] = "[SPEAKER0] Glue <SE>[Laughter]</SE> it."
    rows[2]["messages"].pop()  # text only
    del rows[2]["audios"]
    rows[2]["speaker"] = "me"
    first, second, third = read_items(str(write_jsonl(tmp_path / "test.jsonl", rows)), SETTINGS)
    assert first.id == "the_first_one"
    # As training reads it, without `Please speak:`.
    assert first.text == "The birch canoe slid on the planks."
    assert first.truth == str(CORPUS / "wavs" / "DEMO-0001.flac")
    assert first.dialogue.turns[-1] == Turn("user", (first.text,))
    assert first.dialogue.scene == "Indoor quiet"
    assert (second.id, second.text) == ("DEMO-0002", "Glue it.")
    assert (third.id, third.truth, third.speaker) == ("3", None, "me")

    # As others write it; without the name all voices were taken for one.
    flat = {"audio": rows[0]["audios"][0], "text": "The birch canoe.", "speaker_id": "p1"}
    (item,) = read_items(str(write_jsonl(tmp_path / "flat.jsonl", [flat])), SETTINGS)
    assert item.speaker == "p1"

    rows[1]["id"] = "the first/one"
    with pytest.raises(UserError, match=r"test\.jsonl:2: id: 'the first/one' is another row's too"):
        read_items(str(write_jsonl(tmp_path / "test.jsonl", rows)), SETTINGS)


@pytest.mark.parametrize("id_", ["\u8a9e" * 120, "\U00020bb7" * 100, "x" * 300])
def test_a_long_id_names_a_file(id_: str, tmp_path: Path) -> None:
    """Of a hundred letters of most scripts a file's name has no room."""
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "Hi.", "id": id_}])
    (item,) = read_items(str(rows), SETTINGS)
    assert item.id == id_[-len(item.id) :]
    assert len(item.id) >= 50
    (tmp_path / f".{item.id}.npz.{'0' * 32}.tmp").touch()
