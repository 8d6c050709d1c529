"""`higgs-audio doctor`: every check of the preflight and more, without training. L3.

Exit codes: 0 if nothing failed, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from plugins.audio import waveforms as audio
from plugins.audio.codec import FRAMES_PER_S, NUM_CODEBOOKS, NUM_CODES, Codec, find_codec
from plugins.collator import collate
from plugins.corpora.canonical import as_list
from plugins.data.clips import check_clips, stand_ins, with_clips
from plugins.data.dialogue import Dialogue, Turn
from plugins.data.prompt import encode
from plugins.data.rows import dialogue_from_row
from plugins.data.scene import SCENE_TAGS
from plugins.data.sources import read_rows
from plugins.data.text import MAX_CHARS, pieces
from plugins.data.tokens import SpecialTokens
from plugins.errors import problem
from plugins.model.load import bare, base_and_adapters, load_config, native_model, with_adapters
from plugins.model.original_format import load_tokenizer
from plugins.settings import KNOBS, HiggsAudioSettings, check_knob_names, joined
from plugins.training.preflight.before_training import (
    check_labels,
    check_memory,
    check_offsets,
    check_references,
    check_split,
    check_texts,
    target_paths,
)
from plugins.training.preflight.labels import render
from plugins.training.preflight.probe import Row, is_random_init, mean_loss
from plugins.training.preflight.report import Report


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
    checkpoint = None
    with report.catching("checkpoint"):
        checkpoint = _check_checkpoint(report, options)
    if checkpoint is not None:
        with report.catching("dataset"):
            _check_dataset(report, checkpoint, options, config.get("max_length"))
    if config and checkpoint is not None:
        tuner = config.get("sft_type", config.get("tuner_type", "lora"))
        check_memory(report, checkpoint.model.config, {**config, "tuner_type": tuner})
    return 1 if report.failed else 0


def _run_config(options: argparse.Namespace) -> dict[str, Any]:
    """The YAML file of `--config`; what the command line leaves open about model, data and settings
    comes from it."""
    config: dict[str, Any] = {}
    if options.config is not None:
        try:
            config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            reason = f"cannot be read ({' '.join(str(error).split())})"
            raise problem(
                source="command line",
                field="config",
                value=str(options.config),
                reason=reason,
                remedy="give a YAML file as in configs/",
            ) from None
    if not isinstance(config, dict):
        raise problem(
            source="command line",
            field="config",
            value=str(options.config),
            reason="holds no settings",
            remedy="see configs/lora_3b.yaml",
        )
    kwargs = config.get("model_kwargs") or {}
    if isinstance(kwargs, str):
        try:
            kwargs = json.loads(kwargs)
        except ValueError as error:
            reason = f"is no JSON ({error})"
            raise problem(
                source=str(options.config),
                field="model_kwargs",
                value=kwargs,
                reason=reason,
                remedy="write name: value lines",
            ) from None
    check_knob_names(kwargs, f"{options.config}: model_kwargs")
    # `higgs-audio sft FILE.yaml` takes settings on the top level as well.
    for name, value in {
        **{name: config[name] for name in KNOBS if name in config},
        **kwargs,
    }.items():
        text = joined(name.lower(), value) if isinstance(value, list) else str(value)
        os.environ.setdefault(name.upper(), text)
    options.model = options.model or config.get("model") or config.get("model_id_or_path")
    options.adapters = options.adapters or next(iter(as_list(config.get("adapters"))), None)
    options.dataset = options.dataset or as_list(config.get("dataset"))
    options.val_dataset = options.val_dataset or as_list(config.get("val_dataset"))
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


def _check_checkpoint(report: Report, options: argparse.Namespace) -> _Checkpoint:
    folder, adapters = base_and_adapters(options.model, options.adapters)
    settings = HiggsAudioSettings.of_checkpoint(Path(adapters or folder))
    model_config = load_config(Path(folder))
    tokenizer = load_tokenizer(Path(folder))
    tokens = SpecialTokens.from_config(model_config, tokenizer)
    model = native_model(folder, dtype=torch.float32 if options.device == "cpu" else torch.bfloat16)
    model = bare(with_adapters(model, {"default": adapters} if adapters else {})).to(options.device)
    size = sum(parameter.numel() for parameter in model.parameters())
    kind = "random weights" if is_random_init(model) else "trained weights"
    report.add(
        "checkpoint",
        "ok",
        f"{size / 1e6:,.1f} M parameters, text head, {kind}; token ids agree with the config",
    )
    codec = Codec(find_codec([folder], options.codec or settings.codec), device=options.device)
    return _Checkpoint(model, tokenizer, tokens, codec, settings, Path(adapters or folder))


def _check_dataset(
    report: Report, checkpoint: _Checkpoint, options: argparse.Namespace, max_length: int | None
) -> None:
    rows = _read(options.dataset, checkpoint.settings)
    dialogues = [dialogue_from_row(row, checkpoint.settings) for row in rows]
    report.add("dataset", "ok", f"{len(dialogues)} rows, every audio header read")
    if max_length:
        _check_lengths(dialogues, checkpoint, int(max_length))
    check_references(report, dialogues)
    validation = _read(options.val_dataset, checkpoint.settings)
    held_out = target_paths(dialogue_from_row(row, checkpoint.settings) for row in validation)
    check_split(report, target_paths(dialogues), held_out)
    with report.catching("codec"):
        _check_codec(report, checkpoint.codec, dialogues)
    with report.catching("audio_codes"):
        _check_given_codes(report, checkpoint.codec, dialogues)
    check_texts(report, rows, checkpoint.settings, checkpoint.origin)
    _check_prompts(report, rows, checkpoint)
    if report.failed and report.failed[-1].check == "codec":
        return  # nothing can be encoded
    chosen = [
        with_clips(each, checkpoint.codec, checkpoint.tokens)
        for each in _spread(dialogues, options.rows)
    ]
    encoded = _encoded(chosen, checkpoint)
    check_labels(report, encoded, checkpoint.tokens, checkpoint.tokenizer)
    check_offsets(report, checkpoint.model, encoded, checkpoint.tokens, chance="failed")
    _check_texts(report, checkpoint, chosen)
    if options.dry_run:
        text = render(*encoded[0], checkpoint.tokens, checkpoint.tokenizer)
        report.add("one row", "info", "as the model sees it", text)


def _read(files: Sequence[str], settings: HiggsAudioSettings) -> list[dict[str, Any]]:
    check = partial(check_clips, settings=settings)
    return [row for file in files for row in read_rows(file, settings, check=check)]


def _check_lengths(dialogues: Sequence[Dialogue], checkpoint: _Checkpoint, max_length: int) -> None:
    for dialogue in dialogues:
        sample = encode(
            stand_ins(dialogue, checkpoint.tokens), checkpoint.tokenizer, checkpoint.tokens
        )
        if len(sample.input_ids) > max_length:
            reason = f"tokens and frames are more than max_length {max_length}"
            raise problem(
                source=dialogue.source,
                field="row",
                value=len(sample.input_ids),
                reason=reason,
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


def _check_codec(report: Report, codec: Codec, dialogues: Sequence[Dialogue]) -> None:
    """One clip there and back: codes in range and varied, one frame per 40 ms, a waveform of the
    same length."""
    paths = [
        clip.path for dialogue in dialogues for clip in dialogue.clips() if clip.path is not None
    ]
    if not paths:
        report.add("codec", "info", "left out: no row names an audio file")
        return
    waveform = audio.load(paths[0], sample_rate_hz=codec.sample_rate_hz)
    codes = codec.encode(waveform)
    if codes.shape[0] != NUM_CODEBOOKS:
        reason = f"gives {codes.shape[0]} codebooks, not {NUM_CODEBOOKS}"
        raise problem(
            source="settings",
            field="codec",
            value=codec.path,
            reason=reason,
            remedy="give the codec that belongs to this model",
        )
    num_frames = -(-len(waveform) * FRAMES_PER_S // codec.sample_rate_hz)
    back = codec.decode(codes)
    complaint = None
    if codes.shape[1] != num_frames:
        complaint = f"gives {codes.shape[1]} frames for {len(waveform)} samples, not {num_frames} (25 per second)"
    elif codes.min() < 0 or codes.max() >= NUM_CODES:
        complaint = f"gives codes up to {int(codes.max())}, outside 0..{NUM_CODES - 1}"
    elif any(len(row.unique()) == 1 for row in codes) and codes.shape[1] > FRAMES_PER_S:
        complaint = "gives one and the same code for a whole clip: its codebooks are empty"
    elif (
        not np.isfinite(back).all()
        or len(back) != codes.shape[1] * codec.sample_rate_hz // FRAMES_PER_S
    ):
        complaint = "does not give a waveform of the clip's length back"
    if complaint is not None:
        raise problem(
            source="settings",
            field="codec",
            value=codec.path,
            reason=complaint,
            remedy="give the codec that belongs to this model",
        )
    distance = _log_mel_distance(waveform, back[: len(waveform)], codec.sample_rate_hz)
    text = f"{codes.shape[1]} frames in range; round trip of one clip: {distance:.1f} dB mean log-mel distance"
    report.add("codec", "ok", text, paths[0])


def _log_mel_distance(a: np.ndarray, b: np.ndarray, sample_rate_hz: int) -> float:
    """Mean absolute difference in dB of 80 mel bands, both clipped to 80 dB below their peaks."""
    import librosa

    mels = [librosa.feature.melspectrogram(y=each, sr=sample_rate_hz, n_mels=80) for each in (a, b)]
    decibels = [librosa.power_to_db(mel, ref=1.0, top_db=80.0) for mel in mels]
    return float(np.abs(decibels[0] - decibels[1]).mean())


def _check_given_codes(report: Report, codec: Codec, dialogues: Sequence[Dialogue]) -> None:
    """Codes that rows bring beside the audio must be those that the codec gives for it."""
    for dialogue in dialogues:
        for clip in dialogue.clips():
            if clip.path is None or clip.codes is None:
                continue
            codes = codec.encode_file(clip.path)
            num_frames = min(codes.shape[1], clip.codes.shape[1])
            agreement = float((codes[:, :num_frames] == clip.codes[:, :num_frames]).float().mean())
            # Other hardware rounds a few codes otherwise; another codec, or an order lost, agrees
            # by chance (0.1 %).
            if agreement < 0.5:
                reason = f"agree with the codec's in {agreement:.0%} of all codes"
                remedy = "encode the clips with the model's codec, and keep codebooks and frames in order"
                raise problem(
                    source=dialogue.source,
                    field="audio_codes",
                    value=f"codes of {clip.path}",
                    reason=reason,
                    remedy=remedy,
                )
            report.add("audio_codes", "ok", f"agree with the codec in {agreement:.0%} of one clip")
            return


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
        trained = _ids(dialogue_from_row(row, checkpoint.settings), checkpoint)
        trained = trained[: len(trained) - trained[::-1].index(checkpoint.tokens.audio_bos)]
        spoken = _ids(request, checkpoint, open_turn=True)
        if trained != spoken:
            drifted += 1
            example = example or "\n".join(
                f"{name}: {checkpoint.tokenizer.decode(ids)!r}"
                for name, ids in (("trained", trained), ("spoken ", spoken))
            )
    if in_pieces:
        reason = f"of {num_asked} rows have texts of more than {MAX_CHARS} characters"
        remedy = "speaking cuts them into pieces, one prompt each, unless max_chars is raised"
        report.add("prompts", "info", f"{in_pieces} {reason}: {remedy}")
    if not drifted:
        report.add(
            "prompts", "ok", f"speaking uses the prompts that are trained ({num_asked} rows)"
        )
        return
    is_raw = all(row["raw_prompt"] for row in rows)
    text = f"{drifted} of {num_asked} rows are trained with a prompt that `generate` will not use"
    remedy = (
        "leave raw_prompt out of the rows"
        if is_raw
        else "leave out what it cannot be told (instructions)"
    )
    report.add(
        "prompts",
        "failed" if is_raw and drifted == len(rows) else "warning",
        f"{text}; {remedy}",
        example,
    )


def _request(row: dict[str, Any], settings: HiggsAudioSettings) -> Dialogue | None:
    """What `HiggsAudioGenerator.generate` makes of text, scene and reference of a row; None if it
    takes more calls."""
    messages = row["messages"]
    roles = [message["role"] for message in messages]
    if (
        roles not in (["user", "assistant"], ["system", "user", "assistant"])
        or messages[-1]["content"]
    ):
        return None
    if len(row["reference_audio"]) > 1 or not (
        row["audios"] or row["audio_codes"] or row["audio_code_keys"]
    ):
        return None
    system = messages[0]["content"] if roles[0] == "system" else ""
    scene = SCENE_TAGS.split(system)
    heads = (
        [{**messages[0], "content": "".join(scene[1:4])}]
        if len(scene) > 3 and scene[2].strip()
        else []
    )
    nothing: dict[str, Any] = {
        "audios": [],
        "audio_codes": [],
        "audio_code_keys": [],
        "raw_prompt": False,
    }
    return dialogue_from_row(
        {**row, "messages": [*heads, messages[-2]], **nothing}, settings, training=False
    )


def _ids(dialogue: Dialogue, checkpoint: _Checkpoint, *, open_turn: bool = False) -> list[int]:
    tokenizer, tokens = checkpoint.tokenizer, checkpoint.tokens
    return encode(stand_ins(dialogue, tokens), tokenizer, tokens, open_turn=open_turn).input_ids


def _check_texts(report: Report, checkpoint: _Checkpoint, dialogues: Sequence[Dialogue]) -> None:
    """Whether the clips fit their own texts better than each other's: a table shifted by one row
    shows here."""
    dialogues = [dialogue for dialogue in dialogues if any(dialogue.targets())]
    if len(dialogues) < 2 or is_random_init(checkpoint.model):
        return
    texts = [
        tuple(turn for turn in dialogue.turns if turn.role == "user") for dialogue in dialogues
    ]
    if len(set(texts)) < len(texts):
        return  # the same sentence by several speakers: another row's text is its own
    swapped = [
        replace(dialogue, turns=_with_texts(dialogue.turns, other))
        for dialogue, other in zip(dialogues, [*texts[1:], texts[0]], strict=True)
    ]
    own, others = (
        mean_loss(checkpoint.model, [batch for _, batch in _encoded(each, checkpoint)])
        for each in (dialogues, swapped)
    )
    text = f"{own:.2f} nats per code after their own texts, {others:.2f} after another row's"
    if own < others:
        report.add("texts", "ok", text)
    else:
        report.add("texts", "warning", f"{text}: are texts and clips paired as they should be?")


def _with_texts(turns: Sequence[Turn], texts: Sequence[Turn]) -> tuple[Turn, ...]:
    """User turns replaced in order, the last one again where there are more of them."""
    waiting = list(texts)
    return tuple(
        (waiting.pop(0) if len(waiting) > 1 else waiting[0])
        if turn.role == "user" and waiting
        else turn
        for turn in turns
    )
