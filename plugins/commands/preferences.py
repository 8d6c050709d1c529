"""`higgs-audio preferences`: texts -> takes of each -> the best ones, and pairs for DPO.

    --dataset --plugins.evaluation.taking--> takes, heard --winners--> rows
    --votes   --majority--> pairs of clips --codec--> rows

    OUTPUT.jsonl             pairs: the best take and one that is clearly worse
    OUTPUT_best.jsonl        the best takes, rows for `sft`
    OUTPUT_takes/            all takes, to be gone on with; takes.jsonl: what was heard in them,
                             and why a text has no winner

Exit codes: 0 done, also if some texts have no winner (they are counted), 1 an error that the user
can mend, or no winner at all.
"""

from __future__ import annotations

import errno
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from plugins.audio import waveforms as audio
from plugins.audio.codec import Codec, find_codec
from plugins.commands.app import votes
from plugins.commands.speak import judge_of
from plugins.errors import UserError, problem
from plugins.evaluation.items import Item, read_items
from plugins.evaluation.speaking import systems
from plugins.evaluation.taking import Shard, Taken, Taking
from plugins.evaluation.winners import Verdict, best_row, pair_row, verdict
from plugins.files import disk, lock
from plugins.files.fingerprint import fingerprint
from plugins.files.hub import local_folder
from plugins.hearing.takes import Take, best_first
from plugins.model import load as checkpoint
from plugins.model.adapter_scale import require_scale
from plugins.prepare.rows import write_files
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling
from plugins.speaking.speaker import require_duration

_HEARD = "takes.jsonl"
# What a machine may refuse to a file that was writable when the work began.
_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
Row = dict[str, Any]


def run(options: Namespace) -> int:
    """The subcommand: its exit code."""
    output: Path = options.output
    folder = output.with_name(f"{output.stem}_takes")
    _check_output(options, folder)
    require_scale(options.adapter_scale)
    require_duration(options.max_audio_s)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, own = checkpoint.base_and_adapters(options.model, options.adapters)
    settings = HiggsAudioSettings.of_checkpoint(Path(own or model))
    codec_path = find_codec([model], options.codec or settings.codec)
    codec = Codec(codec_path, device=options.device)
    with _room(output):
        if options.votes:
            return _vote(options, read_items(options.dataset, settings), codec)
        items = read_items(options.dataset, settings, limit=options.limit)
        depends_on = {"codec": fingerprint(Path(local_folder(codec_path, option="codec")))}
        depends_on["prompts"] = settings.prompts
        taking = _take(options, items, folder, codec, depends_on)
        taken = taking.taken()
        if len(taken) < len(items):
            count = f"{len(taken)} of {len(items)} texts are spoken"
            print(f"{folder}: {count}; the process that ends last writes {output}")
            return 0
        held = folder / ".rows.lock"
        # Of processes that end together each is the last one.
        if (holder := lock.take(held)) is not None:
            print(f"{output}: is being written by {holder}")
            return 0
        try:
            return _write(options, items, taken, folder, codec)
        finally:
            lock.release(held)


def _check_output(options: Namespace, folder: Path) -> None:
    output: Path = options.output
    if output.suffix != ".jsonl":
        raise _refused(options, "is no .jsonl file", "name one")
    disk.require_writable(output, field="output")
    disk.require_writable(folder / _HEARD, field="output")
    for path in (output, _best(output)):
        if path.resolve() == Path(options.dataset).resolve():
            raise _refused(options, f"would be written over {path}, which is read", "name another")
        if path.exists() and (options.votes or not folder.is_dir()):
            reason = f"comes with {path.name}, which is there already and not from this work"
            raise _refused(options, reason, "name another file, or move it")
    if options.takes < 2:
        raise problem(
            source="options",
            field="takes",
            value=options.takes,
            reason="leaves nothing to choose from",
            remedy="give 2 or more",
        )


def _refused(options: Namespace, reason: str, remedy: str) -> UserError:
    value = str(options.output)
    return problem(source="options", field="output", value=value, reason=reason, remedy=remedy)


@contextmanager
def _room(output: Path) -> Iterator[None]:
    """A disk that is full becomes one line; what was spoken is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in _WRITING:
            raise
        raise problem(
            source="options",
            field="output",
            value=str(output),
            reason=f"cannot be written ({error.strerror})",
            remedy="mend that and give the same command again: it goes on",
        ) from None


def _take(
    options: Namespace, items: Sequence[Item], folder: Path, codec: Codec, depends_on: Row
) -> Taking:
    """All takes of this process's texts, those of before among them."""
    sampling = Sampling(options.temperature, options.top_k, options.top_p, best_of=options.takes)
    judge = judge_of(options)
    # With LoRA weights their base stands before them.
    system = systems(
        options.model,
        adapters=options.adapters,
        codec=codec,
        adapter_scale=options.adapter_scale,
        device=options.device,
        quantization=options.quantization,
        judge=judge,
    )[-1]
    drawing = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p")}
    settings = {
        **depends_on,
        "model": system.depends_on,
        "judge": judge.identity,
        "sampling": drawing,
        "takes": options.takes,
        "seed": options.seed,
        "max_audio_s": options.max_audio_s,
        "batch_size": options.batch_size,
    }
    shard = Shard(*options.shard)
    taking = Taking(items, folder, settings, batch_size=options.batch_size)
    # Rows may be written anew, with another --margin: no model is loaded for it.
    if taking.waiting(shard):
        taking.speak(
            system.generator(),
            shard,
            sampling=sampling,
            seed=options.seed,
            max_audio_s=options.max_audio_s,
        )
    return taking


def _write(
    options: Namespace,
    items: Sequence[Item],
    taken: Mapping[str, Taken],
    folder: Path,
    codec: Codec,
) -> int:
    output: Path = options.output
    verdicts: dict[str, Verdict] = {}
    heard: list[Row] = []
    for item in items:
        of_item = taken[item.id]
        chosen = Verdict(reason=of_item.error)
        if of_item.error is None:
            chosen = verdict(of_item.takes, max_wer=options.max_wer, margin=options.margin)
        verdicts[item.id] = chosen
        takes = [asdict(take) for take in of_item.takes]
        for number, take in enumerate(takes):
            take["is_best"] = number == chosen.best
        heard.append({"id": item.id, "text": item.text, **asdict(chosen), "takes": takes})
    write_files({folder / _HEARD: heard})
    _summarize(items, taken, verdicts)
    winners = [item for item in items if verdicts[item.id].best is not None]
    if not winners:
        raise problem(
            source=str(folder / _HEARD),
            field="takes",
            value=len(items),
            reason="texts have no winner: no row is written",
            remedy="look at the reasons there; train longer, raise --max_wer or --max_audio_s, or,"
            " for texts that are not English, give --language and --asr",
        )
    paired = [item for item in winners if verdicts[item.id].rejected is not None]

    def pairs() -> Iterator[Row]:
        for item in paired:
            chosen, of_item = verdicts[item.id], taken[item.id]
            assert chosen.best is not None
            assert chosen.rejected is not None
            codes = of_item.codes(chosen.best), of_item.codes(chosen.rejected)
            yield pair_row(item, *codes, _earlier(item, codec))

    def best() -> Iterator[Row]:
        for item in winners:
            number = verdicts[item.id].best
            assert number is not None
            yield best_row(item, taken[item.id].codes(number), _earlier(item, codec))

    write_files({_best(output): best(), output: pairs()})
    print(f"{_best(output)}: {len(winners)} best takes of {len(items)} texts")
    print(f"{output}: {len(paired)} pairs")
    return 0


def _best(output: Path) -> Path:
    return output.with_stem(f"{output.stem}_best")


def _summarize(
    items: Sequence[Item], taken: Mapping[str, Taken], verdicts: Mapping[str, Verdict]
) -> None:
    """What choosing gains, and which texts have no winner."""
    first: list[Take] = []
    best: list[Take] = []
    for item in items:
        if takes := taken[item.id].takes:
            first.append(takes[0])
            best.append(takes[best_first(takes)[0]])
    for name, of_name in (("first takes", first), ("best takes, by who chose them", best)):
        if of_name:
            wer = sum(take.wer or 0.0 for take in of_name) / len(of_name)
            stopped = sum(take.stopped for take in of_name)
            print(f"{name}: WER {100 * wer:.1f} %, {stopped} of {len(of_name)} stopped")
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for id_, chosen in verdicts.items():
        if chosen.reason is not None:
            reason, example = chosen.reason, id_
            # Each text's own words would make a kind of their own of every failure.
            if taken[id_].error is not None:
                reason, example = "cannot be spoken", chosen.reason
            reasons[reason] += 1
            examples.setdefault(reason, example)
    for reason, count in reasons.most_common():
        print(f"without a pair: {count}: {reason} (first: {examples[reason]})", file=sys.stderr)


def _earlier(item: Item, codec: Codec) -> list[Tensor]:
    """Codes of the clips in the turns before the one that was spoken."""
    codes = []
    for turn in item.dialogue.turns:
        for clip in turn.clips():
            codes.append(_codes(clip.path, codec) if clip.codes is None else clip.codes)
    return codes


@lru_cache(maxsize=10_000)  # a winner's earlier turns stand in two rows
def _codes(path: str | Path | None, codec: Codec) -> Tensor:
    assert path is not None
    try:
        return codec.encode_file(str(path))
    except audio.AudioError as error:
        raise problem(
            source="options",
            field="audio",
            value=str(path),
            reason=error.reason,
            remedy=error.remedy,
        ) from None


def _vote(options: Namespace, items: Sequence[Item], codec: Codec) -> int:
    """Pairs that listeners have decided. Ties, and items that the dataset has not, are counted."""
    by_id = {item.id: item for item in items}
    decided: list[tuple[Item, Path, Path]] = []
    left: Counter[str] = Counter()
    for folder in options.votes:
        counted = _counted(folder)
        cut = votes.cut(folder)
        for (id_, one, two), counts in counted.items():
            if id_ not in by_id:
                left["the dataset has no such id"] += 1
            elif {(id_, one), (id_, two)} & cut:
                left["a clip was cut, so that its end is none"] += 1
            elif counts[one] == counts[two]:
                left["no more votes for one than for the other"] += 1
            else:
                better, worse = (one, two) if counts[one] > counts[two] else (two, one)
                pair = votes.Pair(id_, "", better, worse, folder)
                decided.append((by_id[id_], pair.audio(votes.A), pair.audio(votes.B)))
    for reason, count in left.items():
        print(f"without a pair: {count}: {reason}", file=sys.stderr)
    if not decided:
        raise problem(
            source=", ".join(map(str, options.votes)),
            field="votes",
            value=sum(left.values()),
            reason="decide no pair of this dataset",
            remedy="vote on, or give the --dataset that was evaluated",
        )

    def pairs() -> Iterator[Row]:
        for item, better, worse in tqdm(decided, desc="codes", unit="pair", disable=None):
            codes = _codes(better, codec), _codes(worse, codec)
            yield pair_row(item, *codes, _earlier(item, codec))

    write_files({options.output: pairs()})
    print(f"{options.output}: {len(decided)} pairs")
    return 0


def _counted(folder: Path) -> dict[tuple[str, str, str], Counter[str]]:
    """Item and two systems -> votes for either."""
    cast = votes.read(folder)
    if not cast:
        reason, remedy = f"holds no {votes.VOTES} with votes", "give an evaluation that has some"
        if not os.path.isdir(folder):
            reason, remedy = "is no folder", "give that of an evaluation"
        raise problem(
            source="options", field="votes", value=str(folder), reason=reason, remedy=remedy
        )
    counted: dict[tuple[str, str, str], Counter[str]] = {}
    for vote in cast:
        one, two = sorted((vote["a"], vote["b"]))
        counted.setdefault((vote["item"], one, two), Counter())[vote["better"]] += 1
    return counted
