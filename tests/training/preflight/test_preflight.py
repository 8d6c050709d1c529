"""The doctor and the checks before training: a healthy set-up passes, each of ten sabotaged ones is
named."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CORPUS, corpus_rows, write_jsonl
from helpers.sft import sft
from safetensors.torch import load_file, save_file
from torch import Tensor

import plugins.collator
from plugins.audio import waveforms as audio
from plugins.audio.codec import CODEC_FOLDER, Codec
from plugins.cli import main
from plugins.collator import collate
from plugins.corpora.canonical import canonical_row
from plugins.data.clips import with_clips
from plugins.data.dialogue import EncodedSample
from plugins.data.prompt import encode
from plugins.data.rows import dialogue_from_row
from plugins.data.tokens import SpecialTokens
from plugins.delay_pattern import delay_labels
from plugins.errors import UserError
from plugins.model.load import load_config, native_model
from plugins.model.loss import LossWeights, combine
from plugins.settings import HiggsAudioSettings
from plugins.training.preflight.labels import audit
from plugins.training.preflight.leaks import memorised_codebooks, shared_audio
from plugins.training.preflight.probe import OffsetProbe, offset_probe

NUM_ROWS = 3


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("rows") / "train.jsonl", corpus_rows(NUM_ROWS))


@pytest.fixture(scope="module")
def samples(tiny: Path) -> list[EncodedSample]:
    from transformers import AutoTokenizer

    tokenizer, codec, settings = (
        AutoTokenizer.from_pretrained(tiny),
        Codec(str(tiny / CODEC_FOLDER)),
        HiggsAudioSettings(),
    )
    tokens = SpecialTokens.from_config(load_config(tiny), tokenizer)
    encoded = []
    for row in corpus_rows(NUM_ROWS):
        dialogue = dialogue_from_row(canonical_row(row, "row", settings), settings)
        encoded.append(encode(with_clips(dialogue, codec, tokens), tokenizer, tokens))
    return encoded


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture(scope="module")
def tokens(tiny: Path, tokenizer: Any) -> SpecialTokens:
    return SpecialTokens.from_config(load_config(tiny), tokenizer)


@pytest.fixture(scope="module")
def trained(
    tiny: Path,
    samples: list[EncodedSample],
    tokens: SpecialTokens,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny model after 100 steps on three clips: as a published model is, far better than
    chance on these rows."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    shutil.copytree(tiny, folder)
    torch.manual_seed(0)
    model = native_model(str(tiny)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch, weights = collate(samples, tokens, training=True), LossWeights(1.0, 1.0, 0.0, (1.0,) * 8)
    for _ in range(100):
        outputs = model(**batch)
        counts = {"num_text": outputs.text_count, "num_frames": outputs.audio_count[0]}
        combine(outputs.text, outputs.audio, weights=weights, **counts).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def batches(
    samples: list[EncodedSample], tokens: SpecialTokens
) -> list[tuple[EncodedSample, dict[str, Tensor]]]:
    return [
        (sample, plugins.collator.collate([sample], tokens, training=True)) for sample in samples
    ]


def doctor(
    capsys: pytest.CaptureFixture[str], model: Path, rows: Path, *more: str
) -> tuple[int, str]:
    code = main(["doctor", "--model", str(model), "--dataset", str(rows), *more])
    return code, capsys.readouterr().out


def test_a_healthy_set_up_passes(
    trained: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validation = write_jsonl(tmp_path / "val.jsonl", corpus_rows(5)[NUM_ROWS:])
    code, out = doctor(capsys, trained, rows, "--val_dataset", str(validation), "--dry_run")
    assert code == 0, out
    passed = [
        "environment",
        "checkpoint",
        "dataset",
        "validation",
        "codec",
        "prompts",
        "labels",
        "offset probe",
        "texts",
    ]
    for check in passed:
        assert f"ok      {check}: " in out, out
    # These rows are what it was trained on.
    assert [line for line in out.splitlines() if line.startswith("warning")] == [
        line for line in out.splitlines() if "known by heart" in line
    ]
    assert "trained weights" in out
    assert ">><|audio_out_bos|><<[clip 1: " in out, "the dry run marks what is trained"


def test_random_weights_are_recognised_and_only_reported(
    tiny: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = doctor(capsys, tiny, rows)
    assert code == 0, out
    assert "info    offset probe: random weights (every norm is 1): nothing can be told" in out


# Each sabotage takes (trained, tmp_path, monkeypatch) and returns (model folder, rows, further
# flags).
ToFrames = Callable[..., Tensor]  # codes (K, F) of one clip -> (F + K + 1, K)
Sabotage = Callable[[Path, Path, pytest.MonkeyPatch], tuple[Path, list[dict[str, Any]], list[str]]]


def edited_config(**changes: Any) -> Sabotage:
    def sabotage(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        folder = tmp_path / "model"
        shutil.copytree(trained, folder)
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        values |= {name: change(values[name]) for name, change in changes.items()}
        (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
        return folder, corpus_rows(NUM_ROWS), []

    return sabotage


def missing_text_head(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["text_lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, corpus_rows(NUM_ROWS), []


def with_given_codes(change: Callable[[Codec, str], Tensor]) -> Sabotage:
    """Rows that bring codes beside their clips."""

    def sabotage(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        codec = Codec(str(trained / CODEC_FOLDER))
        rows = corpus_rows(NUM_ROWS)
        for row in rows:
            row["audio_codes"] = [change(codec, row["audios"][0]).T.tolist()]
        return trained, rows, []

    return sabotage


def at_16_khz(codec: Codec, path: str) -> Tensor:
    return codec.encode(audio.load(path, sample_rate_hz=16_000))


def wrong_codec(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from demo.tiny import build_codec

    torch.manual_seed(7)
    waveforms = [
        audio.load(path, sample_rate_hz=24_000) for path in sorted(CORPUS.glob("wavs/*.flac"))[:4]
    ]
    build_codec(waveforms).save_pretrained(tmp_path / "codec")
    return trained, corpus_rows(NUM_ROWS), ["--codec", str(tmp_path / "codec")]


def prompt_drift(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return trained, corpus_rows(NUM_ROWS, raw_prompt=True), []


def reference_is_target(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    rows = corpus_rows(NUM_ROWS)
    for i, row in enumerate(rows):
        copy = tmp_path / f"voice{i}.flac"
        shutil.copy(row["audios"][0], copy)
        row["reference_audio"] = str(copy)
    return trained, rows, []


def plant(
    monkeypatch: pytest.MonkeyPatch, *, labels: ToFrames, frames: ToFrames | None = None
) -> None:
    """Defects of one clip's frames or labels, in the collator of all of them."""

    def defective_labels(clips: Sequence[Tensor], trained: Sequence[bool], **ids: int) -> Tensor:
        assert all(trained)
        return torch.cat([labels(codes, **ids) for codes in clips])

    monkeypatch.setattr(plugins.collator, "delay_labels_of", defective_labels)
    if frames is not None:
        monkeypatch.setattr(
            plugins.collator,
            "apply_delays",
            lambda clips, **ids: torch.cat([frames(codes, **ids) for codes in clips]),
        )


def planted(**functions: ToFrames) -> Sabotage:
    def sabotage(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        plant(monkeypatch, **functions)
        return trained, corpus_rows(NUM_ROWS), []

    return sabotage


def no_eos(codes: Tensor, *, eos_id: int) -> Tensor:
    labels = delay_labels(codes, eos_id=eos_id)
    return labels.masked_fill(labels == eos_id, -100)


def undelayed_frames(codes: Tensor, *, bos_id: int, eos_id: int) -> Tensor:
    frames = torch.full((codes.shape[1] + 9, 8), eos_id)
    frames[0], frames[1 : codes.shape[1] + 1] = bos_id, codes.T
    return frames


def undelayed_labels(codes: Tensor, *, eos_id: int) -> Tensor:
    labels = torch.full((codes.shape[1] + 9, 8), -100)
    labels[1 : codes.shape[1] + 1], labels[codes.shape[1] + 1] = codes.T, eos_id
    return labels


def one_step_early(codes: Tensor, *, eos_id: int) -> Tensor:
    return torch.roll(delay_labels(codes, eos_id=eos_id), -1, dims=0)


SABOTAGES: dict[str, tuple[Sabotage, str]] = {
    "codebook_size": (
        edited_config(codebook_size=lambda size: 1024),
        "codebook_size: 1024 leaves no room for stream",
    ),
    "shifted_ids": (
        edited_config(audio_token_id=lambda token: token + 1),
        "'<|AUDIO_OUT|>' has id",
    ),
    "shuffled_codes": (
        with_given_codes(lambda codec, path: codec.encode_file(path).flip(0)),
        "audio_codes: 'codes of ",
    ),
    "no_text_head": (missing_text_head, "'text_lm_head.weight' is missing"),
    "wrong_codec": (
        wrong_codec,
        "no better than chance (6.93): these codes are not those that the model was trained",
    ),
    "codes_of_16_khz": (with_given_codes(at_16_khz), "frames for a clip of"),
    "prompt_drift": (
        prompt_drift,
        "3 of 3 rows are trained with a prompt that `generate` will not use",
    ),
    "reference_is_target": (reference_is_target, "voice0.flac' has the same content as the target"),
    "no_eos": (
        planted(labels=no_eos),
        "[0, 0, 0, 0, 0, 0, 0, 0] stream-EOS labels per codebook instead of one",
    ),
    "undelayed": (
        planted(labels=undelayed_labels, frames=undelayed_frames),
        "its frames are not delayed",
    ),
    "off_by_one": (planted(labels=one_step_early), "its labels are shifted by -1"),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_sabotage_is_named(
    name: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sabotage, cause = SABOTAGES[name]
    model, rows, more = sabotage(trained, tmp_path, monkeypatch)
    code, out = doctor(capsys, model, write_jsonl(tmp_path / "rows.jsonl", rows), *more)
    failed = [line for line in out.splitlines() if line.startswith("failed")]
    assert code == 1
    assert any(cause in line for line in failed), out


def test_the_probe_picks_the_next_step_with_delay(
    trained: Path, samples: list[EncodedSample], tokens: SpecialTokens
) -> None:
    probe = offset_probe(native_model(str(trained)), batches(samples, tokens), tokens)
    assert probe.complaint is None
    assert not probe.random_init
    right = probe.losses.pop(("as trained", 1))
    assert right < 1 < min(probe.losses.values())


@pytest.mark.parametrize(
    ("functions", "cause"),
    [
        (
            {"labels": one_step_early},
            r"labels at \+0, as trained, fit better .*: the labels are shifted by -1",
        ),
        (
            {"labels": undelayed_labels, "frames": undelayed_frames},
            r"labels at \+1, by definition, fit better .*: frames and labels are not delayed",
        ),
    ],
)
def test_the_probe_alone_catches_planted_defects(
    functions: dict[str, Any],
    cause: str,
    trained: Path,
    samples: list[EncodedSample],
    tokens: SpecialTokens,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without knowing the definition: the trained weights themselves tell."""
    plant(monkeypatch, **functions)
    complaint = offset_probe(native_model(str(trained)), batches(samples, tokens), tokens).complaint
    assert complaint is not None
    assert re.match(cause, complaint)


def test_clips_with_other_texts_are_noticed(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A metadata table that slipped by one row."""
    rows = corpus_rows(NUM_ROWS)
    texts = [row["messages"][1]["content"] for row in rows]
    for row, text in zip(rows, [*texts[1:], texts[0]], strict=True):
        row["messages"][1]["content"] = text
    _, out = doctor(capsys, trained, write_jsonl(tmp_path / "rows.jsonl", rows))
    assert "warning texts: " in out
    assert "are texts and clips paired as they should be?" in out


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda batch, tokens: batch["labels"].fill_(-100),
            "is trained in its text or in its audio only",
        ),
        (
            lambda batch, tokens: batch.update(labels=batch["input_ids"].clone()),
            "position 0, '<|begin_of_text|>', is trained",
        ),
        (
            lambda batch, tokens: batch["labels"].masked_fill_(
                batch["labels"] == tokens.end_of_turn, -100
            ),
            "'<|eot_id|>' of a trained turn has no label",
        ),
        (
            lambda batch, tokens: batch["attention_mask"][0, :3].fill_(0),
            "a mask hides part of the row",
        ),
        (
            lambda batch, tokens: batch["audio_labels"][0, 20].fill_(5),
            "label 5 at frame 20, codebook 0 instead of",
        ),
        (
            lambda batch, tokens: batch["audio_input_ids"][0, 20].fill_(5),
            "frame 20 holds 5 in codebook 0 instead of",
        ),
    ],
)
def test_the_audit_names_each_deviation(
    change: Callable[..., Any],
    complaint: str,
    samples: list[EncodedSample],
    tokens: SpecialTokens,
    tokenizer: Any,
) -> None:
    batch = collate(samples[:1], tokens, training=True)
    assert audit(samples[0], batch, tokens, tokenizer) == []
    change(batch, tokens)
    assert complaint in audit(samples[0], batch, tokens, tokenizer)[0]


def test_the_same_audio_in_files_of_other_names_is_found(tmp_path: Path) -> None:
    clips = [row["audios"][0] for row in corpus_rows(3)]
    copy = shutil.copy(clips[0], tmp_path / "other_name.flac")
    assert shared_audio(clips[:2], [clips[2], str(copy)]) == [(clips[0], str(copy))]


@pytest.mark.parametrize(
    ("logs", "mode", "epoch", "expected"),
    [
        ({"loss_audio_cb0": 3.0, "loss_audio_cb1": 0.4}, "train", 0.5, ["loss_audio_cb1"]),
        ({"loss_audio_cb0": 0.4}, "train", 2.0, []),  # learnt by heart, not leaked
        ({"eval_loss_audio_cb0": 0.4}, "eval", 2.0, ["eval_loss_audio_cb0"]),
        ({"loss_text": 0.1}, "train", 0.5, []),
    ],
)
def test_losses_that_no_unseen_speech_has(
    logs: dict[str, float], mode: str, epoch: float, expected: list[str]
) -> None:
    assert list(memorised_codebooks(logs, mode, epoch)) == expected


@pytest.fixture
def swift_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """MS-SWIFT's logger does not propagate."""
    logger = logging.getLogger("swift")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        yield caplog
    logger.removeHandler(caplog.handler)


def test_training_starts_with_the_preflight(
    trained: Path, rows: Path, tmp_path: Path, swift_log: pytest.LogCaptureFixture
) -> None:
    sft(trained, rows, tmp_path / "run", max_steps=1)
    assert "labels: 3 rows are as by definition" in swift_log.text
    assert "offset probe: what is trained fits best, on 3 rows" in swift_log.text


def test_training_refuses_planted_defects(
    trained: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, labels=no_eos)
    with pytest.raises(
        UserError, match=r"preflight: .* labels: .*stream-EOS labels .* set preflight: false"
    ):
        sft(trained, rows, tmp_path / "run", max_steps=1)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    monkeypatch.setenv("PREFLIGHT", "false")
    sft(trained, rows, tmp_path / "other", max_steps=1)
    assert list((tmp_path / "other").glob("checkpoint-*"))


@pytest.mark.parametrize("lazy", ["true", "false"])
def test_training_refuses_validation_on_trained_clips(
    trained: Path, rows: Path, tmp_path: Path, lazy: str
) -> None:
    with pytest.raises(UserError, match="validation: 3 clips are also trained on"):
        sft(trained, rows, tmp_path / "run", val_dataset=rows, lazy_tokenize=lazy)


def test_dry_run_shows_a_row_and_trains_nothing(
    trained: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    swift_log: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("DRY_RUN", "true")
    with pytest.raises(SystemExit) as end:
        sft(trained, rows, tmp_path / "run")
    assert end.value.code == 0
    said = swift_log.text
    assert "codebook 7" in said, "a row as the model sees it"
    assert re.search(
        r"ok      dataset: 3 rows, \d\.\d\d min of speech in 3 clips, speakers not named", said
    )
    assert re.search(r"row, tokens and frames +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+", said)
    assert "info    steps: 1 in an epoch, 2 in all (2.00 epochs)" in said
    assert re.search(r"info    memory: about \d\.\d GiB per device, estimated", said)
    assert re.search(r"learning_rate +1e-05", said)
    assert "info    command: nothing was trained; this trains" in said
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run" / "samples").exists()


def test_the_doctor_reads_the_yaml_file_of_a_run(
    tiny: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Model, data and settings come from there, and the memory that it needs is estimated."""
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {tiny}\ndataset: {rows}\nmodel_kwargs:\n  max_audio_length: 10\n", encoding="utf-8"
    )
    assert main(["doctor", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "codec frames, more than max_audio_length 10" in out
    assert re.search(r"info    memory: about 1\.\d GiB per device, estimated", out)
    assert "CUDA context" in out


def test_the_doctor_needs_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--dataset", "a.jsonl"]) == 1
    assert (
        "--model: None is missing; give it, or a --config that names it" in capsys.readouterr().err
    )
    assert main(["doctor", "--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml' cannot be read" in capsys.readouterr().err


def probe_of(right: float, others: float, *, entropy: float = 4.0) -> OffsetProbe:
    losses = {
        ("as trained", 0): others,
        ("as trained", 1): right,
        ("without delay", 1): others + 0.01,
    }
    return OffsetProbe(losses, (right,) * 8, entropy, 1000, 6.93, random_init=False)


@pytest.mark.parametrize(
    ("probe", "complains", "is_chance", "is_decisive"),
    [
        (
            probe_of(4.345, 4.340),
            False,
            False,
            False,
        ),  # knows frequencies only: every offset fits alike
        (
            probe_of(6.96, 6.95, entropy=6.91),
            False,
            False,
            False,
        ),  # an untouched audio part, trained norms of text
        (
            probe_of(9.7, 10.5),
            False,
            True,
            True,
        ),  # other speech, or another codec: the loss cannot tell
        (probe_of(7.9, 0.5), True, True, False),
        (probe_of(0.5, 7.9), False, False, True),
    ],
)
def test_verdicts_of_the_probe(
    probe: OffsetProbe, complains: bool, is_chance: bool, is_decisive: bool
) -> None:
    """Training that is right must not be refused because a young model cannot tell."""
    assert (probe.complaint is not None) == complains
    assert (probe.is_chance, probe.is_decisive) == (is_chance, is_decisive)


def test_clips_of_conditioning_turns_may_stand_on_both_sides(trained: Path, tmp_path: Path) -> None:
    """One voice clip before every target: it is not trained, so it leaks nothing."""
    clips = [row["audios"][0] for row in corpus_rows(3)]

    def dialogue(target: str) -> dict[str, Any]:
        turns = [
            ("user", "Hi.", None),
            ("assistant", "", False),
            ("user", "Ho.", None),
            ("assistant", "", None),
        ]
        messages = [
            {"role": role, "content": content, "loss": loss} for role, content, loss in turns
        ]
        return {"messages": messages, "audios": [clips[0], target]}

    train, validation = (
        write_jsonl(tmp_path / f"{name}.jsonl", [dialogue(target)])
        for name, target in zip("ab", clips[1:], strict=True)
    )
    sft(trained, train, tmp_path / "run", val_dataset=validation, max_steps=1)


def test_training_refuses_a_copy_of_the_target_as_reference(trained: Path, tmp_path: Path) -> None:
    _, rows, _ = reference_is_target(trained, tmp_path, pytest.MonkeyPatch())
    with pytest.raises(UserError, match=r"references: .* has the same content as the target"):
        sft(trained, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "run", max_steps=1)


def test_the_preflight_changes_no_weight(
    trained: Path, rows: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Looking must not draw random numbers that dropout would have drawn."""
    for preflight in ("true", "false"):
        monkeypatch.setenv("PREFLIGHT", preflight)
        options = {
            "tuner_type": "lora",
            "lora_dropout": 0.5,
            "target_modules": "all-linear",
            "learning_rate": 1e-3,
        }
        sft(trained, rows, tmp_path / preflight, max_steps=2, **options)
    name = "checkpoint-2/adapter_model.safetensors"
    with_it, without = load_file(tmp_path / "true" / name), load_file(tmp_path / "false" / name)
    assert all(torch.equal(with_it[key], without[key]) for key in without)


def test_a_run_resumes_where_a_later_checkpoint_was_left_behind(
    trained: Path, rows: Path, tmp_path: Path
) -> None:
    """MS-SWIFT copied the codec into the folder of a killed run's last checkpoint and stopped: it
    was there already."""
    sft(trained, rows, tmp_path / "run", max_steps=2, save_steps=1)
    resumed = {"resume_from_checkpoint": tmp_path / "run" / "checkpoint-1"}
    sft(trained, rows, tmp_path / "run", max_steps=2, save_steps=1, **resumed)
    assert (tmp_path / "run" / "checkpoint-2" / CODEC_FOLDER / "config.json").is_file()
