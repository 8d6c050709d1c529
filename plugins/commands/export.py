"""`higgs-audio export`: base and LoRA -> one folder that a server takes as it is. L4.

    base [+ LoRA] --merged--> native weights, text head inside --+ tokenizer, chat template, codec
    --HiggsAudioV2Processor------+--> folder, checked as vLLM-Omni would read it

The folder refers to nothing outside of it and holds neither code nor pickles.
"""

from __future__ import annotations

import json
import os
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from transformers import DacFeatureExtractor, HiggsAudioV2Processor

from plugins.audio.codec import CODEC_FOLDER, Codec, find_codec
from plugins.commands.model_card import model_card
from plugins.commands.vllm_omni import CODEC_FIELDS, check, launch_line, remarks
from plugins.errors import problem
from plugins.files.disk import read_json
from plugins.files.hub import new_folder
from plugins.model.card import name_on_the_hub
from plugins.model.load import base_and_adapters, native_model, with_adapters
from plugins.model.original_format import format_of, load_config, load_tokenizer
from plugins.model.weights import sources_of
from plugins.settings import SETTINGS_FILE, HiggsAudioSettings

DTYPES = ("bfloat16", "float16", "float32")

# `plugins.data.prompt` for the requests that a server takes, in the words of transformers' chat
# templates.
_CHAT_TEMPLATE = r"""
{{- '<|begin_of_text|>' -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {{- part['text'] if part['type'] == 'text' else '<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>' -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|>' -}}
{%- endif -%}
""".strip()
# Of the machine that wrote the file, or a way to run code on the one that reads it.
_NOT_KEPT = {
    "auto_map",
    "custom_pipelines",
    "is_local",
    "local_files_only",
    "name_or_path",
    "_name_or_path",
}


def run(options: Namespace) -> int:
    """The subcommand. Prints what was written and how to serve it."""
    notes = export(
        options.model,
        options.output,
        adapters=options.adapters,
        codec=options.codec,
        dtype=options.dtype,
    )
    files = sorted(path for path in options.output.rglob("*") if path.is_file())
    for file in files:
        print(f"{file.stat().st_size / 1e6:>12,.2f} MB  {file.relative_to(options.output)}")
    total = sum(file.stat().st_size for file in files)
    print(f"{total / 1e6:>12,.2f} MB  in {options.output}; vLLM-Omni's names and shapes: all there")
    for note in notes:
        print(f"note: {note}")
    print(f"serve it: {launch_line(str(options.output), options.output.name)}")
    return 0


def export(
    model: str | None,
    output: Path,
    *,
    adapters: str | None = None,
    codec: str | None = None,
    dtype: str | None = None,
) -> list[str]:
    """Write the new folder `output`; returns notes on serving it.

    model: folder or Hub id of a base, a merged model or a LoRA folder; None: the base that
    `adapters` names. dtype: one of DTYPES; None: that of the base's weights. Raises UserError if
    `output` exists, if anything is missing or damaged, and if vLLM-Omni could not load the result;
    then nothing is written."""
    if model is None and adapters is None:
        raise problem(
            source="options",
            field="model",
            value=None,
            reason="is missing",
            remedy="give --model, --adapters or both",
        )
    if model is None:
        assert adapters is not None
        model, adapters = adapters, None
    folder, adapters = base_and_adapters(model, adapters)
    base = Path(folder)
    settings = HiggsAudioSettings.of_checkpoint(Path(adapters or folder))
    with new_folder(output, base) as unfinished:
        config = load_config(base)
        found = sources_of(base, config, format_of(base))
        kept: Any = getattr(torch, dtype) if dtype else found["audio_lm_head.weight"].read().dtype
        merged = native_model(folder, dtype=kept)
        if (
            adapters is not None
        ):  # as `swift export --merge_lora` does; peft's `safe_merge` rounds twice in bf16
            merged = with_adapters(merged, {"default": adapters}).merge_and_unload()
        _check_finite(merged, kept)
        merged.save_pretrained(unfinished)
        processor: Any = _processor(base, Codec(find_codec([folder], codec or settings.codec)))
        processor.save_pretrained(unfinished)
        processor.audio_tokenizer.save_pretrained(unfinished / CODEC_FOLDER)
        _keep_settings(Path(adapters or folder), unfinished)
        _settle(unfinished)
        check(unfinished)
        notes = remarks(processor.tokenizer)
        if settings.prompts == "cleaned texts":
            notes.append(
                "trained with cleaned texts, and vLLM-Omni speaks them as they are sent: send what"
                " plugins.data.text.clean_transcript gives"
            )
        card = model_card(
            output.name,
            base=name_on_the_hub(model, merged.config),
            adapters=adapters is not None,
            parameters=merged.num_parameters(),
            dtype=str(kept).removeprefix("torch."),
            notes=notes,
        )
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        for file in base.glob("LICENSE*"):
            shutil.copy2(file, unfinished)
    return notes


def _check_finite(model: Any, dtype: torch.dtype) -> None:
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            reason = f"is not finite in {dtype}: the adapters are broken, or float16 is too narrow"
            raise problem(
                source="export",
                field="weights",
                value=name,
                reason=reason,
                remedy="take another checkpoint, or bfloat16",
            )


def _processor(base: Path, codec: Codec) -> HiggsAudioV2Processor:
    """What `AutoProcessor` will load: the base's tokenizer, a chat template and the codec, named
    relatively."""
    tokenizer = load_tokenizer(base)
    # An original checkpoint may have the template of Llama-3's chat.
    template = tokenizer.chat_template if format_of(base) == "native" else None
    codec.model.name_or_path = CODEC_FOLDER
    extractor = DacFeatureExtractor(
        sampling_rate=codec.sample_rate_hz, hop_length=codec.model.config.hop_length
    )
    return HiggsAudioV2Processor(
        extractor, tokenizer, codec.model, chat_template=template or _CHAT_TEMPLATE
    )


def _keep_settings(source: Path, target: Path) -> None:
    """Those of the training: whether prompts were raw. Its codec is beside the weights now."""
    if (source / SETTINGS_FILE).is_file():
        trained = read_json(
            source / SETTINGS_FILE, "copy it again from the training's folder, or remove it"
        )
        _write_json(target / SETTINGS_FILE, {**trained, "codec": None, "audio_root": None})


def _settle(folder: Path) -> None:
    """Tell servers where the codec is, and leave nothing of this machine in any JSON."""
    for file in folder.rglob("*.json"):
        if file.name != "tokenizer.json":  # a vocabulary; entries may well look like paths
            _write_json(file, _portable(read_json(file, "export again")))
    _write_json(
        folder / "config.json", read_json(folder / "config.json", "export again") | CODEC_FIELDS
    )


def _portable(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    entries = {name: _portable(entry) for name, entry in value.items() if name not in _NOT_KEPT}
    return {
        name: entry
        for name, entry in entries.items()
        if not (isinstance(entry, str) and os.path.isabs(entry))
    }


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
