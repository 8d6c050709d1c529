"""`report.html`: what an evaluation writes to be listened to, as it is written and as a browser
shows it from a disk."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from conftest import CORPUS, corpus_rows, write_jsonl
from helpers.browser import asked_for, chromium
from helpers.commands import contents
from helpers.evaluation import evaluate

from plugins.commands import evaluate as command
from plugins.hearing import page as page_module
from plugins.hearing.scorers import Scorer

HOSTILE = "<script>document.title='bad'</script> & \"q\" 'a' <img src=x onerror=alert(1)> مرحبا"
# Of everything: the recogniser's ears are not what is tried here.
HEARD = "The birch, really, canoe slides on planks."
MARKED = (
    'the birch <ins>really</ins> canoe <span class="other"><del>slid</del><ins>slides</ins></span>'
    " on <del>the</del> planks"
)


@pytest.fixture(scope="module")
def evaluation(
    native_codec: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, list[Any]]]:
    """The folder of one of four rows, and the arguments that made it: one row whose text and
    speaker attack, and whose recording was not generated; one without a truth."""
    pytest.importorskip("jiwer")
    folder = tmp_path_factory.mktemp("evaluation")
    rows = corpus_rows(4)
    rows[1] |= {"id": "Größe #2", "speaker": "</p><script>'\"&"}
    rows[1]["messages"][1]["content"] = HOSTILE
    rows[2] = {"id": "alone", "messages": [{"role": "user", "content": "The birch canoe."}]}
    out = folder / "out"
    given = out / "given" / "take #1 50%?ü.flac"
    given.parent.mkdir(parents=True)
    shutil.copy(CORPUS / "wavs" / "DEMO-0001.flac", given)
    said = [{"id": "DEMO-0001", "audio": str(given)}]
    for id_ in ("alone", "DEMO-0004"):
        said.append({"id": id_, "audio": str(CORPUS / "wavs" / "DEMO-0004.flac")})
    arguments = ["--dataset", write_jsonl(folder / "rows.jsonl", rows), "--codec", native_codec]
    arguments += ["--generated", write_jsonl(folder / "said.jsonl", said), "--output", out]
    scorers = [command.load_scorers()[0][0], Scorer("transcript", "ears", lambda: lambda _: HEARD)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "load_scorers", lambda **_: (scorers, []))
        assert evaluate(*arguments, "--overwrite") == 0
        yield out, arguments


@pytest.fixture(scope="module")
def html(evaluation: tuple[Path, list[Any]]) -> str:
    return (evaluation[0] / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """All tags of a page with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def cells(html: str) -> list[list[str]]:
    """Of each sentence its own cell and those of the systems."""
    body = html.partition('<table id="clips">')[2].partition("<tbody>")[2]
    rows = body.partition("</tbody>")[0].split("</tr>")[:-1]
    return [re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.DOTALL) for row in rows]


def test_a_row_for_each_sentence_and_a_column_for_each_system(html: str) -> None:
    heads = re.findall(r'<th scope="col">(\w+)', html.partition('id="clips"')[2])
    assert heads == ["sentence", "truth", "codec", "generated"]
    heads = re.findall(r'<th scope="col">(\w+)</th>', html.partition('id="summary"')[2])
    assert heads[:5] == ["score", "better", "truth", "codec", "generated"]
    first, hostile, alone, last = cells(html)
    for cell in first[1:]:
        assert f'<p dir="auto" lang="en">{MARKED}</p>' in cell, "the errors that WER counts"
        assert 'data-wer="0.428571"' in cell
        assert "WER 42.9 %" in cell
    assert [cell.count("<audio ") for cell in (*first, *hostile)] == [0, 1, 1, 1, 0, 1, 1, 0]
    assert "failed: no recording of this id was given" in hostile[3]
    for cell in alone[1:3]:
        assert cell == '<td><p class="small">no recording</p></td>'
    assert 'aria-label="generated: DEMO-0004"' in last[3]
    report = (html.partition('id="summary"')[2]).partition("</table>")[0]
    assert re.search(r"WER</th>\n<td>lower</td>\n<td>\d+\.\d % \[\d+\.\d, \d+\.\d\]</td>", report)
    for fact in ("<dt>dataset</dt><dd>", "<dt>codec</dt>", "<dt>date</dt><dd>20", "ears"):
        assert fact in html.partition("<footer>")[2]


def test_what_strangers_wrote_is_text(html: str) -> None:
    tags = Tags(html)
    assert len(tags.named("script")) == 1
    assert tags.named("img") == []
    assert "&lt;script&gt;document.title=&#x27;bad&#x27;&lt;/script&gt; &amp; &quot;q&quot;" in html
    assert "Größe_2 · &lt;/p&gt;&lt;script&gt;&#x27;&quot;&amp;" in html
    assert "$" not in html, "everything was filled in"
    for name, attributes in tags.tags:
        assert not [key for key in attributes if key.startswith("on")], name


def test_all_links_are_files_of_the_folder(evaluation: tuple[Path, list[Any]], html: str) -> None:
    out, _ = evaluation
    links = []
    for tag, attributes in Tags(html).tags:
        assert not {"href", "srcset", "data"} & set(attributes), "links are of players only"
        if "src" in attributes:
            assert tag == "audio"
            assert attributes["aria-label"]
            links.append(str(attributes["src"]))
    assert "given/take%20%231%2050%25%3F%C3%BC.flac" in links
    assert "audio/truth/Gr%C3%B6%C3%9Fe_2.wav" in links
    assert len(links) == 3 + 3 + 3
    for link in links:
        assert re.fullmatch(r"[\w./%-]+", link, re.ASCII)
        assert (out / unquote(link)).is_file(), link
    buttons = Tags(html).named("button")
    assert len(buttons) > 9
    assert all("hidden" in button for button in buttons), "without scripts there is no sorting"


@pytest.mark.usefixtures("html")
def test_the_same_command_writes_the_same_page(evaluation: tuple[Path, list[Any]]) -> None:
    out, arguments = evaluation
    before = contents(out)
    assert evaluate(*arguments) == 0
    assert contents(out) == before


def test_a_row_with_another_recording_is_heard_anew(
    native_codec: Path, tmp_path: Path, only_sound: None
) -> None:
    """Both what the codec makes of it and what the page plays; and the old one again as it was."""
    (row,) = corpus_rows(1, id="one")
    wavs, clip = CORPUS / "wavs", tmp_path / "clip.flac"
    said = [{"id": "one", "audio": str(wavs / "DEMO-0003.flac")}]
    out, rows = tmp_path / "out", tmp_path / "rows.jsonl"
    arguments = ["--generated", write_jsonl(tmp_path / "said.jsonl", said), "--dataset", rows]
    arguments += ["--codec", native_codec, "--output", out]

    def heard(truth: Path) -> list[bytes]:
        write_jsonl(rows, [{**row, "audios": [str(truth)]}])
        assert evaluate(*arguments) == 0
        return [(out / "audio" / name / "one.wav").read_bytes() for name in ("codec", "truth")]

    first, second = heard(wavs / "DEMO-0001.flac"), heard(wavs / "DEMO-0002.flac")
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert heard(wavs / "DEMO-0001.flac") == first
    shutil.copy(wavs / "DEMO-0001.flac", clip)
    assert heard(clip) == first
    shutil.copy(wavs / "DEMO-0002.flac", clip)
    assert heard(clip) == second


# --- as it is seen ---


def luminance(color: str) -> float:
    """Relative, as WCAG 2.2 defines it."""
    digits = color.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    total = 0.0
    for weight, start in ((0.2126, 0), (0.7152, 2), (0.0722, 4)):
        value = int(digits[start : start + 2], 16) / 255
        total += weight * (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    return total


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_contrast_is_that_of_text(theme: int) -> None:
    template = Path(page_module.__file__).with_name("page.html").read_text(encoding="utf-8")
    palette = re.findall(r":root \{(.*?)\}", template, re.DOTALL)[theme]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})", palette))
    pairs = [("ink", "paper"), ("ink", "head"), ("soft", "paper"), ("lost", "paper")]
    for front, back in (*pairs, ("lost", "lost-back"), ("extra", "extra-back")):
        darker, lighter = sorted((luminance(colors[front]), luminance(colors[back])))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (front, back)


def test_in_a_browser_from_a_disk(
    evaluation: tuple[Path, list[Any]], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Moved elsewhere first, as out of an archive."""
    folder = tmp_path / "moved #1 ü"
    shutil.copytree(evaluation[0], folder)
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        browser.get((folder / "report.html").as_uri())
        assert browser.title.startswith("Evaluation: ")
        check_players(browser)
        check_sorting(browser)
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True},
        )
        widths = "return [document.documentElement.scrollWidth, window.innerWidth]"
        page_width, window_width = browser.execute_script(widths)
        assert page_width <= window_width == 390, "the table scrolls, not the page"
        browser.save_screenshot(str(tmp_path / "phone.png"))
        assert browser.get_log("browser") == []
        urls = asked_for(browser)
    assert any(url.endswith("report.html") for url in urls)
    assert any(url.endswith(".wav") for url in urls)
    # The browser's own pictures on its players are data.
    own = (folder.as_uri(), "data:image/svg+xml")
    assert {url for url in urls if not url.startswith(own)} == set()


def check_players(browser: Any) -> None:
    script = """
        const done = arguments[0], players = [...document.querySelectorAll("audio")];
        Promise.all(players.map((player) => new Promise((loaded) => {
            player.onloadedmetadata = () => loaded(player.duration);
            player.onerror = () => loaded(-1);
            player.load();
            player.preload = "metadata";
        }))).then(done);"""
    durations_s = browser.execute_async_script(script)
    assert len(durations_s) == 9
    assert all(1 < duration_s < 4 for duration_s in durations_s), durations_s


def check_sorting(browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def column(score: str) -> list[float | None]:
        script = """
            return [...document.querySelectorAll("#clips tbody tr")].map(
                (row) => parseFloat(row.cells[1].dataset[arguments[0]]))"""
        values: list[float | None] = browser.execute_script(script, score)
        return values

    def button(score: str) -> Any:
        selector = f"#clips th:nth-child(2) button[data-key={score}]"
        return browser.find_element(By.CSS_SELECTOR, selector)

    assert button("wer").is_displayed()
    button("wer").click()
    *scored, last = column("wer")
    assert scored == sorted(scored, key=lambda value: -(value or 0)), "the worst first"
    assert len(set(scored)) == 3
    assert last is None, "without a recording there is none"
    heading = button("wer").find_element(By.XPATH, "..")
    assert heading.get_attribute("aria-sort") == "descending"
    button("wer").send_keys(Keys.ENTER)
    assert column("wer") == [*reversed(scored), None]
    assert heading.get_attribute("aria-sort") == "ascending"
    button("silence").send_keys(Keys.SPACE)
    assert column("silence")[0] == max(filter(None, column("silence")))
    assert button("wer").get_attribute("aria-pressed") == "false"
    told = browser.find_element(By.CSS_SELECTOR, "[role=status]").text
    assert told == "Sorted by silence share of truth, descending."
