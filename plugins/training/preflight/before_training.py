"""The checks that each training run makes before its first step, unless `preflight: false`. L3.

They look at what is really about to be trained: rows as the trainer's own collator gives them, the
trainer's own model. Every rank runs them, on the same rows, so that all of them stop together; rank
0 prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from plugins.corpora.canonical import KEY_COLUMNS, ROW_SOURCE
from plugins.data.dialogue import Dialogue
from plugins.data.rows import dialogue_from_row, text_to_say
from plugins.errors import UserError
from plugins.ms_swift.dicts import sample_of
from plugins.settings import HiggsAudioSettings, trained_with
from plugins.training import tuning
from plugins.training.packs import single_rows, table_of
from plugins.training.preflight.labels import audit, render
from plugins.training.preflight.leaks import MEMORISED, own_references, shared_audio
from plugins.training.preflight.memory import GIB, estimate, fits
from plugins.training.preflight.memory import render as render_memory
from plugins.training.preflight.packed import layout_complaint, sees
from plugins.training.preflight.plan import TrainingPlan
from plugins.training.preflight.probe import Row, offset_probe
from plugins.training.preflight.report import Report, Status

_NUM_ROWS = 4


def run(trainer: Any, say: Callable[[str], None]) -> Report:
    """Adapter, label audit, offset probe and leaks, for the rows at the start of the training set.

    `say` takes each finding.
    """
    report = Report(say)
    _check_adapter(report, trainer)
    template = trainer.template
    # Building the codec draws random weights: training must not depend on whether it was looked at
    # before.
    with torch.random.fork_rng(devices=[]):
        encoded = list(islice(single_rows(iter(trainer.train_dataset)), _NUM_ROWS))
        rows: list[Row] = [(sample_of(row), trainer.data_collator([row])) for row in encoded]
        check_labels(report, rows, template.tokens, template.tokenizer)
        if template.settings.dry_run and rows:
            text = render(*rows[0], template.tokens, template.tokenizer)
            report.add("one row", "info", "as the model sees it", text)
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            text = "left out: the model is not assembled yet; run `higgs-audio doctor` once"
            report.add("offset probe", "info", text)
        else:
            model = trainer.model
            native = model.get_base_model() if hasattr(model, "get_base_model") else model
            with trainer.accelerator.autocast():
                check_offsets(report, native, rows, template.tokens, chance="warning")
                if template.padding_free and len(rows) > 1:
                    _check_packs(
                        report, native, trainer.data_collator(encoded), rows, template.tokens
                    )
    rows_of = table_of(trainer.train_dataset)
    if ROW_SOURCE in (getattr(rows_of, "column_names", None) or []) and hasattr(rows_of, "__len__"):
        columns = rows_of.select_columns(["messages", "raw_prompt", ROW_SOURCE])
        check_texts(report, columns, template.settings, template.origin)
    _check_leaks(report, trainer)
    return report


def _check_adapter(report: Report, trainer: Any) -> None:
    if isinstance(trainer.model, PeftModel):
        lost = tuning.lost(trainer.model)
        if lost:
            text = f"{lost[0]} would not be found again in a checkpoint ({len(lost)} such weights)"
            report.add("adapter", "failed", text, "\n".join(lost[1:]))
        else:
            report.add("adapter", "ok", "whatever is trained would be loaded again")
    if trainer.is_deepspeed_enabled:
        text = "left out: DeepSpeed keeps them to itself; try new options without it"
        report.add("gradients", "info", text)


def _check_packs(
    report: Report, model: Any, pack: dict[str, Any], rows: list[Row], tokens: Any
) -> None:
    complaint = layout_complaint(pack, [batch for _, batch in rows])
    if complaint is None and sees(model, pack, tokens):
        complaint = "rows in one sequence see each other: this attention does not keep them apart, turn packing off"
    text = f"{len(rows)} rows in one sequence do not see each other"
    report.add("packing", "ok" if complaint is None else "failed", complaint or text)


def check_labels(report: Report, rows: list[Row], tokens: Any, tokenizer: Any) -> None:
    complaints = [
        f"{sample.source}: {text}"
        for sample, batch in rows
        for text in audit(sample, batch, tokens, tokenizer)
    ]
    if complaints:
        report.add("labels", "failed", complaints[0], "\n".join(complaints[1:]))
    else:
        report.add("labels", "ok", f"{len(rows)} rows are as by definition")


def check_offsets(
    report: Report, model: Any, rows: list[Row], tokens: Any, *, chance: Status
) -> None:
    """chance: what to make of codes that are predicted no better than by guessing."""
    rows = [(sample, batch) for sample, batch in rows if any(sample.clips_trained)]
    if not rows:
        report.add("offset probe", "info", "left out: the first rows have no audio to train")
        return
    probe = offset_probe(model, rows, tokens)
    if probe.random_init:
        status, text = "info", "random weights (every norm is 1): nothing can be told"
    elif probe.is_untrained:
        status, text = (
            "info",
            "the audio part predicts every code alike, it is untrained: nothing can be told",
        )
    elif probe.complaint is not None:
        status, text = "failed", probe.complaint
    elif probe.is_chance:
        status = chance
        text = (
            f"{probe.losses['as trained', 1]:.2f} nats per code are no better than chance ({probe.chance:.2f}): these"
            " codes are not those that the model was trained with (check codec and audio_codes), or it has only ever"
            " heard other speech (untrained, overfitted)"
        )
    elif not probe.is_decisive:
        status, text = (
            "info",
            "all labels fit alike: the model knows little more than frequencies, nothing can be told",
        )
    else:
        status, text = "ok", f"what is trained fits best, on {len(rows)} rows"
    report.add("offset probe", status, text, probe.render())  # type: ignore[arg-type]
    if leaked := [k for k, loss in enumerate(probe.codebook_losses) if loss < MEMORISED]:
        text = f"codebooks {leaked} are known by heart: trained on before, or the labels leak into the inputs"
        report.add("unseen speech", "warning", text)


def check_memory(
    report: Report,
    model_config: Any,
    options: Mapping[str, Any],
    env: Mapping[str, str] | None = None,
) -> None:
    """options, env: as `TrainingPlan.from_config` takes them."""
    try:
        plan = TrainingPlan.from_config(options, env)
        needed = estimate(model_config, plan)
    except (UserError, ValueError) as error:  # a legal plan may be one that cannot be estimated
        report.add("memory", "info", f"left out: {error}")
        return
    text = f"about {needed.total / GIB:.1f} GiB per device, estimated"
    if not plan.master_weights:
        text += "; every update is rounded to bf16: use DeepSpeed, FSDP2 or LoRA"
    if torch.cuda.is_available():
        available = torch.cuda.mem_get_info()[1] / GIB
        status: Status = "ok" if fits(needed, available) else "warning"
        report.add("memory", status, f"{text} of {available:.1f}", render_memory(needed))
    else:
        report.add("memory", "info", text, render_memory(needed))


def _check_leaks(report: Report, trainer: Any) -> None:
    settings = trainer.template.settings
    train = _dialogues(trainer.train_dataset, settings)
    if train is None:
        report.add(
            "leaks",
            "info",
            "left out: a stream cannot be looked through; run `higgs-audio doctor` once",
        )
        return
    check_references(report, train)
    check_split(
        report, target_paths(train), target_paths(_dialogues(trainer.eval_dataset, settings) or [])
    )


def check_texts(
    report: Report, rows: Iterable[Mapping[str, Any]], settings: HiggsAudioSettings, origin: Path
) -> None:
    """Whether texts are cleaned, how many rows that concerns, and whether the checkpoint `origin`
    was trained so."""
    num_rows, num_raw, changed, example = 0, 0, 0, ""
    for row in rows:
        num_rows += 1
        num_raw += row["raw_prompt"]
        change = None if row["raw_prompt"] else _change(row["messages"])
        if change is not None:
            changed += 1
            written, cleaned = change
            example = example or f"{row[ROW_SOURCE]}\nwritten: {written!r}\ncleaned: {cleaned!r}"
    status: Status = "ok"
    what = "changes" if settings.prompts == "cleaned texts" else "would change"
    text = f"{settings.prompts}: clean_text {what} {changed} of {num_rows} rows"
    if 0 < num_raw < num_rows:
        status = "warning"
        text += (
            f"; {num_raw} rows are raw_prompt and trained as written: speaking has one way for all"
        )
    trained = trained_with(origin)
    if trained and trained["clean_text"] != settings.clean_text and not settings.raw_prompt:
        status = "warning"
        was = "cleaned" if trained["clean_text"] else "raw"
        text += f"; {origin} was trained with {was} texts: go on with clean_text {str(trained['clean_text']).lower()}"
    report.add("prompts", status, text, example)


def _change(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """The first text to say that `clean_text` changes, without and with it."""
    for message in messages:
        if message["role"] == "user":
            written, cleaned = (
                text_to_say(message["content"], raw=False, clean=clean) for clean in (False, True)
            )
            if written != cleaned:
                return written, cleaned
    return None


def check_references(report: Report, dialogues: Iterable[Dialogue]) -> None:
    error = next(own_references(dialogues), None)
    if error is not None:
        report.add("references", "failed", str(error))


def check_split(report: Report, train: list[str], validation: list[str]) -> None:
    if not validation:
        return
    try:
        pairs = shared_audio(train, validation)
    except OSError as error:
        raise UserError(f"validation: {error}") from None
    if pairs:
        text = f"{len(pairs)} clips are also trained on: the validation loss would measure memory; split by recording"
        report.add("validation", "failed", text, "\n".join(f"{a} = {b}" for a, b in pairs[:5]))
    else:
        report.add("validation", "ok", f"none of {len(validation)} clips is trained on")


def target_paths(dialogues: Iterable[Dialogue]) -> list[str]:
    """Files of the trained clips; those of rows that bring only codes have none."""
    return [
        clip.path for dialogue in dialogues for clip in dialogue.targets() if clip.path is not None
    ]


def _dialogues(dataset: Any, settings: HiggsAudioSettings) -> list[Dialogue] | None:
    """The rows of a set, without codes; None for a stream, [] for none."""
    if dataset is None:
        return []
    rows = table_of(dataset)
    if "audios" not in (getattr(rows, "column_names", None) or []) or not hasattr(rows, "__len__"):
        return None
    return [dialogue_from_row(_without_codes(row), settings) for row in rows if row["audios"]]


def _without_codes(row: dict[str, Any]) -> dict[str, Any]:
    no_codes: dict[str, Any] = {name: [] for names in KEY_COLUMNS.items() for name in names}
    texts = row["reference_text"] if row["reference_audio"] else []
    return {**row, **no_codes, "reference_text": texts}
