"""The same audio where it must not be: a target as its own reference, or in training and
validation. Dialogues or files in, errors or pairs out.

A leak makes the loss look perfect: the model learns to copy, and validation measures memory. Files
are compared by content, cheaply: by size first, then by a hash of the files that share one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from plugins.data.dialogue import AudioClip, Dialogue
from plugins.errors import UserError, problem
from plugins.files.disk import file_hash

# A cross-entropy per code that no speech has that the model has not seen (nats).
MEMORISED = 1.0


def own_references(dialogues: Iterable[Dialogue]) -> Iterator[UserError]:
    """One error per row whose reference has the content of its target, in files of any name."""
    for dialogue in dialogues:
        for reference in dialogue.references:
            for target in dialogue.targets():
                if _is_same(reference.clip, target):
                    yield problem(
                        source=dialogue.source,
                        field="reference_audio",
                        value=reference.clip.path or "codes",
                        reason=f"has the same content as the target {target.path or 'codes'}",
                        remedy="give another utterance of the same speaker",
                    )


def shared_audio(train: Iterable[str], validation: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of a training and a validation file with the same content."""
    # Most files have a size of their own: hardly any has to be read.
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in set(train):
        by_size[Path(path).stat().st_size].append(path)
    by_content: dict[int, dict[str, str]] = {}
    pairs = []
    for path in sorted(set(validation)):
        size = Path(path).stat().st_size
        if size not in by_size:
            continue
        if size not in by_content:
            by_content[size] = {file_hash(other): other for other in by_size[size]}
        if twin := by_content[size].get(file_hash(path)):
            pairs.append((twin, path))
    return pairs


def memorised_codebooks(logs: dict[str, float], mode: str, epoch: float) -> dict[str, float]:
    """Losses that are lower than any on speech that the model has not seen: in the first epoch, or
    in evaluation."""
    if mode == "train" and epoch >= 1:
        return {}
    prefix = "loss_audio_cb" if mode == "train" else "eval_loss_audio_cb"
    return {
        name: loss for name, loss in logs.items() if name.startswith(prefix) and loss < MEMORISED
    }


def _is_same(a: AudioClip, b: AudioClip) -> bool:
    if a.codes is not None and b.codes is not None:
        return a.codes.equal(b.codes)
    if a.path is None or b.path is None:
        return False
    if Path(a.path).stat().st_size != Path(b.path).stat().st_size:
        return False  # without reading either
    return file_hash(a.path) == file_hash(b.path)
