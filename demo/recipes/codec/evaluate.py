"""What the codec loses: `python -m demo.recipes.codec.evaluate [FOLDER]`.

Speaks the held-out sentences in each voice, sends them through the public `encode` and `decode`,
and lets a recogniser and a predictor of quality compare. Prints a table; writes evaluation.json,
the spectrograms and the loss curves into FOLDER (demo/codec). Needs flite, Piper and the extra
`evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
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
from plugins.hearing.scorers import RATE_HZ, load_scorers
from plugins.hearing.text import whisper_style, word_errors


def evaluate(folder: Path, voices: Iterable[str] = tuple(VOICES)) -> dict[str, Any]:
    """The figures; evaluation.json adds what was heard. Raises UserError without a synthesiser or
    scorer."""
    scorers, missing = load_scorers()
    if missing:
        raise UserError(str(missing[0]))
    scorer = {scorer.name: scorer for scorer in scorers}
    recogniser, quality = scorer["transcript"], scorer["distillmos"]
    codec, texts = Codec(str(folder)), sentences.held_out()
    figures: dict[str, Any] = {"sentences": len(texts)}
    heard: dict[str, list[str]] = {}
    codes: list[Tensor] = []  # (K, F) of each clip
    for voice in voices:
        clips, decoded = [], []
        for text in texts:
            clip = speak(text, voice)
            codes.append(codec.encode(clip))
            clips.append(clip)
            # Without the zeros that fill the last frame.
            decoded.append(codec.decode(codes[-1])[: len(clip)])
        pictures.spectrograms(folder / f"spectrogram_{voice}.jpg", texts[0], clips[0], decoded[0])
        for name, waveforms in (("original", clips), ("round_trip", decoded)):
            resampled = [soxr.resample(clip, SAMPLE_RATE_HZ, RATE_HZ) for clip in waveforms]
            transcripts = list(map(recogniser.hear, resampled))
            figures[f"wer_{voice}_{name}"] = round(_word_error_rate(texts, transcripts), 4)
            figures[f"mos_{voice}_{name}"] = round(fmean(map(quality.hear, resampled)), 2)
            heard[f"{voice}_{name}"] = transcripts
    codes_of_codebook = torch.cat(codes, dim=1)
    figures["perplexity"] = list(map(round, map(perplexity, codes_of_codebook)))
    pictures.curves(folder / "loss.csv", folder / "loss.png")
    identities = {"recogniser": recogniser.identity, "mos": quality.identity}
    written = json.dumps({**figures, **identities, "heard": heard}, indent=1)
    (folder / "evaluation.json").write_text(written + "\n", encoding="utf-8")
    return figures


def _word_error_rate(texts: Sequence[str], transcripts: Sequence[str]) -> float:
    """Of all sentences together: a short one weighs less than a long one."""
    num_errors = num_words = 0
    for text, heard in zip(texts, transcripts, strict=True):
        errors, words = word_errors(whisper_style(text, "en"), whisper_style(heard, "en"))
        num_errors += errors
        num_words += words
    return num_errors / num_words


def perplexity(codes: Tensor) -> float:
    """codes (F,) -> exp of the entropy of their use: NUM_CODES if all are as frequent, 1 if one
    code serves for all."""
    # `entr` is 0 where a code is not used.
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
