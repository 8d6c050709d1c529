"""Defects of transformers' Higgs-Audio V2 classes (and of its Trainer): each test asserts what
would be right.

They fail today, strictly: a test that passes turns the suite red and names the workaround that can
go. `docs/upstream.md` lists them."""

from __future__ import annotations

import inspect
import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from native import (
    ASSISTANT_HEADER,
    AUDIO_END,
    TEXT,
    audio_turn,
    delayed,
    given,
    training_batch,
)
from safetensors.torch import load_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import (
    AutoTokenizer,
    DacFeatureExtractor,
    GenerationConfig,
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2Processor,
    HiggsAudioV2TokenizerModel,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import DefaultFlowCallback

from plugins.delay_pattern import undo_delay

PROMPT = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"
REPLY = "<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|><|eot_id|>"
HOP = 960


@pytest.fixture
def model(tiny: Path) -> Any:
    """Without dropout, so that `train` and `eval` are the same."""
    return HiggsAudioV2ForConditionalGeneration.from_pretrained(tiny, use_text_head=True)


@pytest.fixture(scope="module")
def codec(tiny: Path) -> Any:
    return HiggsAudioV2TokenizerModel.from_pretrained(tiny / "audio_tokenizer")


@pytest.fixture(scope="module")
def processor(tiny: Path, codec: Any) -> Any:
    extractor = DacFeatureExtractor(
        sampling_rate=24_000, hop_length=1
    )  # as in transformers' conversion script
    return HiggsAudioV2Processor(extractor, AutoTokenizer.from_pretrained(tiny), codec)


def noise(num_samples: int) -> np.ndarray:
    return np.random.default_rng(num_samples).normal(0, 0.1, num_samples).astype(np.float32)


def greedy(model: Any, **options: Any) -> GenerationConfig:
    config = model.config
    return GenerationConfig(
        do_sample=False,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        **options,
    )


# Labels


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="every EOS label is masked; workaround: plugins/delay_pattern.py:delay_labels",
)
def test_each_codebook_is_trained_on_one_eos(processor: Any) -> None:
    """`processor(output_labels=True)` masks stream EOS wherever it stands, as if all of it were
    padding.

    A model trained on such labels never stops: every output is as long as the limit allows.
    The original trains exactly one EOS per clip and codebook, and so do we.
    """
    inputs = processor(
        text=[PROMPT + REPLY], audio=[noise(3 * HOP)], output_labels=True, return_tensors="pt"
    )
    num_eos = (inputs["audio_labels"] == processor.audio_stream_eos_id).sum(dim=1)
    assert num_eos.tolist() == [[1] * 8]


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="prompt and delay tokens are trained; workaround: plugins/data/prompt.py:encode",
)
def test_only_the_reply_is_trained(processor: Any) -> None:
    """`processor(output_labels=True)` labels the whole prompt and the delay tokens, but not
    <|audio_out_bos|>.

    The text loss is then about repeating the user, and the token that starts the audio is never
    learnt. The original trains three text tokens of a text-to-speech turn."""
    inputs = processor(
        text=[PROMPT + REPLY], audio=[noise(3 * HOP)], output_labels=True, return_tensors="pt"
    )
    trained = inputs["labels"][inputs["labels"] != -100]
    assert processor.tokenizer.convert_ids_to_tokens(trained) == [
        "<|audio_out_bos|>",
        "<|audio_eos|>",
        "<|eot_id|>",
    ]


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="reference clips are trained; workaround: plugins/collator.py:_frame_labels",
)
def test_a_reference_clip_is_not_trained(processor: Any) -> None:
    """A finished turn before the target, a voice to clone, gets audio labels like the target
    itself.

    The model also learns to say the transcript of the reference, with no voice to go by: half of
    the loss is that."""
    text, clips = PROMPT + REPLY + PROMPT + REPLY, [noise(3 * HOP), noise(4 * HOP)]
    inputs = processor(text=[text], audio=clips, output_labels=True, return_tensors="pt")
    of_reference, of_target = inputs["audio_labels"][0].split([3 + 9, 4 + 9])
    given((of_target != -100).any())
    assert (of_reference == -100).all()


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
    reason="surplus frames are dropped in silence; workaround: plugins/collator.py:_check_placeholders",
)
def test_more_frames_than_placeholders_are_refused(model: Any) -> None:
    """Frames fill placeholders in order, and what is left over is dropped (too few frames do
    raise).

    After one miscounted clip every later clip of the row is heard shifted. Only a batch with audio
    labels is refused."""
    batch = training_batch(model.config, 5)
    del batch["labels"], batch["audio_labels"]
    batch["input_ids"] = batch["input_ids"][
        :, :-4
    ]  # the last delay tokens, <|audio_eos|> and <|eot_id|>
    batch["attention_mask"] = batch["attention_mask"][:, :-4]
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
    reason="original weights load with random heads; workaround: plugins/model/load.py:native_model",
)
def test_original_weights_are_loaded_or_refused(tmp_path: Path) -> None:
    """Weights of boson-multimodal load, except embedding and heads of the audio, which have other
    names there.

    These start at random and only a log message says so: training from it runs, and teaches noise.
    """
    original = json.loads((GOLDEN / "tiny_original_config.json").read_text(encoding="utf-8"))[
        "text_config"
    ]
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim")  # fmt: skip
    config = HiggsAudioV2Config(
        **{name: original[name] for name in shape}, codebook_size=1026, pad_token_id=1
    )
    (tmp_path / "config.json").write_text(
        json.dumps({**config.to_dict(), "model_type": "higgs_audio"})
    )
    shutil.copy(GOLDEN / "tiny_original.safetensors", tmp_path / "model.safetensors")
    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(tmp_path, use_text_head=True)
    weights = load_file(tmp_path / "model.safetensors")
    assert torch.equal(
        model.audio_lm_head.weight, weights["audio_decoder_proj.audio_lm_head.weight"]
    )


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="default codebook_size has no room for BOS and EOS; workaround: plugins/data/tokens.py:from_config",
)
def test_the_default_codebooks_hold_the_stream_tokens() -> None:
    """The class default is 1024 codes, but stream BOS and EOS are codes 1024 and 1025: published
    configs say 1026.

    A model with the default reads the BOS of codebook k as code 0 of codebook k + 1, and can never
    emit an EOS."""
    config = HiggsAudioV2Config()
    assert config.codebook_size > max(config.audio_stream_bos_id, config.audio_stream_eos_id)


# Codec and processor


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="padding changes codes; workaround: plugins/audio/codec.py:encode",
)
def test_padding_in_a_batch_does_not_change_the_codes(codec: Any, processor: Any) -> None:
    """`encode` takes a batch but no mask, and a normalisation over time lets the padding into every
    frame.

    The shorter clips of a batch get other codes, over their whole length: training targets that
    nobody said. Batches of equal lengths are exact."""
    short, long = noise(10 * HOP), noise(20 * HOP)
    padded = processor.feature_extractor(
        [short, long], padding=True, sampling_rate=24_000, return_tensors="pt"
    )
    accepted = inspect.signature(codec.encode).parameters
    given("padding_mask" in padded)
    with torch.no_grad():
        alone = codec.encode(torch.from_numpy(short)[None, None]).audio_codes[0]
        batch = codec.encode(
            **{name: value for name, value in padded.items() if name in accepted}
        ).audio_codes
    assert torch.equal(batch[0, :, :10], alone)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="silence before the clip; workaround: plugins/audio/codec.py:encode",
)
def test_a_clip_of_any_length_begins_at_its_beginning(processor: Any, codec: Any) -> None:
    """The processor pads no clip to whole frames, and `encode` pads such a clip by half a frame at
    both ends.

    But only on its acoustic side: that hears the clip 20 ms late, the semantic side does not, and
    the codes are others. The original pads on the right first; native codes of clips of whole
    frames equal its codes."""
    clip = noise(10 * HOP - HOP // 2)
    inputs = processor(text=["<|AUDIO_OUT|>"], audio=[clip], return_tensors="pt")
    with torch.no_grad():
        padded = codec.encode(
            torch.from_numpy(np.pad(clip, (0, HOP // 2)))[None, None]
        ).audio_codes[0]
    assert torch.equal(undo_delay(inputs["audio_input_ids"][0])[:, :10], padded)


@pytest.mark.xfail(
    strict=True,
    raises=RuntimeError,
    reason="does not pickle; workaround: plugins/audio/codec.py:Codec",
)
def test_the_codec_travels_into_spawned_workers(codec: Any) -> None:
    """HuBERT's weight norm is a parametrization, and torch refuses to pickle those; the processor
    holds the codec.

    A data set that encodes clips on the fly cannot use spawned workers (the default on macOS and
    Windows)."""
    assert pickle.loads(pickle.dumps(codec)) is not None


@pytest.mark.xfail(
    strict=True,
    raises=(ValueError, RuntimeError),
    reason="rows with and without a clip do not mix; workaround: plugins/collator.py:collate",
)
def test_rows_with_and_without_clips_share_a_batch(processor: Any) -> None:
    """A row without a clip beside one with a clip ends in `torch.cat` of an empty list.

    Requests with and without a voice to clone cannot be batched, nor text rows be mixed into
    training."""
    inputs = processor(text=[PROMPT + REPLY, PROMPT], audio=[noise(3 * HOP)], return_tensors="pt")
    assert inputs["audio_input_ids_mask"].sum(dim=1).tolist() == [3 + 9, 0]


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="the last row's start is every row's; workaround: plugins/speaking/speaker.py:codes_of",
)
def test_each_row_is_decoded_from_its_own_start(processor: Any, model: Any) -> None:
    """`batch_decode` looks for the last all-BOS frame of the last row and cuts every row there.

    It holds for the output of one `generate`, but not for rows put together in another way: a row
    of one clip loses the beginning if the last row has two."""
    config = model.config
    rows: list[Tensor] = [delayed(config, 20), torch.cat([delayed(config, 3), delayed(config, 4)])]
    frames = torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True, padding_value=config.audio_stream_eos_id
    )
    assert [len(waveform) for waveform in processor.batch_decode(frames)] == [20 * HOP, 4 * HOP]


@pytest.mark.xfail(
    strict=True,
    raises=RuntimeError,
    reason="empty speech is a crash; workaround: plugins/speaking/speaker.py:codes_of",
)
def test_a_row_that_stops_at_once_does_not_take_the_others_along(
    processor: Any, model: Any
) -> None:
    """A model that stops at once (fewer than ten delayed frames) leaves no code, and a convolution
    fails on nothing.

    The message is about kernel sizes, and the speech of every other row of the batch is lost with
    it."""
    bos, eos = model.config.audio_stream_bos_id, model.config.audio_stream_eos_id
    spoken = delayed(model.config, 10)
    at_once = torch.where(torch.arange(8) >= torch.arange(len(spoken))[:, None], bos, eos)
    assert len(processor.batch_decode(torch.stack([spoken, at_once]))[0]) == 10 * HOP


# Generation


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="greedy decoding draws at random; workaround: plugins/speaking/decoding.py:decode",
)
def test_greedy_decoding_is_the_same_twice(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of the model's own generation config are added to the one given, custom ones too.

    The conversion script writes repetition-aware sampling there, which draws codes again even with
    `do_sample=False`: "greedy" speech is another one at each call."""
    monkeypatch.setattr(
        model, "generation_config", greedy(model, ras_win_len=7, ras_win_max_num_repeat=1)
    )
    prompt = torch.tensor(
        [[model.config.bos_token_id, *TEXT, *ASSISTANT_HEADER, model.config.audio_bos_token_id]]
    )
    speech = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        speech.append(model.generate(prompt, generation_config=greedy(model, max_new_tokens=30)))
    assert torch.equal(*speech)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="an audio turn before the prompt's end; workaround: plugins/speaking/decoding.py:decode",
)
def test_speech_may_follow_an_audio_turn_directly(model: Any) -> None:
    """The delay processor takes a delay token among the last eight for the end of what it is to
    generate.

    In Llama-3's tokens the last one of a finished turn is the eighth: nothing but EOS comes out,
    without a BOS. A user turn in between hides it."""
    config = model.config
    prompt = torch.tensor([[*audio_turn(config, 3), *ASSISTANT_HEADER, config.audio_bos_token_id]])
    frames = delayed(config, 3)[None]
    heard = {
        "audio_input_ids": frames,
        "audio_input_ids_mask": torch.ones(frames.shape[:2], dtype=torch.bool),
    }
    given(prompt[0, -8:-6].tolist() == [config.audio_delay_token_id, AUDIO_END])
    speech = model.generate(prompt, **heard, generation_config=greedy(model, max_new_tokens=10))
    assert speech[0, frames.shape[1]].tolist() == [config.audio_stream_bos_id] * 8


@pytest.mark.xfail(
    strict=True,
    raises=RuntimeError,
    reason="no frames is not no audio; workaround: plugins/speaking/decoding.py:decode",
)
def test_a_prompt_with_zero_frames_is_a_prompt_without_audio(model: Any) -> None:
    """`audio_input_ids` of shape (B, 0, K), what a collator gives for a batch without clips, counts
    as fully decoded.

    The prompt is then thrown away and attention fails on an empty tensor.
    """
    config = model.config
    prompt = torch.tensor(
        [[config.bos_token_id, *TEXT, *ASSISTANT_HEADER, config.audio_bos_token_id]]
    )
    empty = {
        "audio_input_ids": torch.zeros(1, 0, 8, dtype=torch.long),
        "audio_input_ids_mask": torch.ones(1, 0) > 0,
    }
    options = greedy(model, max_new_tokens=3)
    speech = model.generate(prompt, **empty, generation_config=options)
    assert torch.equal(speech, model.generate(prompt, generation_config=options))


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
    losses = [
        make_trainer(_Toy(1.0), tmp_path, per_device_eval_batch_size=size).evaluate()["eval_loss"]
        for size in (1, 2)
    ]
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
        vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=16,
        num_key_value_heads=2, codebook_size=1026, pad_token_id=1, audio_token_id=36, audio_delay_token_id=37,
    )  # fmt: skip
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True), torch.device("cuda"):
        model = HiggsAudioV2ForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
        ids, frames = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 5, 8, dtype=torch.long)
        mask = torch.zeros(2, 5, dtype=torch.bool)
        torch.set_autocast_dtype(
            "cuda", torch.bfloat16
        )  # `torch.autocast` switches itself off without a GPU
        torch.set_autocast_enabled("cuda", True)
        try:
            model.model(
                input_ids=ids, audio_input_ids=frames, audio_input_ids_mask=mask, use_cache=False
            )
        finally:
            torch.set_autocast_enabled("cuda", False)
