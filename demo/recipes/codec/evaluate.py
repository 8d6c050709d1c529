"""What the codec loses: `python -m demo.recipes.codec.evaluate [FOLDER]`. L4.

Speaks the held-out sentences in each voice, sends them through the public `encode` and `decode`,
and lets a recogniser compare. Prints a table; writes evaluation.json, the spectrograms and the loss
curves into FOLDER (demo/codec). Needs flite and the extra `evaluate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import soxr
import torch
from torch import Tensor

from demo.recipes.codec import pictures, sentences
from demo.recipes.codec.corpus import VOICES, speak
from demo.run import CODEC
from plugins.audio.codec import NUM_CODES, Codec
from plugins.audio.waveforms import SAMPLE_RATE_HZ
from plugins.errors import UserError
from plugins.evaluation.scorers import RATE_HZ, Scorer, load_scorers
from plugins.evaluation.text import whisper_style, word_errors


def evaluate(folder: Path) -> dict[str, Any]:
    """The figures; evaluation.json adds what was heard. Raises UserError without flite or
    recogniser."""
    codec, recogniser = Codec(str(folder)), _recogniser()
    texts = sentences.held_out()
    figures: dict[str, Any] = {"sentences": len(texts)}
    heard: dict[str, list[str]] = {}
    found: list[Tensor] = []
    for voice in VOICES:
        clips = [speak(text, voice) for text in texts]
        codes = [codec.encode(clip) for clip in clips]
        decoded = [
            codec.decode(frames)[: len(clip)] for frames, clip in zip(codes, clips, strict=True)
        ]
        found += codes
        pictures.spectrograms(folder / f"spectrogram_{voice}.png", texts[0], clips[0], decoded[0])
        for name, waveforms in (("original", clips), ("round_trip", decoded)):
            transcripts = [
                recogniser.hear(soxr.resample(each, SAMPLE_RATE_HZ, RATE_HZ)) for each in waveforms
            ]
            figures[f"wer_{voice}_{name}"] = round(_word_error_rate(texts, transcripts), 4)
            heard[f"{voice}_{name}"] = transcripts
    figures["perplexity"] = [round(perplexity(row)) for row in torch.cat(found, dim=1)]
    pictures.curves(folder / "loss.csv", folder / "loss.png")
    written = json.dumps({**figures, "recogniser": recogniser.identity, "heard": heard}, indent=1)
    (folder / "evaluation.json").write_text(written + "\n", encoding="utf-8")
    return figures


def _recogniser() -> Scorer:
    scorers, missing = load_scorers()
    for scorer in scorers:
        if scorer.name == "transcript":
            return scorer
    raise UserError(next(str(each) for each in missing if each.name == "transcript"))


def _word_error_rate(texts: list[str], transcripts: list[str]) -> float:
    counts = [
        word_errors(whisper_style(text, "en"), whisper_style(heard, "en"))
        for text, heard in zip(texts, transcripts, strict=True)
    ]
    return sum(errors for errors, _ in counts) / sum(words for _, words in counts)


def perplexity(codes: Tensor) -> float:
    """codes (F,) -> exp of the entropy of their use: NUM_CODES if all are as frequent, 1 if one
    code serves for all."""
    share = codes.bincount(minlength=NUM_CODES) / len(codes)
    return float(torch.special.entr(share).sum().exp())


def main(argv: list[str]) -> int:
    for name, value in evaluate(Path(argv[0]) if argv else CODEC).items():
        print(f"{name:<24}{value}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
