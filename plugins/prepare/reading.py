"""The flags of a corpus -> its reader's entries. Which reader takes which flags stands here."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from plugins.corpora import (
    Columns,
    Rejected,
    Utterance,
    read_custom,
    read_folder,
    read_gpt_sovits,
    read_huggingface,
    read_jsonl,
    read_kaldi,
    read_libritts,
    read_ljspeech,
    read_vctk,
)
from plugins.prepare.flags import COLUMN_FLAGS, from_flags
from plugins.prepare.outputs import claim_audio_folder, clips_folder


def entries_of(args: argparse.Namespace, journal: Path) -> Iterator[Utterance | Rejected]:
    """Every utterance of the corpus, in its order, and what cannot be one. journal: of the run."""
    for entry in _read(args, journal):
        if args.single_speaker is not None and isinstance(entry, Utterance):
            entry = replace(entry, speaker=args.single_speaker)
        yield entry


def _read(args: argparse.Namespace, journal: Path) -> Iterator[Utterance | Rejected]:
    folder, kind, root = Path(args.input_dir), args.dataset_type, args.audio_root
    if kind == "ljspeech":
        return read_ljspeech(folder, root=root)
    if kind == "vctk":
        return read_vctk(folder, mic=args.mic or 1, root=root)
    if kind == "libritts":
        return read_libritts(folder, root=root)
    if kind == "folder":
        return read_folder(folder, root=root)
    if kind == "kaldi":
        return read_kaldi(folder, root=root)
    if kind == "gpt_sovits":
        return read_gpt_sovits(folder, args.list_file, root=root)
    if kind == "jsonl":
        return read_jsonl(folder, args.jsonl_file, root=root)
    if kind == "huggingface":
        # Embedded recordings become files; two datasets in one folder must not share theirs.
        output = args.output_file.absolute()
        return read_huggingface(
            args.input_dir,
            _columns(args),
            audio_dir=output.parent / f"{output.stem}_audio",
            config=args.hf_config,
            split=args.hf_split,
            root=root,
        )
    if kind == "recordings":
        return _sliced(args, journal)
    return read_custom(
        folder,
        args.csv_file,
        _columns(args),
        delimiter=args.delimiter,
        quotes=not args.no_quotes,
        header=not args.no_header,
        root=root,
    )


def _sliced(args: argparse.Namespace, journal: Path) -> Iterator[Utterance | Rejected]:
    from plugins.prepare.slicing.corpus import Recording, Slicer, recordings_of
    from plugins.prepare.slicing.hearing import listener
    from plugins.prepare.slicing.settings import Slicing

    output, clips_dir = args.output_file, clips_folder(args.output_file)
    heard_by = listener(asr=args.asr, language=args.language, beam=args.beam, device=args.device)
    ours = [folder for folder in (clips_dir, args.audio_output) if folder is not None]
    found = recordings_of(Path(args.input_dir), args.audio_root, without=ours)
    recordings = [entry for entry in found if isinstance(entry, Recording)]
    slicer = Slicer(
        clips_dir,
        from_flags(Slicing, args),
        heard_by,
        journal=journal,
        input_dir=Path(args.input_dir),
        root=args.audio_root,
        number=args.diarize,
        dialogues=args.dialogues,
    )
    claim_audio_folder(
        clips_dir,
        list(map(slicer.folder_of, recordings)),
        originals=[recording.path for recording in recordings],
        output=output,
        option="--output_file",
    )
    return slicer.utterances(found)


def _columns(args: argparse.Namespace) -> Columns:
    named = {"audio": "1", "text": "2"} if args.no_header else {}
    for flag in COLUMN_FLAGS:
        if (column := getattr(args, flag)) is not None:
            named[flag.removesuffix("_column")] = column
    return Columns(**named)
