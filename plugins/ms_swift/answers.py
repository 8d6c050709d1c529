"""Rows -> spoken answers, in the terms of MS-SWIFT's engine.

In: a row whose last assistant turn is left out, and the generation config of the engine. Out: what
MS-SWIFT takes for the answer: under `swift infer` the place of a WAV file beside the result file,
else a data URL. `plugins.inference` speaks; this file does not know how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from plugins.audio.codec import FRAMES_PER_S
from plugins.corpora.canonical import AUDIO_TAG, KEY_COLUMNS
from plugins.data.clips import check_clips
from plugins.data.dialogue import Dialogue
from plugins.data.rows import dialogue_from_row
from plugins.delay_pattern import num_delayed_frames
from plugins.errors import UserError, problem
from plugins.inference import HiggsAudioGenerator
from plugins.ms_swift.chat import data_url
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech

REQUEST = "speech_request"  # travels in the template's inputs and in the batch


@dataclass
class SpeechRequest:
    """One row or chat request on its way through MS-SWIFT's engine, and what was said."""

    dialogue: Dialogue
    speech: Speech | None = None


# Before speaking.


def request_of(row: Mapping[str, Any], settings: HiggsAudioSettings) -> SpeechRequest:
    """row: canonical. Raises UserError if one of its clips cannot be read."""
    dialogue = dialogue_from_row(_without_answer(row), settings, training=False)
    check_clips(dialogue, settings)
    return SpeechRequest(dialogue)


def _without_answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row without what is to be said: its last assistant turn, with the clips and codes
    of that turn.

    MS-SWIFT may have taken the turn away already, then the clips are still there.
    """
    messages = list(row["messages"])
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    num_clips = 0
    for message in messages:
        if message["role"] == "assistant":
            # An empty turn is one clip.
            is_empty = not message["content"].strip()
            num_clips += 1 if is_empty else message["content"].count(AUDIO_TAG)
    shorter = {**row, "messages": messages}
    for column in ("audios", "audio_codes", KEY_COLUMNS["audio_codes"]):
        if row.get(column):
            shorter[column] = row[column][:num_clips]
    return shorter


def prompt_batch(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Any]:
    """What MS-SWIFT counts of a batch: prompts (B, S), padded on the left, and the requests."""
    prompts = [torch.tensor(row["input_ids"]) for row in rows]
    is_prompt = list(map(torch.ones_like, prompts))
    return {
        "input_ids": _left_padded(prompts, pad_id),
        "attention_mask": _left_padded(is_prompt, 0),
        REQUEST: [row[REQUEST] for row in rows],
    }


def _left_padded(rows: list[Tensor], value: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")


# Speaking.


def speak(
    requests: Sequence[SpeechRequest],
    generator: HiggsAudioGenerator,
    config: Any,
    *,
    seed: int | None,
) -> Tensor:
    """Give each request its speech. Returns the steps that this took (B, max_new_tokens), which
    only tell MS-SWIFT how many there were.

    config: MS-SWIFT's generation config. Raises UserError for what speech has no use for.
    """
    tokens = generator.tokens
    samplings = [_sampling(config, seed)] * len(requests)
    max_audio_s = _max_audio_s(config.max_new_tokens, tokens.num_codebooks)
    dialogues = [request.dialogue for request in requests]
    speeches = generator.speak(dialogues, samplings=samplings, max_audio_s=max_audio_s)
    steps = torch.full((len(requests), config.max_new_tokens), tokens.pad)
    for request, row, speech in zip(requests, steps, speeches, strict=True):
        request.speech = speech
        num_steps = len(row)
        if speech.stopped:
            # MS-SWIFT says "stop" if there are fewer than the limit, else "length".
            num_frames = speech.codes.shape[1]
            num_steps = min(num_delayed_frames(num_frames, tokens.num_codebooks), len(row) - 1)
        row[:num_steps] = tokens.audio
    return steps


def _sampling(config: Any, seed: int | None) -> Sampling:
    """seed: that of the run, for requests that bring none."""
    for name, neutral in (
        ("num_beams", 1),
        ("num_return_sequences", 1),
        ("repetition_penalty", 1.0),
    ):
        if (value := getattr(config, name, None)) not in (None, neutral):
            raise _unavailable(name, value)
    if config.output_logits:
        raise _unavailable("logprobs", True)
    # Put there by `patches._checked_request`; `swift infer` has one seed for all.
    own_seed = getattr(config, "seed", None)
    options: dict[str, Any] = {"seed": seed if own_seed is None else own_seed}
    if not config.do_sample:
        return Sampling(temperature=0, **options)
    for name in ("temperature", "top_k", "top_p"):
        if (value := getattr(config, name)) is not None:
            options[name] = value
    return Sampling(**options)


def _unavailable(option: str, value: Any) -> UserError:
    reason = "is not available for speech"
    return problem(
        source="request", field=option, value=value, reason=reason, remedy="leave it out"
    )


def _max_audio_s(max_new_tokens: int, num_codebooks: int) -> float:
    """F codec frames take F + K + 1 steps."""
    num_frames = max_new_tokens - num_delayed_frames(0, num_codebooks)
    if num_frames < 1:
        raise problem(
            source="request",
            field="max_new_tokens",
            value=max_new_tokens,
            reason=f"is no room for a frame of audio ({FRAMES_PER_S} per second)",
            remedy=f"give {num_delayed_frames(1, num_codebooks)} or more",
        )
    return (num_frames - 0.5) / FRAMES_PER_S  # the half keeps rounding up from another frame


# After speaking.


def answer(request: SpeechRequest, folder: Path | None) -> Any:
    """A data URL; with a folder the content list that names the WAV file in it, its length and
    whether it was cut."""
    speech = request.speech
    assert speech is not None, "not spoken yet"
    if folder is None:
        return data_url(speech)
    path = _free_path(folder, request.dialogue.source)
    speech.save(path)
    file = {
        "type": "audio",
        "audio": str(path),
        "duration_s": round(speech.duration_s, 3),
        "stopped": speech.stopped,
    }
    return [file]


def _free_path(folder: Path, source: str) -> Path:
    """`FILE-LINE.wav`, or `FILE-LINE-2.wav` if that exists: MS-SWIFT appends to a result file of an
    earlier run."""
    file, _, line = source.rpartition(":")
    name = f"{Path(file).stem}-{int(line):05d}" if line.isdigit() else "speech"
    path = folder / f"{name}.wav"
    for number in count(2):
        if not path.exists():
            break
        path = folder / f"{name}-{number}.wav"
    return path
