"""MS-SWIFT's Template for Higgs-Audio V2: row -> EncodedSample -> batch -> loss. L2: glue, each
hook hands over.

It keeps nothing of the base's text templates: prompt and labels come from `plugins.data.prompt`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from swift.template import Template, TemplateMeta, register_template
from swift.template.template_inputs import StdTemplateInputs
from torch import Tensor

from plugins.audio.code_cache import codec_fingerprint, content_key
from plugins.audio.codec import Codec, find_codec
from plugins.collator import collate
from plugins.corpora.canonical import ROW_SOURCE, canonical_row
from plugins.data.clips import check_clips, stand_ins, with_clips
from plugins.data.dialogue import AudioClip, Dialogue, EncodedSample
from plugins.data.prompt import encode
from plugins.data.rows import dialogue_from_row
from plugins.data.tokens import SpecialTokens
from plugins.dataset_registration import route_datasets
from plugins.errors import problem
from plugins.files.disk import file_hash
from plugins.files.hub import local_folder
from plugins.model.loss import LossWeights, combine
from plugins.settings import PROMPT_KNOBS, HiggsAudioSettings

TEMPLATE_TYPE = "higgs_audio_v2"


class HiggsAudioTemplate(Template):
    """Hooks of MS-SWIFT 4.6, in the order in which a training run calls them."""

    support_padding_free = True
    tokens: SpecialTokens
    settings: HiggsAudioSettings
    codec: Codec
    origin: Path  # the checkpoint that training goes on from

    def init_env_args(self) -> None:
        super().init_env_args()
        self.settings = HiggsAudioSettings.from_env()
        self.tokens = SpecialTokens.from_config(self.config, self.tokenizer)
        self.codec = Codec(find_codec([self.model_info.model_dir], self.settings.codec))
        self._compared_codecs: set[str | None] = set()  # fingerprints that code caches name
        # On the instance: the base's list is shared by every template of the process.
        self.placeholder_tokens = [self.tokens.audio, self.tokens.audio_delay]
        self.origin = Path(self.model_info.model_dir)
        route_datasets(
            self.check_dialogue,
            is_training=lambda: self.is_training,
            settings=lambda: self.settings,
        )

    def go_on_from(self, checkpoint: Path) -> None:
        """Train with the prompts that `checkpoint` was trained with, unless the environment says
        otherwise."""
        self.origin = checkpoint
        trained = HiggsAudioSettings.of_checkpoint(checkpoint)
        kept = {name: getattr(trained, name) for name in PROMPT_KNOBS}
        self.settings = replace(self.settings, **kept)

    def _preprocess_inputs(self, inputs: StdTemplateInputs) -> None:
        """The base would put <audio> tags into the first message: our clips are targets, not
        inputs."""

    def _encode(self, inputs: StdTemplateInputs) -> dict[str, Any]:
        row = row_of(inputs)
        if ROW_SOURCE not in row:  # not from one of our JSONL files: check it now
            row = canonical_row(row, f"row {row.get('id', '')}".strip(), self.settings)
        dialogue = dialogue_from_row(row, self.settings)
        check_clips(dialogue, self.settings)
        sample = self._encode_dialogue(with_clips(dialogue, self.codec, self.tokens))
        heard = {} if self.tokens.tower is None else {"heard": sample.heard}
        return {
            "input_ids": sample.input_ids,
            "labels": sample.labels,
            "clips": sample.clips,
            "clips_trained": sample.clips_trained,
            **heard,
            ROW_SOURCE: sample.source,
        }

    def check_dialogue(self, dialogue: Dialogue) -> int:
        """How many positions the row takes, to the token, from its text and the headers of its
        audio files.

        Raises UserError if a clip cannot be read or the row is too long.
        """
        check_clips(dialogue, self.settings)
        for clip in dialogue.clips():
            if clip.key is None or clip.path is None:
                continue
            # Each codec is told once; of the clips only those that were touched later can have
            # changed.
            status = os.stat(clip.path)
            is_touched = max(status.st_mtime_ns, status.st_ctime_ns) > clip.encoded_ns
            if is_touched or clip.codec not in self._compared_codecs:
                self._compared_codecs.add(clip.codec)
                self._verify_codes(clip, dialogue.source)
        return len(self._encode_dialogue(stand_ins(dialogue, self.tokens)).input_ids)

    def _verify_codes(self, clip: AudioClip, source: str) -> None:
        """Raise UserError if cached codes are of another codec, or of a file that has changed since
        they were made."""
        assert clip.path is not None
        codec = codec_fingerprint(Path(local_folder(self.codec.path, option="codec")))
        value = f"codes of {clip.path}"
        if clip.codec != codec:
            reason = f"were not made by the codec {self.codec.path}"
            remedy = "run prepare_dataset.py --encode_codes again, with that --codec and another --codes_dir"
            raise problem(
                source=source, field="audio_codes", value=value, reason=reason, remedy=remedy
            )
        if content_key(file_hash(clip.path), codec) != clip.key:
            remedy = "run prepare_dataset.py --encode_codes again"
            raise problem(
                source=source,
                field="audio_codes",
                value=value,
                reason="were made before the file changed",
                remedy=remedy,
            )

    def _encode_dialogue(self, dialogue: Dialogue) -> EncodedSample:
        sample = encode(dialogue, self.tokenizer, self.tokens)
        length = len(sample.input_ids)
        if self.max_length is not None and length > self.max_length:
            reason = f"tokens and frames are more than max_length {self.max_length}"
            raise problem(
                source=dialogue.source,
                field="row",
                value=length,
                reason=reason,
                remedy="raise --max_length or cut text, clip or reference",
            )
        return sample

    def _data_collator(
        self, batch: list[dict[str, Any]], *, padding_to: int | None = None
    ) -> dict[str, Any]:
        # `padding_free` is also set by `--packing true`, whose batch is the rows of one pack.
        return collate(
            [sample_of(row) for row in batch], self.tokens, training=True, packed=self.padding_free
        )

    def compute_sft_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | None = None,
        trainer: Any = None,
    ) -> Any:
        """num_items_in_batch: (2,) text tokens and audio frames of the whole optimisation step (our
        trainer's)."""
        outputs = model(**inputs)
        assert num_items_in_batch is not None, "only HiggsAudioTrainer trains this template"
        num_text, num_frames = num_items_in_batch
        weights = LossWeights.of(self.settings, self.tokens.num_codebooks)
        outputs.loss = combine(
            outputs.text, outputs.audio, num_text=num_text, num_frames=num_frames, weights=weights
        )
        return outputs


def sample_of(row: dict[str, Any]) -> EncodedSample:
    """What `_encode` returned, after MS-SWIFT has carried it through a dataset."""
    source = row.get(ROW_SOURCE, "row")
    heard = row.get("heard") or []
    return EncodedSample(
        row["input_ids"], row["labels"], row["clips"], row["clips_trained"], source, heard
    )


def row_of(inputs: StdTemplateInputs) -> dict[str, Any]:
    """The row that MS-SWIFT has taken apart."""
    system = [] if inputs.system is None else [{"role": "system", "content": inputs.system}]
    return {"messages": [*system, *inputs.messages], "audios": inputs.audios, **inputs.extra_kwargs}


def register(template_cls: type[HiggsAudioTemplate] = HiggsAudioTemplate) -> None:
    """The base needs the fields of a text template; ours reads none of them but the stop word."""
    meta = TemplateMeta(TEMPLATE_TYPE, prefix=[], prompt=["{{QUERY}}"], chat_sep=None, suffix=["<|eot_id|>"],
                        template_cls=template_cls)  # fmt: skip
    register_template(meta, exist_ok=True)
