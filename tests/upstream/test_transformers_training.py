"""Defects of transformers' Higgs-Audio V2 classes in training: loss, checkpoints, Trainer.

Each test asserts what would be right. They fail today, strictly: a test that passes turns the suite
red and names the workaround that can go. `docs/upstream.md` lists them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from native import TEXT, training_batch
from safetensors.torch import load_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import (
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import DefaultFlowCallback


@pytest.fixture
def model(tiny: Path) -> Any:
    """Without dropout, so that `train` and `eval` are the same."""
    return HiggsAudioV2ForConditionalGeneration.from_pretrained(tiny, use_text_head=True)


# Loss


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="audio loss is divided by text labels; workaround: plugins/model/loss.py:combine",
)
def test_num_items_in_batch_does_not_change_the_loss_of_a_single_batch(model: Any) -> None:
    """With `num_items_in_batch`, which Trainer always passes, every sum is divided by the number of
    *text* labels.

    That is 3 for a text-to-speech row of any length: the audio loss of a 10 s clip becomes about 83
    times too large, drowns the text loss, and the learning rate means something else for each
    mixture of clip lengths."""
    batch = training_batch(model.config, 50)
    num_text_labels = (batch["labels"] != -100).sum()
    torch.testing.assert_close(
        model(**batch, num_items_in_batch=num_text_labels).loss, model(**batch).loss
    )


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="NaN without audio labels; workaround: plugins/model/loss.py:audio_loss_sums",
)
def test_a_batch_without_audio_labels_has_a_finite_loss(model: Any) -> None:
    """Clips that are only listened to leave no audio label in the batch, and a mean over nothing is
    NaN.

    One such batch destroys all weights in its optimizer step.
    """
    batch = training_batch(model.config, 3)
    batch["audio_labels"] = torch.full_like(batch["audio_labels"], -100)
    assert model(**batch).loss.isfinite()


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="text-only batches skip audio weights; workaround: plugins/model/modeling.py:forward",
)
def test_a_text_only_batch_reaches_every_parameter(model: Any) -> None:
    """Without frames the audio embedding and the audio head take no part: they get no gradient, not
    even zero.

    When one rank draws such a batch, DDP waits for its gradients and ZeRO-3 gathers other weights
    than the others do."""
    ids = torch.tensor([[model.config.bos_token_id, *TEXT, model.config.eos_token_id]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="heads run at every position; workaround: plugins/model/loss.py:shifted_rows",
)
def test_heads_run_on_labelled_positions_only(model: Any) -> None:
    """Both heads are computed at every position, though a text-to-speech row has three text labels.

    128256 wide and in fp32, the text logits of 8000 tokens take about 4 GB, and their gradient and
    softmax as much each: they, not the weights, decide which batch fits on the GPU."""
    batch = training_batch(model.config, 20)
    rows = {}
    for name in ("text_lm_head", "audio_lm_head"):
        head = getattr(model, name)
        head.register_forward_pre_hook(
            lambda _, args, name=name: rows.update({name: args[0][..., 0].numel()})
        )
    model(**batch)
    labelled = {
        "text_lm_head": batch["labels"] != -100,
        "audio_lm_head": (batch["audio_labels"] != -100).any(dim=-1),
    }
    assert rows == {name: int(mask.sum()) for name, mask in labelled.items()}


@pytest.mark.xfail(
    strict=True,
    raises=pytest.fail.Exception,
    reason="surplus frames are dropped in silence;"
    " workaround: plugins/collator.py:_check_placeholders",
)
def test_more_frames_than_placeholders_are_refused(model: Any) -> None:
    """Frames fill placeholders in order, and what is left over is dropped (too few frames do
    raise).

    After one miscounted clip every later clip of the row is heard shifted. Only a batch with audio
    labels is refused."""
    batch = training_batch(model.config, 5)
    del batch["labels"], batch["audio_labels"]
    # Without the last delay tokens, <|audio_eos|> and <|eot_id|>.
    for name in ("input_ids", "attention_mask"):
        batch[name] = batch[name][:, :-4]
    with pytest.raises((ValueError, RuntimeError)):
        model(**batch)


@pytest.mark.xfail(
    strict=True,
    raises=pytest.fail.Exception,
    reason="frames cross rows; workaround: plugins/collator.py:_check_placeholders",
)
def test_frames_of_one_row_do_not_fill_the_placeholders_of_another(model: Any) -> None:
    """Placeholders and frames are only compared over the whole batch, so two miscounts that cancel
    out pass.

    One frame too many in the first row becomes the first frame of the second: it is trained on
    shifted audio."""
    batch = training_batch(model.config, 3, 5)
    batch["audio_input_ids_mask"] = torch.arange(5 + 9) < torch.tensor([[3 + 9 + 1], [5 + 9 - 1]])
    with pytest.raises((ValueError, RuntimeError)):
        model(**batch)


# Checkpoints


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="text head is lost; workaround: plugins/model/load.py:native_model",
)
def test_the_text_head_survives_loading_and_saving(tiny: Path, tmp_path: Path) -> None:
    """`from_pretrained` leaves the text head out unless asked by `use_text_head=True`, and says
    nothing about it.

    Saving then writes a checkpoint without it: merged adapters, full fine-tunes. Nobody can train
    that one again."""
    HiggsAudioV2ForConditionalGeneration.from_pretrained(tiny).save_pretrained(tmp_path)
    assert "text_lm_head.weight" in load_file(tmp_path / "model.safetensors")


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="original weights load with random heads;"
    " workaround: plugins/model/load.py:native_model",
)
def test_original_weights_are_loaded_or_refused(tmp_path: Path) -> None:
    """Weights of boson-multimodal load, except embedding and heads of the audio, which have other
    names there.

    These start at random and only a log message says so: training from it runs, and teaches noise.
    """
    text = (GOLDEN / "tiny_original_config.json").read_text(encoding="utf-8")
    original = json.loads(text)["text_config"]
    config = HiggsAudioV2Config(
        vocab_size=original["vocab_size"],
        hidden_size=original["hidden_size"],
        intermediate_size=original["intermediate_size"],
        num_hidden_layers=original["num_hidden_layers"],
        num_attention_heads=original["num_attention_heads"],
        num_key_value_heads=original["num_key_value_heads"],
        head_dim=original["head_dim"],
        codebook_size=1026,
        pad_token_id=1,
    )
    written = json.dumps({**config.to_dict(), "model_type": "higgs_audio"})
    (tmp_path / "config.json").write_text(written, encoding="utf-8")
    shutil.copy(GOLDEN / "tiny_original.safetensors", tmp_path / "model.safetensors")
    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(tmp_path, use_text_head=True)
    weights = load_file(tmp_path / "model.safetensors")
    assert torch.equal(
        model.audio_lm_head.weight, weights["audio_decoder_proj.audio_lm_head.weight"]
    )


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="default codebook_size has no room for BOS and EOS;"
    " workaround: plugins/data/tokens.py:from_config",
)
def test_the_default_codebooks_hold_the_stream_tokens() -> None:
    """The class default is 1024 codes, but stream BOS and EOS are codes 1024 and 1025: published
    configs say 1026.

    A model with the default reads the BOS of codebook k as code 0 of codebook k + 1, and can never
    emit an EOS."""
    config = HiggsAudioV2Config()
    assert config.codebook_size > max(config.audio_stream_bos_id, config.audio_stream_eos_id)


# Trainer


class _Toy(torch.nn.Module):
    """The mean of `values` where there is a label, times a weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": self.weight * values[labels != -100].mean()}


def make_trainer(model: torch.nn.Module, output_dir: Path, **options: Any) -> Trainer:
    rows = [
        {"values": [1.0, 1.0, 1.0], "labels": [1, 1, 1]},
        {"values": [5.0, 5.0, 5.0], "labels": [1, -100, -100]},
    ]
    args = TrainingArguments(
        str(output_dir),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows)  # type: ignore[arg-type]
    # MS-SWIFT, once imported, puts callbacks into transformers that only work with its own
    # arguments.
    trainer.callback_handler.callbacks = [DefaultFlowCallback()]
    return trainer


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="NaN is logged as 0; workaround: plugins/training/meters.py:LossMeter",
)
def test_a_nan_loss_is_logged_as_nan(tmp_path: Path) -> None:
    """`logging_nan_inf_filter`, on by default (in MS-SWIFT too), logs the mean of the losses before
    in place of a NaN.

    The step is taken all the same: the weights are gone, and the curve goes on, or says 0.0.
    """
    trainer = make_trainer(_Toy(math.nan), tmp_path, max_steps=1, logging_steps=1)
    trainer.train()
    assert math.isnan(trainer.state.log_history[0]["loss"])


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="mean of batch means; workaround: plugins/trainer.py:log",
)
def test_eval_loss_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    """`evaluate` averages the means of its batches, whatever number of labels each of them has.

    Short clips weigh more than long ones, and runs with different batch sizes cannot be compared.
    """
    losses = []
    for size in (1, 2):
        trainer = make_trainer(_Toy(1.0), tmp_path, per_device_eval_batch_size=size)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.xfail(
    strict=True,
    raises=RuntimeError,
    reason="autocast sums in fp32; workaround: plugins/model/modeling.py:_in_dtype_of_weights",
)
def test_bf16_weights_run_under_the_autocast_of_cuda() -> None:
    """CUDA's autocast runs `sum` in fp32, so audio embeddings become fp32 and do not fit into bf16
    text embeddings.

    Every `Trainer(bf16=True)` with a bf16 model and without DeepSpeed fails in its first forward
    pass. A CPU's autocast has other rules, so this needs a GPU, or fake tensors, which follow its
    rules without one."""
    config = HiggsAudioV2Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        head_dim=16,
        num_key_value_heads=2,
        codebook_size=1026,
        pad_token_id=1,
        audio_token_id=36,
        audio_delay_token_id=37,
    )
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True), torch.device("cuda"):
        model = HiggsAudioV2ForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
        ids, frames = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 5, 8, dtype=torch.long)
        mask = torch.zeros(2, 5, dtype=torch.bool)
        # `torch.autocast` switches itself off without a GPU.
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        try:
            model.model(
                input_ids=ids, audio_input_ids=frames, audio_input_ids_mask=mask, use_cache=False
            )
        finally:
            torch.set_autocast_enabled("cuda", False)
