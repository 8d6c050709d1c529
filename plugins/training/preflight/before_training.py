"""The checks that each training run makes before its first step, unless `preflight: false`.

Trainer in, findings out. They look at what is really about to be trained: rows as the trainer's own
collator gives them, the trainer's own model. Every rank runs them, on the same rows, so that all of
them stop together; rank 0 prints. `higgs-audio doctor` makes the same checks without a trainer."""

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
from plugins.ms_swift.dicts import encoded_answers, sample_of
from plugins.settings import HiggsAudioSettings, trained_with
from plugins.training import tuning
from plugins.training.packs import single_rows, table_of
from plugins.training.preflight.labels import audit, render
from plugins.training.preflight.leaks import MEMORISED, own_references, shared_audio
from plugins.training.preflight.memory import GIB, RowSize, estimate, fits, text_tokens_per_row
from plugins.training.preflight.memory import render as render_memory
from plugins.training.preflight.packed import layout_complaint, sees
from plugins.training.preflight.plan import TrainingPlan
from plugins.training.preflight.probe import OffsetProbe, Row, offset_probe
from plugins.training.preflight.report import Report, Status

_NUM_ROWS = 4  # enough for a verdict, little enough for a CPU


def run(trainer: Any, say: Callable[[str], None]) -> Report:
    """Adapter, label audit, offset probe and leaks, for the rows at the start of the training set.

    `say` takes each finding.
    """
    report = Report(say)
    _check_adapter(report, trainer)
    # Building the codec draws random weights: training must not depend on whether it was looked at
    # before.
    with torch.random.fork_rng(devices=[]):
        _check_rows(report, trainer)
    if _has_rows(trainer.train_dataset, ROW_SOURCE):
        template = trainer.template
        columns = ["messages", "raw_prompt", ROW_SOURCE]
        rows = table_of(trainer.train_dataset).select_columns(columns)
        check_texts(report, rows, template.settings, template.origin)
    _check_leaks(report, trainer)
    return report


def _check_rows(report: Report, trainer: Any) -> None:
    """Labels of the first rows, and what the model makes of them."""
    template = trainer.template
    encoded: list[dict[str, Any]] = []
    for row in islice(single_rows(iter(trainer.train_dataset)), _NUM_ROWS):
        encoded += encoded_answers(row)
    # A pair is collated as two rows: each is looked at by itself.
    collate = template._data_collator if template.compares else trainer.data_collator
    rows: list[Row] = [(sample_of(row), collate([row])) for row in encoded]
    check_labels(report, rows, template.tokens, template.tokenizer)
    if template.settings.dry_run and rows:
        text = render(*rows[0], template.tokens, template.tokenizer)
        report.add("one row", "info", "as the model sees it", text)
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        text = "left out: the model is not assembled yet; run `higgs-audio doctor` once"
        report.add("offset probe", "info", text)
        return
    model = trainer.model
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # peft's wrapper off, its layers in place
    # What is rejected may be noise: it says nothing of codes and labels.
    probed = rows[::2] if template.compares else rows
    with trainer.accelerator.autocast():
        check_offsets(report, model, probed, template.tokens, chance="warning")
        if template.padding_free and len(rows) > 1:
            pack = trainer.data_collator(encoded)
            _check_packs(report, model, pack, rows, template.tokens)


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
        complaint = "rows in one sequence see each other: this attention does not keep them apart,"
        complaint += " leave --attn_impl out, or turn packing off"
    if complaint is None:
        report.add("packing", "ok", f"{len(rows)} rows in one sequence do not see each other")
    else:
        report.add("packing", "failed", complaint)


def check_labels(report: Report, rows: list[Row], tokens: Any, tokenizer: Any) -> None:
    complaints = []
    for sample, batch in rows:
        for complaint in audit(sample, batch, tokens, tokenizer):
            complaints.append(f"{sample.source}: {complaint}")
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
    status, text = _verdict(probe, len(rows), chance)
    report.add("offset probe", status, text, probe.render())
    known = [k for k, loss in enumerate(probe.codebook_losses) if loss < MEMORISED]
    if known:
        text = f"codebooks {known} are known by heart: trained on before, spoken by this model"
        report.add("unseen speech", "warning", f"{text} itself, or the labels leak into the inputs")


def _verdict(probe: OffsetProbe, num_rows: int, chance: Status) -> tuple[Status, str]:
    """What the losses amount to. The order matters: an untrained model cannot tell anything, and
    one that guesses cannot tell which labels are right."""
    if probe.random_init:
        return "info", "random weights (every norm is 1): nothing can be told"
    if probe.is_untrained:
        text = "the audio part predicts every code alike, it is untrained"
        return "info", f"{text}: nothing can be told"
    if probe.complaint is not None:
        return "failed", probe.complaint
    if probe.is_chance:
        loss = probe.losses["as trained", 1]
        return chance, (
            f"{loss:.2f} nats per code are no better than chance ({probe.chance:.2f}): these codes"
            " are not those that the model was trained with (check codec and audio_codes), or it"
            " has only ever heard other speech (untrained, overfitted)"
        )
    if not probe.is_decisive:
        text = "all labels fit alike: the model knows little more than frequencies"
        return "info", f"{text}, nothing can be told"
    return "ok", f"what is trained fits best, on {num_rows} rows"


def check_memory(
    report: Report,
    model_config: Any,
    options: Mapping[str, Any],
    env: Mapping[str, str] | None = None,
    *,
    rows: Sequence[RowSize] = (),
) -> None:
    """options, env: as `TrainingPlan.from_config` takes them. rows: for the text that they
    train; without, each is one clip."""
    try:
        plan = TrainingPlan.from_config(options, env)
        text_tokens = text_tokens_per_row(rows, plan)
        needed = estimate(model_config, plan, text_tokens=text_tokens)
    except (UserError, ValueError) as error:
        # A legal plan may be one that cannot be estimated.
        report.add("memory", "info", f"left out: {error}")
        return
    text = f"about {needed.total / GIB:.1f} GiB per device, estimated"
    if not plan.master_weights and plan.dtype == "float16":
        remedy = "use torch_dtype bfloat16 or float32"
        report.add("memory", "failed", f"float16 cannot hold trained weights: {remedy}")
        return
    text += f"; trained weights are {_kept(plan, options)}"
    if torch.cuda.is_available():
        available = torch.cuda.mem_get_info()[1] / GIB
        status: Status = "ok" if fits(needed, available) else "warning"
        report.add("memory", status, f"{text} of {available:.1f}", render_memory(needed))
    else:
        report.add("memory", "info", text, render_memory(needed))


def _kept(plan: TrainingPlan, options: Mapping[str, Any]) -> str:
    """In what weights are kept from step to step; `plugins.training.optimizer.precision` says it of
    a run."""
    is_lora = plan.tuner != "full"
    is_sharded = plan.zero_stage is not None or plan.fsdp2
    in_bf16 = not plan.master_weights or (is_lora and options.get("lora_dtype") == "bfloat16")
    if in_bf16 and not is_sharded:
        return "bf16, each step rounded stochastically"
    if options.get("modules_to_save") and plan.dtype == "bfloat16" and not is_sharded:
        return "fp32, modules_to_save bf16 and each step of theirs rounded stochastically"
    return "fp32"


def _check_leaks(report: Report, trainer: Any) -> None:
    settings = trainer.template.settings
    train = _dialogues(trainer.train_dataset, settings)
    if train is None:
        text = "left out: a stream cannot be looked through; run `higgs-audio doctor` once"
        report.add("leaks", "info", text)
        return
    check_references(report, train)
    validation = _dialogues(trainer.eval_dataset, settings) or []
    check_split(report, target_paths(train), target_paths(validation))


def check_texts(
    report: Report, rows: Iterable[Mapping[str, Any]], settings: HiggsAudioSettings, origin: Path
) -> None:
    """Whether texts are cleaned, how many rows that concerns, and whether the checkpoint `origin`
    was trained so."""
    num_rows, num_raw, num_changed, example = 0, 0, 0, ""
    for row in rows:
        num_rows += 1
        if row["raw_prompt"]:
            num_raw += 1
            continue
        change = _change(row["messages"])
        if change is not None:
            num_changed += 1
            written, cleaned = change
            example = example or f"{row[ROW_SOURCE]}\nwritten: {written!r}\ncleaned: {cleaned!r}"
    # Speaking cleans a text as the settings of the checkpoint say: training has to agree.
    status: Status = "ok"
    what = "would change"
    if settings.prompts == "cleaned texts":
        what = "changes"
    text = f"{settings.prompts}: clean_text {what} {num_changed} of {num_rows} rows"
    if 0 < num_raw < num_rows:
        status = "warning"
        text += f"; {num_raw} rows are raw_prompt and trained as written"
        text += ": speaking has one way for all"
    trained = trained_with(origin)
    if trained and trained["clean_text"] != settings.clean_text and not settings.raw_prompt:
        status = "warning"
        was, remedy = ("cleaned", "true") if trained["clean_text"] else ("raw", "false")
        text += f"; {origin} was trained with {was} texts: go on with clean_text {remedy}"
    report.add("prompts", status, text, example)


def _change(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """The first text to say that `clean_text` changes, without and with it."""
    for message in messages:
        if message["role"] == "user":
            content = message["content"]
            written = text_to_say(content, raw=False, clean=False)
            cleaned = text_to_say(content, raw=False, clean=True)
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
    # By content: a copy under another name leaks as much.
    try:
        pairs = shared_audio(train, validation)
    except OSError as error:
        raise UserError(f"validation: {error}") from None
    if pairs:
        text = f"{len(pairs)} clips are also trained on: the validation loss would measure memory"
        # Five are enough to see what went wrong.
        evidence = "\n".join(f"{trained} = {held_out}" for trained, held_out in pairs[:5])
        report.add("validation", "failed", f"{text}; split by recording", evidence)
    else:
        report.add("validation", "ok", f"none of {len(validation)} clips is trained on")


def target_paths(dialogues: Iterable[Dialogue]) -> list[str]:
    """Files of the trained clips; those of rows that bring only codes have none."""
    paths = []
    for dialogue in dialogues:
        for clip in dialogue.targets():
            if clip.path is not None:
                paths.append(clip.path)
    return paths


def _has_rows(dataset: Any, column: str) -> bool:
    """Whether `dataset` is a table of canonical rows, not a stream and not of another format."""
    rows = table_of(dataset)
    return column in (getattr(rows, "column_names", None) or []) and hasattr(rows, "__len__")


def _dialogues(dataset: Any, settings: HiggsAudioSettings) -> list[Dialogue] | None:
    """The rows of a set, without codes; None for a stream, [] for none."""
    if dataset is None:
        return []
    if not _has_rows(dataset, "audios"):
        return None
    dialogues = []
    for row in table_of(dataset):
        if row["audios"]:
            dialogues.append(dialogue_from_row(_without_codes(row), settings))
    return dialogues


def _without_codes(row: dict[str, Any]) -> dict[str, Any]:
    """Leaks are looked for in files: codes and the keys of cached ones are not read for that."""
    bare = dict(row)
    for names in KEY_COLUMNS.items():
        for name in names:
            bare[name] = []
    if not row["reference_audio"]:
        bare["reference_text"] = []  # of references that have only codes
    return bare
