"""Rows that point elsewhere: at URLs, at files outside of the audio root, at other caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import write_jsonl
from helpers.sft import REGISTER, sft
from helpers.trees import clip

from plugins.corpora.canonical import canonical_row
from plugins.data.sources import read_rows
from plugins.errors import UserError
from plugins.settings import HiggsAudioSettings


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a clip, a link to it, and a link that leads out; `alias` is a second name."""
    clip(tmp_path / "outside.wav")
    clip(tmp_path / "root" / "sub" / "a.wav")
    (tmp_path / "root" / "link.wav").symlink_to(tmp_path / "outside.wav")
    (tmp_path / "root" / "inner.wav").symlink_to("sub/a.wav")
    (tmp_path / "alias").symlink_to("root")
    return tmp_path / "root"


def row(**columns: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": ""}]
    return {"messages": messages, **columns}


def audio_of(path: str, root: Path | str) -> str:
    settings = HiggsAudioSettings(audio_root=str(root))
    return canonical_row(row(audios=[path]), "t.jsonl:1", settings)["audios"][0]


def test_paths_that_lead_into_the_root_are_taken(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative and absolute, through links inside, and whichever name of the root a path or the
    setting goes by."""
    alias = root.with_name("alias")
    for path, of, resolved in (
        ("sub/a.wav", root, root / "sub" / "a.wav"),
        ("inner.wav", root, root / "inner.wav"),
        (str(root / "sub" / "a.wav"), root, root / "sub" / "a.wav"),
        (str(root / "inner.wav"), root, root / "inner.wav"),
        (str(root / "sub" / "a.wav"), alias, alias / "sub" / "a.wav"),
        (str(alias / "sub" / "a.wav"), root, root / "sub" / "a.wav"),
    ):
        assert audio_of(path, of) == str(resolved)
        # Rows pass twice: when they are read, and when they are encoded.
        assert audio_of(str(resolved), of) == str(resolved)
    monkeypatch.chdir(root.parent)
    assert audio_of("sub/a.wav", "root") == str(root / "sub" / "a.wav")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("{out}", "lies outside of the audio root"),
        ("/etc/passwd", "lies outside of the audio root"),
        ("/dev/zero", "lies outside of the audio root"),
        ("{root}/../outside.wav", 'holds "..", which the audio root forbids'),
        ("../outside.wav", 'holds "..", which the audio root forbids'),
        ("sub/../../outside.wav", 'holds "..", which the audio root forbids'),
        ("~/a.wav", 'starts with "~", which the audio root forbids'),
        ("link.wav", "leads out of the audio root"),
        ("{root}/link.wav", "leads out of the audio root"),
        ("{root}", "is a folder"),
        ("outside.wav", "not found"),  # it is there in the working folder
        ("http://127.0.0.1/a.wav", "is a URL"),
        ("file:///etc/passwd", "is a URL"),
    ],
)
@pytest.mark.parametrize("place", ["audios", "audio", "reference_audio", "content"])
def test_nothing_outside_of_the_root_is_read(
    place: str, path: str, reason: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = path.format(root=root, out=tmp_path / "outside.wav")
    hostile = row(audios=["sub/a.wav"]) | {place: named}
    if place == "content":
        hostile = row()
        hostile["messages"][1]["content"] = [{"type": "audio", "audio": named}]
    elif place == "audio":
        del hostile["audios"]
    dataset = write_jsonl(tmp_path / "t.jsonl", [hostile])
    opened: list[str] = []
    monkeypatch.setattr("soundfile.SoundFile", lambda path, *_: opened.append(str(path)))
    settings = HiggsAudioSettings(audio_root=str(root))
    with pytest.raises(UserError, match=reason) as caught:
        read_rows(str(dataset), settings, check=lambda dialogue: None)
    assert str(caught.value).startswith(f"{dataset}:1: ")
    assert opened == []


def test_a_folder_of_recordings_is_its_own_root(root: Path, tmp_path: Path) -> None:
    """`a.txt -> ../key` made a text of any file. What lies in the folder is trusted, wherever it
    is."""
    (tmp_path / "key").write_text("secret", encoding="utf-8")
    (root / "sub" / "a.txt").symlink_to(tmp_path / "key")
    # Of the two linked recordings there is no transcript.
    (root / "link.wav").unlink()
    (root / "inner.wav").unlink()

    def texts(audio_root: str | None) -> list[str]:
        settings = HiggsAudioSettings(audio_root=audio_root)
        rows = read_rows(str(root), settings, check=lambda dialogue: None)
        return [row["messages"][0]["content"] for row in rows]

    assert texts(None) == ["secret"], "the proof of concept is none"
    with pytest.raises(UserError, match="transcript leads out of the audio root"):
        texts(str(tmp_path))
    (root / "sub" / "a.txt").unlink()
    (root / "sub" / "a.txt").write_text("Hello.", encoding="utf-8")
    assert texts(str(tmp_path / "elsewhere")) == ["Hello."]


@pytest.mark.parametrize(
    "column", ["audio_codes", "audio_code_keys", "reference_codes", "reference_code_keys"]
)
def test_code_caches_are_read_below_the_root_or_beside_the_rows(
    column: str, root: Path, tmp_path: Path
) -> None:
    """A cache is a folder of arrays: naming any folder of the machine would read it. Links count by
    where they lead."""
    rows, settings = tmp_path / "rows", HiggsAudioSettings(audio_root=str(root))
    (rows / "codes").mkdir(parents=True)
    (root / "codes").mkdir()
    (tmp_path / "private").mkdir()
    (rows / "link").symlink_to(tmp_path / "private")
    key = "0" * 32  # the length of a real one; whether there is such an entry is asked later
    for allowed in ("codes", str(root / "codes"), str(rows / "codes")):
        canonical_row(row(**{column: [f"{allowed}#{key}"]}), "t.jsonl:1", settings, beside=rows)
    for refused in ("../private", str(tmp_path / "private"), "link", "/"):
        with pytest.raises(UserError, match="lies neither in the audio root nor beside this file"):
            canonical_row(row(**{column: [f"{refused}#{key}"]}), "t.jsonl:1", settings, beside=rows)


@pytest.mark.parametrize("jailed", [False, True])
def test_urls_are_never_fetched(
    jailed: bool,
    tiny: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attempts: list[Any],
) -> None:
    """MS-SWIFT's own loader follows URLs, with redirects, from `audios`, contents and tags
    alike."""
    url = "http://203.0.113.1/a.wav"
    hostile = [
        row(audios=[url]),
        row(audios=[str(root / "sub" / "a.wav")], reference_audio=url),
        row(audio=url),
    ]
    hostile.append(row())
    hostile[-1]["messages"][1]["content"] = [{"type": "audio", "audio": url}]
    dataset = write_jsonl(tmp_path / "t.jsonl", hostile)
    if jailed:
        monkeypatch.setenv("AUDIO_ROOT", str(root))
    with pytest.raises(UserError) as caught:
        sft(tiny, dataset, tmp_path / "out", external_plugins=REGISTER)
    lines = str(caught.value).split("\n")
    assert len(lines) == 2  # of targets, of references
    assert all(f"{url!r} is a URL; download it first" in line for line in lines)
    assert lines[0].endswith("(and so in 2 more: 3, 4)")
    # What `datasets` would obey: a table of a folder that lies elsewhere.
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: {url}\n---\n"
    )
    with pytest.raises(UserError, match=r"^[^\n]*there is no row[^\n]*$"):
        sft(tiny, folder, tmp_path / "out", external_plugins=REGISTER)
    assert attempts == []
