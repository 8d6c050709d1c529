"""`--best_of` of the commands, and what the page says of takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import read
from helpers.evaluation import evaluate, rows_to_say
from helpers.takes import Ears

from plugins.cli import main
from plugins.commands import evaluate as evaluate_command
from plugins.commands import speak as speak_command
from plugins.commands.app.fields import line_of, sampling_of
from plugins.evaluation import report
from plugins.hearing import scorers
from plugins.hearing.takes import Take
from plugins.speaking.speech import Speech

FLAGS = ("--device", "cpu", "--temperature", "1", "--max_audio_s", "0.2", "--best_of", "3")


def speak(tiny: Path, *words: Any) -> int:
    return main(["speak", "--model", str(tiny), *FLAGS, *map(str, words)])


def test_speak_says_what_was_heard_in_each_take(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(speak_command, "judge_of", lambda options: Ears())
    assert speak(tiny, "--text", "Hi.", "--output", tmp_path / "a.wav", "--seed", "1") == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["take 1", "take 2", "take 3"]
    assert lines[0].rstrip(" *").endswith("seed 1")
    assert len([line for line in lines[:3] if line.endswith(" *")]) == 1
    # A list: in its results; another number of takes is another speech.
    requests = tmp_path / "lines.jsonl"
    requests.write_text('{"text": "Hello.", "seed": 4}\n')
    listed = ("--input", requests, "--output_dir", tmp_path / "said")
    for best_of, spoken in ((3, 1), (3, 0), (2, 1)):
        assert speak(tiny, *listed, "--best_of", best_of) == 3
        assert f"said: {spoken} spoken" in capsys.readouterr().out
    first, second = read(tmp_path / "said" / "results.jsonl")
    assert [len(row["takes"]) for row in (first, second)] == [3, 2]
    assert first["takes"][0]["seed"] == second["takes"][0]["seed"] == 4


def test_speak_refuses_before_it_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    gone = tmp_path / "no model"
    output = ("--text", "Hi.", "--output", tmp_path / "a.wav")
    assert speak(gone, "--text", "Hi.", "--stream", "-") == 1
    assert "best_of: 3 takes cannot be streamed" in capsys.readouterr().err
    assert speak(gone, *output, "--language", "de") == 1
    assert "the recogniser that ships with this kit hears English" in capsys.readouterr().err
    monkeypatch.setattr(scorers, "find_spec", lambda name: None)
    assert speak(gone, *output) == 1
    error = capsys.readouterr().err
    assert "takes: recogniser is missing: package jiwer is not installed; run: pip" in error


@pytest.mark.parametrize(
    ("judge", "flattered"),
    [
        (["en", "tiny 1", "voices 1"], "error rates (choose with another recogniser: --best_of_asr)"
         " and similarity, where words were equal"),
        (["en", "large 3", "voices 1"], "similarity, where words were equal"),
        (["en", "large 3"], None),
    ],
)  # fmt: skip
def test_the_report_says_who_judged_his_own_choice(judge: list[str], flattered: str | None) -> None:
    """With another recogniser for the choice it said the same, for the voices' model is one."""
    notes = report.notes(
        {
            "systems": {},
            "settings": {"best_of": {"takes": 8, "judge": judge}},
            "scorers": {"sound": "sound 1", "transcript": "tiny 1", "voice": "voices 1"},
            "missing": {},
        }
    )
    expected = [f"best of 8 takes, heard by {'; '.join(judge)}"]
    if flattered is not None:
        expected.append(f"who chose the takes scores them too, which flatters {flattered}")
    assert notes == expected


def test_who_hears_takes_needs_takes(tmp_path: Path, capsys: Any) -> None:
    gone = tmp_path / "no model"
    listed = ("--dataset", tmp_path / "rows.jsonl", "--output", tmp_path / "out")
    assert speak(gone, "--text", "Hi.", "--best_of", "1", "--asr", "x") == 1
    assert "asr: 'x' has no takes to choose from; give --best_of" in capsys.readouterr().err
    assert evaluate("--model", gone, *listed, "--best_of_asr", "x") == 1
    assert "best_of_asr: 'x' has no takes to choose from; give" in capsys.readouterr().err
    assert evaluate("--generated", tmp_path, *listed, "--best_of", "2") == 1
    assert "best_of: 2 has no --model to belong to; give --model" in capsys.readouterr().err


@pytest.mark.usefixtures("only_sound")
def test_evaluate_shows_all_takes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(evaluate_command, "load_judge", lambda **_: (Ears(), []))
    out = tmp_path / "out"
    words = ["--model", tiny, "--dataset", rows_to_say(tmp_path, 2), "--output", out]
    words += ["--best_of", "2", "--temperature", "1"]
    assert evaluate(*words) == 0
    rows = read(out / "items.jsonl")
    takes = [row["systems"]["model"]["takes"] for row in rows]
    assert [len(of_row) for of_row in takes] == [2, 2]
    assert "takes" not in rows[0]["systems"]["truth"]
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["settings"]["best_of"] == {"takes": 2, "judge": ["en", "ears 1"]}
    assert "- best of 2 takes, heard by en; ears 1" in (out / "report.md").read_text()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("take 1: ") == page.count("take 2: ") == 2
    # The same again changes nothing; without takes it is another evaluation.
    before = (out / "items.jsonl").read_bytes()
    assert evaluate(*words) == 0
    assert (out / "items.jsonl").read_bytes() == before
    capsys.readouterr()
    assert evaluate(*words, "--best_of", "1") == 1
    assert "best_of.takes: 2 is what it was begun with" in capsys.readouterr().err


def test_the_page_tells_the_takes() -> None:
    import numpy as np

    assert sampling_of(0.3, 50.0, 0.95, 7, 4.0).best_of == 4  # type: ignore[arg-type]
    takes = (Take(7, True, 1.0, 0.5), Take(8, True, 1.0, 0.0, is_best=True))
    samples = np.zeros(24_000, dtype=np.float32)
    speech = Speech(samples, 24_000, torch.zeros(8, 25), True, "Hi.", 1.0, takes)
    assert line_of(speech, 7).split("\n\n")[1:] == [
        "take 1: 1.00 s, WER 50.0 %, seed 7",
        "take 2: 1.00 s, WER 0.0 %, seed 8 **kept**",
    ]
