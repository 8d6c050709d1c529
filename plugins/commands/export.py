"""`higgs-audio export`: base and LoRA -> one folder that a server takes as it is.

    base [+ LoRA] --merged--> native weights, text head inside --+
    tokenizer, chat template, codec --HiggsAudioV2Processor------+--> folder, with a card

The folder refers to nothing outside of it and holds neither code nor pickles. It is checked as
vLLM-Omni would read it (`plugins.commands.vllm_omni`) before it gets its name.
"""

from __future__ import annotations

import json
import os
import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DacFeatureExtractor, HiggsAudioV2Processor

from plugins import __version__
from plugins.audio.codec import CODEC_FOLDER, Codec, find_codec
from plugins.commands.vllm_omni import CODEC_FIELDS, check, launch_line, remarks
from plugins.data.wording import INSTRUCTION
from plugins.errors import problem
from plugins.files.disk import read_json
from plugins.files.hub import new_folder
from plugins.model.card import CARD, METRICS, NO_METRICS, card, link_to, name_on_the_hub
from plugins.model.load import base_and_adapters, native_model, with_adapters
from plugins.model.original_format import format_of, load_config, load_tokenizer
from plugins.model.weights import sources_of
from plugins.settings import SETTINGS_FILE, HiggsAudioSettings

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
            {%- if part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- else -%}
                {{- '<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>' -}}
            {%- endif -%}
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
_SUMMARY = """\
A Higgs-Audio V2 text-to-speech model, fine-tuned from {base}{how}.
{parameters} parameters, {dtype}; transformers' native format, text head inside, the codec in
`{codec}/`. Written by higgs-audio-swift {version}."""
_SPEAK = """\
With the kit that made it:

```bash
higgs-audio speak --model . --text "Hello." --output hello.wav
higgs-audio speak --model . --text "Hello." \\
    --reference_audio voice.wav --reference_text "What the voice says."
```

As a server, with a GPU and vLLM-Omni, which knows Higgs-Audio V2 since 0.22 (written after its
sources, not run):

```bash
{launch}
curl localhost:8000/v1/audio/speech -H "Content-Type: application/json" -o hello.wav \\
    -d '{{"model": "{name}", "input": "Hello.", "response_format": "wav"}}'
```

`ref_audio` and `ref_text`, given together, clone a voice. The server writes the system message
`{instruction}` and no scene. It has to be started in this folder:
`processor_config.json` names the codec by a relative path, which transformers takes from the
working folder. If you publish this folder on the Hub, write the Hub id of a codec there."""


def run(options: Namespace) -> int:
    """The subcommand. Prints what was written and how to serve it."""
    notes = export(
        options.model,
        options.output,
        adapters=options.adapters,
        codec=options.codec,
        dtype=options.dtype,
    )
    total = 0
    for file in sorted(options.output.rglob("*")):
        if file.is_file():
            num_bytes = file.stat().st_size
            total += num_bytes
            print(f"{num_bytes / 1e6:>12,.2f} MB  {file.relative_to(options.output)}")
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
    `adapters` names. dtype: bfloat16, float16 or float32; None: that of the base's weights. Raises
    UserError if `output` exists, if anything is missing or damaged, and if vLLM-Omni could not load
    the result; then nothing is written."""
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
    base, trained = Path(folder), Path(adapters or folder)
    settings = HiggsAudioSettings.of_checkpoint(trained)
    with new_folder(output, base) as unfinished:
        merged = _merged(base, adapters, dtype)
        merged.save_pretrained(unfinished)
        processor: Any = _processor(base, Codec(find_codec([folder], codec or settings.codec)))
        processor.save_pretrained(unfinished)
        processor.audio_tokenizer.save_pretrained(unfinished / CODEC_FOLDER)
        _keep_settings(trained, unfinished)
        # After all that writes JSON, before the check that reads it.
        _settle(unfinished)
        check(unfinished)
        notes = remarks(processor.tokenizer)
        if settings.prompts == "cleaned texts":
            notes.append(
                "trained with cleaned texts, and vLLM-Omni speaks them as they are sent: send what"
                " plugins.data.text.clean_transcript gives"
            )
        text = model_card(
            output.name,
            base=name_on_the_hub(model, merged.config),
            adapters=adapters is not None,
            parameters=merged.num_parameters(),
            dtype=str(merged.dtype).removeprefix("torch."),
            notes=notes,
        )
        (unfinished / CARD).write_text(text, encoding="utf-8")
        for file in base.glob("LICENSE*"):
            shutil.copy2(file, unfinished)
    return notes


def model_card(
    name: str,
    *,
    base: str | None,
    adapters: bool,
    parameters: int,
    dtype: str,
    notes: Sequence[str] = (),
) -> str:
    """base: Hub id of what was fine-tuned, None if unknown. notes: lines on serving."""
    count = f"{parameters / 1e9:.2f} billion" if parameters > 1e8 else f"{parameters:,}"
    summary = _SUMMARY.format(
        base=link_to(base),
        how=" with LoRA, merged in" if adapters else "",
        parameters=count,
        dtype=dtype,
        codec=CODEC_FOLDER,
        version=__version__,
    )
    # The folder's place on this machine is nobody's business.
    speak = _SPEAK.format(name=name, instruction=INSTRUCTION, launch=launch_line("FOLDER", name))
    text = card(name, base=base, summary=summary, speak=speak, sections={METRICS: NO_METRICS})
    return text + "".join(f"\nNote: {note}.\n" for note in notes)


def _merged(base: Path, adapters: str | None, dtype: str | None) -> Any:
    """The model with its adapters in its weights, in `dtype`, by default that of the base."""
    sources = sources_of(base, load_config(base), format_of(base))
    # By the weights: config.json may say otherwise.
    kept: Any = sources["audio_lm_head.weight"].read().dtype
    if dtype is not None:
        kept = getattr(torch, dtype)
    model = native_model(str(base), dtype=kept)
    if adapters is not None:
        # As `swift export --merge_lora` does: peft's `safe_merge` rounds twice in bf16.
        model = with_adapters(model, {"default": adapters}).merge_and_unload()
    _check_finite(model, kept)
    return model


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
    template = _CHAT_TEMPLATE
    # An original checkpoint may have the template of Llama-3's chat.
    if format_of(base) == "native":
        template = tokenizer.chat_template or _CHAT_TEMPLATE
    codec.model.name_or_path = CODEC_FOLDER
    extractor = DacFeatureExtractor(
        sampling_rate=codec.sample_rate_hz, hop_length=codec.model.config.hop_length
    )
    return HiggsAudioV2Processor(extractor, tokenizer, codec.model, chat_template=template)


def _keep_settings(source: Path, target: Path) -> None:
    """Those of the training: whether prompts were raw. Its codec is beside the weights now."""
    if (source / SETTINGS_FILE).is_file():
        remedy = "copy it again from the training's folder, or remove it"
        trained = read_json(source / SETTINGS_FILE, remedy)
        _write_json(target / SETTINGS_FILE, {**trained, "codec": None, "audio_root": None})


def _settle(folder: Path) -> None:
    """Tell servers where the codec is, and leave nothing of this machine in any JSON."""
    for file in folder.rglob("*.json"):
        # A vocabulary is left as it is: entries may well look like paths.
        if file.name != "tokenizer.json":
            _write_json(file, _portable(read_json(file, "export again")))
    config = folder / "config.json"
    _write_json(config, read_json(config, "export again") | CODEC_FIELDS)


def _portable(value: Any) -> Any:
    """`value` of a JSON file without what is of this machine."""
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, entry in value.items():
        is_path = isinstance(entry, str) and os.path.isabs(entry)
        if name not in _NOT_KEPT and not is_path:
            kept[name] = _portable(entry)
    return kept


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
