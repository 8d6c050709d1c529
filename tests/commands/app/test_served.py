"""Which files of the workspace a browser may fetch, and whose requests are answered at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from plugins.commands.app.served import OnlyReports
from plugins.commands.hosts import OnlyOwnNames


class Answer:
    def __init__(self, app: Any, path: str, **headers: str) -> None:
        self.status, self.headers = 0, dict[bytes, bytes]()
        named = [(key.encode(), value.encode()) for key, value in headers.items()]
        scope = {"type": "http", "path": path, "headers": named}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.status, self.headers = message["status"], dict(message["headers"])

        asyncio.run(app(scope, None, send))


async def serves(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "studio"
    (root / "a" / ".hidden").mkdir(parents=True)
    (tmp_path / "out.wav").touch()
    for name in ("a/x.wav", "a/report.html", "a/x.report.html", "a/other.html", "a/x.jsonl", ".env",
                 "a/.hidden/x.wav", "a/weights.safetensors"):  # fmt: skip
        (root / name).touch()
    (root / "leads.wav").symlink_to(tmp_path / "out.wav")
    (root / "named.wav").symlink_to(root / ".env")
    return root


@pytest.mark.parametrize(("name", "status"), [
    ("a/x.wav", 200), ("a/report.html", 200), ("a/x.report.html", 200), ("a/other.html", 403),
    ("a/x.jsonl", 403), (".env", 403), ("a/.hidden/x.wav", 403), ("a/weights.safetensors", 403),
    ("leads.wav", 403), ("named.wav", 403), ("a/../.env", 403),
    ("higgs_jobs/0001-sft/log.txt", 403), ("a/../../studio/.env", 403),
])  # fmt: skip
def test_only_listening_pages_and_sounds_are_served(root: Path, name: str, status: int) -> None:
    for route in ("/gradio_api/file=", "/file=", "/below/gradio_api/file="):
        assert Answer(OnlyReports(serves, root), f"{route}{root}/{name}").status == status


def test_what_lies_elsewhere_is_gradio_s_to_decide(root: Path, tmp_path: Path) -> None:
    for path in ("/config", f"/gradio_api/file={tmp_path}/out.wav", "/gradio_api/upload"):
        assert Answer(OnlyReports(serves, root), path).status == 200


def test_a_page_runs_no_script_but_ours(root: Path) -> None:
    app = OnlyReports(serves, root)
    policy = Answer(app, f"/gradio_api/file={root}/a/report.html").headers
    assert b"script-src 'sha256-" in policy[b"content-security-policy"]
    assert b"default-src 'none'" in policy[b"content-security-policy"]
    assert not Answer(app, f"/gradio_api/file={root}/a/x.wav").headers


@pytest.mark.parametrize(("origin", "status"), [
    (None, 200), ("http://127.0.0.1:7860", 200), ("http://localhost:8080", 200),
    ("https://localhost", 200), ("http://evil.example", 403), ("null", 403), ("", 403),
    ("http://127.0.0.1.evil.example", 403), ("http://evil.example:7860", 403),
])  # fmt: skip
def test_another_site_starts_nothing(origin: str | None, status: int) -> None:
    headers = {"host": "127.0.0.1:7860"}
    if origin is not None:
        headers["origin"] = origin
    app = OnlyOwnNames(serves, "127.0.0.1")
    assert Answer(app, "/gradio_api/queue/join", **headers).status == status
