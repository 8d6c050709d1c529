"""`higgs-audio evaluate`: arithmetic by hand, lists of other kits, the tiny model through the whole
command."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from conftest import CORPUS, corpus_rows, write_jsonl
from helpers.commands import contents, in_child, read

from plugins.cli import main
from plugins.commands import evaluate
from plugins.data.dialogue import Dialogue, Turn
from plugins.errors import UserError
from plugins.evaluation import formats, scorers
from plugins.evaluation.items import Item, read_items
from plugins.evaluation.run import Clip, Journal
from plugins.evaluation.scores import METRICS, column, score
from plugins.evaluation.speaking import seeded, speak_batch, stop_rate
from plugins.evaluation.statistics import difference, estimate
from plugins.evaluation.text import (
    character_errors,
    seed_style,
    whisper_style,
    word_errors,
    words_to_say,
)
from plugins.inference import HiggsAudioGenerator
from plugins.model import card as model_card
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling

SETTINGS = HiggsAudioSettings()
BY_NAME = {metric.name: metric for metric in METRICS}


@pytest.fixture(scope="module")
def lora(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA weights that change what the tiny model says."""
    from peft import LoraConfig, get_peft_model

    from plugins.model import load as checkpoint

    torch.manual_seed(1)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "audio_mlp.down_proj"], init_lora_weights=False
    )
    tuned = get_peft_model(checkpoint.native_model(str(tiny)), config)
    tuned.peft_config["default"].base_model_name_or_path = str(tiny)
    folder = tmp_path_factory.mktemp("lora")
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture
def only_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one scorer that takes no time; those with weights are tried in
    test_evaluation_speech.py."""
    original = scorers.load_scorers
    monkeypatch.setattr(
        evaluate, "load_scorers", lambda **options: (original(**options)[0][:1], [])
    )


def dataset(folder: Path, num_rows: int = 3) -> Path:
    rows = corpus_rows(num_rows)
    for number, row in enumerate(rows):
        row["speaker"] = f"voice{number % 2}"
    rows[0] |= {
        "reference_audio": str(CORPUS / "wavs" / "DEMO-0009.flac"),
        "reference_text": "Some words.",
    }
    return write_jsonl(folder / "test.jsonl", rows)


def run(*arguments: Any) -> int:
    return main(["evaluate", "--device", "cpu", "--max_audio_s", "0.4", *map(str, arguments)])


# --- texts ---


def test_whisper_style_makes_spellings_of_one_sentence_one() -> None:
    pytest.importorskip("whisper_normalizer")
    assert whisper_style("Mr. Smith's colour isn't   20!", "en") == whisper_style(
        "mister smith's color is not twenty", "en"
    )
    assert whisper_style("Grüß Gott, Welt!", "de") == "grüß gott welt"
    assert whisper_style("你好，世界", "zh") == "你 好 世 界"


def test_seed_style_keeps_apostrophes_and_numbers() -> None:
    assert seed_style("Don't — pay  $20, “ever”!", "en") == "don't pay 20 ever"
    assert seed_style("你好， 世界。", "zh") == "你 好 世 界"


def test_errors_are_counted() -> None:
    pytest.importorskip("jiwer")
    assert word_errors("a b c d", "a x c") == (2, 4), "one substituted, one deleted"
    assert word_errors("a b", "a b c d e") == (3, 2), "insertions too, beyond 100 %"
    assert word_errors("", "a") == (1, 0)
    assert character_errors("ab c", "abd") == (1, 3)
    assert words_to_say("[SPEAKER0] Ha. <SE>[Laughter]</SE>  Yes") == "Ha. Yes"


# --- statistics ---


def test_means_are_ratios_of_sums_and_skip_what_is_not_there() -> None:
    found = estimate([(0.5, 2.0), None, (0.0, 8.0)])
    assert found is not None
    assert (found.mean, found.items) == (0.1, 2)
    assert (found.low, found.high) == (0.0, 0.5), (
        "of two items the resamples are both ends and the middle"
    )
    assert estimate([None]) is None
    alone = estimate([(3.0, 1.0)])
    assert alone is not None
    assert (alone.mean, alone.low) == (3.0, None)


def test_intervals_are_those_of_the_normal_distribution_for_many_items() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    found = estimate([(float(value), 1.0) for value in values])
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.015)
    assert found.high == pytest.approx(values.mean() + half, abs=0.015)
    assert found == estimate([(float(value), 1.0) for value in values])


def test_a_paired_difference_sees_what_two_intervals_hide() -> None:
    random = np.random.default_rng(2)
    hard = random.normal(0, 1, 50)
    first = [(float(value), 1.0) for value in hard + 0.1]
    second = [
        (float(value + noise), 1.0)
        for value, noise in zip(hard, random.normal(0, 0.05, 50), strict=True)
    ]
    a, b, both = estimate(first), estimate(second), difference(first, second)
    assert a is not None
    assert b is not None
    assert both is not None
    assert a.low is not None
    assert b.high is not None
    assert both.low is not None
    assert a.low < b.high, "apart they overlap"
    assert both.low > 0
    assert difference([None, (1.0, 1.0)], [(5.0, 1.0), (0.0, 1.0)]) == difference(
        [(1.0, 1.0)], [(0.0, 1.0)]
    )


# --- lists and rows ---


def test_a_list_of_seed_tts_eval(tmp_path: Path) -> None:
    for name in ("prompt.wav", "target.wav"):
        sf.write(tmp_path / name, 0.1 * np.sin(np.arange(48_000) / 20), 24_000)
    lines = [
        "one|What the prompt says.|prompt.wav|Hello there.|target.wav",
        "two.wav|What the prompt says.|prompt.wav|Good bye.",
        "three|No transcript of it.|prompt.wav",
        "four|In any voice.",
    ]
    (tmp_path / "meta.lst").write_text("\n".join(lines) + "\n", encoding="utf-8")
    one, two, three, four = read_items(str(tmp_path / "meta.lst"), SETTINGS)
    assert [item.id for item in (one, two, three, four)] == ["one", "two", "three", "four"]
    assert one.truth == str(tmp_path / "target.wav")
    assert (two.truth, two.text, two.reference) == (None, "Good bye.", str(tmp_path / "prompt.wav"))
    assert two.dialogue.references[0].text == "What the prompt says."
    assert three.dialogue.references[0].text is None
    assert four.reference is None

    formats.write_meta(tmp_path / "again.lst", [{"id": "two", "text": "Good | bye.", "prompt": two.reference,
                                                 "prompt_text": "What the prompt says."},
                                                {"id": "four", "text": "In any\nvoice.", "prompt": None}])  # fmt: skip
    again = read_items(str(tmp_path / "again.lst"), SETTINGS)
    assert [item.text for item in again] == ["Good bye.", "In any voice."]
    assert again[0].dialogue.references == two.dialogue.references


def test_lists_of_versa(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(24_000) / 20), 24_000)
    formats.write_kaldi(tmp_path / "wav.scp", {"a": "a.wav"})
    formats.write_kaldi(tmp_path / "text", {"a": "Hello \n there."})
    (item,) = read_items(str(tmp_path), SETTINGS)
    assert (item.id, item.text, item.truth) == ("a", "Hello there.", str(tmp_path / "a.wav"))
    (tmp_path / "wav.scp").write_text("a sox a.wav -t wav - |\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"wav\.scp:1: path: .* is a command; run it"):
        read_items(str(tmp_path), SETTINGS)


def test_rows_become_items(tmp_path: Path) -> None:
    rows = corpus_rows(3)
    rows[0]["id"] = "the first/one"
    rows[1]["messages"][1]["content"] = "[SPEAKER0] Glue <SE>[Laughter]</SE> it."
    rows[2]["messages"].pop()  # text only
    del rows[2]["audios"]
    rows[2]["speaker"] = "me"
    first, second, third = read_items(str(write_jsonl(tmp_path / "test.jsonl", rows)), SETTINGS)
    assert first.id == "the_first_one"
    assert first.text == "The birch canoe slid on the planks.", (
        "as training reads it, without `Please speak:`"
    )
    assert first.truth == str(CORPUS / "wavs" / "DEMO-0001.flac")
    assert first.dialogue.turns[-1] == Turn("user", (first.text,))
    assert first.dialogue.scene == "Indoor quiet"
    assert (second.id, second.text) == ("DEMO-0002", "Glue it.")
    assert (third.id, third.truth, third.speaker) == ("3", None, "me")

    rows[1]["id"] = "the first/one"
    with pytest.raises(UserError, match=r"test\.jsonl:2: id: 'the first/one' is another row's too"):
        read_items(str(write_jsonl(tmp_path / "test.jsonl", rows)), SETTINGS)


# --- scores ---


def item(id_: str, text: str, speaker: str | None = None) -> Item:
    return Item(id_, text, Dialogue((Turn("user", (text,)),)), f"/{id_}.wav", speaker)


def test_scores_of_three_items_by_hand() -> None:
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    items = [
        item("a", "red green blue grey", "x"),
        item("b", "old book", "x"),
        item("c", "big tree", "y"),
    ]
    sound = {"duration_s": 2.0, "silence": 0.25}
    heard: dict[Path, Any] = {
        Path("/a.wav"): {"voice": [100, 0], "sound": sound, "transcript": ""},
        Path("/b.wav"): {"voice": [60, 80], "sound": sound, "transcript": ""},
        Path("/c.wav"): {"voice": [0, 100], "sound": sound, "transcript": ""},
        Path("/said_a.wav"): {"voice": [80, 60], "sound": {"duration_s": 3.0, "silence": 0.5}, "dnsmos": 3.0,
                              "transcript": "Red, green, glue gray"},
        Path("/said_c.wav"): {"error": "is truncated"},
    }  # fmt: skip
    said = [
        Clip(Path("/said_a.wav"), True),
        Clip(None, False, "gave no audio"),
        Clip(Path("/said_c.wav"), True),
    ]
    rows = score(items, {"tuned": said}, heard, language="en", transcribed=True)
    first, failed, unreadable = (row["systems"]["tuned"] for row in rows)
    assert (first["wer"], first["words"], first["duration_ratio"], first["stopped"]) == (
        0.25,
        4,
        1.5,
        1.0,
    )
    assert first["similarity"] == pytest.approx(0.8 * 0.6 + 0.6 * 0.8), (
        "the speaker's other recording"
    )
    assert first["similarity_others"] == pytest.approx(0.6)
    for lost in (failed, unreadable):
        assert (lost["wer"], lost["cer"], lost["wer_seed"], lost["stopped"]) == (1.0, 1.0, 1.0, 0.0)
        assert lost.get("similarity") is None
    pooled, mean = (estimate(column(rows, "tuned", BY_NAME[name])) for name in ("wer", "wer_seed"))
    assert pooled is not None
    assert mean is not None
    assert pooled.mean == pytest.approx((1 + 2 + 2) / 8), "errors per word"
    assert mean.mean == pytest.approx((0.5 + 1 + 1) / 3), "over items, and gray is not grey"
    unheard = score(items, {"tuned": said}, heard, language="en", transcribed=False)
    assert column(unheard, "tuned", BY_NAME["wer"]) == [None, None, None], (
        "failures alone are no word error rate"
    )


def test_a_silent_share() -> None:
    samples = np.concatenate([np.sin(np.arange(16_000) / 5), np.zeros(48_000)]).astype(np.float32)
    (sound,) = (each for each in scorers.load_scorers()[0] if each.name == "sound")
    assert sound.hear(samples) == {"duration_s": 4.0, "silence": 0.75}


def test_missing_scorers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"distillmos", "webrtcvad", "jiwer"}
    monkeypatch.setattr(scorers, "find_spec", lambda name: None if name in gone else object())
    found, missing = scorers.load_scorers()
    assert [each.name for each in found] == ["sound", "dnsmos"]
    told = {each.name: str(each) for each in missing}
    assert "jiwer is not installed; run: pip install" in told["transcript"]
    assert "webrtcvad is not installed" in told["voice"]
    assert "--no-deps resemblyzer==0.1.4" in told["voice"]
    assert "distillmos is not installed" in told["distillmos"]
    gone.remove("jiwer")
    _, missing = scorers.load_scorers(language="de")
    assert "hears English, not 'de'; give --asr" in next(
        str(each) for each in missing if each.name == "transcript"
    )


def test_missing_scorers_are_shown_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(scorers, "find_spec", lambda name: None)
    assert (
        run(
            "--generated",
            CORPUS / "wavs",
            "--dataset",
            dataset(tmp_path),
            "--output",
            tmp_path / "out",
        )
        == 0
    )
    told = capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for name in ("transcript", "voice", "dnsmos", "distillmos"):
        assert f"missing: {name}: package" in told
        assert "run: pip install" in summary["missing"][name]
        assert f"- missing: **{name}** (package" in report
    assert "| DistillMOS | higher | missing | missing |" in report
    assert summary["systems"]["generated"]["scores"]["wer"] is None


def test_models_of_transformers_by_folder(tmp_path: Path) -> None:
    """Real classes with random weights: what they hear is nonsense, but it is heard."""
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper_normalizer")
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        WavLMConfig,
        WavLMForXVector,
    )

    torch.manual_seed(0)
    small: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    }  # fmt: skip
    asr, voice = tmp_path / "asr", tmp_path / "voice"
    (tmp_path / "vocab.json").write_text(
        json.dumps({name: i for i, name in enumerate(["<pad>", "<unk>", "|", *"abc"])})
    )
    Wav2Vec2CTCTokenizer(
        str(tmp_path / "vocab.json"), pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(asr)
    Wav2Vec2ForCTC(Wav2Vec2Config(**small, vocab_size=6)).save_pretrained(asr)
    WavLMForXVector(WavLMConfig(**small, tdnn_dim=(8,) * 5, xvector_output_dim=8)).save_pretrained(
        voice
    )
    for folder in (asr, voice):
        Wav2Vec2FeatureExtractor().save_pretrained(folder)
    found, _ = scorers.load_scorers(asr=str(asr), speaker_model=str(voice), language="de")
    by_name = {each.name: each for each in found}
    for num_samples in (800, 32_000):
        samples = np.random.default_rng(0).normal(0, 0.1, num_samples).astype(np.float32)
        assert isinstance(by_name["transcript"].hear(samples), str)
        assert np.linalg.norm(by_name["voice"].hear(samples)) == pytest.approx(
            scorers.VOICE_UNIT, rel=1e-3
        )
    assert by_name["voice"].identity.startswith(f"voice {scorers.fingerprint(voice)}")
    with pytest.raises(UserError, match="asr: 'gone' is neither a folder nor a Hub id"):
        scorers.load_scorers(asr="gone")


def test_a_fingerprint_is_of_the_model_and_not_of_what_lies_beside_it(
    tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "other name"))
    before = scorers.fingerprint(tiny)
    for name in (
        "trainer_state.json",
        "optimizer.pt",
        "rng_state_0.pth",
        "summary.json",
        "README.md",
    ):
        (folder / name).write_text("{}")
    assert scorers.fingerprint(folder) == before
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert scorers.fingerprint(folder) != before


# --- speaking ---


def test_one_that_cannot_be_spoken_does_not_harm_the_others(tiny: Path) -> None:
    generator = HiggsAudioGenerator.from_pretrained(str(tiny))
    texts = ["Hello there.", "word " * 3000, "Good bye."]
    dialogues = [Dialogue((Turn("user", (text,)),)) for text in texts]
    samplings = [seeded(Sampling(), 0, text) for text in texts]
    assert len({each.seed for each in samplings}) == 3
    outcomes = speak_batch(generator, dialogues, samplings, 0.4)
    assert "leaves no room" in str(outcomes[1])
    assert stop_rate(outcomes) == 0
    (alone,) = speak_batch(generator, dialogues[2:], samplings[2:], 0.4)
    assert not isinstance(alone, UserError)
    assert torch.equal(alone.codes, outcomes[2].codes)  # type: ignore[union-attr]


# --- the command ---


@pytest.mark.usefixtures("only_sound")
def test_base_tuned_codec_and_truth_side_by_side(
    tiny: Path, lora: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    empty = {model_card.METRICS: model_card.NO_METRICS}
    (lora / "README.md").write_text(
        model_card.card("x", base=None, summary="", speak="", sections=empty)
    )
    assert run("--model", lora, "--dataset", dataset(tmp_path), "--output", out) == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["systems"]) == ["base", "tuned", "codec", "truth"]
    assert summary["items"] == 3
    for name, ratio in (("codec", 1.0), ("truth", 1.0)):
        assert summary["systems"][name]["scores"]["duration_ratio"]["mean"] == pytest.approx(ratio)
    assert summary["systems"]["tuned"]["scores"]["stopped"] == {
        "mean": 0.0,
        "low": 0.0,
        "high": 0.0,
        "items": 3,
    }
    assert summary["systems"]["truth"]["scores"]["stopped"] is None
    assert summary["differences"]["tuned - base"]["duration_ratio"]["items"] == 3
    rows = read(out / "items.jsonl")
    assert [row["id"] for row in rows] == ["DEMO-0001", "DEMO-0002", "DEMO-0003"]
    assert rows[1]["systems"]["tuned"]["file"] == "audio/tuned/DEMO-0002.wav"
    said = {
        name: (out / "audio" / name / "DEMO-0001.wav").read_bytes() for name in ("base", "tuned")
    }
    assert said["base"] != said["tuned"]
    report = (out / "report.md").read_text(encoding="utf-8")
    assert (
        "| stopped by itself | higher | 0.0 % [0.0, 0.0] | 0.0 % [0.0, 0.0] |  |  | +0.0 % [+0.0, +0.0] |"
        in report
    )
    assert report in capsys.readouterr().out
    completed = (lora / "README.md").read_text(encoding="utf-8")
    assert model_card.NO_METRICS not in completed
    assert (
        completed.split(f"<!-- higgs-audio {model_card.METRICS} -->\n")[1]
        .split("\n<!-- end")[0]
        .strip()
        in report
    )
    # Lists for other kits, read back by what reads theirs.
    again = read_items(str(out / "meta.lst"), SETTINGS)
    assert [each.text for each in again] == [row["text"] for row in rows]
    assert again[0].dialogue.references[0].text == "Some words."
    listed = formats.read_scp(out / "audio" / "tuned" / "wav.scp")
    assert listed["DEMO-0001"] == str(out / "audio" / "tuned" / "DEMO-0001.wav")

    # The generator that a user would call says the same.
    generator = HiggsAudioGenerator.from_pretrained(str(lora))
    items = read_items(str(tmp_path / "test.jsonl"), SETTINGS)
    samplings = [seeded(Sampling(), 0, each.id) for each in items]
    (tmp_path / "alone").mkdir()
    speak_batch(generator, [items[1].dialogue], samplings[1:2], 0.4)[0].save(tmp_path / "alone.wav")  # type: ignore[union-attr]
    assert (tmp_path / "alone.wav").read_bytes() == (
        out / "audio" / "tuned" / "DEMO-0002.wav"
    ).read_bytes()


def killed_at(put: int, *, torn: bool) -> Callable[..., None]:
    """`Journal.put` that kills the process at the given line, before it or in its middle."""
    original, count = Journal.put, [0]

    def put_or_die(self: Journal, key: str, value: Any) -> None:
        count[0] += 1
        if count[0] == put:
            if torn:
                self._file.write(json.dumps([key, value]).encode()[:-3])
                self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, key, value)

    return put_or_die


@pytest.mark.slow
@pytest.mark.usefixtures("only_sound")
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_bytes(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = dataset(tmp_path)
    arguments = ["--model", lora, "--dataset", rows, "--batch_size", 2, "--output"]
    assert run(*arguments, tmp_path / "whole") == 0
    broken = tmp_path / "broken"
    for put, torn in ((2, False), (2, True), (4, False)):
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "put", killed_at(put, torn=torn))
            assert in_child(lambda: run(*arguments, broken)) == -signal.SIGKILL
        assert not (broken / "summary.json").exists()
    assert run(*arguments, broken) == 0
    for name in ("summary.json", "report.md", "items.jsonl", "report.png"):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert (broken / "progress.jsonl").read_bytes() == (
        tmp_path / "whole" / "progress.jsonl"
    ).read_bytes()

    # The same command once more does nothing; a clip that was changed or lost is said again.
    before = contents(broken)
    with monkeypatch.context() as patch:
        patch.setattr(
            HiggsAudioGenerator, "speak", lambda *_, **__: pytest.fail("everything has been said")
        )
        assert run(*arguments, broken) == 0
    assert contents(broken) == before
    (broken / "audio" / "tuned" / "DEMO-0002.wav").unlink()
    sf.write(broken / "audio" / "base" / "DEMO-0003.wav", np.zeros(24_000), 24_000)
    assert run(*arguments, broken) == 0
    after = contents(broken)
    log = "broken/progress.jsonl"
    assert after.pop(log).startswith(before.pop(log))
    assert after == before


@pytest.mark.usefixtures("only_sound")
def test_two_models_are_never_mixed(tiny: Path, lora: Path, tmp_path: Path, capsys: Any) -> None:
    rows, out = dataset(tmp_path, 1), tmp_path / "out"
    assert run("--model", tiny, "--dataset", rows, "--output", out) == 0
    before = contents(out)
    capsys.readouterr()
    for change in (
        ["--model", lora],
        ["--model", tiny, "--seed", 1],
        ["--model", tiny, "--temperature", 0],
    ):
        assert run("--dataset", rows, "--output", out, *change) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "what the evaluation there was made with" in line
        assert "give another --output" in line
    assert contents(out) == before
    # More rows are no other evaluation.
    assert run("--model", tiny, "--dataset", dataset(tmp_path, 2), "--output", out) == 0
    assert json.loads((out / "summary.json").read_text())["items"] == 2


@pytest.mark.usefixtures("only_sound")
def test_a_fully_trained_model_against_its_base(tiny: Path, lora: Path, tmp_path: Path) -> None:
    from plugins.model import load as checkpoint

    merged = tmp_path / "merged"
    model = checkpoint.with_adapters(checkpoint.native_model(str(tiny)), {"default": str(lora)})
    model.merge_and_unload().save_pretrained(merged)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (merged / name).write_bytes((tiny / name).read_bytes())
    rows, codec = dataset(tmp_path, 2), tiny / "audio_tokenizer"
    arguments = ["--dataset", rows, "--codec", codec, "--temperature", 0]
    assert run("--model", merged, "--base", tiny, "--output", tmp_path / "full", *arguments) == 0
    assert run("--model", tiny, "--adapters", lora, "--output", tmp_path / "lora", *arguments) == 0
    for name in ("base", "tuned"):
        clips = [
            (tmp_path / kind / "audio" / name / "DEMO-0002.wav").read_bytes()
            for kind in ("full", "lora")
        ]
        assert clips[0] == clips[1], "merged weights say greedily what the adapter says"


@pytest.mark.usefixtures("only_sound")
@pytest.mark.parametrize("kind", ["folder", "scp", "jsonl"])
def test_recordings_that_exist_are_scored(tmp_path: Path, kind: str) -> None:
    rows = dataset(tmp_path)
    given = {f"DEMO-000{number}": CORPUS / "wavs" / f"DEMO-000{number}.flac" for number in (1, 2)}
    source = {
        "folder": CORPUS / "wavs",
        "scp": tmp_path / "wav.scp",
        "jsonl": tmp_path / "said.jsonl",
    }[kind]
    if kind == "scp":
        formats.write_kaldi(source, {id_: str(path) for id_, path in given.items()})
    elif kind == "jsonl":
        write_jsonl(source, [{"id": id_, "audio": str(path)} for id_, path in given.items()])
    assert run("--generated", source, "--dataset", rows, "--output", tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["systems"]) == ["generated", "truth"]
    assert summary["systems"]["generated"]["failed"] == (0 if kind == "folder" else 1)
    assert summary["systems"]["generated"]["scores"]["duration_ratio"]["mean"] == 1.0
    lost = read(tmp_path / "out" / "items.jsonl")[2]["systems"]["generated"]
    assert (lost["error"] is None) == (kind == "folder")


def test_bad_input_is_one_clear_line(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    rows = dataset(tmp_path, 1)
    bare = write_jsonl(
        tmp_path / "bare.jsonl", [{"messages": [{"role": "user", "content": "..."}]}]
    )
    empty = tmp_path / "empty.lst"
    empty.write_text("\n")
    wide = tmp_path / "wide.lst"
    wide.write_text("a|b|c|d|e|f\n")
    (tmp_path / "nothing").mkdir()
    for arguments, told in (
        (["--dataset", rows], "model is missing; give --model, or --generated"),
        (
            ["--dataset", rows, "--generated", CORPUS, "--base", tiny],
            "base: .* has no --model to belong to",
        ),
        (["--dataset", "gone.jsonl", "--model", tiny], "gone.jsonl: file: .* cannot be read"),
        (
            ["--dataset", bare, "--model", tiny],
            "bare.jsonl:1: messages: '...' leaves nothing to say",
        ),
        (["--dataset", empty, "--model", tiny], "rows: 0 there is no row"),
        (["--dataset", wide, "--model", tiny], "wide.lst:1: line: .* has 6 fields; write ID"),
        (
            ["--dataset", rows, "--model", tmp_path / "gone"],
            "model: .*gone' is neither a folder nor a Hub id",
        ),
        (
            ["--dataset", rows, "--model", tiny, "--adapters", tmp_path / "nothing"],
            "adapter_config.json' not found",
        ),
        (
            ["--dataset", rows, "--generated", tmp_path / "nothing"],
            "holds none of the dataset's ids .DEMO-0001.",
        ),
        (["--dataset", rows, "--generated", tmp_path / "gone"], "cannot be read"),
        (
            ["--dataset", rows, "--model", tiny, "--codec", tmp_path / "nothing"],
            "codec: .*nothing' ",
        ),
        (
            ["--dataset", rows, "--model", tiny, "--max_audio_s", "-1"],
            "max_audio_s: -1.0 is not positive",
        ),
        (
            ["--dataset", rows, "--model", tiny, "--temperature", "-1"],
            "temperature: -1.0 is negative",
        ),
    ):
        assert run("--output", tmp_path / "out", *arguments) == 1, arguments
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, lines
        assert re.search(told, lines[0]), lines[0]
    assert not list((tmp_path / "out").glob("*.json")), "nothing was begun"


@pytest.mark.usefixtures("only_sound")
def test_a_folder_of_others_is_written_to_only_if_that_is_said(tmp_path: Path, capsys: Any) -> None:
    """Its `text` and `report.md` were overwritten. With --overwrite they are; the rest of it stays
    in any case."""
    out, rows = tmp_path / "out", dataset(tmp_path, 1)
    arguments = ["--generated", CORPUS / "wavs", "--dataset", rows, "--output", out]
    mine = {
        "report.md": "my report",
        "text": "my text",
        "notes/a.wav": "my clip",
        "audio/x.wav": "my other clip",
    }
    for name, content in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(content)
    before = contents(out)
    assert run(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: options: output: '{out}' holds files, but no evaluation (audio, notes, report.md ...); name a new"
        " folder, or write beside these files and over those of the same names with --overwrite"
    )
    assert contents(out) == before
    assert run(*arguments, "--overwrite") == 0
    assert (out / "report.md").read_text().startswith("# Evaluation")
    assert {name: (out / name).read_text() for name in ("notes/a.wav", "audio/x.wav")} == {
        name: mine[name] for name in ("notes/a.wav", "audio/x.wav")
    }
    assert run(*arguments) == 0, "it is an evaluation's folder now"


@pytest.mark.usefixtures("only_sound")
def test_what_is_read_is_not_written_over(tmp_path: Path, capsys: Any) -> None:
    """A folder in Kaldi's form: of its sentences only the first few would be left in `text`."""
    clips = {id_: CORPUS / "wavs" / f"{id_}.flac" for id_ in ("DEMO-0001", "DEMO-0002")}
    formats.write_kaldi(tmp_path / formats.SCP, {id_: str(path) for id_, path in clips.items()})
    formats.write_kaldi(tmp_path / formats.TEXT, dict.fromkeys(clips, "Some words."))
    before = contents(tmp_path)
    arguments = [
        "--dataset",
        tmp_path,
        "--limit",
        1,
        "--generated",
        CORPUS / "wavs",
        "--output",
        tmp_path,
    ]
    assert run(*arguments, "--overwrite") == 1
    assert f"would be written over {tmp_path / 'text'}, which is read" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "content",
    ["half a line", '{"id": "a"}\n', '["a", 1]\n', '["settings", 1]\n', "[" * 50_000 + "\n"],
)
def test_a_journal_of_another_program_is_not_written_to(content: str, tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text(content)
    with pytest.raises(
        UserError, match=r"is damaged|does not begin with the settings of an evaluation"
    ):
        Journal(path, {})
    assert path.read_text() == content


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    (tmp_path / "progress.jsonl").write_text('["a", 1]\nnonsense\n["b", 2]\n')
    with pytest.raises(
        UserError, match=r"progress\.jsonl:2: line: 'nonsense' is damaged; delete the line"
    ):
        Journal(tmp_path / "progress.jsonl", {})
