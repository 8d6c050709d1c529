"""The collated batch of one row, compared with an oracle of its own and shown readably. L3.

The oracle is written from the definition (`plugins.delay_pattern`, the 4 x 8 grid) and shares no
code with what it checks: a defect planted in the delay functions or in the collator shows here."""

from __future__ import annotations

from collections.abc import Iterator
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
    if not all(
        batch[mask].all() for mask in ("attention_mask", "audio_input_ids_mask") if mask in batch
    ):
        complaints.append("a mask hides part of the row, although nothing of it is padding")
    return complaints


def _text_complaints(
    sample: EncodedSample, batch: dict[str, Tensor], tokens: SpecialTokens, tokenizer: Any
) -> Iterator[str]:
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    assistant, blank = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("assistant", "\n\n")
    )
    placeholders = _placeholders(tokens)
    clips_trained = iter(sample.clips_trained)
    allowed: set[int] = (
        set()
    )  # positions that may have a label: all of assistant turns but headers and placeholders
    starts = [position for position, token in enumerate(ids) if token == tokens.header_start]
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        body = ids.index(tokens.header_end, start) + 1
        turn = range(body + len(blank), end)
        text = {position for position in turn if ids[position] not in placeholders}
        trained = {position for position in text if labels[position] != IGNORE_INDEX}
        codes = {tokens.audio, tokens.audio_delay}
        num_clips = sum(
            ids[position] in codes and ids[position - 1] not in codes for position in turn
        )
        clips = {next(clips_trained) for _ in range(num_clips)}
        if ids[start + 1 : body - 1] != assistant:
            continue
        allowed |= text
        if trained and trained != text:
            missing = tokenizer.decode(ids[min(text - trained)])
            yield f"{missing!r} of a trained turn has no label: the model would not learn to write it"
        if clips and clips != {bool(trained)}:
            yield f"the turn at position {start} is trained in its text or in its audio only"
    for position, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label == IGNORE_INDEX:
            continue
        if label != token:
            yield f"text label {label} at position {position} is not its token {token}: labels must not be shifted yet"
            return
        if position not in allowed:
            shown = tokenizer.decode(token)
            yield f"position {position}, {shown!r}, is trained: the model would learn to write requests or placeholders"
            return


def _placeholders(tokens: SpecialTokens) -> set[int]:
    heard = set() if tokens.tower is None else {tokens.tower.placeholder}
    return {tokens.audio, tokens.audio_delay, *heard}


def _audio_complaints(
    sample: EncodedSample, batch: dict[str, Tensor], tokens: SpecialTokens
) -> Iterator[str]:
    frames, labels = batch["audio_input_ids"][0], batch["audio_labels"][0]
    if len(frames) != sum(num_steps(codes) for codes in sample.clips):
        yield f"{len(frames)} frames for clips of {[codes.shape[1] for codes in sample.clips]}"
        return
    start = 0
    for clip, (codes, trained) in enumerate(
        zip(sample.clips, sample.clips_trained, strict=True), start=1
    ):
        end = start + num_steps(codes)
        yield from _clip_complaints(codes, frames[start:end], f"clip {clip}", tokens)
        yield from _label_complaints(
            codes, labels[start:end], f"clip {clip}", tokens, trained=trained
        )
        start = end


def _clip_complaints(
    codes: Tensor, frames: Tensor, clip: str, tokens: SpecialTokens
) -> Iterator[str]:
    if torch.equal(frames, expected_frames(codes, tokens)):
        return
    if torch.equal(frames, expected_frames(codes, tokens, delayed=False)):
        yield f"{clip}: its frames are not delayed: codebook k must stand k steps later"
        return
    step, k = (frames != expected_frames(codes, tokens)).nonzero()[0].tolist()
    right = int(expected_frames(codes, tokens)[step, k])
    yield f"{clip}: frame {step} holds {int(frames[step, k])} in codebook {k} instead of {right}"


def _label_complaints(
    codes: Tensor, labels: Tensor, clip: str, tokens: SpecialTokens, *, trained: bool
) -> Iterator[str]:
    if not trained:
        if (labels != IGNORE_INDEX).any():
            yield f"{clip}: is conditioning but has labels: the model would learn to repeat its reference"
        return
    right = expected_labels(codes, tokens)
    if torch.equal(labels, right):
        return
    ends = (labels == tokens.stream_eos).sum(dim=0).tolist()
    if set(ends) != {1}:
        yield f"{clip}: {ends} stream-EOS labels per codebook instead of one each: the model would never stop"
    elif torch.equal(labels, expected_labels(codes, tokens, delayed=False)):
        yield f"{clip}: its labels are not delayed: codebook k must stand k steps later"
    else:
        for shift in (-1, 1):
            if torch.equal(labels, torch.roll(right, shift, dims=0)):
                yield f"{clip}: its labels are shifted by {shift:+d}: each codebook would be trained on its neighbour"
                return
        step, k = (labels != right).nonzero()[0].tolist()
        yield f"{clip}: label {int(labels[step, k])} at frame {step}, codebook {k} instead of {int(right[step, k])}"


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

    def entry(step: int, k: int) -> int:
        frame = step - (k if delayed else 0) - 1
        if frame < 0:
            return before
        if frame < num_frames:
            return int(codes[k, frame])
        return end if frame == num_frames else after

    return torch.tensor(
        [[entry(step, k) for k in range(num_codebooks)] for step in range(num_steps(codes))]
    )


def render(
    sample: EncodedSample, batch: dict[str, Tensor], tokens: SpecialTokens, tokenizer: Any
) -> str:
    """The row as the model sees it: trained text in >> <<, each clip as one piece, then the grid of
    its labels."""
    labels = batch["audio_labels"][0]
    num_text = sum(label != IGNORE_INDEX for label in sample.labels)
    num_frames = sum(
        codes.shape[1]
        for codes, trained in zip(sample.clips, sample.clips_trained, strict=True)
        if trained
    )
    lines = [
        f"{sample.source}: {len(sample.input_ids)} positions; trained: {num_text} text tokens (between >> and <<)"
        f" and {num_frames} frames",
        *_text(sample, tokens, tokenizer).splitlines(),
    ]
    start = 0
    for clip, (codes, trained) in enumerate(
        zip(sample.clips, sample.clips_trained, strict=True), start=1
    ):
        end = start + num_steps(codes)
        if trained:
            lines += [
                f"labels of clip {clip} (. untrained, E end of stream)",
                *_grid(labels[start:end], tokens),
            ]
        start = end
    return "\n".join(lines)


def _text(sample: EncodedSample, tokens: SpecialTokens, tokenizer: Any) -> str:
    pieces: list[str] = []
    run: list[int] = []
    run_trained = False
    clip = 0

    def flush() -> None:
        if run:
            text = tokenizer.decode(run)
            pieces.append(f">>{text}<<" if run_trained else text)
            run.clear()

    previous_is_audio = False
    heard = None if tokens.tower is None else tokens.tower.placeholder
    for token, label in zip(sample.input_ids, sample.labels, strict=True):
        if token == heard:
            if run and run[-1] != heard:
                run.append(token)  # one for all positions of the tower
            continue
        is_audio = token in {tokens.audio, tokens.audio_delay}
        trained = label != IGNORE_INDEX
        if is_audio or (run and trained != run_trained):
            flush()
        if is_audio and not previous_is_audio:
            kind = "trained" if sample.clips_trained[clip] else "conditioning"
            pieces.append(f"[clip {clip + 1}: {sample.clips[clip].shape[1]} frames, {kind}]")
            clip += 1
        if not is_audio:
            run.append(token)
            run_trained = trained
        previous_is_audio = is_audio
    flush()
    return "".join(pieces)


def _grid(labels: Tensor, tokens: SpecialTokens) -> Iterator[str]:
    """(T, K) labels, a line per codebook."""
    for k, column in enumerate(labels.T.tolist()):
        cells = [
            "." if label == IGNORE_INDEX else "E" if label == tokens.stream_eos else str(label)
            for label in column
        ]
        if len(cells) > 2 * _EDGE:
            cells = [*cells[:_EDGE], "...", *cells[-_EDGE:]]
        yield f"codebook {k} " + "".join(f"{cell:>5}" for cell in cells)
