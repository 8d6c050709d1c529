"""The delay pattern against a slow oracle written from its definition, and its inverse."""

import itertools

import pytest
import torch

from plugins import collator
from plugins.delay_pattern import (
    IGNORE_INDEX,
    apply_delay,
    delay_labels,
    num_delayed_frames,
    undo_delay,
)

BOS, EOS = 1024, 1025
LENGTHS = (1, 2, 5, 17)
# Clips shorter than the delay is wide, as long, and longer.
SHAPES = list(itertools.product((1, 2, 3, 8), LENGTHS))


def random_codes(num_codebooks: int, num_frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_frames)
    return torch.randint(1024, (num_codebooks, num_frames), generator=generator)


def oracle(codes: torch.Tensor, step: int, codebook: int) -> int:
    """What stands at `step` of `codebook`: BOS until it starts, its codes, then EOS."""
    frame = step - codebook - 1
    if frame < 0:
        return BOS
    if frame < codes.shape[1]:
        return int(codes[codebook, frame])
    return EOS


@pytest.mark.parametrize(("num_codebooks", "num_frames"), SHAPES)
def test_apply_delay_equals_the_definition(num_codebooks: int, num_frames: int) -> None:
    codes = random_codes(num_codebooks, num_frames)
    frames = apply_delay(codes, bos_id=BOS, eos_id=EOS)
    assert frames.shape == (num_delayed_frames(num_frames, num_codebooks), num_codebooks)
    for step in range(frames.shape[0]):
        for codebook in range(num_codebooks):
            assert frames[step, codebook] == oracle(codes, step, codebook)


@pytest.mark.parametrize(("num_codebooks", "num_frames"), SHAPES)
def test_undo_delay_is_the_inverse(num_codebooks: int, num_frames: int) -> None:
    codes = random_codes(num_codebooks, num_frames)
    assert torch.equal(undo_delay(apply_delay(codes, bos_id=BOS, eos_id=EOS)), codes)


@pytest.mark.parametrize(("num_codebooks", "num_frames"), SHAPES)
def test_labels_are_codes_and_exactly_one_eos(num_codebooks: int, num_frames: int) -> None:
    """Peers mask every EOS, or train all of them; the first never stops, the second stops too
    early."""
    codes = random_codes(num_codebooks, num_frames)
    labels, frames = delay_labels(codes, eos_id=EOS), apply_delay(codes, bos_id=BOS, eos_id=EOS)
    trained = labels != IGNORE_INDEX
    assert torch.equal(labels[trained], frames[trained])
    for codebook in range(num_codebooks):
        column = labels[:, codebook]
        assert column[column != IGNORE_INDEX].tolist() == [*codes[codebook].tolist(), EOS]
        # Where the codebook ends: it starts one step after the one before.
        assert column[codebook + 1 + num_frames] == EOS


@pytest.mark.parametrize("num_codebooks", [1, 2, 3, 8])
def test_the_collator_delays_many_clips_as_by_the_definition(num_codebooks: int) -> None:
    """Its strided copy, for clips of all lengths at once, every other one a reference."""
    clips, frames, labels = [], [], []
    trained = [True, False, True, False]
    for num_frames, is_trained in zip(LENGTHS, trained, strict=True):
        codes = random_codes(num_codebooks, num_frames)
        clips.append(codes)
        frames.append(apply_delay(codes, bos_id=BOS, eos_id=EOS))
        labels.append(delay_labels(codes, eos_id=EOS))
        if not is_trained:
            labels[-1].fill_(IGNORE_INDEX)
    assert torch.equal(collator.apply_delays(clips, bos_id=BOS, eos_id=EOS), torch.cat(frames))
    assert torch.equal(collator.delay_labels_of(clips, trained, eos_id=EOS), torch.cat(labels))


def test_literal_grid() -> None:
    codes = torch.tensor([[1, 2], [3, 4]])  # K = 2, F = 2; transposed below, as papers draw it
    assert apply_delay(codes, bos_id=8, eos_id=9).T.tolist() == [[8, 1, 2, 9, 9], [8, 8, 3, 4, 9]]
    assert delay_labels(codes, eos_id=9).T.tolist() == [
        [-100, 1, 2, 9, -100],
        [-100, -100, 3, 4, 9],
    ]


@pytest.mark.parametrize("shape", [(8,), (8, 0), (1, 8, 3)])
def test_codes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(K, F\)"):
        apply_delay(torch.zeros(shape, dtype=torch.long), bos_id=BOS, eos_id=EOS)


def test_too_few_frames_cannot_be_undone() -> None:
    """Generation that stops at once gives fewer frames than the delay is wide."""
    # K = 8: nothing but the delay, and no frame.
    with pytest.raises(ValueError, match="9 delayed frames"):
        undo_delay(torch.zeros(9, 8, dtype=torch.long))
