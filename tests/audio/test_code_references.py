"""What names codes: the key of a clip, the fingerprint of a codec, the reference in a row."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from plugins.audio import code_cache
from plugins.audio.code_cache import codec_fingerprint, content_key
from plugins.audio.code_references import format_reference, parse_reference
from plugins.errors import UserError


def test_a_key_depends_on_the_file_and_on_what_makes_codes_of_it() -> None:
    codec = "cd" * 32 + "\n" + code_cache.METHOD
    key = content_key("ab" * 32, codec)
    # printf '%s\n%s\n%s' abab... cdcd... METHOD | sha256sum: another key and every cache would be
    # encoded again.
    assert key == "441fb6297eb2b5d2b53ed0c78e127e50"
    assert len({key, content_key("ba" * 32, codec), content_key("ab" * 32, codec[::-1])}) == 3


def codec_folder(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in {"config.json": "{}", **files}.items():
        (folder / name).write_text(content)
    return folder


def test_a_fingerprint_is_that_of_config_weights_and_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"model.safetensors": "weights"}
    original = codec_fingerprint(codec_folder(tmp_path / "a", **weights))
    assert re.fullmatch(rf"[0-9a-f]{{64}}\n{code_cache.METHOD}", original)
    same = codec_folder(tmp_path / "b", **weights, **{"README.md": "text"})
    others = [
        codec_folder(tmp_path / "c", **{"model.safetensors": "other weights"}),
        codec_folder(tmp_path / "d", **weights, **{"config.json": "[]"}),
        codec_folder(tmp_path / "e", **{"model.pth": "weights"}),
        codec_folder(tmp_path / "f", **weights, **{"model-2.safetensors": ""}),
    ]
    assert codec_fingerprint(same) == original
    assert len({original, *map(codec_fingerprint, others)}) == 5
    monkeypatch.setattr(code_cache, "METHOD", "another padding")
    assert codec_fingerprint(same) != original


def test_a_fingerprint_is_cheap_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = codec_folder(tmp_path / "codec", **{"model.safetensors": "weights"})
    before = codec_fingerprint(folder)
    with monkeypatch.context() as patch:
        patch.setattr("plugins.files.disk.file_hash", lambda path: pytest.fail("read again"))
        assert codec_fingerprint(folder) == before
    (folder / "model.safetensors").write_text("WEIGHTS")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert codec_fingerprint(folder) != before


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({}, "config.json"),
        ({"config.json": "{}"}, "weights"),
        ({"model.safetensors": ""}, "config.json"),
    ],
)
def test_a_folder_without_codec_has_no_fingerprint(
    files: dict[str, str], missing: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    for folder in (tmp_path, tmp_path / "gone") if not files else (tmp_path,):
        with pytest.raises(
            UserError,
            match=rf"^{folder}: codec: '({missing}|weights)' not found; give a codec folder",
        ):
            codec_fingerprint(folder)


# References in rows.


def test_references_are_relative_to_the_file_of_their_row(tmp_path: Path) -> None:
    key = "0123456789abcdef" * 2
    data = tmp_path / "data"
    data.mkdir()
    for folder, expected in [
        (data / "codes", f"codes#{key}"),
        (tmp_path / "a #1 cache", f"../a #1 cache#{key}"),
        (data, f".#{key}"),
    ]:
        assert format_reference(folder, key, beside=data) == expected
        parsed, parsed_key = parse_reference(expected, beside=data, where="", field="")
        assert (parsed.resolve(), parsed_key) == (folder, key)


def test_references_survive_a_link_to_the_data(tmp_path: Path) -> None:
    """`..` behind a link leads to the parent of what it points to."""
    (tmp_path / "disk" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "data")
    reference = format_reference(tmp_path / "codes", "0" * 32, beside=tmp_path / "link")
    beside = (tmp_path / "link").resolve()
    folder, _ = parse_reference(reference, beside=beside, where="", field="")
    assert folder.resolve() == tmp_path / "codes"


@pytest.mark.parametrize(
    "reference", ["", "codes", "#" + "0" * 32, "codes#", "codes#0123", f"codes#{'g' * 32}"]
)
def test_a_wrong_reference_is_named(reference: str, tmp_path: Path) -> None:
    place = r"train\.jsonl:17: audio_codes\[0\]"
    expected = rf"^{place}: '{reference}' is no FOLDER#KEY with a key of 32 hex digits; write"
    with pytest.raises(UserError, match=expected):
        parse_reference(reference, beside=tmp_path, where="train.jsonl:17", field="audio_codes[0]")
