"""Names -> who speaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugins.commands.serving.voices import Choice, Unknown, Voices
from plugins.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("ann.wav", "Jörg.flac", "notes.md", ".hidden.wav", "joe.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "ann.txt").write_text("What she\nsays.\n", encoding="utf-8")
    return tmp_path


def test_names_are_looked_up(folder: Path) -> None:
    voices = Voices("model", ["bob", "eve"], folder)
    assert voices.models()[:3] == ["model", "bob", "eve"]
    assert list(voices.names()) == ["default", "base", "bob", "eve", "Jörg", "ann"]
    assert voices.choose("model", "default") == Choice(None)
    assert voices.choose("eve", "default") == Choice("eve")
    assert voices.choose("tts-1", "bob") == Choice("bob")
    assert voices.choose("bob", "base") == Choice(None)
    choice = voices.choose("eve", "ann")
    assert choice.adapter == "eve"
    assert choice.voice is not None
    assert Path(choice.voice.audio or "").name == "ann.wav"
    assert choice.voice.text == "What she says."
    jorg = voices.choose("model", "Jörg").voice
    assert jorg is not None
    assert jorg.text is None


@pytest.mark.parametrize("adapters", [["bob"], ["eve", "default"]])
def test_the_only_adapter_is_the_default_one(adapters: list[str]) -> None:
    voices = Voices("model", adapters, None)
    assert voices.choose("model", "default") == Choice(adapters[-1])
    assert voices.choose("model", "base") == Choice(None)


@pytest.mark.parametrize(
    ("model", "voice"),
    [
        ("model", "joe"),
        ("model", "notes"),
        ("model", "ann.wav"),
        ("model", ".hidden"),
        ("model", "../ann"),
        ("model", "./ann"),
        ("model", "ANN"),
        ("model", "Jo\u0308rg"),
        ("other", "ann"),
        ("ann", "ann"),
    ],
)
def test_other_names_are_unknown(folder: Path, model: str, voice: str) -> None:
    with pytest.raises(Unknown, match="is unknown"):
        Voices("model", ["bob"], folder).choose(model, voice)


def test_what_is_put_into_the_folder_is_heard_at_once(folder: Path) -> None:
    voices = Voices("model", [], folder)
    (folder / "zoe.ogg").write_bytes(b"x")
    assert voices.choose("model", "zoe").voice is not None
    (folder / "zoe.ogg").unlink()
    with pytest.raises(Unknown):
        voices.choose("model", "zoe")


@pytest.mark.parametrize("name", ["bob.wav", "default.wav", "base.flac", "ann.flac"])
def test_two_of_one_name_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    with pytest.raises(UserError, match="name that is taken"):
        Voices("model", ["bob"], folder)


def test_two_adapters_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="another adapter"):
        Voices("model", ["bob", "eve"], folder).choose("bob", "eve")
    with pytest.raises(UserError, match="is no folder"):
        Voices("model", [], folder / "none")
