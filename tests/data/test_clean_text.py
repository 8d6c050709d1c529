"""One decision per model, `clean_text`: the prompt that is trained is the prompt that everything
else uses.

The bug: speaking cleaned texts, training and evaluation did not, and the doctor said that all was
well. So a model was trained on typographic quotes and texts without a final stop, was scored on
them, and was spoken with other tokens."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import CORPUS, write_jsonl
from helpers.sft import heard, sft

from plugins.cli import main
from plugins.corpora.canonical import canonical_row
from plugins.data.rows import dialogue_from_row
from plugins.errors import UserError
from plugins.evaluation.items import read_items
from plugins.inference import HiggsAudioGenerator
from plugins.model.load import load_model
from plugins.settings import SETTINGS_FILE, HiggsAudioSettings
from plugins.training import samples
from plugins.training.preflight.before_training import check_texts
from plugins.training.preflight.report import Report

CLIP, VOICE = (str(CORPUS / "wavs" / f"DEMO-000{number}.flac") for number in (1, 2))
TEXTS = {
    "The birch canoe slid on the planks": "The birch canoe slid on the planks.",
    "It’s “glue” — dark blue": 'It\'s "glue" - dark blue.',
    "Vie\u0302\u0323t Nam\u200b.": "Việt Nam.",
    "\ufeffPlease speak: Donau\u00addampf，20°C [laugh]": (
        "Donaudampf, 20 degrees Celsius <SE>[Laughter]</SE>"
    ),
    "[SPEAKER0] First line\n\n[SPEAKER1] “Second”": '[SPEAKER0] First line\n[SPEAKER1] "Second"',
    "Plain, and clean.": "Plain, and clean.",
}
TRANSCRIPT, SCENE = "“Smoke” — no stop\ufeff", "a cafe\u0301 — noisy"


def rows() -> list[dict[str, Any]]:
    """Each text alone, and the second one with a scene in the hearing of a voice."""
    answer = {"role": "assistant", "content": ""}
    plain: list[dict[str, Any]] = []
    for text in TEXTS:
        messages = [{"role": "user", "content": text}, answer]
        plain.append({"messages": messages, "audios": [CLIP]})
    scene = {"role": "system", "content": f"<|scene_desc_start|>{SCENE}<|scene_desc_end|>"}
    voiced = {"messages": [scene, *plain[1]["messages"]], "audios": [CLIP]}
    return [*plain, {**voiced, "reference_audio": VOICE, "reference_text": TRANSCRIPT}]


def saved(tiny: Path, folder: Path, *, clean_text: bool) -> Path:
    """The tiny model as a training with this decision saves it."""
    shutil.copytree(tiny, folder)
    HiggsAudioSettings(clean_text=clean_text).save(folder)
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["clean", "raw"])
def trained(
    request: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bool, Path]:
    folder = tmp_path_factory.mktemp("trained") / "model"
    return request.param, saved(tiny, folder, clean_text=request.param)


def test_the_same_ids_in_training_samples_evaluation_and_speaking(
    trained: tuple[bool, Path], tmp_path: Path
) -> None:
    from swift.model import get_model_processor
    from swift.template import get_template

    from plugins.register import register_higgs_audio_all

    is_clean, folder = trained
    register_higgs_audio_all()
    _, processor = get_model_processor(
        str(folder), model_type="higgs-audio-v2-3b", load_model=False
    )
    template = get_template(processor)
    template.go_on_from(folder)
    generator = HiggsAudioGenerator.from_pretrained(str(folder))
    file = write_jsonl(tmp_path / "rows.jsonl", rows())
    sampled = samples.prompts(
        HiggsAudioSettings(sample_texts=(str(file),), clean_text=is_clean), None
    )
    items = read_items(str(file), HiggsAudioSettings.of_checkpoint(folder))

    for i, (row, item) in enumerate(zip(rows(), items, strict=True)):
        template.set_mode("train")
        ids = template.encode(dict(row))["input_ids"]
        # Up to the opening of the last clip: a reference has one too.
        prompt = ids[: len(ids) - ids[::-1].index(generator.tokens.audio_bos)]
        text = row["messages"][-2]["content"]
        options = {} if i < len(TEXTS) else {
            "scene_description": SCENE, "reference_audio": VOICE, "reference_text": TRANSCRIPT
        }  # fmt: skip
        script = generator.script(text, **options)
        others = [script.next_line([], max_frames=1000), item.dialogue, *sampled[i : i + 1]]
        for other in others:
            assert generator.speaker.prompt(other).input_ids == prompt
        template.set_mode("transformers")
        assert template.encode({**row, "messages": row["messages"][:-1]})["input_ids"] == prompt
        shown = generator.tokenizer.decode(prompt)
        assert (TEXTS[text] in shown) == (is_clean or text == TEXTS[text])
        assert item.text == " ".join(item.text.split()), "compared with the row's own text"
        if i == 1:
            assert item.text == text


def test_what_is_nobodys_to_speak_keeps_its_marks() -> None:
    """As the original's example: transcripts and scenes as they stand, here in one Unicode form."""
    row = rows()[-1]
    row["messages"].append({"role": "user", "content": "And"})
    row["messages"].append({"role": "assistant", "content": "“Sure” cafe\u0301<audio>"})
    row["audios"] *= 2
    dialogue = dialogue_from_row(
        canonical_row(row, "row", HiggsAudioSettings()), HiggsAudioSettings()
    )
    assert dialogue.references[0].text == "“Smoke” — no stop"
    assert dialogue.scene == "a caf\u00e9 — noisy"
    assert dialogue.turns[2].parts == ("And.",)
    assert dialogue.turns[3].parts[0] == "“Sure” caf\u00e9"
    raw = dialogue_from_row(
        canonical_row({**row, "raw_prompt": True}, "row", HiggsAudioSettings()),
        HiggsAudioSettings(),
    )
    assert raw.turns[0].parts == (row["messages"][1]["content"],)
    assert raw.references[0].text == TRANSCRIPT


def test_pieces_of_a_long_text_hold_what_the_whole_holds(trained: tuple[bool, Path]) -> None:
    is_clean, folder = trained
    generator = HiggsAudioGenerator.from_pretrained(str(folder))
    text = "It’s one “thing”. Another word follows here, and then some more words without a stop"
    lines = generator.script(text, max_chars=30).lines
    assert len(lines) > 2
    whole = 'It\'s one "thing". Another word follows here, and then some more words without a stop.'
    assert " ".join(lines) == (whole if is_clean else text)


def test_lines_of_a_dialogue_are_prompts_of_rows_with_one_turn_each(
    trained: tuple[bool, Path],
) -> None:
    is_clean, folder = trained
    generator = HiggsAudioGenerator.from_pretrained(str(folder))
    said = [{"speaker": "a", "text": "“Hi”, you"}, {"speaker": "b", "text": "Hello"}]
    lines = [f"[SPEAKER{i}] {line['text']}" for i, line in enumerate(said)]
    row: dict[str, Any] = {"messages": [], "audios": [CLIP, CLIP]}
    for line in lines:
        row["messages"] += [{"role": "user", "content": line}, {"role": "assistant", "content": ""}]
    settings = HiggsAudioSettings.of_checkpoint(folder)
    turns = dialogue_from_row(canonical_row(row, "row", settings), settings).turns
    spoken = generator.synthesize_multi_speaker(said, max_audio_s=0.04)
    assert spoken.text == f"{turns[0].parts[0]} {turns[2].parts[0]}"
    assert turns[2].parts == ("[SPEAKER1] Hello." if is_clean else "[SPEAKER1] Hello",)


# --- whose decision ---


def test_a_base_is_clean_and_what_was_trained_before_the_setting_is_raw(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert HiggsAudioSettings.of_checkpoint(tiny, {}).clean_text
    (tmp_path / SETTINGS_FILE).write_text('{"raw_prompt": false}', encoding="utf-8")
    for _ in range(2):
        assert not HiggsAudioSettings.of_checkpoint(tmp_path, {}).clean_text
    told_once = (
        f"{tmp_path}: trained before texts were cleaned (no clean_text in {SETTINGS_FILE}):"
        " used with raw ones"
    )
    assert caplog.messages.count(told_once) == 1
    assert HiggsAudioSettings.of_checkpoint(tmp_path, {"CLEAN_TEXT": "true"}).clean_text
    assert "trained with clean_text false, used with CLEAN_TEXT=true: other prompts" in caplog.text
    (tmp_path / SETTINGS_FILE).write_text('{"clean_text": "no"}', encoding="utf-8")
    with pytest.raises(
        UserError, match=r"higgs_audio_settings\.json: clean_text: 'no' is neither true nor false"
    ):
        HiggsAudioSettings.of_checkpoint(tmp_path, {})


def test_who_asks_otherwise_is_told_once(
    trained: tuple[bool, Path], caplog: pytest.LogCaptureFixture
) -> None:
    is_clean, folder = trained
    generator = HiggsAudioGenerator.from_pretrained(str(folder))
    lines = [generator.script("It’s", clean_text=not is_clean).lines for _ in range(2)]
    assert lines == [("It’s",) if is_clean else ("It's.",)] * 2
    was, asked = ("cleaned", "raw") if is_clean else ("raw", "cleaned")
    expected = f"clean_text: trained with {was} texts, spoken with {asked} texts"
    assert caplog.messages == [expected]
    generator.script("It’s", clean_text=is_clean)
    assert len(caplog.records) == 1


def test_each_adapter_speaks_its_own_prompts(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from plugins.model import load as checkpoint

    for name, clean_text in (("clean", True), ("raw", False)):
        tuned = get_peft_model(
            checkpoint.native_model(str(tiny)), LoraConfig(r=2, target_modules=["q_proj"])
        )
        tuned.save_pretrained(tmp_path / name)
        HiggsAudioSettings(clean_text=clean_text).save(tmp_path / name)
    folders = {name: str(tmp_path / name) for name in ("clean", "raw")}
    generator = HiggsAudioGenerator(*load_model(str(tiny), adapters=folders))
    assert generator.script("It’s").lines == ("It's.",)
    generator.use_adapter("raw")
    assert generator.script("It’s").lines == ("It’s",)
    generator.use_adapter(None)
    assert generator.script("It’s").lines == ("It’s",), (
        "the base is compared on the prompts of the tuned model"
    )


def test_the_command_speaks_as_trained_or_says_otherwise(
    trained: tuple[bool, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    is_clean, folder = trained
    said = tmp_path / "said.wav"
    flags = [
        "--model",
        str(folder),
        "--text",
        "It’s",
        "--output",
        str(said),
        "--max_audio_s",
        "0.04",
    ]
    main(["speak", *flags])
    assert not caplog.records
    main(["speak", *flags, "--raw_text"])
    assert ("trained with cleaned texts, spoken with raw texts" in caplog.text) == is_clean


# --- before training ---


def findings(
    given: list[dict[str, Any]], settings: HiggsAudioSettings, origin: Path
) -> list[tuple[str, str, str]]:
    report = Report(lambda text: None)
    canonical = []
    for number, row in enumerate(given, start=1):
        canonical.append(canonical_row(row, f"rows.jsonl:{number}", settings))
    check_texts(report, canonical, settings, origin)
    return [(finding.status, finding.text, finding.evidence) for finding in report.findings]


def test_the_check_states_the_decision_with_counts(tiny: Path, tmp_path: Path) -> None:
    ((status, text, example),) = findings(rows(), HiggsAudioSettings(), tiny)
    assert (status, text) == ("ok", "cleaned texts: clean_text changes 6 of 7 rows")
    assert example.splitlines() == [
        "rows.jsonl:1",
        "written: 'The birch canoe slid on the planks'",
        "cleaned: 'The birch canoe slid on the planks.'",
    ]
    raw = HiggsAudioSettings(clean_text=False)
    ((status, text, _),) = findings(rows(), raw, tiny)
    assert (status, text) == ("ok", "raw texts: clean_text would change 6 of 7 rows")
    mixed = [{**row, "raw_prompt": i < 2} for i, row in enumerate(rows())]
    ((status, text, _),) = findings(mixed, HiggsAudioSettings(), tiny)
    assert status == "warning"
    assert "clean_text changes 4 of 7 rows; 2 rows are raw_prompt" in text
    raw.save(tmp_path)
    ((status, text, _),) = findings(rows(), HiggsAudioSettings(), tmp_path)
    assert status == "warning"
    assert text.endswith(f"{tmp_path} was trained with raw texts: go on with clean_text false")


def test_the_doctor_sees_the_prompts_that_are_spoken(
    trained: tuple[bool, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    is_clean, folder = trained
    given = rows()[:3]
    given[0]["messages"][0]["content"] = "A sentence. " * 30
    main(
        [
            "doctor",
            "--model",
            str(folder),
            "--dataset",
            str(write_jsonl(tmp_path / "rows.jsonl", given)),
        ]
    )
    out = capsys.readouterr().out
    decision = (
        "cleaned texts: clean_text changes" if is_clean else "raw texts: clean_text would change"
    )
    assert f"{decision} 2 of 3 rows" in out
    assert (
        "1 of 3 rows have texts of more than 300 characters: speaking cuts them into pieces" in out
    )
    assert "speaking uses the prompts that are trained (3 rows)" in out


@pytest.mark.slow
def test_a_training_keeps_the_decision_of_its_checkpoint_and_a_resume_cannot_change_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = saved(tiny, tmp_path / "base", clean_text=False)
    data = write_jsonl(tmp_path / "rows.jsonl", rows()[:4])
    caplog.set_level(logging.INFO)
    with heard(caplog):
        sft(base, data, tmp_path / "out", max_steps=1, save_steps=1)
    assert "raw texts: clean_text would change 4 of 4 rows" in caplog.text
    checkpoint = tmp_path / "out" / "checkpoint-1"
    assert not HiggsAudioSettings.of_checkpoint(checkpoint, {}).clean_text
    monkeypatch.setenv("CLEAN_TEXT", "true")
    with pytest.raises(UserError, match="clean_text: False in the checkpoint, True now"):
        sft(
            base,
            data,
            tmp_path / "out",
            max_steps=2,
            save_steps=1,
            resume_from_checkpoint=checkpoint,
        )
