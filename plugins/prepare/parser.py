"""The parser of ``prepare_dataset.py``: every flag, its type, default and help.

The flags of checking, cutting and processing are made of the fields of `Limits`, `Slicing` and
`Processing`, which hold their defaults, units and texts. Which flags go together,
`plugins.prepare.flags` knows."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from plugins.corpora import Columns
from plugins.prepare.pairing import MIN_REFERENCE_S
from plugins.prepare.processing import Processing
from plugins.prepare.quality import Limits
from plugins.prepare.slicing.settings import Slicing
from plugins.prepare.transcripts import MAX_CER

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
  prepare_dataset.py --dataset_type recordings --input_dir talks --single_speaker ann \\
      --output_file data/ann_train.jsonl --split --validate

exit codes: 0 rows written, 1 unusable input (said in one line, output untouched), 2 wrong usage,
3 rows written but clips were rejected (--strict)
"""
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


def parser_of(program: str) -> argparse.ArgumentParser:
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
    _add_listening(parser)
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
    group = parser.add_argument_group("for --dataset_type recordings, which are cut at pauses")
    group.add_argument(
        "--diarize",
        type=_number_of_speakers,
        metavar="N|auto",
        help="tell N speakers apart by their voices (resemblyzer), or as many as there are",
    )
    group.add_argument(
        "--dialogues",
        action="store_true",
        help="make rows of several turns: of recordings with a channel for each of two speakers, or"
        " of those that --diarize tells apart; shortest clip then 1 s unless --min_clip_s is given",
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


def _add_listening(parser: argparse.ArgumentParser) -> None:
    title = "listening, by faster-whisper: for --dataset_type recordings and --check_transcripts"
    add = parser.add_argument_group(title).add_argument
    add(
        "--check_transcripts",
        nargs="?",
        const=MAX_CER,
        type=_error_rate,
        metavar="MAX_CER",
        help="reject clips in which other words are heard than are written: more errors per letter"
        f" than this ({MAX_CER:g} if no number is given), or a beginning, end or part that only one"
        " of both has; 1: reject none, but list all",
    )
    add("--asr", help="folder or Hub id of its model (default: the English one of its package)")
    add(
        "--language",
        help="what is spoken, e.g. de (default: what the corpus names, or recordings sound like,"
        " else English)",
    )
    add(
        "--beam",
        type=int,
        choices=range(1, 21),
        metavar="N",
        default=5,
        help="its beam; of checked transcripts only where the first hearing is in doubt"
        " (default: %(default)s)",
    )


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
    add(
        "--device",
        default="cpu",
        help="of the codec and of who listens: cpu, cuda, cuda:1 ... (default: %(default)s)",
    )


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


def _error_rate(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 10")
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
