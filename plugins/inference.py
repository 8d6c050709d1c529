"""HiggsAudioGenerator: texts and voices -> speech.

In: what a user gives, texts, recordings, descriptions. Out: `Speech`. It decides whose voice, which
LoRA weights and which prompts; `plugins.speaking.speaker` speaks. This file knows neither token ids
nor delayed frames."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, overload

import torch

from plugins.audio.codec import Codec, find_codec
from plugins.audio.marks import Maker
from plugins.audio.stream_decoder import StreamDecoder
from plugins.data.dialogue import Dialogue
from plugins.data.text import MAX_CHARS
from plugins.errors import did_you_mean, problem
from plugins.files.disk import require_writable
from plugins.hearing.takes import Judge
from plugins.model.load import bare, load_model
from plugins.model.makers import maker_of
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling
from plugins.speaking.speaker import Speaker, require_duration
from plugins.speaking.speech import Speech, SpeechStream, join, suffix_of
from plugins.speaking.takes import Takes
from plugins.speaking.voices import AnyPath, Request, Script, Transcript, Voice, voices_of

logger = logging.getLogger(__name__)

_OPTIONS = (
    "scene_description",
    "voice_description",
    "reference_audio",
    "reference_text",
    "sampling",
    "max_audio_s",
    "max_chars",
    "clean_text",
)
_MAX_PAUSE_S = 60


class HiggsAudioGenerator:
    """Speaks with a loaded model.

    model, tokenizer: what `plugins.load_model` or `swift.model.get_model_processor` returns. codec,
    settings: default those that belong to the checkpoint. cuda_graphs: compile the step that is
    repeated for each frame and replay it as one CUDA graph: sooner, once the first sentences have
    paid for the compiler. Without a GPU it is compiled only. None: on one GPU, unless the model is
    quantised or it is to be deterministic. deterministic: a seed gives the same speech alone, in a
    batch and streamed, in bf16 too: texts are spoken one after the other. (What is the same without
    it: docs/guarantees.md.) marks: files of its speech say that they are synthetic; default as
    `settings` have it. Raises UserError for True with it, and with a quantised model."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        codec: Codec | None = None,
        settings: HiggsAudioSettings | None = None,
        cuda_graphs: bool | None = None,
        deterministic: bool = False,
        marks: bool | None = None,
    ) -> None:
        # Speaking calls the layers one by one: the wrapper of LoRA weights only switches them.
        self.model = bare(model).eval()
        self._adapted = None if model is self.model else model
        self.tokenizer = tokenizer
        folder = self.model.config.name_or_path
        # By the name of the adapter, unless the caller decides for all.
        self._settings_of: dict[str, HiggsAudioSettings] = {}
        if settings is None:
            self._settings_of = getattr(self.model, "higgs_audio_settings", {})
            settings = next(iter(self._settings_of.values()), None)
        # A full model's lie in its folder.
        settings = settings or HiggsAudioSettings.of_checkpoint(Path(folder))
        self.codec = codec or Codec(
            find_codec([folder], settings.codec), device=str(self.model.device)
        )
        self.speaker = Speaker(
            self.model,
            tokenizer,
            self.codec,
            settings,
            cuda_graphs=cuda_graphs,
            deterministic=deterministic,
        )
        self.tokens = self.speaker.tokens
        self._marks = settings.marks if marks is None else marks
        self.speaker.maker = self.maker(next(iter(self.adapters), None))
        self._warnings: set[str] = set()  # given once, not for each of a thousand texts

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        adapters: str | Mapping[str, str] | None = None,
        codec: str | None = None,
        cuda_graphs: bool | None = None,
        deterministic: bool = False,
        marks: bool | None = None,
        **options: Any,
    ) -> HiggsAudioGenerator:
        """A checkpoint of any kind (`plugins.model.load.load_model`, which takes the `options`),
        with its codec or another."""
        model, tokenizer = load_model(path, adapters=adapters, **options)
        own = None
        if codec:
            own = Codec(codec, device=str(bare(model).device))
        graphs: dict[str, Any] = {"cuda_graphs": cuda_graphs, "deterministic": deterministic}
        return cls(model, tokenizer, codec=own, marks=marks, **graphs)

    @property
    def settings(self) -> HiggsAudioSettings:
        """Those of the weights that speak."""
        return self.speaker.settings

    @property
    def judge(self) -> Judge | None:
        """Who hears the takes of `Sampling(best_of=...)`; None: what ships with this kit, loaded
        when it is needed. Another: `plugins.hearing.takes.load_judge`."""
        return self.speaker.judge

    @judge.setter
    def judge(self, judge: Judge | None) -> None:
        self.speaker.judge = judge

    def takes(
        self,
        dialogues: Sequence[Dialogue],
        *,
        samplings: Sequence[Sampling],
        max_audio_s: float = 40.0,
        references: Sequence[str | None] | None = None,
    ) -> list[Takes]:
        """As `speak`, but all `best_of` takes of each dialogue. references: the voices they are
        compared with, where the dialogues clone none."""
        self.speaker.begin()
        return self.speaker.takes(dialogues, samplings, max_audio_s, references)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA weights that are loaded."""
        if self._adapted is None:
            return ()
        return tuple(self._adapted.peft_config)

    def settings_of(self, adapter: str | None) -> HiggsAudioSettings:
        """Those of these LoRA weights, or of the base, whoever speaks."""
        if adapter is None and self.adapters and self._settings_of:
            return HiggsAudioSettings.of_checkpoint(Path(self.model.config.name_or_path))
        return self._settings_of.get(adapter or "", self.settings)

    def maker(self, adapter: str | None) -> Maker | None:
        """Of files in the voice of these LoRA weights, or of the base; None: no marks."""
        return maker_of(self.model, adapter, marks=self._marks)

    def use_adapter(self, name: str | None) -> None:
        """Speak with these LoRA weights and their prompts from now on; for None with the base's own
        weights, and the prompts as they were. Nothing is loaded for it. Raises UserError for an
        unknown name."""
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
        self.speaker.maker = self.maker(name)
        if name is None:
            self._adapted.base_model.disable_adapter_layers()
        else:
            # Else they stay off if the base spoke last.
            self._adapted.base_model.enable_adapter_layers()
            self._adapted.set_adapter(name)
            self.speaker.settings = self._settings_of.get(name, self.settings)

    def merge_adapter(self) -> None:
        """Add the only LoRA weights to the model's own, for good: it speaks sooner, and they are
        switched off no more. In float32 only: in half precision what changes a weight by less than
        half of its last bit (1/512 of it in bfloat16) would be lost, so there they stay beside
        it."""
        if len(self.adapters) != 1 or self.model.dtype != torch.float32:
            return
        if getattr(self.model, "is_quantized", False):
            return
        assert self._adapted is not None
        self._adapted.merge_and_unload()
        self._adapted = None

    def mismatch(self, clean_text: bool | None) -> str | None:
        """What is wrong with speaking cleaned (True) or raw (False) texts; None: it was trained
        so."""
        if clean_text is None:
            return None
        trained = self.settings.prompts
        asked = replace(self.settings, clean_text=clean_text).prompts
        if trained != asked:
            return f"clean_text: trained with {trained}, spoken with {asked}"
        if self.settings.raw_prompt and clean_text:
            return f"clean_text: trained with {trained}, which are not cleaned"
        return None

    # For type checkers: one text gives one speech. The options are those below.
    @overload
    def generate(self, text: str, **options: Any) -> Speech: ...
    @overload
    def generate(self, text: Sequence[str], **options: Any) -> list[Speech]: ...
    def generate(
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
        **unknown: Any,
    ) -> Speech | list[Speech]:
        """Speak `text`, in the voice of `reference_audio` if given (best with its transcript); or
        several texts, in one batch.

        reference_text: the transcript, or a function that hears it. Several references are
        SPEAKER0, SPEAKER1 ..., as ``[SPEAKER0]`` tags in the text name them. voice_description: a
        voice in words instead ("warm, unhurried"). max_audio_s: of one piece; what is cut there is
        marked `truncated`. max_chars: texts beyond it are spoken in pieces that end at sentences,
        each in the hearing of the pieces before it. clean_text: whether to write the text as the
        model's own examples do (`plugins.data.text`); None: as this model was trained.

        Raises UserError for a text without words, for references that cannot be heard and for an
        option that there is not.
        """
        _refuse(unknown)
        voices = voices_of(reference_audio, reference_text, voice_description)
        request = self._request(scene_description, voices, max_chars, clean_text)
        texts = [text] if isinstance(text, str) else text
        scripts = list(map(request.script, texts))
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
        **unknown: Any,
    ) -> Script:
        """A text and options as `generate` reads them, for `perform`."""
        _refuse(unknown)
        voices = voices_of(reference_audio, reference_text, voice_description)
        return self._request(scene_description, voices, max_chars, clean_text).script(text)

    def perform(
        self, scripts: Sequence[Script], *, samplings: Sequence[Sampling], max_audio_s: float = 40.0
    ) -> list[Speech]:
        """Speak scripts of any kind in one batch."""
        spoken = self.speaker.perform(scripts, samplings=samplings, max_audio_s=max_audio_s)
        return list(map(join, spoken))

    def speak(
        self,
        dialogues: Sequence[Dialogue],
        *,
        samplings: Sequence[Sampling],
        max_audio_s: float = 40.0,
    ) -> list[Speech]:
        """The next assistant turn of each dialogue, in one batch. Clips may be paths still. Raises
        UserError naming the dialogue's source if one says nothing or its prompt leaves no room."""
        self.speaker.begin()
        return self.speaker.speak(dialogues, samplings=samplings, max_audio_s=max_audio_s)

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
        of up to `chunk_frames` frames of 40 ms. Joined they are what `generate` returns for this
        text alone, and so is `stream.speech` at the end. options: those of `generate`. Raises
        UserError for `best_of`, too: which take is the best is known when all have been heard."""
        require_duration(max_audio_s)
        sampling = sampling or Sampling()
        if sampling.best_of > 1:
            raise problem(
                source="request",
                field="best_of",
                value=sampling.best_of,
                reason="takes cannot be streamed: the best is known when all have been heard",
                remedy="give 1, or do not stream",
            )
        script = self.script(text, **options)
        # Here and not when the first chunk is asked for: bad options are refused at once.
        decoder = StreamDecoder(self.codec, chunk_frames=chunk_frames)
        chunks = self.speaker.stream(script, sampling, max_audio_s, decoder)
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
        **unknown: Any,
    ) -> Speech:
        """Speak `[{"speaker": ..., "text": ...}, ...]`, each line in its speaker's voice and in the
        hearing of the lines before it; separately: each line for itself, in the hearing of its
        speaker's reference only.

        speaker_voices: for each speaker a recording, (recording, transcript) or a `Voice`; None:
        the model chooses. pause_s: of silence between two lines, whose own silence there is
        trimmed."""
        _refuse(unknown)
        _require_between("pause_s", pause_s, 0, _MAX_PAUSE_S)
        # Before it is spoken for nothing.
        if output_path is not None:
            suffix_of(output_path)
            require_writable(output_path, field="output_path")
        request = self._request(scene_description, (), max_chars, clean_text)
        if separately:
            scripts = request.monologues(dialogue, speaker_voices)
        else:
            scripts = [request.conversation(dialogue, speaker_voices)]
        samplings = [sampling or Sampling()] * len(scripts)
        spoken = self.speaker.perform(scripts, samplings=samplings, max_audio_s=max_audio_s)
        # The pieces of a monologue follow each other without a pause.
        parts = list(map(join, spoken)) if separately else spoken[0]
        speech = join(parts, pause_s=pause_s, trim=True)
        if output_path is not None:
            speech.save(output_path)
        return speech

    def stop(self) -> None:
        """End, from another thread, what is being spoken: it raises UserError within a frame."""
        self.speaker.stop()

    def _request(
        self, scene: str | None, voices: tuple[Voice, ...], max_chars: int, clean_text: bool | None
    ) -> Request:
        _require_between("max_chars", max_chars, 3, math.inf)
        complaint = self.mismatch(clean_text)
        if complaint is not None and complaint not in self._warnings:
            self._warnings.add(complaint)
            logger.warning(complaint)
        settings = self.settings
        if clean_text is not None:
            settings = replace(settings, clean_text=clean_text)
        return Request(settings, scene, voices, max_chars)


def _refuse(unknown: Mapping[str, Any]) -> None:
    """Raise UserError for options that there are not, with the way to give those of sampling."""
    for name, value in unknown.items():
        remedy = did_you_mean(name, _OPTIONS)
        if name in [field.name for field in fields(Sampling)]:
            remedy = f"give sampling=Sampling({name}={value!r})"
        reason = "is no option here"
        raise problem(source="request", field=name, value=value, reason=reason, remedy=remedy)


def _require_between(field: str, value: float, least: float, most: float) -> None:
    # Written so that NaN is refused.
    if not least <= value <= most:
        reason = f"is not between {least:g} and {most:g}"
        if most == math.inf:
            reason = f"is below {least:g}"
        raise problem(
            source="request", field=field, value=value, reason=reason, remedy="give another number"
        )
