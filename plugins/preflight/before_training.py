"""The checks that each training run makes before its first step, unless `preflight: false`. L3.

They look at what is really about to be trained: rows as the trainer's own collator gives them, the trainer's own model.
Every rank runs them, on the same rows, so that all of them stop together; rank 0 prints.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from plugins.errors import UserError
from plugins.preflight.labels import audit, render
from plugins.preflight.leaks import MEMORISED, shared_audio
from plugins.preflight.probe import Row, offset_probe
from plugins.preflight.report import Report
from plugins.template import TARGET_PATHS, sample_of

_NUM_ROWS = 4


def run(trainer: Any) -> Report:
    """Label audit, offset probe and leaks, for the rows at the start of the training set."""
    report = Report()
    template = trainer.template
    rows: list[Row] = []
    for encoded in islice(iter(trainer.train_dataset), _NUM_ROWS):
        rows.append((sample_of(encoded), trainer.data_collator([encoded])))
    check_labels(report, rows, template.tokens)
    if template.settings.dry_run and rows:
        report.add("one row", "info", "as the model sees it", render(*rows[0], template.tokens, template.tokenizer))
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        report.add("offset probe", "info", "left out: the model is not assembled yet; run `higgs-audio doctor` once")
    else:
        check_offsets(report, _native(trainer.model), rows, template.tokens)
    check_split(report, _target_paths(trainer.train_dataset), _target_paths(trainer.eval_dataset))
    return report


def check_labels(report: Report, rows: list[Row], tokens: Any) -> None:
    complaints = [f"{sample.source}: {text}" for sample, batch in rows for text in audit(sample, batch, tokens)]
    if complaints:
        report.add("labels", "failed", complaints[0], "\n".join(complaints[1:]))
    else:
        report.add("labels", "ok", f"{len(rows)} rows are as by definition")


def check_offsets(report: Report, model: Any, rows: list[Row], tokens: Any) -> None:
    rows = [(sample, batch) for sample, batch in rows if any(sample.clips_trained)]
    if not rows:
        report.add("offset probe", "info", "left out: the first rows have no audio to train")
        return
    probe = offset_probe(model, rows, tokens)
    if probe.complaint is not None:
        report.add("offset probe", "failed", probe.complaint, probe.render())
    elif probe.random_init:
        report.add("offset probe", "info", "random weights (every norm is 1): nothing can be told", probe.render())
    else:
        report.add("offset probe", "ok", f"what is trained fits best, on {len(rows)} rows", probe.render())
    if leaked := [k for k, loss in enumerate(probe.codebook_losses) if loss < MEMORISED]:
        text = f"codebooks {leaked} are known by heart: trained on before, or the labels leak into the inputs"
        report.add("unseen speech", "warning", text)


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


def _native(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _target_paths(dataset: Any) -> list[str]:
    """Files of the trained clips; none of a stream, which cannot be looked through, or of rows of codes."""
    rows = getattr(dataset, "dataset", dataset)  # MS-SWIFT's lazy set holds rows that are not encoded yet
    for column in (TARGET_PATHS, "audios"):
        if column in (getattr(rows, "column_names", None) or []):
            return [path for paths in rows[column] for path in paths or []]
    return []
