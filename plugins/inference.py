"""HiggsAudioGenerator: texts and voices -> speech. L3.

It builds its prompts with the functions of training (`rows`, `prompt`, `collator`), so what the
model hears here is what it was trained on, to the token."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from plugins.audio.codec import FRAMES_PER_S, Codec, find_codec
from plugins.audio.stream_decoder import StreamDecoder
from plugins.collator import collate
from plugins.data.clips import check_clips, num_frames, with_clips
from plugins.data.dialogue import AudioClip, Dialogue, EncodedSample
from plugins.data.prompt import encode
from plugins.data.rows import text_to_say
from plugins.data.text import MAX_CHARS, has_words, pieces
from plugins.data.tokens import SpecialTokens
from plugins.delay_pattern import num_delayed_frames, undo_delay
from plugins.errors import UserError, did_you_mean, problem
from plugins.model.load import bare, load_model
from plugins.settings import HiggsAudioSettings
from plugins.speaking.decoding import decode
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech, SpeechStream, join
from plugins.speaking.voices import (
    AnyPath,
    Script,
    Transcript,
    Voice,
    request,
    speakers_of,
    voices_of,
)

logger = logging.getLogger(__name__)

_TEXT_POSITIONS = 400  # of a prompt: four such pieces, system message, what delays and turns add


class HiggsAudioGenerator:
    """Speaks with a loaded model.

    model, tokenizer: what `plugins.load_model` or `swift.model.get_model_processor` returns. codec,
    settings: default those that belong to the checkpoint. cuda_graphs: compile the step that is
    repeated for each frame and replay it as one CUDA graph: the same speech, sooner, once the first
    sentences have paid for the compiler. Without a GPU it is compiled only. Raises UserError for a
    quantised model with it."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        codec: Codec | None = None,
        settings: HiggsAudioSettings | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self.model = bare(model).eval()
        if cuda_graphs and getattr(self.model, "is_quantized", False):
            reason = "is not available for quantised models, whose kernels cannot all be captured"
            raise problem(
                source="request",
                field="cuda_graphs",
                value=True,
                reason=reason,
                remedy="leave one of the two out",
            )
        self._cuda_graphs = cuda_graphs
        self._adapted = model if model is not self.model else None
        self.tokenizer = tokenizer
        self.tokens = SpecialTokens.from_config(self.model.config, tokenizer)
        folder = self.model.config.name_or_path
        # By the name of the adapter, unless the caller decides for all.
        self._settings_of = {} if settings else getattr(self.model, "higgs_audio_settings", {})
        own = settings or next(iter(self._settings_of.values()), None)
        self.settings: HiggsAudioSettings = own or HiggsAudioSettings.of_checkpoint(Path(folder))
        self._told: set[str] = set()
        self.codec = codec or Codec(
            find_codec([folder], self.settings.codec), device=str(self.model.device)
        )
        self._known: dict[
            tuple[str, int], Tensor
        ] = {}  # codes of references, by path and time of change

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        adapters: str | Mapping[str, str] | None = None,
        codec: str | None = None,
        cuda_graphs: bool = False,
        **options: Any,
    ) -> HiggsAudioGenerator:
        """A checkpoint of any kind (`plugins.model.load.load_model`, which takes the `options`),
        with its codec or another."""
        model, tokenizer = load_model(path, adapters=adapters, **options)
        device = str(bare(model).device)
        own = Codec(codec, device=device) if codec else None
        return cls(model, tokenizer, codec=own, cuda_graphs=cuda_graphs)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA weights that are loaded."""
        return tuple(self._adapted.peft_config) if self._adapted is not None else ()

    def use_adapter(self, name: str | None) -> None:
        """Speak with these LoRA weights and their prompts from now on; for None with the base's own
        weights, and the prompts as they were. Nothing is loaded for it."""
        if name is not None and name not in self.adapters:
            raise problem(
                source="request",
                field="adapter",
                value=name,
                reason="is not loaded",
                remedy=did_you_mean(name, self.adapters),
            )
        if self._adapted is None:
            return
        if name is None:
            self._adapted.base_model.disable_adapter_layers()
        else:
            self._adapted.base_model.enable_adapter_layers()
            self._adapted.set_adapter(name)
            self.settings = self._settings_of.get(name, self.settings)

    def mismatch(self, clean_text: bool | None) -> str | None:
        """What is wrong with speaking cleaned (True) or raw (False) texts; None: it was trained
        so."""
        if clean_text is None:
            return None
        trained, asked = (
            self.settings.prompts,
            replace(self.settings, clean_text=clean_text).prompts,
        )
        if trained != asked:
            return f"clean_text: trained with {trained}, spoken with {asked}"
        if self.settings.raw_prompt and clean_text:
            return f"clean_text: trained with {trained}, which are not cleaned"
        return None

    @overload  # the options are those below
    def generate(self, text: str, **options: Any) -> Speech: ...
    @overload
    def generate(self, text: Sequence[str], **options: Any) -> list[Speech]: ...
    def generate(  # type: ignore[misc]
        self,
        text: str | Sequence[str],
        *,
        scene_description: str | None = None,
        voice_description: str | None = None,
        reference_audio: AnyPath | Sequence[AnyPath] | None = None,
        reference_text: Transcript | Sequence[Transcript] | None = None,
        sampling: Sampling | None = None,
        max_audio_s: float = 40.0,
        max_chars: int = MAX_CHARS,
        clean_text: bool | None = None,
    ) -> Speech | list[Speech]:
        """Speak `text`, in the voice of `reference_audio` if given (best with its transcript); or
        several texts, in one batch.

        reference_text: the transcript, or a function that hears it. Several references are
        SPEAKER0, SPEAKER1 ..., as ``[SPEAKER0]`` tags in the text name them. voice_description: a
        voice in words instead ("warm, unhurried"). max_audio_s: of one piece; what is cut there is
        marked `truncated`. max_chars: texts beyond it are spoken in pieces that end at sentences,
        each in the hearing of the pieces before it. clean_text: whether to write the text as the
        model's own examples do (`plugins.data.text`); None: as this model was trained.

        Raises UserError for a text without words and for references that cannot be heard.
        """
        texts = [text] if isinstance(text, str) else list(text)
        scripts = [
            self.script(
                each,
                scene_description=scene_description,
                voice_description=voice_description,
                reference_audio=reference_audio,
                reference_text=reference_text,
                max_chars=max_chars,
                clean_text=clean_text,
            )
            for each in texts
        ]
        samplings = [sampling or Sampling()] * len(scripts)
        speeches = self.perform(scripts, samplings=samplings, max_audio_s=max_audio_s)
        return speeches[0] if isinstance(text, str) else speeches

    def script(
        self,
        text: str,
        *,
        scene_description: str | None = None,
        voice_description: str | None = None,
        reference_audio: AnyPath | Sequence[AnyPath] | None = None,
        reference_text: Transcript | Sequence[Transcript] | None = None,
        max_chars: int = MAX_CHARS,
        clean_text: bool | None = None,
    ) -> Script:
        """A request as `generate` reads it, for `perform`."""
        voices = voices_of(reference_audio, reference_text, voice_description)
        return self._script(
            text, scene_description, voices, max_chars=max_chars, clean_text=clean_text
        )

    def perform(
        self, scripts: Sequence[Script], *, samplings: Sequence[Sampling], max_audio_s: float = 40.0
    ) -> list[Speech]:
        """Speak requests of any kind in one batch."""
        spoken: list[list[Speech]] = [[] for _ in scripts]
        for i in range(max((len(script.lines) for script in scripts), default=0)):
            rows = [row for row, script in enumerate(scripts) if i < len(script.lines)]
            dialogues = [self._next_line(scripts[row], spoken[row], max_audio_s) for row in rows]
            chosen = [samplings[row] for row in rows]
            for row, speech in zip(
                rows, self.speak(dialogues, samplings=chosen, max_audio_s=max_audio_s), strict=True
            ):
                spoken[row].append(speech)
        return [join(parts) for parts in spoken]

    def stream(
        self,
        text: str,
        *,
        sampling: Sampling | None = None,
        max_audio_s: float = 40.0,
        chunk_frames: int = 25,
        **options: Any,
    ) -> SpeechStream:
        """As `generate`, in pieces as they are spoken: the first after 0.7 s of audio, later ones
        of up to `chunk_frames` frames of 40 ms. Joined they are what `generate` returns, and so is
        `stream.speech` at the end. options: those of `generate`."""
        script = self.script(text, **options)
        decoder = StreamDecoder(self.codec, chunk_frames=chunk_frames)
        chunks = self._stream(script, sampling or Sampling(), max_audio_s, decoder)
        return SpeechStream(chunks, self.codec.sample_rate_hz)

    def synthesize_multi_speaker(
        self,
        dialogue: Sequence[Mapping[str, str]],
        speaker_voices: Mapping[str, Voice | AnyPath | tuple[AnyPath, Transcript]] | None = None,
        *,
        scene_description: str | None = None,
        output_path: AnyPath | None = None,
        separately: bool = False,
        pause_s: float = 0.2,
        sampling: Sampling | None = None,
        max_audio_s: float = 40.0,
        max_chars: int = MAX_CHARS,
        clean_text: bool | None = None,
    ) -> Speech:
        """Speak `[{"speaker": ..., "text": ...}, ...]`, each line in its speaker's voice and in the
        hearing of the lines before it; separately: each line for itself, in the hearing of its
        speaker's reference only.

        speaker_voices: for each speaker a recording, (recording, transcript) or a `Voice`; None:
        the model chooses. pause_s: of silence between two lines, whose own silence there is
        trimmed."""
        speakers = speakers_of(dialogue, speaker_voices)
        settings = self._settings_for(clean_text)
        lines = []
        for i, line in enumerate(dialogue):
            text = line.get("text", "")
            if not has_words(text):
                raise problem(
                    source=f"dialogue[{i}]",
                    field="text",
                    value=text,
                    reason="has no letter or digit",
                    remedy="give the text to speak",
                )
            tag = (
                f"[SPEAKER{list(speakers).index(line['speaker'])}] "
                if len(speakers) > 1 and not separately
                else ""
            )
            lines.append(
                text_to_say(tag + text, raw=settings.raw_prompt, clean=settings.clean_text)
            )
        if separately:
            scripts = []
            for line in dialogue:
                voice = speakers[line["speaker"]]
                voices = [] if voice is None else [voice]
                text = line["text"]
                script = self._script(
                    text, scene_description, voices, max_chars=max_chars, clean_text=clean_text
                )
                scripts.append(script)
            chosen = [sampling or Sampling()] * len(scripts)
            spoken = self.perform(scripts, samplings=chosen, max_audio_s=max_audio_s)
        else:
            voices = [voice for voice in speakers.values() if voice is not None]
            whole = request("\n".join(lines), scene_description, voices, settings)
            script = Script(whole, tuple(chain(*(pieces(line, max_chars) for line in lines))))
            spoken = []
            while len(spoken) < len(script.lines):
                prompt = self._next_line(script, spoken, max_audio_s)
                spoken += self.speak(
                    [prompt], samplings=[sampling or Sampling()], max_audio_s=max_audio_s
                )
        speech = join(spoken, pause_s=pause_s, trim=True)
        if output_path is not None:
            speech.save(output_path)
        return speech

    def speak(
        self,
        dialogues: Sequence[Dialogue],
        *,
        samplings: Sequence[Sampling],
        max_audio_s: float = 40.0,
    ) -> list[Speech]:
        """The next assistant turn of each dialogue, in one batch. Clips may be paths still.

        Raises UserError naming the dialogue's source if one says nothing, and if a prompt leaves no
        room."""
        started_s = time.perf_counter()
        samples = [self._prompt(dialogue) for dialogue in dialogues]
        steps = [self._max_steps(sample, max_audio_s) for sample in samples]
        frames: list[list[Tensor]] = [[] for _ in samples]
        for rows, step in self._decode(samples, samplings, steps):
            for row, frame in zip(rows, step, strict=True):
                frames[row].append(frame)
        codes = [
            self._codes(torch.stack(each), d) for each, d in zip(frames, dialogues, strict=True)
        ]
        waveforms = [self.codec.decode(each) for each in codes]
        took_s = time.perf_counter() - started_s
        return [
            Speech(
                wave,
                self.codec.sample_rate_hz,
                code,
                self._has_ended(each[-1]),
                _text(dialogue),
                took_s,
            )
            for wave, code, each, dialogue in zip(waveforms, codes, frames, dialogues, strict=True)
        ]

    def _script(
        self,
        text: str,
        scene: str | None,
        voices: Sequence[Voice],
        *,
        max_chars: int,
        clean_text: bool | None,
    ) -> Script:
        if not has_words(text):
            raise problem(
                source="request",
                field="text",
                value=text,
                reason="has no letter or digit",
                remedy="give the text to speak",
            )
        # Cleaned as a whole, then cut: a piece has no mark that the text does not have.
        whole = request(text, scene, voices, self._settings_for(clean_text))
        return Script(whole, tuple(pieces(_text(whole), max_chars)))

    def _settings_for(self, clean_text: bool | None) -> HiggsAudioSettings:
        complaint = self.mismatch(clean_text)
        if complaint is not None and complaint not in self._told:
            self._told.add(complaint)  # not for each of a thousand texts
            logger.warning(complaint)
        return (
            self.settings if clean_text is None else replace(self.settings, clean_text=clean_text)
        )

    def _next_line(self, script: Script, spoken: Sequence[Speech], max_audio_s: float) -> Dialogue:
        """The next prompt, with as much of what was spoken as leaves room for the longest
        answer."""
        taken = sum(num_frames(clip, script.whole.source) for clip in script.whole.clips())
        room = (
            self.model.config.max_position_embeddings
            - math.ceil(max_audio_s * FRAMES_PER_S)
            - taken
        )
        return script.next_line(
            [speech.codes for speech in spoken], max_frames=room - _TEXT_POSITIONS
        )

    def _stream(
        self, script: Script, sampling: Sampling, max_audio_s: float, decoder: StreamDecoder
    ) -> Iterator[np.ndarray | Speech]:
        spoken: list[Speech] = []
        for _ in script.lines:
            started_s = time.perf_counter()
            dialogue = self._next_line(script, spoken, max_audio_s)
            sample = self._prompt(dialogue)
            max_steps = self._max_steps(sample, max_audio_s)
            frames: list[Tensor] = []
            chunks: list[np.ndarray] = []
            num_codebooks, ended = self.tokens.num_codebooks, False
            for _, step in self._decode([sample], [sampling], [max_steps]):
                frames.append(step[0])
                if len(frames) < num_codebooks + 1 or len(frames) == max_steps or ended:
                    continue  # the frame that this step completes would be the first one cut
                codes = torch.stack([frames[k - num_codebooks][k] for k in range(num_codebooks)])
                ended = bool((codes == self.tokens.stream_eos).any())
                if not ended and len(piece := decoder.push(self._in_range(codes[:, None]))):
                    chunks.append(piece)
                    yield piece
            if len(rest := decoder.finish()):
                chunks.append(rest)
                yield rest
            codes = self._codes(torch.stack(frames), dialogue)
            took_s, waveform = time.perf_counter() - started_s, np.concatenate(chunks)
            rate, has_ended = self.codec.sample_rate_hz, self._has_ended(frames[-1])
            spoken.append(Speech(waveform, rate, codes, has_ended, _text(dialogue), took_s))
        yield join(spoken)

    def _prompt(self, dialogue: Dialogue) -> EncodedSample:
        dialogue = dialogue.map_clips(self._recall)
        check_clips(dialogue, self.settings)
        dialogue = with_clips(dialogue, self.codec, self.tokens)
        for clip in dialogue.clips():
            if clip.path is not None and clip.codes is not None:
                self._known[_identity(clip.path)] = clip.codes
        return encode(dialogue, self.tokenizer, self.tokens, open_turn=True)

    def _recall(self, clip: AudioClip) -> AudioClip:
        """A reference is encoded once: on a CPU that takes as long as it lasts."""
        if clip.codes is not None or clip.path is None:
            return clip
        return replace(clip, codes=self._known.get(_identity(clip.path)))

    def _max_steps(self, sample: EncodedSample, max_audio_s: float) -> int:
        """Delayed frames that may follow the prompt."""
        if max_audio_s <= 0:
            raise problem(
                source=sample.source,
                field="max_audio_s",
                value=max_audio_s,
                reason="is not positive",
                remedy="give seconds",
            )
        num_prompt, limit = len(sample.input_ids), self.model.config.max_position_embeddings
        room = limit - num_prompt
        if room <= self.tokens.num_codebooks + 1:
            remedy = "shorten text or reference"
            raise problem(
                source=sample.source,
                field="text",
                value=f"{num_prompt} tokens",
                reason=f"leaves no room in {limit}",
                remedy=remedy,
            )
        return min(
            num_delayed_frames(math.ceil(max_audio_s * FRAMES_PER_S), self.tokens.num_codebooks),
            room,
        )

    def _decode(
        self,
        samples: Sequence[EncodedSample],
        samplings: Sequence[Sampling],
        max_steps: Sequence[int],
    ) -> Iterator[tuple[list[int], Tensor]]:
        batch = collate(samples, self.tokens, training=False)
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        return decode(
            self.model, batch, self.tokens, samplings, max_steps, cuda_graphs=self._cuda_graphs
        )

    def _codes(self, frames: Tensor, dialogue: Dialogue) -> Tensor:
        """Delayed frames (T, K) -> codes (K, F) up to the first stream EOS in any codebook."""
        num_frames = 0
        if len(frames) >= num_delayed_frames(1, self.tokens.num_codebooks):
            codes = undo_delay(frames)
            ends = (codes == self.tokens.stream_eos).any(dim=0).nonzero()
            num_frames = int(ends[0]) if len(ends) else codes.shape[1]
        if num_frames == 0:
            reason = "gave no audio: the model stopped at once"
            raise UserError(
                f"{dialogue.source}: text: {_text(dialogue)!r} {reason}; train it longer"
            )
        return self._in_range(codes[:, :num_frames])

    def _in_range(self, codes: Tensor) -> Tensor:
        """A stray stream BOS, which is trained nowhere, becomes the last code, as in transformers'
        own processor."""
        return codes.clamp(max=self.tokens.num_codes - 1)

    def _has_ended(self, frame: Tensor) -> bool:
        return bool((frame == self.tokens.stream_eos).all())


def _text(dialogue: Dialogue) -> str:
    return "".join(part for part in dialogue.turns[-1].parts if isinstance(part, str))


def _identity(path: str) -> tuple[str, int]:
    return path, Path(path).stat().st_mtime_ns
