"""`higgs-audio serve` refuses what is wrong with its flags before it loads a model."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from plugins.cli import main
from plugins.commands import serve
from plugins.commands.serve_flags import TOKEN


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a model is loaded for nothing")

    monkeypatch.setattr(serve.HiggsAudioGenerator, "from_pretrained", refuse)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--adapters", "=DIR"], "is no NAME=DIR"),
        (["--adapters", "ann="], "is no NAME=DIR"),
        (["--adapters", "../ann=DIR"], "is no NAME=DIR"),
        (["--adapters", "a b=DIR"], "is no NAME=DIR"),
        (["--adapters", "base=DIR"], "not 'base'"),
        (["--adapters", "ann=A", "ann=B"], "has the name of another"),
        (["--adapters", "A", "B"], "has the name of another"),
        (["--voices", "nowhere"], "is no folder"),
        (["--voices", "."], "is taken (ann)"),
        (["--token", ""], "is empty"),
        (["--token", "two words"], "is empty, or not of ASCII letters"),
        (["--max_audio_s", "0"], "is not positive"),
        (["--time_limit_s", "0"], "is no time"),
        (["--time_limit_s", "nan"], "is no time"),
        (["--adapter_scale", "9"], "adapter_scale"),
        (["--port", "99999"], "cannot be served on"),
        (["--host", "203.0.113.1"], "cannot be served on"),
    ],
)
def test_wrong_flags_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ann.wav", "ann.flac"):
        Path(name).write_bytes(b"x")
    assert main(["serve", "--model", "model", "--port", "0", *words]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert complaint in lines[0]


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model", "model", "--port", port]) == 1
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_uploads_need_a_parser(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert main(["serve", "--model", "model", "--max_upload_mb", "1"]) == 1
    assert 'pip install -e ".[serve]"' in capsys.readouterr().err


def test_the_token_of_the_environment_is_taken_out_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the server starts is not to have it."""
    import os

    monkeypatch.setenv(TOKEN, "a b")
    assert main(["serve", "--model", "model"]) == 1
    assert "a b" not in capsys.readouterr().err
    assert TOKEN not in os.environ
