"""HiggsAudioGenerator: text and voices -> speech. L3.

It builds its prompt with the functions of training (`rows`, `prompt`, `collator`), so what the model hears here is what
it was trained on, to the token. Decoding is transformers' own `generate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig

from plugins import audio
from plugins.checkpoint import base_and_adapters, load_model, with_adapters
from plugins.codec import FRAMES_PER_S, Codec, find_codec
from plugins.collator import collate
from plugins.delay_pattern import num_delayed_frames, undo_delay
from plugins.errors import UserError, problem
from plugins.prompt import encode
from plugins.row_clips import check_clips, with_clips
from plugins.rows import canonical_row, dialogue_from_row
from plugins.settings import HiggsAudioSettings
from plugins.tokens import SCENE_END, SCENE_START, SpecialTokens

AnyPath = str | Path
Voice = AnyPath | tuple[AnyPath, str]  # reference audio, or reference audio and its transcript


@dataclass(frozen=True)
class Speech:
    """What was said. `result["audio"]` works like `result.audio`."""

    audio: np.ndarray  # (N,) float32 in [-1, 1]
    sample_rate: int  # Hz
    codes: Tensor  # (K, F) int64
    stopped: bool  # the model ended by itself, before `max_audio_s`
    text: str

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    @property
    def duration_s(self) -> float:
        return len(self.audio) / self.sample_rate

    def save(self, path: str | Path) -> None:
        """Write a 16-bit WAV file."""
        audio.save_wav(path, self.audio, self.sample_rate)


@dataclass(frozen=True)
class Sampling:
    """How the next codes are drawn. Defaults: Boson's own examples. `temperature` 0 is greedy.

    Repetition-aware sampling (VALL-E 2, arXiv 2406.05370): a code that already stands `ras_max_repeats` times among the
    last `ras_window` frames of its codebook is drawn again without temperature. 0 is off; greedy never uses it.
    """

    temperature: float = 0.3
    top_k: int = 50
    top_p: float = 0.95
    ras_window: int = 7
    ras_max_repeats: int = 2
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise problem("sampling", "temperature", self.temperature, "is negative", "give 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise problem("sampling", "top_p", self.top_p, "is outside (0, 1]", "give 1 to switch it off")
        if self.top_k < 1:
            raise problem("sampling", "top_k", self.top_k, "is below 1", "give the number of codes to draw from")

    def generation_config(self, **kwargs: Any) -> GenerationConfig:
        if self.temperature == 0:
            return GenerationConfig(do_sample=False, **kwargs)
        if self.ras_window and self.ras_max_repeats:
            kwargs |= {"ras_win_len": self.ras_window, "ras_win_max_num_repeat": self.ras_max_repeats}
        return GenerationConfig(
            do_sample=True, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, **kwargs
        )


class HiggsAudioGenerator:
    """Speaks with a loaded model. `model`, `tokenizer`: what `swift.model.get_model_processor` returns."""

    def __init__(
        self, model: Any, tokenizer: Any, *, codec: Codec | None = None, settings: HiggsAudioSettings | None = None
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.tokens = SpecialTokens.from_config(model.config, tokenizer)
        folder = model.config.name_or_path
        self.settings = settings or HiggsAudioSettings.of_checkpoint(Path(folder))
        self.codec = codec or Codec(find_codec([folder], self.settings.codec), device=str(model.device))

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        adapters: str | None = None,
        codec: str | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> HiggsAudioGenerator:
        """A base or merged checkpoint (folder or Hub id), with `adapters` a LoRA folder on it; or a LoRA folder alone.

        Default device: the first GPU, else the CPU; default dtype: bfloat16 there, float32 here.
        """
        path, adapters = base_and_adapters(path, adapters)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        model: Any = load_model(path, text_head=False, dtype=dtype)
        model = with_adapters(model, adapters).to(device)
        settings = HiggsAudioSettings.of_checkpoint(Path(adapters or path))
        found = Codec(find_codec([path], codec or settings.codec), device=device)
        return cls(model, AutoTokenizer.from_pretrained(path), codec=found, settings=settings)

    def generate(
        self,
        text: str,
        *,
        scene_description: str | None = None,
        reference_audio: AnyPath | None = None,
        reference_text: str | None = None,
        sampling: Sampling | None = None,
        max_audio_s: float = 40.0,
    ) -> Speech:
        """Speak `text`, in the voice of `reference_audio` if given (best with its transcript).

        Raises UserError for empty text and references that cannot be read.
        """
        inputs = self._inputs(text, scene_description, reference_audio, reference_text)
        frames, stopped = self._frames(inputs, sampling or Sampling(), max_audio_s)
        codes = self._codes(frames, text)
        return Speech(self.codec.decode(codes), self.codec.sample_rate_hz, codes, stopped, text)

    def synthesize_multi_speaker(
        self,
        dialogue: Sequence[Mapping[str, str]],
        speaker_voices: Mapping[str, Voice],
        *,
        output_path: str | Path | None = None,
        pause_s: float = 0.2,
        **kwargs: Any,
    ) -> Speech:
        """Speak `[{"speaker": ..., "text": ...}, ...]` turn by turn, each in its speaker's voice.

        speaker_voices: a reference file, or (file, transcript), per speaker. `kwargs` go to `generate`.
        """
        if not dialogue:
            raise problem("dialogue", "turns", [], "is empty", "give at least one turn")
        turns = []
        for i, line in enumerate(dialogue):
            if line.get("speaker") not in speaker_voices:
                known = ", ".join(speaker_voices) or "nobody"
                raise problem(
                    f"dialogue[{i}]", "speaker", line.get("speaker"), f"has no voice (known: {known})", "add one"
                )
            voice = speaker_voices[line["speaker"]]
            reference, transcript = voice if isinstance(voice, tuple) else (voice, None)
            turns.append(
                self.generate(line.get("text", ""), reference_audio=reference, reference_text=transcript, **kwargs)
            )
        speech = _join(turns, pause_s)
        if output_path is not None:
            speech.save(output_path)
        return speech

    def _inputs(
        self, text: str, scene: str | None, reference_audio: AnyPath | None, reference_text: str | None
    ) -> dict[str, Tensor]:
        system = [{"role": "system", "content": f"{SCENE_START}\n{scene}\n{SCENE_END}"}] if scene else []
        row = {
            "messages": [*system, {"role": "user", "content": text}],
            "reference_audio": None if reference_audio is None else str(reference_audio),
            "reference_text": reference_text,
        }
        canonical = canonical_row(row, "request", self.settings)
        dialogue = dialogue_from_row(canonical, self.settings, training=False)
        check_clips(dialogue, self.settings)
        dialogue = with_clips(dialogue, self.codec, self.tokens)
        sample = encode(dialogue, self.tokenizer, self.tokens, open_turn=True)
        batch = collate([sample], self.tokens, training=False)
        if not sample.clips:
            # The native generate takes an empty tensor for frames already decoded.
            del batch["audio_input_ids"], batch["audio_input_ids_mask"]
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    @torch.inference_mode()
    def _frames(self, inputs: dict[str, Tensor], sampling: Sampling, max_audio_s: float) -> tuple[Tensor, bool]:
        """Delayed frames (T, K) of the new clip, stream BOS first, and whether it ended with an all-EOS frame."""
        if max_audio_s <= 0:
            raise problem("request", "max_audio_s", max_audio_s, "is not positive", "give seconds")
        num_prompt = inputs["input_ids"].shape[1]
        room = self.model.config.max_position_embeddings - num_prompt
        wanted = num_delayed_frames(math.ceil(max_audio_s * FRAMES_PER_S), self.tokens.num_codebooks)
        if room <= self.tokens.num_codebooks + 1:
            limit = self.model.config.max_position_embeddings
            raise problem(
                "request", "text", f"{num_prompt} tokens", f"leaves no room in {limit}", "shorten text or reference"
            )
        config = sampling.generation_config(
            max_new_tokens=min(wanted, room), eos_token_id=self.tokens.end_of_turn, pad_token_id=self.tokens.pad
        )
        with torch.random.fork_rng(enabled=sampling.seed is not None):
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            frames = self._generate(inputs, config)
        num_given = inputs["audio_input_ids"].shape[1] if "audio_input_ids" in inputs else 0
        new = frames[num_given:]
        return new, bool((new[-1] == self.tokens.stream_eos).all())

    def _generate(self, inputs: dict[str, Tensor], config: GenerationConfig) -> Tensor:
        """Delayed frames (T, K), those of the prompt first."""
        own = self.model.generation_config
        # transformers adds the entries of the model's own configuration to the one it is given, and its conversion
        # script writes repetition-aware sampling there: greedy would not be greedy.
        self.model.generation_config = config
        try:
            return self.model.generate(**inputs, generation_config=config)[0]
        finally:
            self.model.generation_config = own

    def _codes(self, frames: Tensor, text: str) -> Tensor:
        """Delayed frames (T, K) -> codes (K, F) up to the first stream EOS in any codebook.

        A stray stream BOS, which is trained nowhere, becomes the last code, as in transformers' own processor.
        """
        if len(frames) < num_delayed_frames(1, self.tokens.num_codebooks):
            raise UserError(f"request: text: {text!r} gave no audio: the model stopped at once; train it longer")
        codes = undo_delay(frames).cpu()
        ends = (codes == self.tokens.stream_eos).any(dim=0).nonzero()
        num_frames = int(ends[0]) if len(ends) else codes.shape[1]
        if num_frames == 0:
            raise UserError(f"request: text: {text!r} gave no audio: the model stopped at once; train it longer")
        return codes[:, :num_frames].clamp(max=self.tokens.num_codes - 1)


def _join(turns: list[Speech], pause_s: float) -> Speech:
    """One speech of several, with a pause of silence between them (the codes have no pause)."""
    rate = turns[0].sample_rate
    pause = np.zeros(round(pause_s * rate), dtype=np.float32)
    pieces = [piece for turn in turns for piece in (turn.audio, pause)][:-1]
    return Speech(
        audio=np.concatenate(pieces),
        sample_rate=rate,
        codes=torch.cat([turn.codes for turn in turns], dim=1),
        stopped=all(turn.stopped for turn in turns),
        text=" ".join(turn.text for turn in turns),
    )
