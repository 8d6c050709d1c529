"""report.html: a page that plays what was rejected, shows both texts as text, and asks no host."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from helpers.browser import chromium

from plugins.corpora import Rejected, Utterance
from plugins.corpora.utterance import Transcription
from plugins.prepare.page import Shown, clips_to_show, page
from plugins.prepare.report import Accepted, summarise

EVIL = "</script><script>alert(1)</script>&\"'><img src=x onerror=alert(2)>$title {} \u202e"
REPORT = summarise([Accepted(2.0, "ann", "train"), Accepted(5.5, "ann", "val")], [EVIL, EVIL])


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._silent = False
        self.feed(html)
        self.text = "".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def shown(**values: Any) -> Shown:
    common = {"id": "a", "place": "x.csv:1", "reason": "bad", "value": 1.5, "audio": None}
    return Shown(**(common | {"written": "one two"} | values))


def test_what_strangers_wrote_is_text(tmp_path: Path) -> None:
    clip = shown(
        id=EVIL, place=EVIL, reason=EVIL, value=EVIL, audio=f"{tmp_path}/{EVIL[:5]}.wav",
        written=EVIL, heard=EVIL, cer=0.5,
    )  # fmt: skip
    html = page(REPORT, [clip], [0.5], beside=tmp_path, title=EVIL)
    parsed = Page(html)
    assert len(parsed.all("script")) == 1
    assert not parsed.all("img")
    assert parsed.text.count("alert(1)") >= 7
    (script,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = parsed.all("meta")[2]["content"] or ""
    assert f"script-src 'sha256-{digest}'" in policy, "a browser would not run it"
    assert "default-src 'none'" in policy


def test_it_asks_no_host(tmp_path: Path) -> None:
    html = page(REPORT, [shown(audio="/a/b.wav")], None, beside=tmp_path, title="x")
    assert not re.search(r"https?:|//\w", re.sub(r"^\s*//.*$", "", html, flags=re.MULTILINE))


@pytest.mark.parametrize(
    "name",
    ["a.wav", "a b#c?d%20e.wav", "ü/日本.flac", "q\"uo'te<&>.wav", "$title.wav", "b\udce4r.wav"],
)
def test_a_player_finds_its_recording(tmp_path: Path, name: str) -> None:
    audio = tmp_path / "corpus" / name
    html = page(REPORT, [shown(audio=str(audio))], None, beside=tmp_path / "out", title="x")
    (player,) = Page(html).all("audio")
    link = player["src"] or ""
    assert link.startswith("../corpus/"), "both may move together"
    assert not re.search("[?#\"'<]", link)
    assert Path(tmp_path / "out" / unquote(link, errors="surrogateescape")).resolve() == audio
    assert player["preload"] == "none"


def test_both_texts_and_what_differs(tmp_path: Path) -> None:
    clip = shown(written="Please enter your number.", heard="enter your PIN number", cer=0.4)
    html = page(REPORT, [clip], [0.4, 0.0], beside=tmp_path, title="x")
    assert "<del>Please</del> enter your <ins>PIN</ins> number" in html
    assert '<td data-cer="0.4000">40.0 %</td>' in html
    assert html.count("<svg") == 2
    assert "0 to 0.05: 1" in html


def test_a_clip_without_ears_or_file_is_listed(tmp_path: Path) -> None:
    entries = [
        Utterance("x.csv:2", "b", "its text", Path("/corpus/b.wav"), None),
        Rejected("x.csv:3", "c", "not found", "c.wav"),
    ]
    rejected = [Rejected("x.csv:2", "b", "duration below min_duration_s", 0.3), entries[1]]
    clips = clips_to_show(entries, rejected, [])
    assert [(clip.id, clip.audio, clip.written) for clip in clips] == [
        ("b", "/corpus/b.wav", "its text"),
        ("c", None, None),
    ]
    parsed = Page(page(REPORT, clips, None, beside=tmp_path, title="x"))
    assert len(parsed.all("audio")) == 1
    assert "no recording" in parsed.text
    assert "of them doubtful" not in parsed.text, "nobody listened"


def test_what_a_reader_has_heard_with_doubts(tmp_path: Path) -> None:
    """Rows of recordings: who made the text tells how sure it is; of a script both texts."""
    entries = []
    made: list[tuple[float, tuple[str, ...]]] = [
        (0.9, ()),
        (0.7, ("noise", "<cut>")),
        (0.5, ("x",)),
    ]
    for number, (confidence, doubts) in enumerate(made):
        heard = Transcription("one too", confidence, doubts)
        entry = Utterance(f"talk:{number}", str(number), "one two", Path(f"/{number}.flac"), None)
        entries.append(replace(entry, transcription=heard))
    details = {"heard": "uh", "confidence": 0.4, "snr_db": 3.0, "audio": "/clips/3.flac"}
    out = Rejected("talk:3", "3", "confidence below min_confidence (0.40)", "uh", details)
    late = Rejected("talk:2", "2", "duration below min_duration_s", 0.4)
    clips = clips_to_show([*entries, out], [out, late], [])
    assert [(clip.id, clip.reason is None, clip.value, clip.confidence) for clip in clips] == [
        ("3", False, None, 0.4),
        ("2", False, 0.4, 0.5),
        ("1", True, "noise; <cut>", 0.7),
    ]
    html = page(REPORT, clips, None, beside=tmp_path, title="x")
    parsed = Page(html)
    assert [unquote(player["src"] or "").rpartition("/")[2] for player in parsed.all("audio")] == [
        "3.flac", "2.flac", "1.flac",
    ]  # fmt: skip
    assert '<td data-confidence="0.7000">70.0 %</td>' in html
    assert "noise; &lt;cut&gt;" in html
    assert "one <del>two</del> <ins>too</ins>" in html
    assert '<p dir="auto">uh</p>' in html, "nothing was written: it is no error"
    keys = [button["data-key"] for button in parsed.all("button")]
    assert keys == ["id", "state", "confidence"], "no column without numbers"


def test_a_page_stays_small(tmp_path: Path) -> None:
    many = [shown(id=str(number)) for number in range(5000)]
    parsed = Page(page(REPORT, many, None, beside=tmp_path, title="x"))
    assert "1000 of 5000 rejected clips are shown" in parsed.text


def test_the_same_clips_give_the_same_page_and_none_an_empty_one(tmp_path: Path) -> None:
    empty = summarise([], [])
    html = page(empty, [], [], beside=tmp_path, title="x")
    assert html == page(empty, [], [], beside=tmp_path, title="x")
    assert Page(html).text.count("accepted") == 1


def test_in_a_browser_texts_and_numbers_are_sorted(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clips = [shown(id="b", cer=0.1), shown(id="Ä"), shown(id="c", cer=1.5), shown(id="a", cer=0.9)]
    html = page(REPORT, clips, [0.1, 1.5, 0.9], beside=tmp_path, title="x")
    path = tmp_path / "x.report.html"
    path.write_text(html, encoding="utf-8")
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        browser.get(path.as_uri())
        orders = []
        for key in ("id", "id", "cer", "cer"):
            order = """
                document.querySelector(`button[data-key=${arguments[0]}]`).click();
                return [...document.querySelectorAll("#clips tbody bdi:first-child")]
                    .filter((label) => !label.closest(".small")).map((label) => label.textContent)
                    .join("");"""
            orders.append(browser.execute_script(order, key))
        assert browser.get_log("browser") == []
    assert orders == ["aÄbc", "cbÄa", "cabÄ", "bacÄ"], "what has no number comes last"
