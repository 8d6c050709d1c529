"""The loop that speaks, against transformers' own `generate`: greedy codes, batches, early ends, seeds, streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CORPUS
from torch import Tensor
from transformers import GenerationConfig

from plugins.collator import collate
from plugins.decoding import decode
from plugins.inference import HiggsAudioGenerator
from plugins.prompt import Dialogue
from plugins.sampling import Sampler, Sampling
from plugins.voices import Voice, request

VOICE = str(CORPUS / "wavs" / "DEMO-0002.flac")
GREEDY = Sampling(temperature=0)
# Of different lengths, with and without clips in the prompt, in turns and in the system message.
REQUESTS: list[dict[str, Any]] = [
    {"text": "Hello."},
    {"text": "The harbour lights went out one by one.", "scene": "Indoor quiet"},
    {"text": "Hi.", "voices": [Voice(VOICE, "Glue the sheet.")]},
    {"text": "A word.", "voices": [Voice(VOICE)]},
]


@pytest.fixture(scope="module")
def generator(tiny: Path) -> HiggsAudioGenerator:
    """Random weights that end: in each codebook another request's code is outdone by the stream EOS."""
    generator = HiggsAudioGenerator.from_pretrained(str(tiny))
    tokens, head = generator.tokens, generator.model.audio_lm_head.weight
    frames = ours(generator, [dialogue(generator, **each) for each in REQUESTS], 60)
    with torch.no_grad():
        for k, (said, step) in enumerate(zip(frames, (50, 20, 35, 12), strict=True)):
            start = k * tokens.codebook_size
            head[start + tokens.stream_eos] = 1.01 * head[start + said[step, k]]
    return generator


def dialogue(generator: HiggsAudioGenerator, *, text: str, scene: str | None = None, voices: Any = ()) -> Dialogue:
    return request(text, scene, voices, generator.settings)


def native(generator: HiggsAudioGenerator, one: Dialogue, max_steps: int) -> Tensor:
    """Delayed frames (T, K) of transformers' generate, for one prompt."""
    batch = collate([generator._prompt(one)], generator.tokens, training=False)
    num_given = batch["audio_input_ids"].shape[1]
    if not num_given:
        del batch["audio_input_ids"], batch["audio_input_ids_mask"]
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_steps,
        eos_token_id=generator.tokens.end_of_turn,
        pad_token_id=generator.tokens.pad,
    )
    generator.model.generation_config = config
    return generator.model.generate(**batch, generation_config=config)[0][num_given:]


def ours(
    generator: HiggsAudioGenerator, dialogues: list[Dialogue], max_steps: int, sampling: Sampling = GREEDY
) -> list[Tensor]:
    batch = collate([generator._prompt(each) for each in dialogues], generator.tokens, training=False)
    frames: list[list[Tensor]] = [[] for _ in dialogues]
    samplings = [sampling] * len(dialogues)
    for rows, step in decode(generator.model, batch, generator.tokens, samplings, [max_steps] * len(dialogues)):
        for row, frame in zip(rows, step, strict=True):
            frames[row].append(frame)
    return [torch.stack(each) for each in frames]


@pytest.fixture(scope="module")
def expected(generator: HiggsAudioGenerator) -> list[Tensor]:
    return [native(generator, dialogue(generator, **each), 60) for each in REQUESTS]


def test_the_rows_end_at_different_steps(expected: list[Tensor]) -> None:
    """Else the tests below would prove little."""
    lengths = [len(frames) for frames in expected]
    assert len(set(lengths)) > 2, lengths
    assert min(lengths) < 60, lengths


@pytest.mark.parametrize("row", range(len(REQUESTS)))
def test_greedy_frames_are_those_of_transformers(
    generator: HiggsAudioGenerator, expected: list[Tensor], row: int
) -> None:
    (found,) = ours(generator, [dialogue(generator, **REQUESTS[row])], 60)
    assert torch.equal(found, expected[row])


def test_a_mixed_batch_is_its_rows_alone(generator: HiggsAudioGenerator, expected: list[Tensor]) -> None:
    """With and without clips, and rows that leave the batch early."""
    found = ours(generator, [dialogue(generator, **each) for each in REQUESTS], 60)
    for frames, alone in zip(found, expected, strict=True):
        assert torch.equal(frames, alone)


def test_a_seed_is_a_rows_own(generator: HiggsAudioGenerator) -> None:
    """The same speech alone and in a batch, whatever the other rows do; and the global state stays."""
    sampling = Sampling(temperature=1.0, seed=7)
    dialogues = [dialogue(generator, **each) for each in REQUESTS]
    before = torch.get_rng_state()
    together = ours(generator, dialogues, 30, sampling)
    assert torch.equal(torch.get_rng_state(), before)
    for frames, one in zip(together, dialogues, strict=True):
        assert torch.equal(frames, ours(generator, [one], 30, sampling)[0])
    assert not torch.equal(together[0], ours(generator, dialogues[:1], 30, Sampling(temperature=1.0, seed=8))[0])
    torch.manual_seed(0)
    drawn = ours(generator, dialogues[:1], 30, Sampling(temperature=1.0))[0]
    torch.manual_seed(0)
    assert torch.equal(drawn, ours(generator, dialogues[:1], 30, Sampling(temperature=1.0))[0])


def test_the_delay_pattern_holds_whatever_is_drawn(generator: HiggsAudioGenerator) -> None:
    tokens = generator.tokens
    (frames,) = ours(generator, [dialogue(generator, **REQUESTS[0])], 60, Sampling(temperature=5.0, top_k=1026, seed=1))
    for k in range(8):
        assert (frames[: k + 1, k] == tokens.stream_bos).all()
    first = int((frames == tokens.stream_eos).any(dim=-1).nonzero()[0])
    assert len(frames) <= first + 9
    for k in range(7):
        assert (frames[first + 1 + k :, k] == tokens.stream_eos).all()


def test_repetitions_are_drawn_again_without_temperature() -> None:
    """Of a code that stands twice among the last seven frames; the others keep what was drawn."""
    logits = torch.zeros(2, 1026)
    logits[:, 5] = 4.0  # certain at temperature 0.01, a few percent without
    recent = torch.full((7, 2), -1)
    recent[2:4, 0] = 5
    drawn = [Sampler(Sampling(temperature=0.01, seed=seed), logits.device).draw(logits, recent) for seed in range(50)]
    assert all(codes[1] == 5 for codes in drawn)
    assert sum(int(codes[0] == 5) for codes in drawn) < 15
    off = Sampler(Sampling(temperature=0.01, ras_window=0, seed=0), logits.device)
    assert off.draw(logits, recent).tolist() == [5, 5]


@pytest.mark.parametrize("chunk_frames", [1, 4, 25])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_stream_is_the_whole_in_pieces(generator: HiggsAudioGenerator, row: int, chunk_frames: int) -> None:
    wanted = REQUESTS[row]
    options: dict[str, Any] = {"scene_description": wanted.get("scene"), "sampling": GREEDY, "max_audio_s": 2.0}
    if "voices" in wanted:
        options |= {"reference_audio": VOICE, "reference_text": "Glue the sheet."}
    whole = generator.generate(wanted["text"], **options)
    stream = generator.stream(wanted["text"], chunk_frames=chunk_frames, **options)
    chunks = list(stream)
    assert len(chunks) > 1 or whole.codes.shape[1] <= 10, "the last frames wait for ten more"
    joined = np.concatenate(chunks)
    np.testing.assert_allclose(joined, whole.audio, rtol=0, atol=1e-4)
    assert np.abs(np.diff(joined)).max() <= np.abs(np.diff(whole.audio)).max() + 1e-4, "no click"
    assert torch.equal(stream.speech.codes, whole.codes)
    assert stream.speech.stopped == whole.stopped
    assert stream.speech.audio is not None
    assert stream.sample_rate == whole.sample_rate
