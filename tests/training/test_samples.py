"""What is spoken and drawn while a model trains, read with TensorBoard's own reader; and that it
changes nothing."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import corpus_rows, write_jsonl
from faults.runs import timeless
from helpers.sampled import MAX_AUDIO_S, SampledRun, train
from helpers.sft import flags, log_of, swift

from plugins.audio.codec import Codec
from plugins.audio.marks import mark_in
from plugins.errors import UserError
from plugins.settings import HiggsAudioSettings
from plugins.training import samples

STEPS = [0, 2, 4]
TRAIN_CURVES = {
    "loss", "loss_text", "loss_audio", "loss_aux", "acc_text", "learning_rate",
    "audio_learning_rate", "grad_norm", "padding_share", "audio_seconds_per_second", "memory_gib",
    "skipped_steps", "skipped_rows", "sample_stop_rate", "sample_seconds",
    "loss_audio_cb0", "loss_audio_cb7", "acc_audio_cb0", "acc_audio_cb7",
}  # fmt: skip
EVAL_CURVES = {
    "loss", "loss_text", "loss_audio", "loss_aux", "acc_text", "loss_audio_cb0", "acc_audio_cb7",
}  # fmt: skip
CURVES = {f"train/{name}" for name in TRAIN_CURVES} | {f"eval/{name}" for name in EVAL_CURVES}


def without_samples(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if "sample_seconds" not in record]


def with_samples(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if "sample_seconds" in record]


@pytest.fixture(scope="module")
def events(sampled: SampledRun) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(
        str(sampled.folder / "runs"), size_guidance={"audio": 0, "scalars": 0}
    )
    return accumulator.Reload()


# --- what is there ---


def test_tensorboard_has_audio_before_the_first_step_at_each_evaluation_and_at_the_end(
    events: Any,
) -> None:
    assert set(events.Tags()["audio"]) == {"samples/0", "samples/1"}
    for tag in ("samples/0", "samples/1"):
        clips = events.Audio(tag)
        assert [clip.step for clip in clips] == STEPS
        for clip in clips:
            waveform, rate = soundfile.read(io.BytesIO(clip.encoded_audio_string))
            assert rate == clip.sample_rate == 24_000
            assert 0 < len(waveform) <= MAX_AUDIO_S * rate
            assert np.abs(waveform).max() > 0


def test_tensorboard_has_all_curves_at_every_step(events: Any) -> None:
    assert set(events.Tags()["scalars"]) >= CURVES
    assert [event.step for event in events.Scalars("train/padding_share")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("train/sample_stop_rate")] == STEPS


def test_ms_swift_draws_them(sampled: SampledRun) -> None:
    drawn = {path.stem.replace("_", "/", 1) for path in (sampled.folder / "images").glob("*.png")}
    assert drawn >= CURVES


def test_files_lines_and_metrics_agree(sampled: SampledRun) -> None:
    rows = corpus_rows(12)
    first, second = text_of(rows[8]), text_of(rows[10])
    folders = sorted((sampled.folder / "samples").iterdir())
    assert [folder.name for folder in folders] == ["step-0", "step-2", "step-4"]
    for folder, record in zip(folders, with_samples(sampled.records), strict=True):
        lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        spoken = list(map(json.loads, lines))
        assert [sample["text"] for sample in spoken] == [first, second]
        for sample in spoken:
            duration_s = soundfile.info(folder / sample["file"]).duration
            assert duration_s == pytest.approx(sample["seconds"])
            mark = mark_in(folder / sample["file"])
            assert mark is not None
            step = folder.name.removeprefix("step-")
            assert (mark.model, mark.adapter) == ("model", f"{sampled.folder.name}, step {step}")
        mean_s = np.mean([sample["seconds"] for sample in spoken])
        stop_rate = np.mean([sample["stopped"] for sample in spoken])
        assert record["sample_seconds"] == pytest.approx(mean_s)
        assert record["sample_stop_rate"] == pytest.approx(stop_rate)


def text_of(row: dict[str, Any]) -> str:
    return row["messages"][1]["content"].removeprefix("Please speak: ")


def test_padding_and_speed_are_those_of_the_batches() -> None:
    from plugins.training.meters import BatchMeter

    meter = BatchMeter()
    meter.start()
    labels = torch.full((2, 6, 8), -100)
    labels[0, 1:4, 0], labels[0, 4, 0] = 7, 1025  # three frames and their end
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    meter.add({"attention_mask": mask, "audio_labels": labels})
    assert meter.values() == [5, 8, 3]
    meter._since_s = (meter._since_s or 0) - 60
    drained = meter.drain()
    assert drained["padding_share"] == 3 / 8
    assert drained["audio_seconds_per_second"] == pytest.approx(3 / 25 / 60, rel=1e-2)
    assert drained["memory_gib"] > 0.05
    assert meter.drain() == {}
    meter.add({"input_ids": torch.zeros(1, 7), "audio_labels": labels})  # a pack
    assert meter.values() == [7, 7, 3]


# --- that nothing changes ---


def test_weights_generators_and_log_are_those_of_a_training_without_samples(
    sampled: SampledRun, tmp_path: Path
) -> None:
    """Dropout and shuffling are on, and each sample draws from all three generators
    (`sampled.train`)."""
    quiet = train(
        sampled.model, sampled.train, sampled.validation, tmp_path / "out", report_to="none"
    )
    assert not (quiet.folder / "samples").exists()
    check_equal(sampled, quiet)


def check_equal(one: SampledRun, other: SampledRun, steps: tuple[int, ...] = (2, 4)) -> None:
    for step in steps:
        first, second = (run.folder / f"checkpoint-{step}" for run in (one, other))
        (weights,) = first.glob("*model.safetensors")
        assert weights.read_bytes() == (second / weights.name).read_bytes()
        state = torch.load(first / "rng_state.pth", weights_only=False)
        other_state = torch.load(second / "rng_state.pth", weights_only=False)
        assert state["python"] == other_state["python"]
        for part, other_part in zip(state["numpy"], other_state["numpy"], strict=True):
            assert np.array_equal(part, other_part)
        assert torch.equal(state["cpu"], other_state["cpu"])
    log = without_samples(timeless(one.folder / "logging.jsonl"))
    other_log = without_samples(timeless(other.folder / "logging.jsonl"))
    assert log[-len(other_log) :] == other_log


def test_a_resumed_training_goes_on_with_its_samples_and_does_not_speak_for_the_base_again(
    sampled: SampledRun, tmp_path: Path
) -> None:
    options = {"resume_from_checkpoint": sampled.folder / "checkpoint-2", "report_to": "none"}
    options["model_kwargs"] = (
        '{"samples": true}'  # drawing the curves again takes longer than the training
    )
    resumed = train(sampled.model, sampled.train, sampled.validation, tmp_path / "out", **options)
    assert [path.name for path in (resumed.folder / "samples").iterdir()] == ["step-4"]
    check_equal(sampled, resumed, steps=(4,))
    for name in ("0.wav", "1.wav"):
        before, after = (run.folder / "samples" / "step-4" / name for run in (sampled, resumed))
        assert before.read_bytes() == after.read_bytes()


def test_modes_and_generators_are_put_back() -> None:
    import random

    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(1, 1)).train()
    model[1].eval()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()

    def fail() -> None:
        with samples.unnoticed(model):
            model.eval()
            assert random.random() + np.random.rand() + torch.rand(1) >= 0
            raise RuntimeError("cannot speak")

    with pytest.raises(RuntimeError, match="cannot speak"):
        fail()
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


# --- what goes wrong ---


def stub(folder: Path, **changed: Any) -> Any:
    """A trainer as far as samples know one."""
    return SimpleNamespace(
        args=SimpleNamespace(output_dir=str(folder), report_to=["tensorboard"]),
        model=torch.nn.Linear(1, 1),
        template=SimpleNamespace(
            tokenizer=None, codec=Codec("unused"), settings=HiggsAudioSettings()
        ),
        is_world_process_zero=lambda: True,
        callback_handler=SimpleNamespace(callbacks=[]),
        remove_callback=lambda kind: None,
        eval_dataset=None,
        is_fsdp_enabled=False,
        stopping=SimpleNamespace(ends_early=False),
        logged=[],
        state=SimpleNamespace(log_history=[]),
        **changed,
    )


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    """MS-SWIFT's logger does not propagate to the root, where pytest listens."""
    logger = logging.getLogger("swift")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


class Speaker:
    """In the place of the generator: one prompt raises, the others are spoken."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def speak(self, prompts: list[Any], **kwargs: Any) -> list[Any]:
        from plugins.speaking.speech import Speech

        if "broken" in prompts:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, 24_000).astype("float32")
        return [Speech(noise, 24_000, torch.zeros(8, 25), True, "Hello.", 0.1)] * len(prompts)


def evaluate(trainer: Any, *prompts: Any) -> samples.Samples:
    """At step 7."""
    callback = samples.Samples(trainer, list(prompts))
    callback.on_evaluate(None, SimpleNamespace(global_step=7), None)
    return callback


def test_a_sample_that_fails_is_told_and_the_others_are_spoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(samples, "HiggsAudioGenerator", Speaker)
    trainer = stub(tmp_path)
    trainer.log = trainer.logged.append
    callback = evaluate(trainer, "broken", "fine")
    # Of the same step: once is enough.
    callback.on_train_end(None, SimpleNamespace(global_step=7), None)
    assert trainer.logged == [{"sample_stop_rate": 1.0, "sample_seconds": 1.0}]
    assert "sample 0 at step 7 left out: OutOfMemoryError: CUDA out of memory." in said.text
    assert "sample batch at step 7 left out: OutOfMemoryError" in said.text
    assert sorted(path.name for path in (tmp_path / "samples" / "step-7").iterdir()) == [
        "1.wav",
        "samples.jsonl",
    ]


def test_all_prompts_are_one_batch_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codec of the template encodes for the data loader, on the CPU, before and after."""
    calls: list[tuple[list[Any], str]] = []

    class Watched(Speaker):
        def __init__(self, *args: Any, codec: Codec, **kwargs: Any) -> None:
            self._codec = codec

        def speak(self, prompts: list[Any], **kwargs: Any) -> list[Any]:
            calls.append((prompts, self._codec.device))
            return super().speak(prompts, **kwargs)

    monkeypatch.setattr(samples, "HiggsAudioGenerator", Watched)
    trainer = stub(tmp_path)
    trainer.model, trainer.log = torch.nn.Linear(1, 1, device="meta"), trainer.logged.append
    evaluate(trainer, "one", "two", "three")
    assert calls == [(["one", "two", "three"], "meta")]
    assert trainer.template.codec.device == "cpu"


def test_a_folder_that_cannot_be_written_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(samples, "HiggsAudioGenerator", Speaker)
    (tmp_path / "samples").write_text("a file in the way", encoding="utf-8")
    trainer = stub(tmp_path)
    trainer.log = trainer.logged.append
    evaluate(trainer, "fine")
    assert trainer.logged == []
    assert "sample all at step 7 left out: " in said.text


def test_a_stopped_run_does_not_speak_before_it_ends(tmp_path: Path) -> None:
    trainer = stub(tmp_path)
    trainer.stopping.ends_early = True
    samples.Samples(trainer, []).on_train_end(None, SimpleNamespace(global_step=7), None)
    assert not list(tmp_path.iterdir())


def test_divided_weights_are_left_out_in_one_line(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    trainer = stub(tmp_path)
    trainer.is_fsdp_enabled = True
    said.set_level("INFO")
    samples.attach(trainer)
    assert not trainer.callback_handler.callbacks
    assert (
        said.text.count("samples: left out, the model's weights are divided among the ranks") == 1
    )


@pytest.mark.parametrize(
    ("report_to", "setting", "speaks"),
    [
        ("tensorboard", None, True),
        ("wandb", None, False),
        ("wandb", True, True),
        ("tensorboard", False, False),
    ],
)
def test_on_by_default_where_tensorboard_is(
    report_to: str, setting: bool | None, speaks: bool, tmp_path: Path
) -> None:
    trainer = stub(tmp_path)
    trainer.args.report_to = [report_to]
    trainer.template.settings = HiggsAudioSettings(samples=setting)
    samples.attach(trainer)
    assert bool(trainer.callback_handler.callbacks) is speaks


def test_wandb_and_swanlab_get_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are mocks, as neither is installed here. wandb 0.31 took these calls once, offline; of
    SwanLab 0.10 only the source was read."""
    calls: list[Any] = []

    def audio(path: str, *, caption: str) -> tuple[str, str]:
        return Path(path).name, caption

    for name in ("wandb", "swanlab"):

        def log(data: Any, name: str = name, **options: Any) -> None:
            calls.append((name, data, options))

        module: Any = SimpleNamespace(Audio=audio, log=log)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(samples, "HiggsAudioGenerator", Speaker)
    trainer = stub(tmp_path)
    trainer.args.report_to = ["wandb", "swanlab"]
    trainer.log = trainer.logged.append
    evaluate(trainer, "fine")
    assert calls == [
        ("wandb", {"samples/0": ("0.wav", "Hello."), "train/global_step": 7}, {}),
        ("swanlab", {"samples/0": ("0.wav", "Hello.")}, {"step": 7}),
    ]


# --- what is spoken ---


def texts(prompts: list[Any]) -> list[Any]:
    return [prompt.turns[-1].parts[0] for prompt in prompts]


def test_own_texts_are_spoken_as_the_model_knows_texts_the_first_four_of_them() -> None:
    settings = HiggsAudioSettings.from_env({"SAMPLE_TEXTS": "One, two | Three! | four|five|six"})
    assert texts(samples.prompts(settings, None)) == ["One, two.", "Three!", "four.", "five."]
    raw = HiggsAudioSettings.from_env({"SAMPLE_TEXTS": "One, two", "RAW_PROMPT": "true"})
    assert texts(samples.prompts(raw, None)) == ["One, two"]


def test_texts_come_as_flags_as_yaml_and_as_model_kwargs(monkeypatch: pytest.MonkeyPatch) -> None:
    """MS-SWIFT hands the values of `--model_kwargs` over as Python writes them."""
    import os

    from plugins.training.arguments import take_settings

    take_settings(["--sample_texts", "Well, hello.", "[SPEAKER0] Hi."])
    wanted = ("Well, hello.", "[SPEAKER0] Hi.")
    assert HiggsAudioSettings.from_env().sample_texts == wanted
    os.environ["SAMPLE_TEXTS"] = str(list(wanted))
    assert HiggsAudioSettings.from_env().sample_texts == wanted
    os.environ["SAMPLE_TEXTS"] = "[SPEAKER0] Hi."
    assert HiggsAudioSettings.from_env().sample_texts == ("[SPEAKER0] Hi.",)


def test_a_file_of_rows_brings_its_references(tmp_path: Path) -> None:
    rows = corpus_rows(6)
    rows[0] |= {"reference_audio": rows[1]["audios"][0], "reference_text": "What it says."}
    file = write_jsonl(tmp_path / "prompts.jsonl", rows)
    found = samples.prompts(HiggsAudioSettings(sample_texts=(str(file),)), None)
    assert len(found) == samples.MOST
    assert found[0].references[0].text == "What it says."
    assert texts(found)[0] == text_of(rows[0])


def test_without_rows_or_texts_two_sentences_are_spoken() -> None:
    assert len(samples.prompts(HiggsAudioSettings(), None)) == 2


def test_texts_that_cannot_be_spoken_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl.*cannot be read"):
        samples.prompts(HiggsAudioSettings(sample_texts=(str(tmp_path / "none.jsonl"),)), None)


# --- full fine-tuning, several ranks ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"tuner_type": "full"}, {"torch_dtype": "bfloat16", "bf16": "true"}],
    ids=["full", "bf16"],
)
def test_equal_weights_too(options: dict[str, Any], sampled: SampledRun, tmp_path: Path) -> None:
    files = sampled.model, sampled.train, sampled.validation
    options = {**options, "report_to": "none"}
    speaking = train(*files, tmp_path / "speaking", **options, model_kwargs='{"samples": true}')
    assert with_samples(speaking.records)
    check_equal(speaking, train(*files, tmp_path / "quiet", **options))


@pytest.mark.slow
def test_rank_0_speaks_while_the_others_wait(sampled: SampledRun, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 2, "eval_steps": 1, "val_dataset": sampled.validation}
    options |= {"tuner_type": "lora", "lora_dropout": 0.1, "per_device_train_batch_size": 2}
    options |= {"report_to": "tensorboard", "ddp_backend": "gloo"}
    adapters = []
    for name, speaks in (("speaking", "true"), ("quiet", "false")):
        command = flags(sampled.model, sampled.train, tmp_path / name, **options)
        done = swift("sft", *command, NPROC_PER_NODE="2", SAMPLES=speaks)
        assert done.returncode == 0, done.stderr[-3000:]
        adapter = tmp_path / name / "checkpoint-2" / "adapter_model.safetensors"
        adapters.append(adapter.read_bytes())
    assert adapters[0] == adapters[1]
    assert len(with_samples(log_of(tmp_path / "speaking"))) == 3
