"""`higgs-audio sft --help`, and that of `rlhf`: the flags that people use, our settings, where all
others are listed.

Imports neither torch nor MS-SWIFT; a test holds that MS-SWIFT knows each flag."""

from __future__ import annotations

import dataclasses
import textwrap

from plugins.settings import HiggsAudioSettings

USAGE = "higgs-audio {command} [CONFIG.yaml] [--FLAG VALUE ...]"
_WHAT = {
    "sft": "Fine-tune Higgs-Audio V2.",
    "rlhf": "Train Higgs-Audio V2 on pairs of a better and a worse clip (docs/preferences.md).",
}

# Defaults are MS-SWIFT's; those of a file in configs/ stand there.
COMMON = {
    "model": "folder or Hub id of the model to start from (needed)",
    "model_type": "higgs-audio-v2-3b or higgs-audio-v2-7b (default: by the model)",
    "use_hf": "true: Hub ids are Hugging Face's, false: ModelScope's (default: false)",
    "dataset": "JSONL files of rows; FILE#500 takes 500 of them at random (needed)",
    "val_dataset": "JSONL files of rows that are not trained on",
    "output_dir": "folder of runs (default: output); each run has a folder vN-DATE there",
    "resume_from_checkpoint": "folder of a checkpoint, or auto: the newest whole one",
    "tuner_type": "lora or full (default: lora)",
    "lora_rank": "width of the adapters: more is learnt, in more memory (default: 8)",
    "lora_alpha": "usually twice the rank (default: 32)",
    "target_modules": "what gets LoRA (default: all-linear)",
    "learning_rate": "how far each step goes (default: 1e-4 for LoRA, 1e-5 for full)",
    "num_train_epochs": "how often each row is seen (default: 3)",
    "max_steps": "ends there, whatever the epochs",
    "per_device_train_batch_size": "rows at a time on each GPU (default: 1)",
    "gradient_accumulation_steps": "batches per step (default: so that 16 rows are one step)",
    "max_length": "longest row in text tokens and frames (default: the model's)",
    "torch_dtype": "bfloat16, float16 or float32 (default: the model's)",
    "logging_steps": "steps between two lines of the log (default: 5)",
    "save_steps": "steps between checkpoints and evaluations (default: 500)",
    "save_total_limit": "checkpoints that are kept (default: all)",
    "deepspeed": "zero2 or zero3, for full fine-tuning on several GPUs",
    "use_cpu": "true: train on the CPU",
}
# Of `rlhf` alone.
PREFERENCES = {
    "rlhf_type": "dpo, which is the only one for speech",
    "beta": "how dear it is to leave the reference (default: 0.1)",
    "loss_type": "sigmoid, sigmoid_norm or ipo; the last two per code (default: sigmoid)",
    "rpo_alpha": "weight of the loss of fine-tuning, of the chosen clips (default: none)",
    "label_smoothing": "share of pairs that are the wrong way round (default: 0)",
    "ref_model": "of tuner_type full: folder of the reference (default: that of --model)",
}
_END = """\
The same in a YAML file, as in configs/; a flag wins over the file. NPROC_PER_NODE=N in the
environment starts N processes. All flags: swift {command} --help"""


def text(command: str = "sft") -> str:
    lines = [f"usage: {USAGE.format(command=command)}", "", _WHAT[command], ""]
    lines.append("flags that most runs use:")
    for flag, meaning in COMMON.items():
        lines += _entry(flag, meaning)
    if command == "rlhf":
        lines += ["", "flags of preferences:"]
        for flag, meaning in PREFERENCES.items():
            lines += _entry(flag, meaning)
    lines += ["", "settings of this kit:"]
    for knob in dataclasses.fields(HiggsAudioSettings):
        lines += _entry(knob.name, knob.metadata["help"] + _default(knob.default))
    return "\n".join([*lines, "", _END.format(command=command)])


def _default(value: object) -> str:
    if value in (None, ()):
        return ""
    return f" (default: {str(value).lower()})"


def _entry(flag: str, meaning: str) -> list[str]:
    head = f"  --{flag}"
    indent = " " * 32
    lines = textwrap.wrap(meaning, 96, initial_indent=indent, subsequent_indent=indent)
    if len(head) < 31:
        lines[0] = head.ljust(32) + lines[0].lstrip()
        return lines
    return [head, *lines]
