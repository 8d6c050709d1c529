"""Flags that several commands have, each written once. Torch-free: the command line starts fast."""

from __future__ import annotations

import argparse


def model_flags(
    command: argparse.ArgumentParser, *, required: bool = False, model: str = "", adapters: str = ""
) -> None:
    """model, adapters: what the command makes of them, after what they are."""
    command.add_argument(
        "--model",
        required=required,
        help=f"checkpoint folder (base, merged, or LoRA{model}) or Hub id",
    )
    command.add_argument("--adapters", help=f"LoRA folder on top of --model{adapters}")
    command.add_argument(
        "--codec", help="codec folder or Hub id (default: the one beside the model)"
    )


def scale_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--adapter_scale",
        type=float,
        default=1.0,
        help="strength of the LoRA weights, 0 to 4: 0 is the base (default: %(default)s)",
    )


def device_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", help="cpu, cuda, cuda:1 ... (default: the first GPU if there is one)"
    )


def max_audio_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--max_audio_s",
        type=float,
        default=40.0,
        help="longest speech of one piece in seconds (default: %(default)s)",
    )


def speaking_flags(command: argparse.ArgumentParser, *, batch_size: int) -> None:
    """How a model speaks, for the commands that are given texts."""
    command.add_argument(
        "--batch_size",
        type=positive,
        default=batch_size,
        help="texts spoken together (default: %(default)s)",
    )
    command.add_argument(
        "--temperature", type=float, default=0.3, help="0 is greedy (default: %(default)s)"
    )
    command.add_argument("--top_k", type=int, default=50, help="(default: %(default)s)")
    command.add_argument("--top_p", type=float, default=0.95, help="(default: %(default)s)")
    max_audio_flag(command)
    command.add_argument("--quantization", choices=("4bit", "8bit"), help="load with bitsandbytes")
    device_flag(command)


def marks_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--marks",
        action=argparse.BooleanOptionalAction,
        help="audio files say that they are synthetic (default: they do)",
    )


def best_of_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--best_of",
        type=positive,
        default=1,
        metavar="N",
        help="speak N takes of each text and keep the one with the fewest wrong words, then the"
        " likest voice (default: %(default)s)",
    )


def hearing_flags(command: argparse.ArgumentParser) -> None:
    """Who hears what was spoken."""
    command.add_argument(
        "--language", default="en", help="of the texts, ISO 639-1 (default: %(default)s)"
    )
    command.add_argument(
        "--asr", help="recogniser: folder or Hub id (default: Whisper tiny.en, which ships inside)"
    )
    command.add_argument(
        "--speaker_model",
        help="x-vectors, for example WavLM: folder or Hub id (default: resemblyzer)",
    )


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value
