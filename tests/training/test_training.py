"""Training through MS-SWIFT's own pipeline: what it learns, that a step is exact, and that every
option runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus_rows, write_jsonl
from helpers.sft import coded, flags, log_of, sft, swift

pytestmark = pytest.mark.slow
GREEDY_MAX_S = 6.0


def speak(generator: Any, row: dict[str, Any]) -> Any:
    from plugins.speaking.sampling import Sampling

    return generator.generate(
        row["messages"][1]["content"],
        scene_description="Indoor quiet",
        reference_audio=row.get("reference_audio"),
        reference_text=row.get("reference_text"),
        sampling=Sampling(temperature=0),
        max_audio_s=GREEDY_MAX_S,
    )


def check_reproduced(speech: Any, row: dict[str, Any]) -> None:
    """>= 99 % of the codes, and stopped by itself at exactly F + 9 delayed frames, that is with F
    frames of codes."""
    wanted = torch.tensor(row["audio_codes"][0]).T
    assert speech.stopped
    assert speech.codes.shape == wanted.shape
    assert (speech.codes == wanted).float().mean() >= 0.99


def test_full_fine_tuning_learns_what_it_is_shown(tiny: Path, tmp_path: Path) -> None:
    """With transformers' own labels, which mask every EOS, such a model reproduces the codes and
    never stops."""
    from plugins.inference import HiggsAudioGenerator

    rows = coded(tiny, corpus_rows(4))
    dataset = write_jsonl(tmp_path / "train.jsonl", rows)
    options = {
        "max_steps": 200,
        "learning_rate": 3e-3,
        "logging_steps": 50,
        "report_to": "tensorboard",
    }
    done = swift("sft", *flags(tiny, dataset, tmp_path / "out", **options))
    assert done.returncode == 0, done.stderr[-3000:]
    generator = HiggsAudioGenerator.from_pretrained(str(tmp_path / "out" / "checkpoint-200"))
    for row in rows:
        check_reproduced(speak(generator, row), row)
    check_curves(tmp_path / "out")


def check_curves(output_dir: Path) -> None:
    """Both losses, each codebook, accuracies, auxiliary loss and both learning rates: in the log
    and TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = {"loss", "loss_text", "loss_audio", "loss_aux", "acc_text"}
    curves |= {"learning_rate", "audio_learning_rate"}
    for k in range(8):
        curves |= {f"loss_audio_cb{k}", f"acc_audio_cb{k}"}
    records = [record for record in log_of(output_dir) if "loss_audio" in record]
    for record in records:
        assert curves <= record.keys()
    assert records[-1]["loss_audio"] < 0.1 < records[0]["loss_audio"]
    events = EventAccumulator(str(output_dir / "runs"))
    events.Reload()
    assert {f"train/{name}" for name in curves} <= set(events.Tags()["scalars"])


@pytest.fixture(scope="module")
def wide(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that LoRA can bend: frozen random heads must be wide and loud enough to tell 8 x 1026
    codes apart."""
    import shutil

    from transformers import AutoTokenizer

    from demo.tiny import build_config
    from plugins.model.modeling import HiggsAudioV2ForConditionalGeneration

    folder = tmp_path_factory.mktemp("wide") / "model"
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    torch.manual_seed(0)
    config = build_config(tokenizer, hidden_size=256, num_hidden_layers=2)
    model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    embeddings = (model.model.embed_tokens, model.model.embed_audio_tokens.embed_audio_tokens)
    with torch.no_grad():
        for module in (model.audio_lm_head, model.text_lm_head, *embeddings):
            module.weight.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copytree(tiny / "audio_tokenizer", folder / "audio_tokenizer")
    return folder


def test_lora_with_references_learns_and_merges(wide: Path, tmp_path: Path) -> None:
    from plugins.inference import HiggsAudioGenerator

    corpus = corpus_rows(12)
    rows = corpus[4:8]
    for row, other in zip(rows, corpus[8:12], strict=True):
        row["reference_audio"] = other["audios"][0]
        row["reference_text"] = other["messages"][1]["content"].removeprefix("Please speak: ")
    rows = coded(wide, rows)
    dataset = write_jsonl(tmp_path / "train.jsonl", rows)
    lora = {"tuner_type": "lora", "lora_rank": 64, "lora_alpha": 128, "lora_dropout": 0}
    lora |= {"max_steps": 200, "logging_steps": 50, "learning_rate": 2e-3}
    sft(wide, dataset, tmp_path / "out", **lora)
    checkpoint, merged = tmp_path / "out" / "checkpoint-200", tmp_path / "merged"
    words = ["--adapters", str(checkpoint), "--merge_lora", "true", "--output_dir", str(merged)]
    done = swift("export", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]

    from safetensors import safe_open

    with safe_open(merged / "model.safetensors", "pt") as weights:
        assert "text_lm_head.weight" in weights.keys()  # noqa: SIM118 (safe_open is no mapping)
    with_adapter = HiggsAudioGenerator.from_pretrained(str(wide), adapters=str(checkpoint))
    after_merge = HiggsAudioGenerator.from_pretrained(str(merged))
    for row in rows:
        speech = speak(with_adapter, row)
        check_reproduced(speech, row)
        assert torch.equal(speak(after_merge, row).codes, speech.codes)


def test_one_step_is_the_same_for_every_split_of_its_rows(tiny: Path, tmp_path: Path) -> None:
    """4 x 1, 1 x 4 and two processes x 1 x 2 over clips of different lengths and a text-only row.

    Means of means, as the base trainer takes them, weigh a short clip's frames more than a long
    one's; a text count as the common denominator makes the audio loss of a 10 s clip about 83 times
    too large."""
    corpus = corpus_rows(13)
    question = {"role": "user", "content": "Say hi."}
    answer = {"role": "assistant", "content": "Hi there."}
    rows = [*coded(tiny, [corpus[0], *corpus[11:]]), {"messages": [question, answer]}]
    dataset = write_jsonl(tmp_path / "train.jsonl", rows)

    def step(name: str, batch: int, accumulation: int, **ddp: Any) -> dict[str, float]:
        options = {"per_device_train_batch_size": batch, "max_steps": 1, **ddp}
        options["gradient_accumulation_steps"] = accumulation
        words = flags(tiny, dataset, tmp_path / name, **options)
        if ddp:
            done = swift("sft", *words, NPROC_PER_NODE="2")
            assert done.returncode == 0, done.stderr[-3000:]
        else:
            sft(tiny, dataset, tmp_path / name, **options)
        return log_of(tmp_path / name)[0]

    whole = step("4x1", 4, 1)
    for record in (step("1x4", 1, 4), step("2x1x2", 1, 2, ddp_backend="gloo")):
        for name in ("loss", "grad_norm", "loss_text", "loss_audio", "loss_aux"):
            assert record[name] == pytest.approx(whole[name], rel=1e-6), name


VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"tuner_type": "lora", "target_modules": "all-linear"},
    "gradient checkpointing": {"gradient_checkpointing": "true"},
    "gradient checkpointing, lora": {"gradient_checkpointing": "true", "tuner_type": "lora"},
    "group by length, two processes encode": {"group_by_length": "true", "dataset_num_proc": 2},
    "two spawned workers": {
        "dataloader_num_workers": 2,
        "dataloader_multiprocessing_context": "spawn",
    },
    "bf16": {"torch_dtype": "bfloat16", "bf16": "true"},
    "7b type": {"model_type": "higgs-audio-v2-7b"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_option_runs_to_the_end(variant: str, tiny: Path, tmp_path: Path) -> None:
    check_losses(tiny, tmp_path, **VARIANTS[variant])


def test_forked_workers_of_a_process_with_threads(tiny: Path, tmp_path: Path) -> None:
    """torch's threads do not come along, and a child that counts on them waits for ever."""
    torch.set_num_threads(2)
    torch.ones(512, 512) @ torch.ones(512, 512)  # they are started when they are needed
    try:
        check_losses(
            tiny, tmp_path, dataloader_num_workers=2, dataloader_multiprocessing_context="fork"
        )
    finally:
        torch.set_num_threads(1)


def check_losses(tiny: Path, tmp_path: Path, **options: Any) -> None:
    """Clips are encoded on the fly here, so workers meet the lazy codec."""
    dataset = write_jsonl(tmp_path / "train.jsonl", corpus_rows(4))
    records = sft(tiny, dataset, tmp_path / "out", **{"gradient_checkpointing": "false", **options})
    losses = [record["loss_audio"] for record in records if "loss_audio" in record]
    assert len(losses) == 2
    assert 6 < losses[0] < 8, "random weights start near ln(1026) = 6.93"
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


SEED_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
                "audio_ffn.gate_proj", "audio_ffn.up_proj", "audio_ffn.down_proj"]  # fmt: skip


@pytest.mark.parametrize(
    "modules", [["all-linear"], SEED_MODULES], ids=["all-linear", "seed document"]
)
def test_lora_covers_attention_and_both_ffns(
    modules: list[str], tiny: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open

    from plugins.train import main

    dataset = write_jsonl(tmp_path / "train.jsonl", corpus_rows(2))
    options = {"tuner_type": None, "max_steps": 1, "sft_type": "lora"}
    main(flags(tiny, dataset, tmp_path / "out", **options, lora_target_modules=modules))
    file = tmp_path / "out" / "checkpoint-1" / "adapter_model.safetensors"
    names = set()
    with safe_open(file, "pt") as adapter:
        for key in adapter.keys():  # noqa: SIM118 (safe_open is no mapping)
            _, is_first, name = key.partition("layers.0.")
            if is_first:
                names.add(name.rsplit(".lora_", 1)[0])
    expected = {f"self_attn.{name}_proj" for name in "qkvo"}
    for name in ("gate", "up", "down"):
        expected |= {f"mlp.{name}_proj", f"audio_mlp.{name}_proj"}
    assert names == expected


def test_eval_loss_is_the_training_formula_over_the_whole_set(tiny: Path, tmp_path: Path) -> None:
    """The base averages batch means; here 3 rows in batches of 2 give the loss of one batch of
    3."""
    dataset = write_jsonl(tmp_path / "train.jsonl", coded(tiny, corpus_rows(3)))
    options = {"learning_rate": 0.0, "val_dataset": dataset, "eval_steps": 1, "max_steps": 1}
    options |= {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 2}
    options["model_kwargs"] = '{"preflight": false}'  # it refuses validation on trained clips
    records = sft(tiny, dataset, tmp_path / "out", **options)
    trained = next(record for record in records if "loss_audio" in record)
    evaluated = next(record for record in records if "eval_loss" in record)
    assert evaluated["eval_loss"] == pytest.approx(trained["loss"], rel=1e-5)
    assert evaluated["eval_loss_audio_cb3"] == pytest.approx(trained["loss_audio_cb3"], rel=1e-5)


def test_settings_are_written_and_the_plugin_path_is_absolute(tiny: Path, tmp_path: Path) -> None:
    dataset = write_jsonl(tmp_path / "train.jsonl", corpus_rows(2))
    register = os.path.relpath(Path(__file__).resolve().parents[2] / "plugins" / "register.py")
    kwargs = json.dumps({"audio_learning_rate": 1e-4, "audio_loss_weight": 0.5})
    out = tmp_path / "out"
    sft(tiny, dataset, out, max_steps=1, external_plugins=register, model_kwargs=kwargs)
    settings = json.loads((out / "higgs_audio_settings.json").read_text(encoding="utf-8"))
    assert (settings["audio_learning_rate"], settings["audio_loss_weight"]) == (1e-4, 0.5)
    args = json.loads((out / "args.json").read_text(encoding="utf-8"))
    for plugin in args["external_plugins"]:
        assert Path(plugin).is_absolute()


def test_audio_learning_rate_is_its_own(tiny: Path, tmp_path: Path) -> None:
    """Rate 0 for audio: after a step, audio weights are those of the start and all others have
    moved."""
    from safetensors.torch import load_file

    from plugins.training.optimizer import is_audio_parameter

    dataset = write_jsonl(tmp_path / "train.jsonl", corpus_rows(2))
    options = {
        "learning_rate": 1e-3,
        "warmup_ratio": 0,
        "model_kwargs": '{"audio_learning_rate": 0.0}',
        "max_steps": 1,
    }
    sft(tiny, dataset, tmp_path / "out", **options)
    before = load_file(tiny / "model.safetensors")
    after = load_file(tmp_path / "out" / "checkpoint-1" / "model.safetensors")
    for name, weight in before.items():
        assert torch.equal(weight, after[name]) == is_audio_parameter(name), name
