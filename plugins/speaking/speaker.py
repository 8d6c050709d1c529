"""Prompts -> speech: one model with its tokenizer and its codec.

    Script --next_line--> Dialogue --prompt--> EncodedSample --decoding--> delayed frames (T, K)
           --codes_of--> codes (K, F) --Codec.decode--> waveform (N,)

It builds its prompts with the functions of training, so what the model hears here is what it was
trained on, to the token. This file knows neither how a user asks (`plugins.inference`) nor which
LoRA weights speak."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plugins.audio.codec import FRAMES_PER_S, Codec
from plugins.audio.marks import Maker
from plugins.audio.stream_decoder import StreamDecoder
from plugins.collator import collate
from plugins.data.clips import check_clips, num_frames, with_clips
from plugins.data.dialogue import AudioClip, Dialogue, EncodedSample
from plugins.data.prompt import encode
from plugins.data.tokens import SpecialTokens
from plugins.delay_pattern import num_delayed_frames, undo_delay
from plugins.errors import UserError, problem
from plugins.hearing.takes import Judge, load_judge
from plugins.settings import HiggsAudioSettings
from plugins.speaking.decoding import Stage, decode, fits
from plugins.speaking.graphs import can_be_recorded
from plugins.speaking.line import Line, in_range
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech, join
from plugins.speaking.takes import Takes, judged
from plugins.speaking.voices import Script, last_text

logger = logging.getLogger(__name__)

_MAX_AUDIO_S = 86_400  # a day: rather a slip than a wish
# Of a prompt beside its clips: four pieces of text, system message, what delays and turns add.
_TEXT_POSITIONS = 400


class Speaker:
    """Speaks dialogues whose next turn is the assistant's.

    model: without its PEFT wrapper, LoRA layers in place. settings: say how long a clip may be.
    cuda_graphs: see `plugins.speaking.graphs`; None: wherever they can be had. deterministic: what
    a seed says depends on nothing else. Raises UserError for True with it, and with a quantised
    model."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        codec: Codec,
        settings: HiggsAudioSettings,
        *,
        cuda_graphs: bool | None = None,
        deterministic: bool = False,
    ) -> None:
        if cuda_graphs and deterministic:
            raise problem(
                source="request",
                field="cuda_graphs",
                value=True,
                reason=(
                    "is not available with deterministic: a compiled step adds in an order that"
                    " depends on what it has been compiled for before"
                ),
                remedy="leave one of the two out",
            )
        if cuda_graphs and getattr(model, "is_quantized", False):
            raise problem(
                source="request",
                field="cuda_graphs",
                value=True,
                reason=(
                    "is not available for quantised models, whose kernels cannot all be captured"
                ),
                remedy="leave one of the two out",
            )
        self.model = model
        self.tokenizer = tokenizer
        self.tokens = SpecialTokens.from_config(model.config, tokenizer)
        self.codec = codec
        self.settings = settings
        self._deterministic = deterministic
        if cuda_graphs is None:
            cuda_graphs = not deterministic and can_be_recorded(model)
        self._stage = Stage() if cuda_graphs else None
        # Codes of references (K, F), by path and time of change.
        self._references: dict[tuple[str, int], Tensor] = {}
        # A fast tokenizer does not take two threads at once.
        self._tokenizing = threading.Lock()
        self._is_stopped = threading.Event()
        self.maker: Maker | None = None  # of the files; None: they bear no mark
        self.judge: Judge | None = None  # of takes; None: loaded before the first

    @property
    def compiles(self) -> bool:
        """Whether steps are compiled, and recorded on a GPU."""
        return self._stage is not None

    def speak(
        self, dialogues: Sequence[Dialogue], *, samplings: Sequence[Sampling], max_audio_s: float
    ) -> list[Speech]:
        """The next turn of each dialogue, in one batch, or in as few as fit into memory; the best
        of several takes where `best_of` asks for them. Clips may be paths still.

        Raises UserError naming the dialogue's source if one says nothing, if a prompt leaves no
        room, and if there is nobody to hear the takes."""
        started_s = time.perf_counter()
        spoken: Iterable[Speech | UserError]
        if any(sampling.best_of > 1 for sampling in samplings):
            spoken = [takes.best for takes in self.takes(dialogues, samplings, max_audio_s)]
        else:
            spoken = self._spoken(dialogues, samplings, max_audio_s)
        took_s = time.perf_counter() - started_s
        speeches = []
        for speech in spoken:
            if isinstance(speech, UserError):
                raise speech
            speeches.append(replace(speech, took_s=took_s))
        return speeches

    def takes(
        self,
        dialogues: Sequence[Dialogue],
        samplings: Sequence[Sampling],
        max_audio_s: float,
        references: Sequence[str | None] | None = None,
    ) -> list[Takes]:
        """All takes of each dialogue, spoken in one batch and heard one by one. references: the
        voices they are compared with, where the dialogues clone none."""
        if self.judge is None:
            self.judge, missing = load_judge()
            for scorer in missing:
                logger.warning("takes are ranked without their voice: %s", scorer)
        takes_of = [sampling.takes() for sampling in samplings]
        repeated: list[Dialogue] = []
        for dialogue, takes in zip(dialogues, takes_of, strict=True):
            repeated += [dialogue] * len(takes)
        spoken = iter(self._spoken(repeated, [*chain(*takes_of)], max_audio_s))
        results = []
        for i, takes in enumerate(takes_of):
            speeches = list(islice(spoken, len(takes)))
            if self._is_stopped.is_set():
                raise UserError("stopped")
            reference = None if references is None else references[i]
            results.append(judged(dialogues[i], speeches, takes, self.judge, reference=reference))
        return results

    def _spoken(
        self, dialogues: Sequence[Dialogue], samplings: Sequence[Sampling], max_audio_s: float
    ) -> list[Speech | UserError]:
        """The next turn of each dialogue, or why there is none."""
        require_duration(max_audio_s)
        samples = list(map(self.prompt, dialogues))
        max_steps = [self._max_steps(sample, max_audio_s) for sample in samples]
        delayed: list[list[Tensor]] = [[] for _ in samples]
        for rows, frames in self._decode(samples, samplings, max_steps):
            for row, frame in zip(rows, frames, strict=True):
                delayed[row].append(frame)
        spoken: list[Speech | UserError] = []
        for dialogue, of_row in zip(dialogues, delayed, strict=True):
            try:
                codes = self.codes_of(of_row, dialogue)
            except UserError as error:
                spoken.append(error)
                continue
            spoken.append(self._speech(dialogue, self.codec.decode(codes), codes, of_row))
        return spoken

    def perform(
        self, scripts: Sequence[Script], *, samplings: Sequence[Sampling], max_audio_s: float
    ) -> list[list[Speech]]:
        """The lines of each script, each in the hearing of the ones before it: the first lines of
        all scripts in one batch, then the second ones."""
        require_duration(max_audio_s)
        self.begin()
        spoken: list[list[Speech]] = [[] for _ in scripts]
        while True:
            rows: list[int] = []
            prompts: list[Dialogue] = []
            chosen: list[Sampling] = []
            for row, script in enumerate(scripts):
                if len(spoken[row]) < len(script.lines):
                    rows.append(row)
                    said = [speech.codes for speech in spoken[row]]
                    prompts.append(self.next_line(script, said, max_audio_s))
                    chosen.append(samplings[row])
            if not rows:
                return spoken
            speeches = self.speak(prompts, samplings=chosen, max_audio_s=max_audio_s)
            for row, speech in zip(rows, speeches, strict=True):
                spoken[row].append(speech)

    def stream(
        self, script: Script, sampling: Sampling, max_audio_s: float, decoder: StreamDecoder
    ) -> Iterator[np.ndarray | Speech]:
        """Samples (N,) float32 as soon as they are final, and at the end the whole speech."""
        self.begin()
        spoken: list[Speech] = []
        while len(spoken) < len(script.lines):
            started_s = time.perf_counter()
            line = self.line(script, [speech.codes for speech in spoken], max_audio_s)
            chunks: list[np.ndarray] = []
            for chunk in self._chunks(line, sampling, decoder):
                if len(chunk):
                    chunks.append(chunk)
                    yield chunk
            codes = self.codes_of(line.delayed, line.dialogue)
            took_s = time.perf_counter() - started_s
            waveform = np.concatenate(chunks)
            spoken.append(self._speech(line.dialogue, waveform, codes, line.delayed, took_s))
        yield join(spoken)

    def _chunks(
        self, line: Line, sampling: Sampling, decoder: StreamDecoder
    ) -> Iterator[np.ndarray]:
        """Samples of one line, often none."""
        for _, frames in self._decode([line.sample], [sampling], [line.max_steps]):
            codes = line.push(frames[0])
            if codes is not None:
                yield decoder.push(codes)
        # The frames that waited for neighbours which never came.
        yield decoder.finish()

    def begin(self) -> None:
        """A stop that came before has nothing to end."""
        self._is_stopped.clear()

    def stop(self) -> None:
        """End, from another thread, what is being spoken: it raises UserError within a frame."""
        self._is_stopped.set()

    def line(self, script: Script, spoken: Sequence[Tensor], max_audio_s: float) -> Line:
        """The line after those whose codes (K, F) are `spoken`, ready to be spoken."""
        dialogue = self.next_line(script, spoken, max_audio_s)
        sample = self.prompt(dialogue)
        return Line(dialogue, sample, self._max_steps(sample, max_audio_s), self.tokens)

    def next_line(self, script: Script, spoken: Sequence[Tensor], max_audio_s: float) -> Dialogue:
        """The next prompt, with as much of what was spoken, codes (K, F), as leaves room for the
        longest answer."""
        room = self.model.config.max_position_embeddings - _TEXT_POSITIONS
        room -= math.ceil(max_audio_s * FRAMES_PER_S)
        for clip in script.whole.clips():
            room -= num_frames(clip, script.whole.source)
        return script.next_line(spoken, max_frames=room)

    def prompt(self, dialogue: Dialogue) -> EncodedSample:
        """`dialogue` in token ids up to where the assistant speaks, every clip in codes.

        Raises UserError for clips that cannot be read or are too long."""
        dialogue = self.heard(dialogue)
        with self._tokenizing:
            return encode(dialogue, self.tokenizer, self.tokens, open_turn=True)

    def heard(self, dialogue: Dialogue, *, is_kept: bool = True) -> Dialogue:
        """`dialogue` with every clip in codes, which are kept for the next one, unless its files
        are there for this moment only. Raises UserError as `prompt` does."""
        dialogue = dialogue.map_clips(self._recalled)
        check_clips(dialogue, self.settings)
        dialogue = with_clips(dialogue, self.codec, self.tokens)
        for clip in dialogue.clips():
            if is_kept and clip.path is not None and clip.codes is not None:
                self._references[_identity(clip.path)] = clip.codes
        return dialogue

    def _recalled(self, clip: AudioClip) -> AudioClip:
        """A reference is encoded once: on a CPU that takes as long as it lasts."""
        if clip.codes is not None or clip.path is None:
            return clip
        return replace(clip, codes=self._references.get(_identity(clip.path)))

    def _max_steps(self, sample: EncodedSample, max_audio_s: float) -> int:
        """Delayed frames that may follow the prompt."""
        num_prompt = len(sample.input_ids)
        limit = self.model.config.max_position_embeddings
        num_codebooks = self.tokens.num_codebooks
        room = limit - num_prompt
        if room < num_delayed_frames(1, num_codebooks):
            raise problem(
                source=sample.source,
                field="text",
                value=f"{num_prompt} tokens",
                reason=f"leaves no room in {limit}",
                remedy="shorten text or reference",
            )
        return min(num_delayed_frames(math.ceil(max_audio_s * FRAMES_PER_S), num_codebooks), room)

    def _decode(
        self,
        samples: Sequence[EncodedSample],
        samplings: Sequence[Sampling],
        max_steps: Sequence[int],
    ) -> Iterator[tuple[list[int], Tensor]]:
        for part in self._batches(samples, max_steps):
            batch = collate(samples[part], self.tokens, training=False)
            for name, tensor in batch.items():
                batch[name] = tensor.to(self.model.device)
            settings = (samplings[part], max_steps[part])
            steps = decode(self.model, batch, self.tokens, *settings, stage=self._stage)
            for rows, frames in steps:
                if self._is_stopped.is_set():
                    raise UserError("stopped")
                yield [part.start + row for row in rows], frames

    def _batches(
        self, samples: Sequence[EncodedSample], max_steps: Sequence[int]
    ) -> Iterator[slice]:
        """All rows in order, as many at a time as fit into memory with the longest of them."""
        if self._deterministic:
            # The order in which kernels add depends on the number of rows and on their padding.
            for row in range(len(samples)):
                yield slice(row, row + 1)
            return
        start = num_prompt = num_steps = 0
        for row, sample in enumerate(samples):
            num_prompt = max(num_prompt, len(sample.input_ids))
            num_steps = max(num_steps, max_steps[row])
            is_too_much = not fits(self.model, row + 1 - start, num_prompt + num_steps)
            if is_too_much and row > start:
                yield slice(start, row)
                start, num_prompt, num_steps = row, len(sample.input_ids), max_steps[row]
        yield slice(start, len(samples))

    def codes_of(self, delayed: Sequence[Tensor], dialogue: Dialogue) -> Tensor:
        """T delayed frames (K,) -> codes (K, F) up to the first stream EOS in any codebook.

        Raises UserError if there are none."""
        num_frames = 0
        if len(delayed) >= num_delayed_frames(1, self.tokens.num_codebooks):
            codes = undo_delay(torch.stack(list(delayed)))
            has_eos = (codes == self.tokens.stream_eos).any(dim=0)
            # Frames without an EOS before or in them.
            num_frames = int((has_eos.cumsum(dim=0) == 0).sum())
        if num_frames == 0:
            reason = "gave no audio: the model stopped at once"
            text = last_text(dialogue)
            raise UserError(f"{dialogue.source}: text: {text!r} {reason}; train it longer")
        return in_range(codes[:, :num_frames], self.tokens)

    def _speech(
        self,
        dialogue: Dialogue,
        waveform: np.ndarray,
        codes: Tensor,
        delayed: list[Tensor],
        took_s: float = 0.0,
    ) -> Speech:
        return Speech(
            audio=waveform,
            sample_rate=self.codec.sample_rate_hz,
            codes=codes,
            # The last codebook ends K - 1 steps after the first: only then has all been said.
            stopped=bool((delayed[-1] == self.tokens.stream_eos).all()),
            text=last_text(dialogue),
            took_s=took_s,
            mark=None if self.maker is None else self.maker.mark(),
        )


def require_duration(max_audio_s: float) -> None:
    """Raise UserError unless these are seconds of speech."""
    is_number = isinstance(max_audio_s, Real)
    # Written so that NaN, which is neither above nor below, is refused.
    if not is_number or not 0 < max_audio_s <= _MAX_AUDIO_S:
        reason = "is no number of seconds up to a day"
        if is_number and max_audio_s <= 0:
            reason = "is not positive"
        raise problem(
            source="request",
            field="max_audio_s",
            value=max_audio_s,
            reason=reason,
            remedy="give seconds",
        )


def _identity(path: str) -> tuple[str, int]:
    return path, Path(path).stat().st_mtime_ns
