"""The flags of ``prepare_dataset.py``: which of them belong to which corpus, and to each other.

In: the arguments of the command. Out: a namespace with every flag. A flag that would have no effect
is wrong usage."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from plugins.prepare.parser import parser_of
from plugins.prepare.quality import Limits, flag_problem
from plugins.prepare.slicing.settings import Slicing

_LISTS = {"custom": "csv_file", "gpt_sovits": "list_file", "jsonl": "jsonl_file"}
_RECORDINGS = "dataset_type recordings"
_LISTENING = ("check_transcripts", _RECORDINGS)
# Flags that only others give an effect, any one of them.
_NEEDED = {
    "val_ratio": ("split",),
    "test_ratio": ("split",),
    "split_by_speaker": ("split",),
    "without_reference": ("references",),
    "min_similarity": ("references",),
    "codec": ("encode_codes",),
    "codes_dir": ("encode_codes",),
    "device": ("encode_codes", *_LISTENING),
    "asr": _LISTENING,
    "language": _LISTENING,
    "beam": _LISTENING,
    "trim_below_db": ("trim",),
    "trim_padding_s": ("trim",),
}
# Limits of what only decoding every sample tells.
_OF_SAMPLES = ("max_clipped_share", "max_silence_share", "silence_below_db", "max_dc_offset")
_OF_RECORDINGS = ("diarize", "dialogues", *(field.name for field in dataclasses.fields(Slicing)))
_COPIES = ("speed_factors", "noise_snr_db")
_SHORTEST_TURN_S = 1.0  # "Yes, I do."
COLUMN_FLAGS = (
    "text_column",
    "audio_column",
    "speaker_column",
    "id_column",
    "language_column",
    "reference_audio_column",
    "reference_text_column",
)


def parse(argv: Sequence[str] | None, *, program: str = "prepare_dataset.py") -> argparse.Namespace:
    """The flags, and under `given` the names of those that stand in `argv`.

    argv: None for the process's own. program: what was typed before it. Ends the process on wrong
    usage, as argparse does.
    """
    parser = parser_of(program)
    args = parser.parse_args(argv)
    kind = args.dataset_type
    if kind in _LISTS and getattr(args, _LISTS[kind]) is None:
        parser.error(f"--dataset_type {kind} needs --{_LISTS[kind]}")
    for flag, types in _owners().items():
        if kind not in types and getattr(args, flag) is not None:
            parser.error(f"--{flag} belongs to --dataset_type {' or '.join(types)}")
    if args.reference_text_column is not None and args.reference_audio_column is None:
        parser.error("--reference_text_column needs --reference_audio_column")
    args.given = _given(parser, argv)
    _check_effects(parser, args)
    if args.dialogues and "min_clip_s" not in args.given:
        args.min_clip_s = _SHORTEST_TURN_S
    if args.references and kind == "ljspeech" and args.single_speaker is None:
        args.single_speaker = "LJ"  # one speaker read it all
    return args


def _check_effects(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the process on a flag that nothing gives an effect."""
    for flag in _OF_RECORDINGS:
        if flag in args.given and args.dataset_type != "recordings":
            parser.error(f"--{flag} belongs to --dataset_type recordings")
    for flag, needed in _NEEDED.items():
        if flag in args.given and not any(_is_on(args, name) for name in needed):
            parser.error(f"--{flag} has no effect without --{' or --'.join(needed)}")
    checked = args.check_transcripts is not None and args.dataset_type == "recordings"
    # Hours later there would be a clip whose language nobody is sure of.
    if checked and args.asr is not None and args.language is None:
        parser.error("--check_transcripts of recordings needs --language with --asr")
    if args.trim == "vad" and "trim_below_db" in args.given:
        parser.error("--trim_below_db has no effect without --trim energy")
    if args.single_speaker is not None and args.diarize is not None:
        parser.error("--diarize has no effect with --single_speaker")
    if args.single_speaker is not None and args.dialogues:
        parser.error("--dialogues has no effect with --single_speaker")
    for flag in _COPIES:
        if args.dialogues and flag in args.given:
            parser.error(f"--{flag} copies single clips, and --dialogues makes turns of them")
    if args.single_speaker is not None and args.speaker_column is not None:
        parser.error("--speaker_column has no effect with --single_speaker")


def _is_on(args: argparse.Namespace, name: str) -> bool:
    if name == _RECORDINGS:
        return bool(args.dataset_type == "recordings")
    value = getattr(args, name)
    return not (value is None or value is False or value == "none")  # a limit of 0 is one


def _given(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """The flags that stand in `argv`, with the value of their default too."""
    absent = object()
    names = vars(parser.parse_args(argv))
    # What argparse finds in a namespace it does not replace by its default.
    args = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names, absent)))
    return {name for name, value in vars(args).items() if value is not absent}


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits of the flags. Raises UserError for one that is out of bounds or never asked."""
    limits: Limits = from_flags(Limits, args)
    decodes = args.validate == "full" or args.audio_output is not None
    opens = decodes or args.validate or needs_headers(args)
    for field in dataclasses.fields(Limits):
        of_samples = field.name in _OF_SAMPLES
        if field.name in args.given and not (decodes if of_samples else opens):
            level = " full" if of_samples else ""
            value, reason = getattr(args, field.name), "has no effect: nothing is measured"
            raise flag_problem(field.name, value, reason, f"add --validate{level}")
    return limits


def needs_headers(args: argparse.Namespace) -> bool:
    """Whether the lengths of all clips are needed, without `--validate` too."""
    listens = any(_is_on(args, name) for name in _LISTENING)
    return bool(args.references or args.encode_codes or listens)


def from_flags(knobs: type, args: argparse.Namespace) -> Any:
    """A dataclass of knobs from the flags that the parser made of its fields."""
    return knobs(**{field.name: getattr(args, field.name) for field in dataclasses.fields(knobs)})


def _owners() -> dict[str, tuple[str, ...]]:
    """Flag -> the dataset types that it belongs to, of flags that do not belong to all."""
    owners: dict[str, tuple[str, ...]] = {flag: (kind,) for kind, flag in _LISTS.items()}
    owners |= dict.fromkeys(COLUMN_FLAGS, ("custom", "huggingface"))
    owners |= dict.fromkeys(("delimiter", "no_header", "no_quotes"), ("custom",))
    owners |= dict.fromkeys(("hf_config", "hf_split"), ("huggingface",))
    owners["mic"] = ("vctk",)
    return owners
