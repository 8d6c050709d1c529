"""The collated batch of one row, compared with an oracle of its own and shown readably.

    row, its batch of one: input_ids and labels (1, S), audio_input_ids and audio_labels (1, T, K)
        --audit--> complaints    --render--> text and grid for eyes

The oracle is written from the definition (`plugins.delay_pattern`, the 4 x 8 grid) and shares no
code with what it checks: a defect planted in the delay functions or in the collator shows here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from plugins.data.dialogue import EncodedSample
from plugins.data.tokens import SpecialTokens
from plugins.delay_pattern import IGNORE_INDEX

_EDGE = 10  # columns of the grid that are shown at either end


def audit(
    sample: EncodedSample, batch: dict[str, Tensor], tokens: SpecialTokens, tokenizer: Any
) -> list[str]:
    """What is wrong with `batch`, the collated batch of `sample` alone; each complaint names its
    effect."""
    complaints = [
        *_text_complaints(sample, batch, tokens, tokenizer),
        *_audio_complaints(sample, batch, tokens),
    ]
    # A packed batch has no attention mask: `plugins.training.preflight.packed` looks at what it has
    # instead.
    masks = [batch[name] for name in ("attention_mask", "audio_input_ids_mask") if name in batch]
    if not all(mask.all() for mask in masks):
        complaints.append("a mask hides part of the row, although nothing of it is padding")
    return complaints


def _text_complaints(
    sample: EncodedSample, batch: dict[str, Tensor], tokens: SpecialTokens, tokenizer: Any
) -> Iterator[str]:
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    # Positions that may have a label: all of assistant turns but headers and placeholders.
    allowed: set[int] = set()
    clips_trained = iter(sample.clips_trained)
    starts = [position for position, token in enumerate(ids) if token == tokens.header_start]
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        turn = _turn(ids, start, end, tokens, tokenizer)
        trained = {position for position in turn.text if labels[position] != IGNORE_INDEX}
        # The clips of a request are passed over too: the row counts all of them.
        clips = {next(clips_trained) for _ in range(turn.num_clips)}
        if not turn.is_answer:
            continue
        allowed |= turn.text
        if trained and trained != turn.text:
            missing = tokenizer.decode(ids[min(turn.text - trained)])
            reason = "of a trained turn has no label"
            yield f"{missing!r} {reason}: the model would not learn to write it"
        if clips and clips != {bool(trained)}:
            yield f"the turn at position {start} is trained in its text or in its audio only"
    for position, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label == IGNORE_INDEX:
            continue
        if label != token:
            place = f"text label {label} at position {position} is not its token {token}"
            yield f"{place}: labels must not be shifted yet"
            return
        if position not in allowed:
            place = f"position {position}, {tokenizer.decode(token)!r}, is trained"
            yield f"{place}: the model would learn to write requests or placeholders"
            return


@dataclass(frozen=True)
class _Turn:
    """What the ids of a turn say about it."""

    text: set[int]  # positions of words and of the end of the turn
    num_clips: int
    is_answer: bool


def _turn(ids: list[int], start: int, end: int, tokens: SpecialTokens, tokenizer: Any) -> _Turn:
    """The turn at positions start..end - 1; at `start` stands the token that opens its header."""
    header_end = ids.index(tokens.header_end, start)
    blank = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    assistant = tokenizer("assistant", add_special_tokens=False)["input_ids"]
    body = range(header_end + 1 + len(blank), end)
    codes = {tokens.audio, tokens.audio_delay}
    placeholders = _placeholders(tokens)
    # A clip is a run of placeholders.
    num_clips = 0
    text = set()
    for position in body:
        if ids[position] not in placeholders:
            text.add(position)
        if ids[position] in codes and ids[position - 1] not in codes:
            num_clips += 1
    return _Turn(text, num_clips, is_answer=ids[start + 1 : header_end] == assistant)


def _placeholders(tokens: SpecialTokens) -> set[int]:
    placeholders = {tokens.audio, tokens.audio_delay}
    if tokens.tower is not None:
        placeholders.add(tokens.tower.placeholder)
    return placeholders


def _audio_complaints(
    sample: EncodedSample, batch: dict[str, Tensor], tokens: SpecialTokens
) -> Iterator[str]:
    frames, labels = batch["audio_input_ids"][0], batch["audio_labels"][0]
    if len(frames) != sum(map(num_steps, sample.clips)):
        yield f"{len(frames)} frames for clips of {[codes.shape[1] for codes in sample.clips]}"
        return
    for number, place in enumerate(_places(sample)):
        codes, clip = sample.clips[number], f"clip {number + 1}"
        yield from _frame_complaints(codes, frames[place], clip, tokens)
        if sample.clips_trained[number]:
            yield from _label_complaints(codes, labels[place], clip, tokens)
        elif (labels[place] != IGNORE_INDEX).any():
            reason = "is conditioning but has labels"
            yield f"{clip}: {reason}: the model would learn to repeat its reference"


def _places(sample: EncodedSample) -> Iterator[slice]:
    """Where the delayed frames of each clip stand among those of the row."""
    start = 0
    for codes in sample.clips:
        end = start + num_steps(codes)
        yield slice(start, end)
        start = end


def _frame_complaints(
    codes: Tensor, frames: Tensor, clip: str, tokens: SpecialTokens
) -> Iterator[str]:
    right = expected_frames(codes, tokens)
    if torch.equal(frames, right):
        return
    if torch.equal(frames, expected_frames(codes, tokens, delayed=False)):
        yield f"{clip}: its frames are not delayed: codebook k must stand k steps later"
        return
    step, k = (frames != right).nonzero()[0].tolist()
    wrong = f"{clip}: frame {step} holds {int(frames[step, k])} in codebook {k}"
    yield f"{wrong} instead of {int(right[step, k])}"


def _label_complaints(
    codes: Tensor, labels: Tensor, clip: str, tokens: SpecialTokens
) -> Iterator[str]:
    right = expected_labels(codes, tokens)
    if torch.equal(labels, right):
        return
    # The likeliest causes first, the first wrong entry if it is none of them.
    ends = (labels == tokens.stream_eos).sum(dim=0).tolist()
    if set(ends) != {1}:
        reason = f"{ends} stream-EOS labels per codebook instead of one each"
        yield f"{clip}: {reason}: the model would never stop"
        return
    if torch.equal(labels, expected_labels(codes, tokens, delayed=False)):
        yield f"{clip}: its labels are not delayed: codebook k must stand k steps later"
        return
    for shift in (-1, 1):  # the loss shifts once: not before, and not back
        if torch.equal(labels, torch.roll(right, shift, dims=0)):
            reason = f"its labels are shifted by {shift:+d}"
            yield f"{clip}: {reason}: each codebook would be trained on its neighbour"
            return
    step, k = (labels != right).nonzero()[0].tolist()
    wrong = f"{clip}: label {int(labels[step, k])} at frame {step}, codebook {k}"
    yield f"{wrong} instead of {int(right[step, k])}"


def num_steps(codes: Tensor) -> int:
    """Delayed frames of a clip (K, F)."""
    return codes.shape[1] + codes.shape[0] + 1


def expected_frames(codes: Tensor, tokens: SpecialTokens, *, delayed: bool = True) -> Tensor:
    """(K, F) codes -> (F + K + 1, K) frames, by definition: before a codebook's codes stream BOS,
    after them EOS."""
    return _by_definition(
        codes, tokens.stream_bos, tokens.stream_eos, tokens.stream_eos, delayed=delayed
    )


def expected_labels(codes: Tensor, tokens: SpecialTokens, *, delayed: bool = True) -> Tensor:
    """(K, F) codes -> (F + K + 1, K) labels, by definition: the codes and one stream EOS per
    codebook."""
    return _by_definition(codes, IGNORE_INDEX, tokens.stream_eos, IGNORE_INDEX, delayed=delayed)


def _by_definition(codes: Tensor, before: int, end: int, after: int, *, delayed: bool) -> Tensor:
    """Codebook k of step t is its code of frame t - k - 1, `end` at the first frame that is none,
    `after` beyond."""
    num_codebooks, num_frames = codes.shape
    grid = torch.full((num_steps(codes), num_codebooks), after)
    for k in range(num_codebooks):
        start = 1 + (k if delayed else 0)
        for step in range(num_steps(codes)):
            frame = step - start
            if frame < 0:
                grid[step, k] = before
            elif frame < num_frames:
                grid[step, k] = codes[k, frame]
            elif frame == num_frames:
                grid[step, k] = end
    return grid


def render(
    sample: EncodedSample, batch: dict[str, Tensor], tokens: SpecialTokens, tokenizer: Any
) -> str:
    """The row as the model sees it: trained text in >> <<, each clip as one piece, then the grid of
    its labels."""
    labels = batch["audio_labels"][0]
    num_text = sum(label != IGNORE_INDEX for label in sample.labels)
    num_frames = 0
    grids: list[str] = []
    for number, place in enumerate(_places(sample)):
        if sample.clips_trained[number]:
            num_frames += sample.clips[number].shape[1]
            grids.append(f"labels of clip {number + 1} (. untrained, E end of stream)")
            grids += _grid(labels[place], tokens)
    trained = f"{num_text} text tokens (between >> and <<) and {num_frames} frames"
    title = f"{sample.source}: {len(sample.input_ids)} positions; trained: {trained}"
    return "\n".join([title, *_text(sample, tokens, tokenizer).split("\n"), *grids])


def _text(sample: EncodedSample, tokens: SpecialTokens, tokenizer: Any) -> str:
    pieces: list[str] = []
    position = 0
    clips = iter(range(len(sample.clips)))
    for kind, run in groupby(_kinds(sample, tokens)):
        length = len(list(run))
        ids = sample.input_ids[position : position + length]
        position += length
        if kind == "clip":
            number = next(clips)
            use = "trained" if sample.clips_trained[number] else "conditioning"
            pieces.append(f"[clip {number + 1}: {sample.clips[number].shape[1]} frames, {use}]")
        elif kind == "heard":
            pieces.append(tokenizer.decode(ids[:1]))  # one for all positions of the tower
        elif kind == "trained":
            pieces.append(f">>{tokenizer.decode(ids)}<<")
        else:
            pieces.append(tokenizer.decode(ids))
    return "".join(pieces)


def _kinds(sample: EncodedSample, tokens: SpecialTokens) -> Iterator[str]:
    """What stands at each position."""
    for token, label in zip(sample.input_ids, sample.labels, strict=True):
        if token in {tokens.audio, tokens.audio_delay}:
            yield "clip"
        elif tokens.tower is not None and token == tokens.tower.placeholder:
            yield "heard"
        elif label != IGNORE_INDEX:
            yield "trained"
        else:
            yield "read"


def _grid(labels: Tensor, tokens: SpecialTokens) -> Iterator[str]:
    """(T, K) labels, a line per codebook."""
    special = {IGNORE_INDEX: ".", tokens.stream_eos: "E"}
    for k, column in enumerate(labels.T.tolist()):
        cells = [special.get(label, str(label)).rjust(5) for label in column]
        if len(cells) > 2 * _EDGE:
            cells = [*cells[:_EDGE], "  ...", *cells[-_EDGE:]]
        yield f"codebook {k} " + "".join(cells)
