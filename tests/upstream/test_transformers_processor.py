"""Defects of transformers' Higgs-Audio V2 processor and codec: labels, codes.

Each test asserts what would be right. They fail today, strictly: a test that passes turns the suite
red and names the workaround that can go. `docs/upstream.md` lists them."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native import delayed, given
from torch import Tensor
from transformers import (
    AutoTokenizer,
    DacFeatureExtractor,
    HiggsAudioV2Config,
    HiggsAudioV2Processor,
    HiggsAudioV2TokenizerModel,
)

from plugins.delay_pattern import undo_delay

PROMPT = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"
REPLY = (
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    "<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|><|eot_id|>"
)
HOP = 960  # samples of 24 kHz per frame


@pytest.fixture(scope="module")
def codec(tiny: Path) -> Any:
    return HiggsAudioV2TokenizerModel.from_pretrained(tiny / "audio_tokenizer")


@pytest.fixture(scope="module")
def processor(tiny: Path, codec: Any) -> Any:
    # As in transformers' conversion script.
    extractor = DacFeatureExtractor(sampling_rate=24_000, hop_length=1)
    return HiggsAudioV2Processor(extractor, AutoTokenizer.from_pretrained(tiny), codec)


@pytest.fixture(scope="module")
def config(tiny: Path) -> Any:
    return HiggsAudioV2Config.from_pretrained(tiny)


def noise(num_samples: int) -> np.ndarray:
    return np.random.default_rng(num_samples).normal(0, 0.1, num_samples).astype(np.float32)


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


# Codes and clips


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
    # A version that takes the mask is given it.
    inputs = {name: padded[name] for name in padded if name in accepted}
    with torch.no_grad():
        alone = codec.encode(torch.from_numpy(short)[None, None]).audio_codes[0]
        batch = codec.encode(**inputs).audio_codes
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
    whole_frames = torch.from_numpy(np.pad(clip, (0, HOP // 2)))
    inputs = processor(text=["<|AUDIO_OUT|>"], audio=[clip], return_tensors="pt")
    with torch.no_grad():
        expected = codec.encode(whole_frames[None, None]).audio_codes[0]
    assert torch.equal(undo_delay(inputs["audio_input_ids"][0])[:, :10], expected)


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
def test_each_row_is_decoded_from_its_own_start(processor: Any, config: Any) -> None:
    """`batch_decode` looks for the last all-BOS frame of the last row and cuts every row there.

    It holds for the output of one `generate`, but not for rows put together in another way: a row
    of one clip loses the beginning if the last row has two."""
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
    processor: Any, config: Any
) -> None:
    """A model that stops at once (fewer than ten delayed frames) leaves no code, and a convolution
    fails on nothing.

    The message is about kernel sizes, and the speech of every other row of the batch is lost with
    it."""
    bos, eos = config.audio_stream_bos_id, config.audio_stream_eos_id
    spoken = delayed(config, 10)
    at_once = torch.where(torch.arange(8) >= torch.arange(len(spoken))[:, None], bos, eos)
    assert len(processor.batch_decode(torch.stack([spoken, at_once]))[0]) == 10 * HOP
