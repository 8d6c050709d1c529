"""A corpus as it was read -> the clips to train on, and everything that is rejected.

In: the entries of a reader of `plugins.corpora`, in their order. Out: one `Clip` per row to be
written, and every `Rejected` with its reason, both in the order of the corpus. Knows no flags and
writes no rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plugins.corpora import Rejected, Utterance
from plugins.prepare.clips import Outcome, Work
from plugins.prepare.listening import Listener
from plugins.prepare.outputs import claim_audio_folder, transcripts_path
from plugins.prepare.processing import variant_ids
from plugins.prepare.references import check_references
from plugins.prepare.rows import Clip, clips_of, drop_duplicates
from plugins.prepare.run import Executor, run_all


def check_corpus(
    entries: Sequence[Utterance | Rejected],
    work: Work,
    *,
    output: Path,
    journal: Path,
    num_workers: int,
    execute: Executor | None = None,
    listener: Listener | None = None,
) -> tuple[list[Clip], list[Rejected]]:
    """The clips that `work` makes of `entries`, and the rejected.

    output: the file of the training rows, to which a folder of processed clips will belong.
    listener: which compares the transcripts with what is heard. Raises
    UserError if that folder is another's, and what `plugins.prepare.run.run_all` raises."""
    utterances, rejected = _with_unique_ids(entries)
    if work.audio_dir is not None:
        _claim(work.audio_dir, work, utterances, output)
    outcomes = run_all(utterances, work, journal=journal, num_workers=num_workers, execute=execute)
    fit: list[tuple[Utterance, Outcome]] = []
    unfit: set[str] = set()
    for utterance, outcome in zip(utterances, outcomes, strict=True):
        if outcome.fault is None:
            fit.append((utterance, outcome))
        else:
            # Which clip of a dialogue it is, its fault tells.
            if not utterance.turns:
                unfit.add(str(utterance.audio))
            rejected.append(Rejected(utterance.place, utterance.id, *outcome.fault))
    if listener is not None:
        fit, misread = listener.check(fit, journal=journal, before=transcripts_path(output))
        rejected += misread
        wrong = {entry.place for entry in misread}
        for utterance in utterances:
            if utterance.place in wrong and not utterance.turns:
                unfit.add(str(utterance.audio))
    # A row whose reference is unfit must not take its recording away from a duplicate that is fit.
    fit, without_voice = check_references(fit, unfit, level=work.level, limits=work.limits)
    fit, duplicates = drop_duplicates(fit, level=work.level)
    clips: list[Clip] = []
    for utterance, outcome in fit:
        clips += clips_of(utterance, outcome)
    return clips, _in_order_of(entries, [*rejected, *without_voice, *duplicates])


def _with_unique_ids(
    entries: Sequence[Utterance | Rejected],
) -> tuple[list[Utterance], list[Rejected]]:
    """The utterances, of those with one id the first; and the rejected."""
    utterances: list[Utterance] = []
    rejected: list[Rejected] = []
    owners: dict[str, str] = {}  # id -> where the utterance stands that has it
    for entry in entries:
        if isinstance(entry, Rejected):
            rejected.append(entry)
            continue
        # Without text it is rejected for that, and takes the id away from none.
        if entry.text and owners.setdefault(entry.id, entry.place) != entry.place:
            reason = f"duplicate id (as {owners[entry.id]})"
            rejected.append(Rejected(entry.place, entry.id, reason, entry.id))
            continue
        utterances.append(entry)
    return utterances, rejected


def _claim(folder: Path, work: Work, utterances: Sequence[Utterance], output: Path) -> None:
    copies: list[Path] = []
    for utterance in utterances:
        ids = [utterance.id, *variant_ids(utterance.id, work.processing)]
        if utterance.turns:
            ids = [turn.id for turn in utterance.turns]
        copies += map(work.path_of, ids)
    # A copy must not be written over the recording that it is made from.
    originals = []
    for utterance in utterances:
        originals += [turn.audio for turn in utterance.turns or (utterance,)]
    claim_audio_folder(folder, copies, originals=originals, output=output)


def _in_order_of(
    entries: Sequence[Utterance | Rejected], rejected: Sequence[Rejected]
) -> list[Rejected]:
    position = {entry.place: i for i, entry in enumerate(entries)}
    return sorted(rejected, key=lambda entry: position[entry.place])
