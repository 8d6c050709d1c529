"""MS-SWIFT's Template for Higgs-Audio V2: a row's way into a batch, a request's way to its answer.

    training   row -> EncodedSample -> batch -> loss
    speaking   row or chat request -> SpeechRequest -> Speech -> answer

Each hook is short and hands over: to `plugins.data` and `plugins.collator` in training, to `chat`
and `answers` in speaking. It keeps nothing of the base's text templates, since prompt and labels
come from `plugins.data.prompt`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from swift.arguments import DeployArguments, InferArguments
from swift.template import Template, TemplateMeta, register_template
from swift.template.template_inputs import StdTemplateInputs
from torch import Tensor

from plugins.audio.codec import Codec, find_codec
from plugins.collator import collate
from plugins.corpora.canonical import ROW_SOURCE, canonical_row
from plugins.data.clips import check_clips, stand_ins, with_clips
from plugins.data.dialogue import Dialogue, EncodedSample
from plugins.data.prompt import encode
from plugins.data.rows import dialogue_from_row
from plugins.data.tokens import SpecialTokens
from plugins.errors import problem
from plugins.files.temporary import sweep
from plugins.inference import HiggsAudioGenerator
from plugins.model.joined import join
from plugins.model.loss import LossWeights, combine
from plugins.ms_swift import answers, dicts
from plugins.ms_swift.answers import REQUEST, SpeechRequest
from plugins.ms_swift.chat import chat_row, uploads_of_request
from plugins.ms_swift.code_check import CodeCheck
from plugins.ms_swift.dataset_loader import HiggsDatasetLoader
from plugins.settings import PROMPT_KNOBS, HiggsAudioSettings

TEMPLATE_TYPE = "higgs_audio_v2"

# MS-SWIFT's own switches: a server reads local files and fetches URLs for its clients unless these
# name where from.
_CLOSED = {"SWIFT_MEDIA_ALLOWED_DIRS": os.devnull, "SWIFT_URL_ALLOWED_HOSTS": "nowhere.invalid"}


class HiggsAudioTemplate(Template):
    """Hooks of MS-SWIFT 4.6, in the order in which a run calls them."""

    support_padding_free = True
    tokens: SpecialTokens
    settings: HiggsAudioSettings
    codec: Codec
    origin: Path  # the checkpoint that training goes on from
    audio_folder: Path | None = None  # of spoken answers; None: they are data URLs
    seed: int | None = None  # of requests that bring none
    is_server = False

    def init_env_args(self) -> None:
        super().init_env_args()
        self.settings = HiggsAudioSettings.from_env()
        self.tokens = SpecialTokens.from_config(self.config, self.tokenizer)
        self._use_codec([self.model_info.model_dir])
        self._generator: HiggsAudioGenerator | None = None
        # On the instance: the base's list is shared by every template of the process.
        self.placeholder_tokens = [self.tokens.audio, self.tokens.audio_delay]
        self.origin = Path(self.model_info.model_dir)
        HiggsDatasetLoader.template = self

    def _use_codec(self, folders: list[str]) -> None:
        self.codec = Codec(find_codec(folders, self.settings.codec))
        self._code_check = CodeCheck(self.codec)

    # Told by the patched pipelines (`patches`), once the model is loaded.

    def go_on_from(self, checkpoint: Path) -> None:
        """Train with the prompts that `checkpoint` was trained with, unless the environment says
        otherwise."""
        self.origin = checkpoint
        trained = HiggsAudioSettings.of_checkpoint(checkpoint)
        kept = {name: getattr(trained, name) for name in PROMPT_KNOBS}
        self.settings = replace(self.settings, **kept)

    def speak_for(self, args: InferArguments) -> None:
        """Answer as `swift infer` or `swift deploy` was asked to, with the settings that the
        checkpoint was trained with."""
        folder = (args.adapters or [self.model_info.model_dir])[0]
        self.settings = HiggsAudioSettings.of_checkpoint(Path(folder))
        self._use_codec([folder, self.model_info.model_dir])
        if isinstance(args, DeployArguments):
            self.is_server = True
            self.use_model = True  # the engine sets `model`, before it encodes: voices need it
            sweep()
            for name, value in _CLOSED.items():
                os.environ.setdefault(name, value)
            return
        if args.stream:
            raise problem(
                source="options",
                field="stream",
                value=args.stream,
                reason="is not available",
                remedy="add --stream false",
            )
        if args.result_path is None:
            raise problem(
                source="options",
                field="result_path",
                value=None,
                reason="names no file",
                remedy="give one: speech is written beside it",
            )
        result = Path(args.result_path)
        self.audio_folder = result.with_name(f"{result.stem}_audio")
        self.seed = args.seed

    # Rows.

    @property
    def compares(self) -> bool:
        """Whether a row is a pair of answers, `swift rlhf`. The base encodes and collates each as a
        row of its own, the chosen ones of a batch before the rejected ones."""
        return self.mode == "rlhf"

    def check_dialogue(self, dialogue: Dialogue) -> int:
        """How many positions the row takes, to the token, from its text and the headers of its
        audio files.

        Raises UserError if a clip cannot be read or the row is too long.
        """
        check_clips(dialogue, self.settings)
        self._code_check.check(dialogue)
        return len(self._encode_dialogue(stand_ins(dialogue, self.tokens)).input_ids)

    def _preprocess_inputs(self, inputs: StdTemplateInputs) -> None:
        """The base would put <audio> tags into the first message: our clips are targets, not
        inputs."""

    def _encode(self, inputs: StdTemplateInputs) -> dict[str, Any]:
        if self.is_training:
            return self._encode_row(dicts.row_of(inputs))
        request = self._request(inputs)
        inputs.extra_kwargs[REQUEST] = request
        # For MS-SWIFT's limits and counts only: the generator writes the ids again from the
        # dialogue.
        silent = stand_ins(request.dialogue, self.tokens)
        sample = encode(silent, self.tokenizer, self.tokens, open_turn=True)
        return {"input_ids": sample.input_ids, REQUEST: request}

    def _encode_row(self, row: dict[str, Any]) -> dict[str, Any]:
        if ROW_SOURCE not in row:  # not from one of our JSONL files: check it now
            row = canonical_row(row, f"row {row.get('id', '')}".strip(), self.settings)
        dialogue = dialogue_from_row(row, self.settings)
        check_clips(dialogue, self.settings)
        sample = self._encode_dialogue(with_clips(dialogue, self.codec, self.tokens))
        return dicts.dict_of(sample, has_tower=self.tokens.tower is not None)

    def _encode_dialogue(self, dialogue: Dialogue) -> EncodedSample:
        sample = encode(dialogue, self.tokenizer, self.tokens)
        length = len(sample.input_ids)
        if self.max_length is not None and length > self.max_length:
            raise problem(
                source=dialogue.source,
                field="row",
                value=length,
                reason=f"tokens and frames are more than max_length {self.max_length}",
                remedy="raise --max_length or cut text, clip or reference",
            )
        return sample

    def _request(self, inputs: StdTemplateInputs) -> SpeechRequest:
        if self.is_server:
            return self._request_of_client(inputs)
        row = dicts.row_of(inputs)
        if ROW_SOURCE not in row:
            row = canonical_row(row, "request", self.settings)
        return answers.request_of(row, self.settings)

    def _request_of_client(self, inputs: StdTemplateInputs) -> SpeechRequest:
        """Voices are heard here: whatever becomes of the request, its recordings are gone."""
        with uploads_of_request() as folder:
            # A path in a request can only mean one of its own uploads.
            settings = replace(self.settings, audio_root=str(folder))
            row = canonical_row(chat_row(inputs, folder), "request", settings)
            dialogue = answers.request_of(row, self.settings).dialogue
            if self.codec.device != str(self.model.device):
                self._use_device(str(self.model.device))
            dialogue = with_clips(dialogue, self.codec, self.tokens)
        return SpeechRequest(dialogue.map_clips(lambda clip: replace(clip, path=None)))

    def _use_device(self, device: str) -> None:
        self.codec = Codec(self.codec.path, device=device)

    # Batches.

    def _data_collator(
        self, batch: list[dict[str, Any]], *, padding_to: int | None = None
    ) -> dict[str, Any]:
        if not self.is_training:
            return answers.prompt_batch(batch, self.tokens.pad)
        samples = list(map(dicts.sample_of, batch))
        # `padding_free` is also set by `--packing true`, whose batch is the rows of one pack.
        return collate(samples, self.tokens, training=True, packed=self.padding_free)

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

    # Answers.

    def generate(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Speak each request of the batch. `sequences` (B, S + steps) only tells MS-SWIFT how many
        steps that took."""
        if kwargs.get("adapter_names"):
            raise problem(
                source="options",
                field="adapters",
                value=kwargs["adapter_names"],
                reason="have names",
                remedy="serve one LoRA folder, unnamed",
            )
        if self.codec.device != str(model.device):
            self._use_device(str(model.device))
        generator = self._generator_of(self.get_base_model(model))
        if (maker := generator.speaker.maker) is not None and hasattr(model, "peft_config"):
            # MS-SWIFT does not say from which folder.
            generator.speaker.maker = replace(maker, adapter=next(iter(model.peft_config)))
        config, prompts = kwargs["generation_config"], kwargs["input_ids"]
        steps = answers.speak(kwargs[REQUEST], generator, config, seed=self.seed)
        return {"sequences": torch.cat([prompts, steps.to(prompts)], dim=1)}

    def _generator_of(self, model: Any) -> HiggsAudioGenerator:
        """The same for all batches: it keeps the steps that it has recorded."""
        parts = (model, self.codec, self.settings)
        generator = self._generator
        if generator is None or (generator.model, generator.codec, generator.settings) != parts:
            if model.device.type == "cuda":
                join(model)
            generator = HiggsAudioGenerator(
                model, self.tokenizer, codec=self.codec, settings=self.settings
            )
        self._generator = generator
        return generator

    def decode_generate_ids(
        self, generate_ids: list[int], *, template_inputs: Any = None, **kwargs: Any
    ) -> Any:
        return answers.answer(template_inputs.extra_kwargs[REQUEST], self.audio_folder)


def register() -> None:
    """The base needs the fields of a text template; ours reads none of them but the stop word."""
    meta = TemplateMeta(
        TEMPLATE_TYPE,
        prefix=[],
        prompt=["{{QUERY}}"],
        chat_sep=None,
        suffix=["<|eot_id|>"],
        template_cls=HiggsAudioTemplate,
    )
    register_template(meta, exist_ok=True)
