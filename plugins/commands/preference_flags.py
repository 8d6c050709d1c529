"""Flags of `higgs-audio preferences`. Torch-free: the command line starts fast."""

from __future__ import annotations

import argparse
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from plugins.commands import flags


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Beside the other `commands` of a parser."""
    command: argparse.ArgumentParser = commands.add_parser(
        "preferences",
        help="speak texts several times: the best takes to train on, and pairs for DPO",
        description="Takes of each text, with fixed seeds, are heard and ranked: OUTPUT gets pairs"
        " of the best and a clearly worse one, OUTPUT_best.jsonl the best ones. The same command"
        " goes on after a kill.",
    )
    flags.model_flags(command, required=True)
    flags.scale_flag(command)
    add = command.add_argument
    add("--dataset", required=True, help='texts: JSONL ({"text": ...}, or rows as for training)')
    add("--output", type=Path, required=True, help=".jsonl file; OUTPUT_takes/ beside it goes on")
    add("--takes", type=flags.positive, default=8, help="of each text (default: %(default)s)")
    add("--limit", type=flags.positive, help="only the first texts")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add(
        "--max_wer",
        type=_share,
        default=0.2,
        help="wrong words per word of a best take, at most (default: %(default)s)",
    )
    add(
        "--margin",
        type=_share,
        default=0.05,
        help="how much more the rejected take of a pair has (default: %(default)s)",
    )
    add(
        "--shard",
        type=_shard,
        metavar="I/N",
        default=(1, 1),
        help="speak the I-th part of N, each on a GPU of its own; the last to end writes OUTPUT",
    )
    add(
        "--votes",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="speak nothing: pairs from the blind votes in these evaluations of --dataset",
    )
    flags.hearing_flags(command)
    flags.speaking_flags(command, batch_size=2)
    return command


def _shard(text: str) -> tuple[int, int]:
    """``2/4`` -> the second of four."""
    shard = re.fullmatch(r"0*([1-9][0-9]{0,5})/0*([1-9][0-9]{0,5})", text, re.ASCII)
    if shard is None or int(shard[1]) > int(shard[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard: write 2/4 for the second of four")
    return int(shard[1]), int(shard[2])


def _share(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
