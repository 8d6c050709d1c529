"""The studio over plain HTTP: what no page would send, a password, another page of the same
workspace."""

from __future__ import annotations

import html
import importlib.util
import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.app import VOICE, Client, Server, file_data, wait_for

from plugins.commands.app.jobs import PASSWORD

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason='needs gradio: pip install -e ".[app]"'
)
SECRET = "open sésame"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without a model, and without a password."""
    server = Server(tmp_path_factory.mktemp("studio"))
    yield server
    server.end(signal.SIGTERM)
    assert list(server.temporary.glob("higgs-audio-*")) == []


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server)


def error(answer: dict[str, Any]) -> str:
    assert not answer["success"], answer
    return str(answer["output"]["error"])


def test_without_a_model_the_page_says_where_one_is_chosen(client: Client) -> None:
    message = "page: model is not loaded; choose a checkpoint under Model"
    assert error(client.call("generate", text="Hello.")) == message
    for model in ("/etc", "..", "gpt/hub-id"):
        message = error(client.call("load_model", model=model))
        assert "leads out of the workspace" in message or "is not there" in message


@pytest.mark.parametrize("fields", [
    {"data_folder": "/etc"}, {"data_folder": "../.."}, {"data_folder": "a\0b"},
    {"data_folder": ".", "voice_name": "../x"}, {"data_folder": ".", "voice_name": "\u202e"},
    {"data_folder": ".", "data_speaker": "--output_file"}, {"data_folder": 7},
    {"data_folder": None}, {"data_folder": ".", "kind": "custom", "data_list": "/etc/passwd"},
])  # fmt: skip
def test_no_job_is_started_by_what_no_page_would_send(
    client: Client, server: Server, fields: dict[str, Any]
) -> None:
    answer = client.call("start_prepare", **fields)
    assert not answer["success"]
    assert not (server.workspace / "higgs_jobs").exists()
    assert "Traceback" not in str(answer)


@pytest.mark.parametrize("file", [
    file_data("/etc/passwd"), file_data(str(VOICE)), "/etc/passwd", {"path": "/etc/hostname"},
    file_data("http://127.0.0.1:1/x.wav"),
])  # fmt: skip
def test_no_recording_is_named(client: Client, server: Server, file: Any) -> None:
    answer = client.call("drop.upload", drop=[file], voice_name="ann")
    assert not answer["success"]
    assert not (server.workspace / "recordings" / "ann").exists()


def test_uploads_are_kept_under_safe_names(client: Client, server: Server) -> None:
    sent = [client.recording("../../x.flac", VOICE.read_bytes())]
    sent.append(client.recording("run me.sh", b"#!/bin/sh"))
    answer = client.call("drop.upload", drop=sent, voice_name="../bob")
    assert answer["success"]
    (kept,) = (server.workspace / "recordings").rglob("*.*")
    assert kept == server.workspace / "recordings" / "bob" / "x.flac"
    assert kept.read_bytes() == VOICE.read_bytes()
    shown = json.dumps(answer["output"]["data"])
    assert "1 recordings kept in `recordings/bob`" in shown
    assert "'run me.sh' is that of no recording; drop sound, films, or subtitles" in shown


def test_a_job_s_files_and_rows_are_not_served(client: Client, server: Server) -> None:
    (server.workspace / "secret.jsonl").write_text("{}")
    (server.workspace / "report.html").write_text("<script>alert(1)</script>")
    for name, status in (("secret.jsonl", 403), ("report.html", 200)):
        answer = client.http.get(f"/file={server.workspace / name}")
        assert answer.status_code == status
    assert "script-src 'sha256-" in answer.headers["content-security-policy"]
    for origin, status in (("http://evil.example", 403), (server.url, 200)):
        answer = client.http.get("/startup-events", headers={"Origin": origin})
        assert answer.status_code == status


def test_a_job_of_one_page_is_seen_and_stopped_by_another(client: Client, server: Server) -> None:
    """Of the same workspace: a preparation of a corpus of a hundred clips."""
    clips = server.workspace / "corpus"
    clips.mkdir()
    content = VOICE.read_bytes()
    for number in range(100):
        (clips / f"{number}.flac").write_bytes(content + bytes([number]))
        (clips / f"{number}.txt").write_text("Glue the sheet to the dark blue background.")
    fields = {"data_folder": "corpus", "kind": "folder", "voice_name": "many", "data_check": True}
    fields |= {"data_encode": False, "data_split": False, "data_language": ""}
    started = client.call("start_prepare", **fields)
    assert started["success"], started
    command = started["output"]["data"][0]
    assert "higgs-audio prepare --dataset_type folder --input_dir corpus" in json.dumps(command)
    message = error(client.call("start_prepare", **fields))
    assert "device: 'cpu' has a job already: process " in html.unescape(message)
    answer = client.call("stop_prepare")
    assert answer["success"], answer
    # By its own page, or by another one: they see the same.
    folder = server.workspace / "higgs_jobs" / "0001-prepare"
    wait_for((folder / "result.json").exists, "the end", seconds=60)
    assert not (server.workspace / "rows" / "many_train.jsonl").exists()


@pytest.mark.slow
def test_the_password_is_asked_for_everything(tmp_path: Path) -> None:
    server = Server(tmp_path, "--host", "0.0.0.0", **{PASSWORD: SECRET})
    try:
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        log = server.log.read_text(encoding="utf-8")
        assert "the password travels unencrypted: put a server with HTTPS before it" in log
        (server.workspace / "x.wav").write_bytes(b"RIFF")
        with httpx.Client(base_url=server.url) as http:
            closed = ("/config", f"/gradio_api/file={server.workspace}/x.wav", "/gradio_api/info")
            for path in closed:
                assert http.get(path).status_code == 401, path
            upload = {"files": ("x.wav", io.BytesIO(b"RIFF"))}
            assert http.post("/gradio_api/upload", files=upload).status_code == 401
            join = {"data": [], "fn_index": 0, "session_hash": "x"}
            assert http.post("/gradio_api/queue/join", json=join).status_code == 401
            for password, status in (("", 400), ("wrong", 400), (SECRET, 200)):
                form = {"username": "ann", "password": password}
                answer = http.post("/login", data=form)
                assert answer.status_code in (status, 422) if not password else True
                assert (answer.status_code == 200) == (password == SECRET)
            for path in closed[:2]:
                assert http.get(path).status_code == 200, path
    finally:
        server.end(signal.SIGTERM)
