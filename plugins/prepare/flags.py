"""The flags of ``prepare_dataset.py``, and which of them belong to which corpus.

In: the arguments of the command. Out: a namespace with every flag. A flag that would have no effect
is wrong usage. The flags of checking and processing are made of the fields of `Limits` and
`Processing`, which hold their defaults, units and texts."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plugins.corpora import Columns
from plugins.prepare.pairing import MIN_REFERENCE_S
from plugins.prepare.processing import Processing
from plugins.prepare.quality import Limits, flag_problem
from plugins.prepare.slicing.settings import Slicing

_EPILOG = """\
Rows hold absolute audio paths. Every utterance left out is listed in OUTPUT.rejected.jsonl with its
reason. Kill the command at any moment and start it again: finished clips are not done again, and
the result is the same to the byte.

examples:
  prepare_dataset.py --dataset_type ljspeech --input_dir LJSpeech-1.1 \\
      --output_file data/lj_train.jsonl --split --validate --encode_codes
  prepare_dataset.py --dataset_type vctk --input_dir VCTK-Corpus \\
      --output_file data/vctk_train.jsonl --split --references \\
      --audio_output data/vctk_24k --trim energy --workers 8
  prepare_dataset.py --dataset_type custom --input_dir clips --csv_file clips.csv \\
      --audio_column filename --text_column transcript --speaker_column speaker_id \\
      --output_file data/clips_train.jsonl --split
  prepare_dataset.py --dataset_type recordings --input_dir talks --single_speaker ann \
      --output_file data/ann_train.jsonl --split --validate

exit codes: 0 rows written, 1 unusable input (said in one line, output untouched), 2 wrong usage,
3 rows written but clips were rejected (--strict)
"""
_LISTS = {"custom": "csv_file", "gpt_sovits": "list_file", "jsonl": "jsonl_file"}
_TYPES = (
    "ljspeech",
    "vctk",
    "libritts",
    "folder",
    "custom",
    "gpt_sovits",
    "kaldi",
    "jsonl",
    "huggingface",
    "recordings",
)
# Flags that only another one gives an effect.
_NEEDED = {
    "val_ratio": "split",
    "test_ratio": "split",
    "split_by_speaker": "split",
    "without_reference": "references",
    "min_similarity": "references",
    "codec": "encode_codes",
    "codes_dir": "encode_codes",
    "device": "encode_codes",
    "trim_below_db": "trim",
    "trim_padding_s": "trim",
}
# Limits of what only decoding every sample tells.
_OF_SAMPLES = ("max_clipped_share", "max_silence_share", "silence_below_db", "max_dc_offset")
_OF_RECORDINGS = (
    "asr",
    "language",
    "beam",
    "diarize",
    *(field.name for field in dataclasses.fields(Slicing)),
)
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
    parser = _parser(program)
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
    for flag in _OF_RECORDINGS:
        if flag in args.given and kind != "recordings":
            parser.error(f"--{flag} belongs to --dataset_type recordings")
    for flag, needed in _NEEDED.items():
        if flag == "device" and kind == "recordings":
            continue  # where they are heard
        if flag in args.given and getattr(args, needed) in (False, "none"):
            parser.error(f"--{flag} has no effect without --{needed}")
    if args.trim == "vad" and "trim_below_db" in args.given:
        parser.error("--trim_below_db has no effect without --trim energy")
    if args.single_speaker is not None and args.diarize is not None:
        parser.error("--diarize has no effect with --single_speaker")
    if args.single_speaker is not None and args.speaker_column is not None:
        parser.error("--speaker_column has no effect with --single_speaker")
    if args.references and kind == "ljspeech" and args.single_speaker is None:
        args.single_speaker = "LJ"  # one speaker read it all
    return args


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
    opens = decodes or args.validate or args.references or args.encode_codes
    for field in dataclasses.fields(Limits):
        of_samples = field.name in _OF_SAMPLES
        if field.name in args.given and not (decodes if of_samples else opens):
            level = " full" if of_samples else ""
            value, reason = getattr(args, field.name), "has no effect: nothing is measured"
            raise flag_problem(field.name, value, reason, f"add --validate{level}")
    return limits


def from_flags(knobs: type, args: argparse.Namespace) -> Any:
    """A dataclass of knobs from the flags that `_add_knobs` made of it."""
    return knobs(**{field.name: getattr(args, field.name) for field in dataclasses.fields(knobs)})


def _owners() -> dict[str, tuple[str, ...]]:
    """Flag -> the dataset types that it belongs to, of flags that do not belong to all."""
    owners: dict[str, tuple[str, ...]] = {flag: (kind,) for kind, flag in _LISTS.items()}
    owners |= dict.fromkeys(COLUMN_FLAGS, ("custom", "huggingface"))
    owners |= dict.fromkeys(("delimiter", "no_header", "no_quotes"), ("custom",))
    owners |= dict.fromkeys(("hf_config", "hf_split"), ("huggingface",))
    owners["mic"] = ("vctk",)
    return owners


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Turn a speech corpus into the rows that Higgs-Audio V2 is fine-tuned on, as"
        " JSONL.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # An abbreviation would change its meaning with the next flag.
        allow_abbrev=False,
    )
    # In the order of --help, which is that of the work.
    _add_general(parser)
    _add_corpora(parser)
    _add_recordings(parser)
    _add_validation(parser)
    _add_split(parser)
    _add_references(parser)
    _add_processing(parser)
    _add_codes(parser)
    return parser


def _add_general(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset_type", required=True, choices=_TYPES, help="the layout of the corpus")
    add(
        "--input_dir",
        required=True,
        help="its folder, or the id of a Hugging Face dataset; paths in lists start there",
    )
    add(
        "--output_file",
        required=True,
        type=Path,
        help="the JSONL to write, e.g. data/ljspeech_train.jsonl",
    )
    add(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes that check clips (default: %(default)s)",
    )
    add(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="ray: the workers of a Ray cluster",
    )
    add(
        "--seed",
        type=int,
        default=42,
        help="of split, pairs and noise; the same seed, the same rows (default: 42)",
    )
    add("--audio_root", type=Path, help="refuse paths of lists and links that lead out of here")
    add(
        "--single_speaker",
        metavar="NAME",
        help="name every clip's speaker: they are all of one voice",
    )


def _add_corpora(parser: argparse.ArgumentParser) -> None:
    # No defaults here: None is how `parse` knows that a flag was not given.
    title = "for --dataset_type custom, gpt_sovits, jsonl, huggingface and vctk"
    add = parser.add_argument_group(title).add_argument
    add("--csv_file", type=Path, help="CSV or TSV with a header")
    add(
        "--no_header",
        action="store_const",
        const=True,
        help="it begins with a recording; columns are called 1, 2 ... (audio 1, text 2)",
    )
    add(
        "--delimiter",
        help="any one character, or \\t (default: the best of comma, semicolon, bar and tab)",
    )
    add(
        "--no_quotes",
        action="store_const",
        const=True,
        help="quotes are text, as in Common Voice's TSV files",
    )
    add("--list_file", type=Path, help="GPT-SoVITS list: path|speaker|language|text")
    add("--jsonl_file", type=Path, help="rows: our own, flat ones, Boson's ChatML")
    add("--text_column", help=f"the transcript (default: {Columns.text})")
    add("--audio_column", help=f"the audio file; may lack its extension (default: {Columns.audio})")
    add("--speaker_column", help="the speaker (default: speakers are not named)")
    add("--id_column", help="the clip's id (default: its path)")
    add("--language_column", help="the language (default: not named)")
    add(
        "--reference_audio_column",
        help="a voice to clone, another clip of the speaker (default: reference_audio or ref_audio,"
        " if there)",
    )
    add("--reference_text_column", help="what that clip says (default: reference_text or ref_text)")
    add("--hf_config", help="configuration of a Hugging Face dataset")
    add("--hf_split", help="split of a Hugging Face dataset")
    add("--mic", type=int, choices=(1, 2), help="microphone of VCTK (default: 1)")


def _add_recordings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "for --dataset_type recordings, which are cut at pauses and heard by faster-whisper"
    )
    add = group.add_argument
    add("--asr", help="folder or Hub id of its model (default: the English one of its package)")
    add("--language", help="what is spoken, e.g. de (default: as it is heard)")
    add(
        "--beam",
        type=int,
        choices=range(1, 21),
        metavar="N",
        default=5,
        help="its beam (default: 5)",
    )
    add(
        "--diarize",
        type=_number_of_speakers,
        metavar="N|auto",
        help="tell N speakers apart by their voices (resemblyzer), or as many as there are",
    )
    _add_knobs(group, Slicing)


def _add_validation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("validation")
    # Without a value it is the thorough one: who asks for validation wants to rely on it.
    group.add_argument(
        "--validate",
        nargs="?",
        const="full",
        choices=("header", "full"),
        help="reject unfit clips, by their headers alone or (default) by every sample;"
        " writes a report",
    )
    group.add_argument("--strict", action="store_true", help="exit with 3 if any clip was rejected")
    _add_knobs(group, Limits)


def _add_split(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("split").add_argument
    add("--split", action="store_true", help="set validation rows apart in ..._val.jsonl")
    add("--val_ratio", type=_ratio, default=0.05, help="their share (default: %(default)s)")
    add("--test_ratio", type=_ratio, default=0.0, help="share of ..._test.jsonl (default: none)")
    add(
        "--split_by_speaker",
        action="store_true",
        help="validate on voices that are not trained",
    )


def _add_references(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("references to clone from").add_argument
    add(
        "--references",
        action="store_true",
        help="give each clip another one of its speaker and side,"
        f" of {MIN_REFERENCE_S:g} s or more, with transcript",
    )
    add(
        "--without_reference",
        type=_share,
        default=0.1,
        help="share without (default: %(default)s)",
    )
    add("--min_similarity", type=float, help="lowest speaker similarity, by resemblyzer")


def _add_processing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("processing, to 24 kHz mono")
    group.add_argument(
        "--audio_output",
        type=Path,
        help="folder for processed clips; originals stay as they are",
    )
    _add_knobs(group, Processing)


def _add_codes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("codes").add_argument
    add(
        "--encode_codes",
        action="store_true",
        help="encode every clip now, so that training does not",
    )
    add("--codec", help="codec folder or Hub id (default: the published one)")
    add(
        "--codes_dir",
        type=Path,
        help="folder of the code cache (default: codes/ beside the output)",
    )
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: %(default)s)")


def _add_knobs(group: Any, knobs: type) -> None:
    """A flag per field of a dataclass made with `plugins.prepare.quality.knob`."""
    for field in dataclasses.fields(knobs):
        about, text = field.metadata, field.metadata["help"]
        if field.default not in (None, ()):
            default = f"{field.default} {about['unit']}".strip()
            text += f" (default: {default})"
        group.add_argument(
            f"--{field.name}",
            type=about["parse"],
            default=field.default,
            choices=about["choices"],
            help=text,
        )


def _ratio(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _number_of_speakers(text: str) -> int:
    """0 stands for auto."""
    if text == "auto":
        return 0
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text} is neither auto nor a number from 1 to 100")
    return int(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value
