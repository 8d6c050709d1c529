"""The demo: what is trained and what is asked for, and, slowly, that a recogniser understands what
comes out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from helpers.sft import run as run_command

from demo import rows, run
from demo.recipes.codec import sentences
from demo.recipes.codec.training import Recipe
from plugins.corpora.canonical import canonical_row
from plugins.data.rows import dialogue_from_row
from plugins.settings import HiggsAudioSettings
from plugins.speaking.voices import Script, request

SETTINGS = HiggsAudioSettings()


@pytest.fixture(scope="module")
def clips() -> list[dict[str, Any]]:
    """As prepare_dataset.py writes them, codes left out."""
    lines = (run.CORPUS / "metadata.csv").read_text(encoding="utf-8").splitlines()
    clips: list[dict[str, Any]] = []
    for line in lines[1:]:  # the first names the columns
        audio, text, speaker = line.split("|")
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        clip = {"messages": messages, "audios": [str(run.CORPUS / audio)], "id": audio}
        clips.append({**clip, "audio_codes": ["codes#none"], "speaker": speaker})
    return clips


def pairs(written: list[rows.Row]) -> set[tuple[str, str]]:
    """Targets and the references they are said after."""
    with_reference = [row for row in written if "reference_audio" in row]
    return {(row["audios"][0], row["reference_audio"][0]) for row in with_reference}


def user_texts(row: rows.Row) -> list[str]:
    return [message["content"] for message in row["messages"] if message["role"] == "user"]


def voice_of(path: str) -> str:
    return Path(path).stem.partition("-")[0]


def test_what_is_asked_for_was_never_trained(clips: list[dict[str, Any]]) -> None:
    trained = list(rows.trained(clips))
    asked = rows.cloned(clips)
    assert len(asked) == 16
    assert not pairs(trained) & pairs(asked)
    first, second = (line["text"] for line in rows.lines(clips))
    dialogue = [f"[SPEAKER0] {first}", f"[SPEAKER1] {second}"]
    taught = list(map(user_texts, trained))
    assert dialogue not in taught
    # But each of its lines was, in its place.
    dialogues = [texts for texts in taught if len(texts) == 2]
    firsts, seconds = map(set, zip(*dialogues, strict=True))
    assert dialogue[0] in firsts
    assert dialogue[1] in seconds


def test_a_reference_is_another_sentence_of_the_voice_that_answers(
    clips: list[dict[str, Any]],
) -> None:
    for row in [*rows.trained(clips), *rows.cloned(clips)]:
        references, texts = row.get("reference_audio", []), row.get("reference_text", [])
        for reference, text in zip(references, texts, strict=True):
            assert reference != row["audios"][0]
            assert voice_of(reference) == voice_of(row["audios"][0]) == row["speaker"]
            (transcript,) = (rows.text_of(clip) for clip in clips if clip["audios"] == [reference])
            assert text == transcript


def test_cloned_sentences_are_in_the_other_voice(clips: list[dict[str, Any]]) -> None:
    plain = {rows.text_of(row): row["speaker"] for row in rows.plain(clips)}
    cloned = {rows.text_of(row): row["speaker"] for row in rows.cloned(clips)}
    assert set(plain) == set(cloned)
    assert len(plain) == 16
    assert all(plain[text] != cloned[text] for text in plain)
    assert sorted(plain.values()) == ["rms"] * 8 + ["slt"] * 8


def test_a_dialogue_is_asked_for_as_it_was_trained(clips: list[dict[str, Any]]) -> None:
    """Instruction, scene and turns: what `synthesize_multi_speaker` writes is what the rows say."""
    row = next(row for row in rows.trained(clips) if len(row["audios"]) == 2)
    plain = {**row}
    del plain["audio_codes"]  # they lie nowhere
    trained = dialogue_from_row(canonical_row(plain, "row", SETTINGS), SETTINGS)
    texts = [turn.parts[0] for turn in trained.turns if turn.role == "user"]
    whole = request("\n".join(map(str, texts)), None, [], SETTINGS)
    asked = Script(whole, tuple(map(str, texts))).next_line([], max_frames=100)
    assert (asked.instruction, asked.scene) == (trained.instruction, trained.scene)
    assert asked.turns == trained.turns[:1]


def test_the_codec_never_heard_the_sentences_of_the_demo(clips: list[dict[str, Any]]) -> None:
    recipe = Recipe()
    heard = sentences.training(2 * recipe.sentences, seed=recipe.seed)
    assert not {rows.text_of(clip) for clip in clips} & {*heard, *sentences.held_out()}


def test_without_a_recogniser_the_summary_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "OUT", tmp_path)
    scores = {"wer": None, "similarity": None, "similarity_others": None, "stopped": {"mean": 1.0}}
    system = {"scores": scores}
    summary = {
        "systems": {"model": system, "codec": system, "truth": system, "generated": system},
        "missing": {"transcript": "package faster_whisper is not installed; run: pip install x"},
    }
    for name in ("learnt", "cloned", "dialogue"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    run._summary(stopped=False)
    out = capsys.readouterr().out
    assert "missing: package faster_whisper is not installed; run: pip install x" in out
    assert out.count("100.0 %") == 2  # learnt and cloned; the dialogue did not stop
    assert "0.0 %" in next(line for line in out.splitlines() if line.startswith("dialogue"))


def test_a_finished_demo_is_shown_again_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make demo` once more used to delete all of it and to train for three minutes."""
    (tmp_path / "learnt").mkdir()
    (tmp_path / "finished.json").write_text('{"stopped": true}', encoding="utf-8")
    monkeypatch.setattr(run, "OUT", tmp_path)
    monkeypatch.setattr(run, "_FINISHED", tmp_path / "finished.json")
    shown: list[Any] = []
    monkeypatch.setattr(run, "_curves", shown.append)
    monkeypatch.setattr(run, "_summary", shown.append)
    monkeypatch.setattr(run, "build_model", lambda folder: pytest.fail("it is made again"))
    assert run.main() == 0
    assert shown == [tmp_path / "run" / "logging.jsonl", True]
    assert (tmp_path / "learnt").is_dir()
    assert f"`rm -r {tmp_path}` starts anew" in capsys.readouterr().out


@pytest.fixture(scope="module")
def demo() -> dict[str, dict[str, Any]]:
    """What `make demo` leaves behind: the summaries of its three evaluations."""
    run._FINISHED.unlink(missing_ok=True)  # or it would show what it has shown before
    done = run_command(sys.executable, "-m", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing" not in done.stdout
    print(done.stdout)
    summaries = {}
    for name in ("learnt", "cloned", "dialogue"):
        path = ROOT / "demo" / "out" / name / "summary.json"
        summaries[name] = json.loads(path.read_text(encoding="utf-8"))
    return summaries


def mean(summary: dict[str, Any], system: str, score: str) -> float:
    return float(summary["systems"][system]["scores"][score]["mean"])


@pytest.mark.slow
def test_the_demo_speaks_what_it_learnt(demo: dict[str, dict[str, Any]]) -> None:
    assert mean(demo["learnt"], "model", "stopped") == 1
    assert mean(demo["learnt"], "model", "wer") <= mean(demo["learnt"], "codec", "wer") + 0.05


@pytest.mark.slow
def test_the_demo_clones(demo: dict[str, dict[str, Any]]) -> None:
    cloned = demo["cloned"]
    assert mean(cloned, "model", "similarity") > mean(cloned, "model", "similarity_others")


@pytest.mark.slow
def test_the_demo_converses(demo: dict[str, dict[str, Any]]) -> None:
    spoken = ROOT / "demo" / "out" / "spoken" / "dialogue.wav"
    assert spoken.stat().st_size > 2 * 3 * 24_000 * 2  # two lines of 3 s in 16 bit
    assert mean(demo["dialogue"], "generated", "wer") < 0.5
