"""The native class with both losses inside `forward`.

    token ids (B, S), frames (B, T, K) --body--> hidden (B, S, H)
    labels at t --shifted_rows--> hidden rows at t - 1 of text (R, H) and of audio (R', H)
    those rows --heads, losses--> sums and counts: () for text, (K,) for audio

The losses are computed inside `forward` because DDP synchronises only what `forward` touches; heads
run on labelled rows only, since a text-to-speech turn has three text labels and the text head is
128256 wide. `forward` returns sums and counts: dividing is the trainer's affair, which alone knows
the counts of the whole optimisation step. This file reads no files and no environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import HiggsAudioV2ForConditionalGeneration as _Native
from transformers.utils import ModelOutput

from plugins.delay_pattern import IGNORE_INDEX
from plugins.model.audio_tower import AudioTower
from plugins.model.config import HiggsAudioV2Config
from plugins.model.dual_ffn import CACHE, use_index_once_layers
from plugins.model.loss import (
    LossSums,
    Summing,
    apart,
    audio_loss_sums,
    predicting,
    shifted_rows,
    text_loss_sums,
    together,
)
from plugins.model.rows import places_of, true_first


@dataclass
class DualLossOutput(ModelOutput):
    """Sums over the trained predictions of one batch (`plugins.model.loss`), or apart for its rows,
    with B in front of each shape. `loss` is filled in by the template.

    Flat tensors, not nested objects: DDP, autocast and `Trainer` walk the fields of a model output.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None  # always None: nobody may compute text accuracy on audio logits
    text_loss: Tensor | None = None  # ()
    text_z: Tensor | None = None  # ()
    text_correct: Tensor | None = None  # ()
    text_count: Tensor | None = None  # ()
    audio_loss: Tensor | None = None  # (K,)
    audio_z: Tensor | None = None  # ()
    audio_correct: Tensor | None = None  # (K,)
    audio_count: Tensor | None = None  # (K,)

    @classmethod
    def of(cls, text: LossSums, audio: LossSums, **others: Tensor) -> DualLossOutput:
        return cls(
            text_loss=text.loss,
            text_z=text.z,
            text_correct=text.correct,
            text_count=text.count,
            audio_loss=audio.loss,
            audio_z=audio.z,
            audio_correct=audio.correct,
            audio_count=audio.count,
            **others,
        )

    @property
    def text(self) -> LossSums:
        sums = (self.text_loss, self.text_z, self.text_correct, self.text_count)
        return LossSums(*sums)  # type: ignore[arg-type]

    @property
    def audio(self) -> LossSums:
        sums = (self.audio_loss, self.audio_z, self.audio_correct, self.audio_count)
        return LossSums(*sums)  # type: ignore[arg-type]


def _in_dtype_of_weights(module: Any, args: Any, embedded: Tensor) -> Tensor:
    return embedded.to(module.embed_audio_tokens.weight.dtype)


def _real_first(frames: Tensor, mask: Tensor) -> Tensor:
    """(B, T, K) -> (B * T, K), those of `mask` (B, T) first, in order."""
    return frames.flatten(0, 1).index_select(0, true_first(mask))


class HiggsAudioV2ForConditionalGeneration(_Native):
    """Same name as its base, so that saved checkpoints stay native ones."""

    config_class = HiggsAudioV2Config

    def __init__(
        self, config: HiggsAudioV2Config, use_text_head: bool = False, native_layers: bool = False
    ) -> None:
        """native_layers: transformers' own decoder layers instead of `plugins.model.dual_ffn`'s."""
        super().__init__(config, use_text_head=use_text_head)
        # CUDA's autocast sums in fp32, and the native class then scatters fp32 into bf16
        # embeddings, which raises.
        self.model.embed_audio_tokens.register_forward_hook(_in_dtype_of_weights)
        # Here, not after loading: accelerate's dispatch to several devices keeps the forward that
        # each layer then has.
        if not native_layers:
            use_index_once_layers(self)
        # transformers' own config has no such entry.
        tower = getattr(config, "audio_encoder_config", None)
        if tower is not None:
            self.audio_tower = AudioTower(tower, config.hidden_size)
            # Only then: accelerate wraps these classes for FSDP2 and raises for one that the model
            # does not have.
            blocks = {*(self._no_split_modules or ()), "WhisperEncoderLayer"}
            self._no_split_modules = blocks  # type: ignore[assignment]

    # The names are those that `Trainer`, peft and MS-SWIFT look for; no `logits_to_keep`: MS-SWIFT
    # would slice the labels of the text.
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        audio_input_ids: Tensor | None = None,
        audio_input_ids_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        audio_labels: Tensor | None = None,
        audio_features: Tensor | None = None,
        audio_feature_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        rows_apart: bool = False,
        **kwargs: Any,
    ) -> Any:
        """With `labels` (B, S) and `audio_labels` (B, T, K), both unshifted: a `DualLossOutput`.
        Without: as native. kwargs: among them the cache, under the name that transformers gives it.

        rows_apart: sums for each row of a batch that is not packed.

        audio_features (A, M, 3000), audio_feature_attention_mask (A, 3000): for the audio tower, if
        the model has one."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "audio_input_ids": audio_input_ids,
            "audio_input_ids_mask": audio_input_ids_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            **kwargs,
        }
        with self._hearing(audio_features, audio_feature_attention_mask):
            if labels is None:
                return super().forward(**inputs)
            assert input_ids is not None, "placeholders are found by their ids"
            assert audio_labels is not None, "(B, 0, K) for a batch without audio"
            assert audio_input_ids_mask is not None, "(B, 0) for a batch without audio"
            audio_labels = self.labels_at_placeholders(
                input_ids, audio_labels, audio_input_ids_mask
            )
            # Before the body: whoever waits for the device later waits for all of its layers.
            places = self._places(labels, audio_labels, input_ids, audio_input_ids_mask)
            if audio_input_ids is not None:
                # Real ones first, and no mask: the body would select them by it, and wait.
                inputs["audio_input_ids"] = _real_first(audio_input_ids, audio_input_ids_mask)[None]
                inputs["audio_input_ids_mask"] = None
            hidden = self.model(**inputs).last_hidden_state  # (B, S, H)
        return self._dual_loss(hidden, labels, audio_labels, places, rows_apart=rows_apart)

    def _places(
        self, labels: Tensor, audio_labels: Tensor, input_ids: Tensor, frames_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Which rows of (B * S,) predict text, and which audio. audio_labels: at placeholders."""
        placeholders = self.model.get_placeholder_mask(input_ids, None, frames_mask)
        masks = (predicting(labels), predicting(audio_labels), placeholders, frames_mask)
        text, audio, positions, frames = places_of(*masks)
        assert len(positions) == len(frames), f"{len(positions)} placeholders, {len(frames)} frames"
        return text, audio

    def _dual_loss(
        self,
        hidden: Tensor,
        labels: Tensor,
        audio_labels: Tensor,
        places: tuple[Tensor, Tensor],
        *,
        rows_apart: bool,
    ) -> DualLossOutput:
        assert self.text_lm_head is not None, "training needs it: load with use_text_head=True"
        sum_text: Summing = together
        sum_audio: Summing = together
        if rows_apart:
            sum_text, sum_audio = (apart(rows, *labels.shape) for rows in places)
        text_rows, text_targets = shifted_rows(hidden, labels, places[0])
        text = text_loss_sums(text_rows, text_targets, self.text_lm_head, sum_text)

        audio_rows, audio_targets = shifted_rows(hidden, audio_labels, places[1])
        size = self.config.codebook_size
        audio = audio_loss_sums(audio_rows, audio_targets, self.audio_lm_head, size, sum_audio)
        return DualLossOutput.of(text, audio)

    def hidden_states(
        self,
        *,
        cache: Any = None,
        audio_features: Tensor | None = None,
        audio_feature_attention_mask: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor:
        """(B, S, H) after the last norm. cache: filled with these positions, if given."""
        if cache is not None:
            inputs |= {CACHE: cache, "use_cache": True}
        with self._hearing(audio_features, audio_feature_attention_mask):
            return self.model(**inputs).last_hidden_state

    @contextmanager
    def _hearing(self, features: Tensor | None, mask: Tensor | None) -> Iterator[None]:
        """Inside, the embedding of <|AUDIO|> is that of the audio tower. Without features nothing
        is computed."""
        if features is None:
            yield
            return
        assert mask is not None, "features need their mask"
        # (P, H); for A = 0 it still hangs on every parameter.
        positions = self.audio_tower(features, mask)

        def place(module: Any, args: tuple[Tensor], embedded: Tensor) -> Tensor:
            is_placeholder = args[0] == self.config.audio_in_token_id  # (B, S)
            # `masked_scatter` overlooks surplus positions.
            num_placeholders = int(is_placeholder.sum())
            assert num_placeholders == len(positions), (
                f"{num_placeholders} placeholders for {len(positions)} positions"
            )
            return embedded.masked_scatter(
                is_placeholder.unsqueeze(-1), positions.to(embedded.dtype)
            )

        hook = self.model.embed_tokens.register_forward_hook(place)
        try:
            yield
        finally:
            hook.remove()

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        audio_features: Tensor | None = None,
        audio_feature_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The tower hears the prompt, once."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,  # type: ignore[arg-type]
            **kwargs,
        )
        cache = inputs.get(CACHE)
        is_prompt = cache is None or cache.get_seq_length() == 0
        if is_prompt and audio_features is not None:
            inputs["audio_features"] = audio_features
            inputs["audio_feature_attention_mask"] = audio_feature_attention_mask
        return inputs

    def labels_at_placeholders(
        self, input_ids: Tensor, audio_labels: Tensor, audio_input_ids_mask: Tensor
    ) -> Tensor:
        """audio_labels (B, T, K) of delayed frames -> (B, S, K) at their placeholders, -100
        elsewhere."""
        placeholders = self.model.get_placeholder_mask(input_ids, None, audio_input_ids_mask)
        expanded = audio_labels.new_full((*input_ids.shape, audio_labels.shape[-1]), IGNORE_INDEX)
        in_order = _real_first(audio_labels, audio_input_ids_mask)
        return expanded.masked_scatter(placeholders.unsqueeze(-1), in_order)
