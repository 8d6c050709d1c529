"""The studio in a real browser: recordings dropped, prepared, trained on and heard, with what may
come between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from helpers.app import Server, wait_for
from helpers.browser import chromium
from helpers.pages import Page

pytestmark = pytest.mark.slow
RECORDINGS = ROOT / "tests" / "by_heart" / "corpus" / "wavs"
_NAMES = ("slt-01", "slt-03", "slt-04", "slt-05", "slt-06")
_SIZE = "400m"
_STEPS = 40


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One that can be filled, as far as this machine lets mount it; else a folder."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "studio").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "none", str(folder / "studio")]
    is_mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield folder
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder / "studio")], check=True)


@pytest.fixture(scope="module")
def server(disk: Path) -> Iterator[Server]:
    shutil.copytree(ROOT / "demo" / "base", disk / "studio" / "base")
    server = Server(disk, "--max_audio_s", "2")
    yield server
    server.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        driver.set_window_size(1400, 1600)
        yield driver


class Studio(Page):
    """In its tabs."""

    def tab(self, name: str) -> None:
        self.click(f"#{name}-button")
        self.find(f"#{name}-button[aria-selected=true]")

    def choose(self, name: str, text: str) -> None:
        """In a list that takes what is typed too."""
        from selenium.webdriver.common.keys import Keys

        field = self.find(f"#{name} input")
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
        field.send_keys(Keys.CONTROL + "a")
        # Enter would take the first choice that holds the text.
        field.send_keys(Keys.BACKSPACE, text, Keys.TAB)

    def until(self, selector: str, *texts: str, seconds: float = 60) -> str:
        def has_one() -> bool:
            return any(text in self.seen(selector) for text in texts)

        try:
            wait_for(has_one, f"{texts} in {selector}", seconds=seconds)
        except pytest.fail.Exception:
            self.picture("missing")
            print(f"{selector}: {self.seen(selector)!r}")
            raise
        return self.seen(selector)

    def value(self, selector: str) -> str:
        script = "const e = document.querySelector(arguments[0]); return e ? e.value : ''"
        return str(self.browser.execute_script(script, selector))

    def drop(self, *files: Path) -> None:
        self.find("#drop input[type=file]").send_keys("\n".join(map(str, files)))


@pytest.fixture
def page(browser: Any, server: Server, tmp_path: Path) -> Studio:
    return Studio(
        browser, server.url, tmp_path, begins_with="#voice_name input, #voice_name textarea"
    )


def job(server: Server, number: int) -> Path:
    (folder,) = (server.workspace / "higgs_jobs").glob(f"{number:04d}-*")
    return folder


def test_from_recordings_to_a_sentence(
    page: Studio, server: Server, tmp_path: Path, browser: Any
) -> None:
    _drop(page, server, tmp_path)
    _prepare(page, server)
    _correct(page, server)
    _train(page, server, browser)
    _listen(page)
    _refused(page, server, tmp_path)


def _drop(page: Studio, server: Server, tmp_path: Path) -> None:
    page.type("voice_name", "ann")
    files = [RECORDINGS / f"{name}.flac" for name in _NAMES]
    malicious = tmp_path / "..;$(touch hacked) \u202e\x07'quoted'.flac"
    shutil.copy(RECORDINGS / "slt-02.flac", malicious)
    nothing = tmp_path / "\u202e.flac"
    shutil.copy(RECORDINGS / "slt-02.flac", nothing)
    page.drop(*files, malicious, nothing)
    shown = page.until("#dropped", "recordings kept in")
    page.picture("dropped")
    kept = sorted(path.name for path in (server.workspace / "recordings" / "ann").iterdir())
    assert "6 recordings kept" in shown
    assert "'.flac' " in shown or "flac' is that of no recording" in shown
    (cleaned,) = set(kept) - {file.name for file in files}
    assert cleaned.isprintable()
    assert cleaned.startswith(";")
    assert page.value("#data_folder input") == "recordings/ann"


def _prepare(page: Studio, server: Server) -> None:
    page.type("data_speaker", "ann")
    page.type("data_codec", "base/audio_tokenizer")
    page.click("#data_split input")
    page.until("#prepare_command", "--single_speaker ann --language en --codec", "--codec base")
    command = page.seen("#prepare_command .cm-content")
    assert "higgs-audio prepare --dataset_type recordings --input_dir recordings/ann" in command
    page.click("#start_prepare")
    page.until("#prepare_state", "running")
    # The tab is closed in the middle: the job goes on, the fields are as they were.
    page.browser.get("about:blank")
    time.sleep(1)
    page.open()
    page.until("#prepare_state", "running", "done")
    wait_for(lambda: page.value("#data_codec input, #data_codec textarea"), "the codec's field")
    assert page.value("#data_codec input, #data_codec textarea") == "base/audio_tokenizer"
    page.until("#prepare_state", "done", seconds=180)
    assert (server.workspace / "rows" / "ann_train.jsonl").is_file()


def _correct(page: Studio, server: Server) -> None:
    rows = server.workspace / "rows" / "ann_train.jsonl"
    before = rows.read_bytes()
    page.until("#clips_summary", "clips kept")
    page.find("#clip_audio_0 [data-testid^=waveform]")
    page.picture("clips")
    page.type("clip_text_0", "What she really says.")
    page.until("#clip_note_0", "saved")
    assert "What she really says." in rows.read_text(encoding="utf-8")
    page.click("#clip_keep_1 input")
    page.until("#clip_note_1", "saved")
    assert len(rows.read_bytes().splitlines()) == len(before.splitlines()) - 1
    assert rows.with_name("ann_train.original.jsonl").read_bytes() == before
    page.open()
    page.choose("clips_of", "rows/ann_train.jsonl")
    wait_for(
        lambda: page.value("#clip_text_0 textarea") == "What she really says.", "the correction"
    )
    page.find("#prepare_report")


def _train(page: Studio, server: Server, browser: Any) -> None:
    page.tab("train")
    page.choose("base", "base")
    page.choose("train_rows", "rows/ann_train.jsonl")
    wait_for(lambda: page.value("#run input, #run textarea") == "ann", "the name of the run")
    for name, value in {
        "max_steps": str(_STEPS),
        "per_device_train_batch_size": "2",
        "gradient_accumulation_steps": "1",
        "save_steps": str(_STEPS // 2),
        "sample_texts": "Bring two warm blankets.",
    }.items():
        page.type(f"set_{name}", value)
    page.click("#train .label-wrap")
    page.type("set_logging_steps", "1")
    page.until("#train_run_command", "--logging_steps 1")
    page.picture("train")
    page.click("#start_train_run")
    page.until("#train_run_state", "running", seconds=60)
    log = server.workspace / "runs" / "ann" / "logging.jsonl"
    wait_for(lambda: log.is_file() and log.read_text().count('"loss"') >= 3, "steps", seconds=240)
    with _held(job(server, 2)):
        _second_tab(page, server, browser)
        page.click("#stop_train_run")
        page.until("#train_run_state", "stopping")
    page.until("#train_run_state", "stopped", seconds=120)
    page.until("#run_line", f" of {_STEPS}")
    page.picture("stopped")
    page.click("#resume_train_run")
    page.until("#train_run_state", "done", "failed", seconds=400)
    page.picture("trained")
    assert "done, runs/ann" in page.seen("#train_run_state"), (
        job(server, 2) / "log.txt"
    ).read_text()[-3000:]
    steps = [json.loads(line).get("global_step/max_steps") for line in log.open()]
    assert f"{_STEPS}/{_STEPS}" in steps
    assert (server.workspace / "runs" / "ann" / f"checkpoint-{_STEPS}").is_dir()
    page.until("#run_line", f"step {_STEPS} of {_STEPS}")
    page.find("#curves_loss g.mark-line path[stroke]")
    page.find("#sample_0 [data-testid^=waveform]")
    page.picture("curves")


@contextmanager
def _held(job: Path) -> Iterator[None]:
    """Its command, where it is: a browser may take longer than all of its steps."""
    command = json.loads((job / "state.json").read_text(encoding="utf-8"))["command"]["pid"]
    os.kill(command, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(command, signal.SIGCONT)


def _second_tab(page: Studio, server: Server, browser: Any) -> None:
    """It sees the job of the first, and starts none beside it."""
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    page.open()
    page.tab("train")
    page.until("#train_run_state", "running")
    wait_for(lambda: page.value("#train_rows input") == "rows/ann_train.jsonl", "its rows")
    page.click("#start_train_run")
    error = page.error()
    assert "device: 'cpu' has a job already: process " in error
    assert "(job 0002-sft of " in error
    browser.close()
    browser.switch_to.window(first)
    assert len(list((server.workspace / "higgs_jobs").iterdir())) == 2


def _listen(page: Studio) -> None:
    page.tab("listen")
    page.choose("model", "runs/ann")
    page.click("#load_model")
    page.until("#model_name", "ann", seconds=60)
    page.type("text", "Bring two warm blankets.")
    page.click("#speak_tab .label-wrap")
    page.click("#generate")
    line = page.line("speech")
    page.picture("heard")
    duration_s, content = page.audio("speech")
    assert duration_s == pytest.approx(float(line.partition(" s ")[0]), abs=0.02)
    assert content[:4] == b"RIFF"


def _refused(page: Studio, server: Server, tmp_path: Path) -> None:
    """Each in one line."""
    page.tab("data")
    (server.workspace / "leads").symlink_to(tmp_path)
    for path in ("../..", "/etc", "leads", "recordings/../../x"):
        page.choose("data_folder", path)
        page.until("#prepare_command", "leads out of the workspace")
        page.click("#start_prepare")
        assert f"page: folder: '{path}' leads out of the workspace" in page.error()
    page.choose("data_folder", "recordings/ann")
    page.until("#prepare_command", "--input_dir recordings/ann")
    free = shutil.disk_usage(server.workspace).free
    if free > 1 << 30:
        pytest.skip("the rest needs a disk that can be filled")
    filler = server.workspace / "filler"
    with filler.open("wb") as file:
        file.write(bytes(free - (3 << 20)))
    page.click("#start_prepare")
    assert "lies on a disk that is full (3 MiB free); make room, then start again" in page.error()
    page.drop(RECORDINGS / "slt-01.flac")
    assert "lies on a disk that is full" in page.error()
    page.type("clip_text_0", "And nothing is lost.")
    page.until("#clip_note_0", "not saved")
    filler.unlink()
    page.type("clip_text_0", "And nothing was lost.")
    page.until("#clip_note_0", "· saved")
