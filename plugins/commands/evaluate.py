"""`higgs-audio evaluate`: a model's speech, scored beside its base, the codec's ceiling and the
recordings.

    --model --plugins.evaluation.speaking--> a clip per item and column --scorers--> report, card

Who is compared and on what is decided here; how is `plugins.evaluation`'s to know. Exit codes: 0
done, also with scorers missing (they are named), 1 an error that the user can mend.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from plugins.audio.codec import Codec, find_codec
from plugins.errors import problem
from plugins.evaluation import formats, report
from plugins.evaluation.items import Item, read_items
from plugins.evaluation.journal import PROGRESS, Journal, check_folder
from plugins.evaluation.page import PAGE, page
from plugins.evaluation.plots import PICTURE, picture
from plugins.evaluation.run import Clip, beside, hear, round_trips, say
from plugins.evaluation.scores import score
from plugins.evaluation.speaking import System, systems
from plugins.files import disk
from plugins.files.fingerprint import fingerprint
from plugins.files.hub import local_folder
from plugins.hearing.scorers import Missing, Scorer, load_scorers
from plugins.hearing.takes import Judge, load_judge
from plugins.model import load as checkpoint
from plugins.model.adapter_scale import require_scale
from plugins.model.card import METRICS, complete
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling
from plugins.speaking.speaker import require_duration

_GENERATED = "generated"


@dataclass(frozen=True)
class _Contest:
    """Who is compared, on what."""

    systems: list[System]
    codec: Codec | None
    items: list[Item]
    settings: dict[str, Any]  # what the clips depend on


def run(options: Namespace) -> int:
    """The subcommand: its exit code."""
    _check_systems(options)
    require_scale(options.adapter_scale, has_adapter=options.model is not None)
    require_duration(options.max_audio_s)  # the generator would refuse it item by item
    sampling = Sampling(options.temperature, options.top_k, options.top_p, best_of=options.best_of)
    _check_output(options)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    scorers, missing = load_scorers(
        asr=options.asr,
        speaker_model=options.speaker_model,
        language=options.language,
        device=options.device,
    )
    for scorer in missing:
        print(f"missing: {scorer.name}: {scorer}", file=sys.stderr)
    contest = _contest(options, sampling)
    folder: Path = options.output
    # Clips and scores are listed as they come: the same command goes on after a kill.
    with Journal(folder / PROGRESS, contest.settings) as journal:
        columns = _columns(contest, options, sampling, journal)
        rows = _rows(contest.items, columns, scorers, journal, options.language)
        clips = {}
        for name, of_system in columns.items():
            clips[name] = beside(name, of_system, contest.items, folder, journal)
    settings = {**contest.settings, "language": options.language}
    summary = report.summarize(rows, list(columns), settings, scorers, missing)
    report.write(folder, rows, summary)
    report.write_lists(folder, rows, contest.items)
    _draw(folder, summary, rows)
    shown = page(summary, rows, clips, folder=folder, made_of=_made_of(options))
    with disk.replace_when_done(folder / PAGE) as temporary:
        temporary.write_text(shown, encoding="utf-8")
    print(report.markdown(summary, rows))
    if warning := report.misheard(summary):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{folder}: {', '.join((report.SUMMARY, report.ITEMS, report.REPORT, PAGE))}")
    # The card of the model, or of the training above a checkpoint, if it has room for the table.
    if options.model is not None:
        card = complete(Path(options.adapters or options.model), {METRICS: report.table(summary)})
        if card is not None:
            print(f"{card}: completed with the table")
    return 0


def _check_systems(options: Namespace) -> None:
    if options.model is None and options.generated is None:
        raise problem(
            source="options",
            field="model",
            value=None,
            reason="is missing",
            remedy="give --model, or --generated for recordings",
        )
    for name in ("adapters", "base", "best_of", "best_of_asr"):
        if options.model is None and getattr(options, name) not in (None, 1):
            raise problem(
                source="options",
                field=name,
                value=getattr(options, name),
                reason="has no --model to belong to",
                remedy="give --model",
            )
    if options.best_of_asr is not None and options.best_of == 1:
        raise problem(
            source="options",
            field="best_of_asr",
            value=options.best_of_asr,
            reason="has no takes to choose from",
            remedy="give --best_of",
        )


def _check_output(options: Namespace) -> None:
    """Raise UserError if files of others would be overwritten: any without --overwrite, what is
    read in any case."""
    folder: Path = options.output
    check_folder(folder, overwrite=options.overwrite)
    names = [PROGRESS, report.SUMMARY, report.ITEMS, report.REPORT, PICTURE, PAGE]
    names += [formats.META, formats.TEXT]
    written = {(folder / name).resolve() for name in names}
    # Kaldi's form of a data set is read by its folder.
    read = [Path(options.dataset), Path(options.dataset) / formats.TEXT, options.generated]
    for path in read:
        if path is not None and path.resolve() in written:
            raise problem(
                source="options",
                field="output",
                value=str(folder),
                reason=f"would be written over {path}, which is read",
                remedy="name another folder",
            )


def _contest(options: Namespace, sampling: Sampling) -> _Contest:
    spoken: list[System] = []
    codec, settings = None, HiggsAudioSettings.from_env()
    held: dict[str, Any] = {}  # another value, another run: the journal of the first is refused
    codec_path = options.codec
    if options.model is not None:
        folder, own = checkpoint.base_and_adapters(options.model, options.adapters)
        settings = HiggsAudioSettings.of_checkpoint(Path(own or folder))
        codec_path = find_codec([folder], options.codec or settings.codec)
    if codec_path is not None:
        codec = Codec(codec_path, device=options.device)
        held["codec"] = fingerprint(Path(local_folder(codec_path, option="codec")))
    if options.model is not None and codec is not None:
        judge = _judge(options)
        spoken = systems(
            options.model,
            adapters=options.adapters,
            base=options.base,
            codec=codec,
            adapter_scale=options.adapter_scale,
            device=options.device,
            quantization=options.quantization,
            judge=judge,
            marks=options.marks,
        )
        held |= {system.name: system.depends_on for system in spoken}
        # Of all systems: those that the tuned one was trained with.
        held["prompts"] = settings.prompts
        held["sampling"] = {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }
        if judge is not None:
            held["best_of"] = {"takes": sampling.best_of, "judge": judge.identity}
        held |= {
            "seed": options.seed,
            "max_audio_s": options.max_audio_s,
            "batch_size": options.batch_size,
        }
    items = read_items(options.dataset, settings, limit=options.limit)
    return _Contest(spoken, codec, items, held)


def _judge(options: Namespace) -> Judge | None:
    """Of the takes: what is missing of it is missing for the scores too, which say so."""
    if options.best_of == 1:
        return None
    judge, _ = load_judge(
        asr=options.best_of_asr or options.asr,
        speaker_model=options.speaker_model,
        language=options.language,
        device=options.device,
    )
    return judge


def _columns(
    contest: _Contest, options: Namespace, sampling: Sampling, journal: Journal
) -> dict[str, Sequence[Clip]]:
    """One clip per item and column, in the order of the table."""
    columns: dict[str, Sequence[Clip]] = {}
    for system in contest.systems:
        columns[system.name] = say(
            system,
            contest.items,
            options.output,
            journal,
            sampling=sampling,
            seed=options.seed,
            max_audio_s=options.max_audio_s,
            batch_size=options.batch_size,
            codec=contest.settings["codec"],
        )
    if options.generated is not None:
        given = formats.read_generated(options.generated, [item.id for item in contest.items])
        nothing = Clip(error="no recording of this id was given")
        clips = []
        for item in contest.items:
            clips.append(Clip(given[item.id]) if item.id in given else nothing)
        columns[_GENERATED] = clips
    # What the codec makes of the recordings is the most that any of its models can reach.
    if any(item.truth is not None for item in contest.items):
        if contest.codec is not None:
            identity = contest.settings["codec"]
            columns[report.CODEC] = round_trips(
                contest.codec, identity, contest.items, options.output, journal, name=report.CODEC
            )
        columns[report.TRUTH] = [
            Clip(Path(item.truth) if item.truth else None) for item in contest.items
        ]
    return columns


def _rows(
    items: Sequence[Item],
    columns: Mapping[str, Sequence[Clip]],
    scorers: Sequence[Scorer],
    journal: Journal,
    language: str,
) -> list[dict[str, Any]]:
    """A row per item, with the scores of each column."""
    clips = chain.from_iterable(columns.values())
    heard = hear([clip.path for clip in clips if clip.path is not None], scorers, journal)
    # What the references are compared by is the voice only: nobody asks what they say.
    voices = [Path(item.reference) for item in items if item.reference is not None]
    unheard = [path for path in voices if path not in heard]
    heard |= hear(unheard, [scorer for scorer in scorers if scorer.name == "voice"], journal)
    transcribed = any(scorer.name == "transcript" for scorer in scorers)
    return score(items, columns, heard, language=language, transcribed=transcribed)


def _made_of(options: Namespace) -> dict[str, str]:
    """Names for the page: the ends of the paths that were given, which others may see."""
    names = {}
    for name in ("model", "adapters", "base", "generated", "dataset"):
        given = getattr(options, name)
        if given is not None:
            names[name] = "/".join(Path(given).resolve().parts[1:][-2:])
    return names


def _draw(folder: Path, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    try:
        drawn = picture(summary, rows)
    except ImportError:
        reason, remedy = "package matplotlib is not installed", "run: pip install matplotlib"
        print(f"missing: {PICTURE}: {Missing(PICTURE, reason, remedy)}", file=sys.stderr)
        return
    with disk.replace_when_done(folder / PICTURE) as temporary:
        temporary.write_bytes(drawn)
