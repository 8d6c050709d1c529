"""`higgs-audio doctor`: checkpoint, codec, rows, labels and prompts, proved without training.

    --config, --model, --dataset --> checks of `plugins.training.preflight`, and more --> findings

Exit codes: 0 if nothing failed, else 1. How a check is made and what a finding looks like is the
preflight's to know.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from plugins.audio.codec import Codec, find_codec
from plugins.collator import collate
from plugins.corpora.canonical import as_list
from plugins.corpora.pairs import answers_of
from plugins.data.clips import LowRates, check_clips, stand_ins, with_clips
from plugins.data.dialogue import Dialogue, EncodedSample, Turn
from plugins.data.prompt import encode
from plugins.data.rows import dialogue_from_row
from plugins.data.scene import SCENE_TAGS
from plugins.data.sources import read_rows
from plugins.data.text import MAX_CHARS, pieces
from plugins.data.tokens import SpecialTokens
from plugins.delay_pattern import IGNORE_INDEX
from plugins.errors import problem
from plugins.model.load import bare, base_and_adapters, load_config, native_model, with_adapters
from plugins.model.original_format import load_tokenizer
from plugins.settings import KNOBS, HiggsAudioSettings, check_knob_names, joined
from plugins.training.config_file import read_config
from plugins.training.preflight.before_training import (
    check_labels,
    check_memory,
    check_offsets,
    check_references,
    check_split,
    check_texts,
    target_paths,
)
from plugins.training.preflight.codec import check_codec, check_given_codes
from plugins.training.preflight.labels import render
from plugins.training.preflight.memory import RowSize
from plugins.training.preflight.probe import Row, is_random_init, mean_loss
from plugins.training.preflight.report import Report, Status


@dataclass(frozen=True)
class _Checkpoint:
    model: Any
    tokenizer: Any
    tokens: SpecialTokens
    codec: Codec
    settings: HiggsAudioSettings
    origin: Path  # the folder that says how it was trained


def run(options: argparse.Namespace, report: Report) -> int:
    """report: it goes on here, after the environment."""
    config = _run_config(options)
    # A check that fails ends those that stand on it, and no others.
    checkpoint: _Checkpoint | None = None
    sizes: list[RowSize] = []
    with report.catching("checkpoint"):
        checkpoint = _check_checkpoint(report, options)
    if checkpoint is not None:
        with report.catching("dataset"):
            sizes = _check_dataset(report, checkpoint, options, config.get("max_length"))
    if config and checkpoint is not None:
        # The design document's name of the flag, then MS-SWIFT's, then its default.
        tuner = config.get("sft_type", config.get("tuner_type", "lora"))
        config = {**config, "tuner_type": tuner, "rlhf_type": options.rlhf_type}
        check_memory(report, checkpoint.model.config, config, rows=sizes)
    return 1 if report.failed else 0


def _run_config(options: argparse.Namespace) -> dict[str, Any]:
    """The YAML file of `--config`; what the command line leaves open about model, data and settings
    comes from it."""
    config: dict[str, Any] = {}
    if options.config is not None:
        config = read_config(options.config)
        _set_environment(config, options.config)
    options.model = options.model or config.get("model") or config.get("model_id_or_path")
    options.adapters = options.adapters or next(iter(as_list(config.get("adapters"))), None)
    options.dataset = options.dataset or as_list(config.get("dataset"))
    options.val_dataset = options.val_dataset or as_list(config.get("val_dataset"))
    options.rlhf_type = options.rlhf_type or config.get("rlhf_type")
    for name in ("model", "dataset"):
        if not getattr(options, name):
            raise problem(
                source="command line",
                field=f"--{name}",
                value=None,
                reason="is missing",
                remedy="give it, or a --config that names it",
            )
    return config


def _set_environment(config: dict[str, Any], path: Path) -> None:
    """Our settings of a run's file, put where `HiggsAudioSettings` reads them; the environment
    wins, as in training."""
    kwargs = config.get("model_kwargs") or {}
    if isinstance(kwargs, str):
        try:
            kwargs = json.loads(kwargs)
        except ValueError as error:
            raise problem(
                source=str(path),
                field="model_kwargs",
                value=kwargs,
                reason=f"is no JSON ({error})",
                remedy="write name: value lines",
            ) from None
    check_knob_names(kwargs, f"{path}: model_kwargs")
    # `higgs-audio sft FILE.yaml` takes settings on the top level as well.
    on_top = {name: config[name] for name in KNOBS if name in config}
    for name, value in {**on_top, **kwargs}.items():
        text = joined(name.lower(), value) if isinstance(value, list) else str(value)
        os.environ.setdefault(name.upper(), text)


def _check_checkpoint(report: Report, options: argparse.Namespace) -> _Checkpoint:
    folder, adapters = base_and_adapters(options.model, options.adapters)
    origin = Path(adapters or folder)
    settings = HiggsAudioSettings.of_checkpoint(origin)
    model_config = load_config(Path(folder))
    tokenizer = load_tokenizer(Path(folder))
    tokens = SpecialTokens.from_config(model_config, tokenizer)  # refuses ids that disagree
    # On a CPU half precision is slow, and rounds what the probe compares.
    model = native_model(folder, dtype=torch.float32 if options.device == "cpu" else torch.bfloat16)
    model = bare(with_adapters(model, {"default": adapters} if adapters else {})).to(options.device)
    size = sum(parameter.numel() for parameter in model.parameters())
    kind = "random weights" if is_random_init(model) else "trained weights"
    text = f"{size / 1e6:,.1f} M parameters, text head, {kind}; token ids agree with the config"
    report.add("checkpoint", "ok", text)
    codec = Codec(find_codec([folder], options.codec or settings.codec), device=options.device)
    return _Checkpoint(model, tokenizer, tokens, codec, settings, origin)


def _check_dataset(
    report: Report, checkpoint: _Checkpoint, options: argparse.Namespace, max_length: int | None
) -> list[RowSize]:
    """Returns the sizes of the rows that are trained on."""
    settings = checkpoint.settings
    low = LowRates()
    rows, rejected = _read(options.dataset, options, settings, low)
    dialogues = [dialogue_from_row(row, settings) for row in rows]
    kind = "pairs" if rejected else "rows"
    report.add("dataset", "ok", f"{len(dialogues)} {kind}, every audio header read")
    validation, _ = _read(options.val_dataset, options, settings, low)
    if low.warning is not None:
        report.add("sample rates", "warning", low.warning)
    answers = [*dialogues, *(dialogue_from_row(row, settings) for row in rejected)]
    sizes = [_size(dialogue, checkpoint) for dialogue in answers]
    # A run would stop at such a row only when it comes to it.
    if max_length:
        _check_lengths(answers, sizes, int(max_length))
    check_references(report, answers)
    held_out = target_paths(dialogue_from_row(row, settings) for row in validation)
    check_split(report, target_paths(dialogues), held_out)
    with report.catching("codec"):
        check_codec(report, checkpoint.codec, answers)
    with report.catching("audio_codes"):
        check_given_codes(report, checkpoint.codec, answers)
    check_texts(report, rows, settings, checkpoint.origin)
    _check_prompts(report, rows, checkpoint)
    if report.failed and report.failed[-1].check == "codec":
        return sizes  # nothing can be encoded
    _check_model(report, checkpoint, _spread(dialogues, options.rows), show=options.dry_run)
    return sizes


def _check_model(
    report: Report, checkpoint: _Checkpoint, dialogues: Sequence[Dialogue], *, show: bool
) -> None:
    """The model on a few rows, as training would see them. show: print the first one."""
    tokens, tokenizer = checkpoint.tokens, checkpoint.tokenizer
    with_codes = [with_clips(dialogue, checkpoint.codec, tokens) for dialogue in dialogues]
    encoded = _encoded(with_codes, checkpoint)
    check_labels(report, encoded, tokens, tokenizer)
    # Here and now is the time to find another model's codes: training only warns.
    check_offsets(report, checkpoint.model, encoded, tokens, chance="failed")
    _check_pairs(report, checkpoint, with_codes)
    if show:
        text = render(*encoded[0], tokens, tokenizer)
        report.add("one row", "info", "as the model sees it", text)


def _read(
    files: Sequence[str], options: argparse.Namespace, settings: HiggsAudioSettings, low: LowRates
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The canonical rows of all files, every audio header looked at; apart those of the rejected
    answers of pairs."""

    def check(dialogue: Dialogue) -> None:
        check_clips(dialogue, settings)
        low.look_at(dialogue)

    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for file in files:
        for row in read_rows(file, settings, check=check, pairs=bool(options.rlhf_type)):
            chosen, *others = answers_of(row)
            rows.append(chosen)
            rejected += others
    return rows, rejected


def _size(dialogue: Dialogue, checkpoint: _Checkpoint) -> RowSize:
    labels = _laid_out(dialogue, checkpoint).labels
    return RowSize(len(labels) - labels.count(IGNORE_INDEX), len(labels))


def _check_lengths(
    dialogues: Sequence[Dialogue], sizes: Sequence[RowSize], max_length: int
) -> None:
    for dialogue, size in zip(dialogues, sizes, strict=True):
        if size.positions > max_length:
            raise problem(
                source=dialogue.source,
                field="row",
                value=size.positions,
                reason=f"tokens and frames are more than max_length {max_length}",
                remedy="raise max_length or cut text, clip or reference",
            )


def _spread(dialogues: Sequence[Dialogue], num_rows: int) -> list[Dialogue]:
    """Rows from all over the set, the first one among them."""
    return list(dialogues[:: max(1, len(dialogues) // num_rows)][:num_rows])


def _encoded(dialogues: Sequence[Dialogue], checkpoint: _Checkpoint) -> list[Row]:
    rows = []
    for dialogue in dialogues:
        sample = encode(dialogue, checkpoint.tokenizer, checkpoint.tokens)
        rows.append((sample, collate([sample], checkpoint.tokens, training=True)))
    return rows


def _check_prompts(report: Report, rows: Sequence[dict[str, Any]], checkpoint: _Checkpoint) -> None:
    """Whether speaking will use the prompts that are trained, for rows that one call of `generate`
    can ask for."""
    drifted, num_asked, in_pieces, example = 0, 0, 0, ""
    for row in rows:
        request = _request(row, checkpoint.settings)
        if request is None:
            continue
        num_asked += 1
        in_pieces += len(pieces("".join(map(str, request.turns[-1].parts)), MAX_CHARS)) > 1
        trained = _laid_out(dialogue_from_row(row, checkpoint.settings), checkpoint).input_ids
        # The prompt ends where the last clip begins.
        trained = trained[: len(trained) - trained[::-1].index(checkpoint.tokens.audio_bos)]
        spoken = _laid_out(request, checkpoint, open_turn=True).input_ids
        if trained != spoken:
            drifted += 1
            decode = checkpoint.tokenizer.decode
            example = example or f"trained: {decode(trained)!r}\nspoken : {decode(spoken)!r}"
    if in_pieces:
        reason = f"of {num_asked} rows have texts of more than {MAX_CHARS} characters"
        remedy = "speaking cuts them into pieces, one prompt each, unless max_chars is raised"
        report.add("prompts", "info", f"{in_pieces} {reason}: {remedy}")
    if not drifted:
        text = f"speaking uses the prompts that are trained ({num_asked} rows)"
        report.add("prompts", "ok", text)
        return
    status: Status = "warning"
    remedy = "leave out what it cannot be told (instructions)"
    if all(row["raw_prompt"] for row in rows):
        remedy = "leave raw_prompt out of the rows"
        if drifted == len(rows):
            status = "failed"
    text = f"{drifted} of {num_asked} rows are trained with a prompt that `generate` will not use"
    report.add("prompts", status, f"{text}; {remedy}", example)


def _request(row: dict[str, Any], settings: HiggsAudioSettings) -> Dialogue | None:
    """What `HiggsAudioGenerator.generate` makes of text, scene and reference of a row; None if it
    takes more calls."""
    messages = row["messages"]
    roles = [message["role"] for message in messages]
    # One call speaks one text: no dialogue, no text that is trained, no second reference.
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        return None
    has_clip = row["audios"] or row["audio_codes"] or row["audio_code_keys"]
    if messages[-1]["content"] or not has_clip or len(row["reference_audio"]) > 1:
        return None
    asked = [messages[-2]]
    system = messages[0]["content"] if roles[0] == "system" else ""
    # Of a system message a request can say the scene, between its tags.
    scene = SCENE_TAGS.split(system)
    if len(scene) > 3 and scene[2].strip():
        asked.insert(0, {**messages[0], "content": "".join(scene[1:4])})
    request = {**row, "messages": asked, "raw_prompt": False}
    request |= {"audios": [], "audio_codes": [], "audio_code_keys": []}
    return dialogue_from_row(request, settings, training=False)


def _laid_out(
    dialogue: Dialogue, checkpoint: _Checkpoint, *, open_turn: bool = False
) -> EncodedSample:
    """A row or a prompt; clips of silence are as long as those of speech."""
    tokenizer, tokens = checkpoint.tokenizer, checkpoint.tokens
    return encode(stand_ins(dialogue, tokens), tokenizer, tokens, open_turn=open_turn)


def _check_pairs(report: Report, checkpoint: _Checkpoint, dialogues: Sequence[Dialogue]) -> None:
    """Whether the clips fit their own texts better than each other's: a table shifted by one row
    shows here."""
    dialogues = [dialogue for dialogue in dialogues if any(dialogue.targets())]
    if len(dialogues) < 2 or is_random_init(checkpoint.model):
        return
    texts = list(map(_requests, dialogues))
    if len(set(texts)) < len(texts):
        return  # the same sentence by several speakers: another row's text is its own
    swapped = []
    for dialogue, other in zip(dialogues, [*texts[1:], texts[0]], strict=True):
        swapped.append(replace(dialogue, turns=_with_texts(dialogue.turns, other)))
    # Each clip after the text of the next row, the last one after the first text.
    own, others = _loss(dialogues, checkpoint), _loss(swapped, checkpoint)
    text = f"{own:.2f} nats per code after their own texts, {others:.2f} after another row's"
    if own < others:
        report.add("texts", "ok", text)
    else:
        report.add("texts", "warning", f"{text}: are texts and clips paired as they should be?")


def _requests(dialogue: Dialogue) -> tuple[Turn, ...]:
    return tuple(turn for turn in dialogue.turns if turn.role == "user")


def _with_texts(turns: Sequence[Turn], texts: Sequence[Turn]) -> tuple[Turn, ...]:
    """User turns replaced in order, the last one again where there are more of them."""
    waiting = list(texts)
    replaced: list[Turn] = []
    for turn in turns:
        if turn.role != "user" or not waiting:
            replaced.append(turn)
        elif len(waiting) > 1:
            replaced.append(waiting.pop(0))
        else:
            replaced.append(waiting[0])
    return tuple(replaced)


def _loss(dialogues: Sequence[Dialogue], checkpoint: _Checkpoint) -> float:
    """Nats per code."""
    batches = [batch for _, batch in _encoded(dialogues, checkpoint)]
    return mean_loss(checkpoint.model, batches)
