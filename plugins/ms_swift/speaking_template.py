"""`swift infer` and `swift deploy`: the speaking half of MS-SWIFT's Template. L3: glue, `inference`
speaks.

In: a row whose last assistant turn is left out, or a chat request. Out: what MS-SWIFT takes for the
answer: under `swift infer` the place of a WAV file beside the result file, else a data URL. A chat
request is the row

    {"messages": [{"role": "system", "content": SCENE}, {"role": "user", "content": TEXT}]}

with a voice as `audio` or `audio_url` item of the user's content list, and the transcript of the
voice, where there is one, as `chat_template_kwargs: {"reference_text": ...}`: the one field of
MS-SWIFT's requests that is free."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import swift
import torch
from swift.arguments import DeployArguments, InferArguments, SftArguments
from swift.pipelines.base import SwiftPipeline
from swift.template.template_inputs import StdTemplateInputs
from swift.utils import get_logger
from torch import Tensor

from plugins.audio.codec import FRAMES_PER_S, Codec, find_codec
from plugins.corpora.canonical import AUDIO_TAG, KEY_COLUMNS, ROW_SOURCE, canonical_row
from plugins.data.clips import check_clips, stand_ins
from plugins.data.dialogue import Dialogue
from plugins.data.prompt import encode
from plugins.data.rows import dialogue_from_row
from plugins.data.tokens import SCENE_END, SCENE_START
from plugins.data.wording import INSTRUCTION, MULTI_SPEAKER_INSTRUCTION
from plugins.delay_pattern import num_delayed_frames
from plugins.errors import did_you_mean, problem
from plugins.inference import HiggsAudioGenerator
from plugins.ms_swift.template import HiggsAudioTemplate, row_of
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech
from plugins.training import tuning

logger = get_logger()

_REQUEST = "speech_request"  # travels in the template's inputs and in the batch
_CHAT_OPTIONS = ("reference_text",)
# MS-SWIFT's own switches: a server reads local files and fetches URLs for its clients unless these
# name where from.
_CLOSED = {"SWIFT_MEDIA_ALLOWED_DIRS": os.devnull, "SWIFT_URL_ALLOWED_HOSTS": "nowhere.invalid"}


@dataclass
class SpeechRequest:
    """One row or chat request on its way through MS-SWIFT's engine, and what was said."""

    dialogue: Dialogue
    uploads: TemporaryDirectory[str] | None = None  # holds the voices that a chat request brought
    speech: Speech | None = None


class SpeakingTemplate(HiggsAudioTemplate):
    """Hooks of MS-SWIFT 4.6's TransformersEngine, in the order in which it calls them."""

    audio_folder: Path | None = None  # None: answers are data URLs
    seed: int | None = None
    is_server = False

    def init_env_args(self) -> None:
        super().init_env_args()
        route_pipelines()

    def prepare(self, pipeline: Any) -> None:
        """Called once `swift infer` or `swift deploy` has loaded the model."""
        args = pipeline.args
        folder = (args.adapters or [self.model_info.model_dir])[0]
        self.settings = HiggsAudioSettings.of_checkpoint(Path(folder))
        self.codec = Codec(find_codec([folder, self.model_info.model_dir], self.settings.codec))
        if isinstance(args, DeployArguments):
            self.is_server = True
            for name, value in _CLOSED.items():
                os.environ.setdefault(name, value)
            _guard(pipeline.infer_engine)
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

    def _encode(self, inputs: StdTemplateInputs) -> dict[str, Any]:
        """The prompt's ids, for MS-SWIFT's limits and counts; the generator writes them again from
        the dialogue."""
        if self.is_training:
            return super()._encode(inputs)
        request = inputs.extra_kwargs[_REQUEST] = self._request(inputs)
        silent = stand_ins(request.dialogue, self.tokens)
        sample = encode(silent, self.tokenizer, self.tokens, open_turn=True)
        return {"input_ids": sample.input_ids, _REQUEST: request}

    def _request(self, inputs: StdTemplateInputs) -> SpeechRequest:
        row, uploads = row_of(inputs), None
        if self.is_server:
            uploads = TemporaryDirectory(prefix="higgs-audio-")
            settings = replace(self.settings, audio_root=uploads.name)
            row = canonical_row(_chat_row(inputs, Path(uploads.name)), "request", settings)
        elif ROW_SOURCE not in row:
            row = canonical_row(row, "request", self.settings)
        dialogue = dialogue_from_row(without_answer(row), self.settings, training=False)
        check_clips(dialogue, self.settings)
        return SpeechRequest(dialogue, uploads)

    def _data_collator(
        self, batch: list[dict[str, Any]], *, padding_to: int | None = None
    ) -> dict[str, Any]:
        if self.is_training:
            return super()._data_collator(batch, padding_to=padding_to)
        rows = [torch.tensor(row["input_ids"]) for row in batch]
        padded = {
            "input_ids": (rows, self.tokens.pad),
            "attention_mask": ([torch.ones_like(ids) for ids in rows], 0),
        }
        tensors = {
            name: torch.nn.utils.rnn.pad_sequence(
                each, batch_first=True, padding_value=value, padding_side="left"
            )
            for name, (each, value) in padded.items()
        }
        return {**tensors, _REQUEST: [row[_REQUEST] for row in batch]}

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
        config, prompts, requests = (
            kwargs["generation_config"],
            kwargs["input_ids"],
            kwargs[_REQUEST],
        )
        if self.codec.device != str(model.device):
            self.codec = Codec(self.codec.path, device=str(model.device))
        base_model = self.get_base_model(model)
        generator = HiggsAudioGenerator(
            base_model, self.tokenizer, codec=self.codec, settings=self.settings
        )
        samplings, max_audio_s = (
            [self._sampling(config)] * len(requests),
            self._max_audio_s(config.max_new_tokens),
        )
        steps = prompts.new_full((len(requests), config.max_new_tokens), self.tokens.pad)
        try:
            dialogues = [request.dialogue for request in requests]
            speeches = generator.speak(dialogues, samplings=samplings, max_audio_s=max_audio_s)
        finally:
            for request in requests:
                if request.uploads is not None:
                    request.uploads.cleanup()
        for request, row, speech in zip(requests, steps, speeches, strict=True):
            request.speech = speech
            # Fewer than the limit say "stop", else "length".
            num_steps = num_delayed_frames(speech.codes.shape[1], self.tokens.num_codebooks)
            row[: min(num_steps, len(row) - 1) if speech.stopped else len(row)] = self.tokens.audio
        return {"sequences": torch.cat([prompts, steps], dim=1)}

    def decode_generate_ids(
        self, generate_ids: list[int], *, template_inputs: Any = None, **kwargs: Any
    ) -> Any:
        """The answer: a data URL, or the content list that names the WAV file, its length and
        whether it was cut."""
        request: SpeechRequest = template_inputs.extra_kwargs[_REQUEST]
        speech = request.speech
        assert speech is not None
        if self.audio_folder is None:
            return _data_url(speech)
        path = _free_path(self.audio_folder, request.dialogue.source)
        speech.save(path)
        duration_s = round(speech.duration_s, 3)
        return [
            {
                "type": "audio",
                "audio": str(path),
                "duration_s": duration_s,
                "stopped": speech.stopped,
            }
        ]

    def _sampling(self, config: Any) -> Sampling:
        for name, neutral in (
            ("num_beams", 1),
            ("num_return_sequences", 1),
            ("repetition_penalty", 1.0),
        ):
            if (value := getattr(config, name, None)) not in (None, neutral):
                raise problem(
                    source="request",
                    field=name,
                    value=value,
                    reason="is not available for speech",
                    remedy="leave it out",
                )
        if config.output_logits:
            raise problem(
                source="request",
                field="logprobs",
                value=True,
                reason="is not available for speech",
                remedy="leave it out",
            )
        seed = getattr(config, "seed", None)
        values: dict[str, Any] = {"seed": self.seed if seed is None else seed}
        if not config.do_sample:
            return Sampling(temperature=0, **values)
        given = {name: getattr(config, name) for name in ("temperature", "top_k", "top_p")}
        return Sampling(
            **values, **{name: value for name, value in given.items() if value is not None}
        )

    def _max_audio_s(self, max_new_tokens: int) -> float:
        """F codec frames take F + K + 1 steps."""
        num_frames = max_new_tokens - num_delayed_frames(0, self.tokens.num_codebooks)
        if num_frames < 1:
            least = num_delayed_frames(1, self.tokens.num_codebooks)
            reason = f"is no room for a frame of audio ({FRAMES_PER_S} per second)"
            raise problem(
                source="request",
                field="max_new_tokens",
                value=max_new_tokens,
                reason=reason,
                remedy=f"give {least} or more",
            )
        return (num_frames - 0.5) / FRAMES_PER_S  # the half keeps rounding up from another frame


def without_answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row without what is to be said: its last assistant turn, with the clips and codes
    of that turn.

    MS-SWIFT may have taken the turn away already, then the clips are still there.
    """
    messages = list(row["messages"])
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    num_clips = sum(
        message["content"].count(AUDIO_TAG) if message["content"].strip() else 1
        for message in messages
        if message["role"] == "assistant"
    )
    columns = ("audios", "audio_codes", KEY_COLUMNS["audio_codes"])
    return {
        **row,
        "messages": messages,
        **{name: row[name][:num_clips] for name in columns if row.get(name)},
    }


def _chat_row(inputs: StdTemplateInputs, folder: Path) -> dict[str, Any]:
    """The row that a chat request means. What it brings as audio is written into `folder`."""
    for name in inputs.chat_template_kwargs:
        if name not in _CHAT_OPTIONS:
            raise problem(
                source="request",
                field="chat_template_kwargs",
                value=name,
                reason="is unknown",
                remedy=did_you_mean(name, _CHAT_OPTIONS),
            )
    files = iter([_upload(value, folder / f"audio-{i}") for i, value in enumerate(inputs.audios)])
    row: dict[str, Any] = {"messages": [], "audios": [], "reference_audio": []}
    if inputs.system:
        row["messages"].append({"role": "system", "content": _scene(inputs.system)})
    for message in inputs.messages:
        content = message.get("content") or ""
        if message["role"] == "user" and isinstance(content, str):
            row["reference_audio"] += islice(files, content.count(AUDIO_TAG))
            content = content.replace(AUDIO_TAG, "")
        row["messages"].append({**message, "content": content})
        if message["role"] == "assistant":
            row["audios"] += islice(files, content.count(AUDIO_TAG))
    if surplus := list(files):
        raise problem(
            source="request",
            field="audios",
            value=len(surplus),
            reason="are in no message",
            remedy="put audio into a message's content list",
        )
    return {**row, **inputs.chat_template_kwargs}


def _scene(system: Any) -> Any:
    """A system message as a row has it: what is neither an instruction of the model's own nor
    tagged is a scene."""
    if (
        not isinstance(system, str)
        or SCENE_START in system
        or system.strip() in (INSTRUCTION, MULTI_SPEAKER_INSTRUCTION)
    ):
        return system
    return f"{SCENE_START}\n{system}\n{SCENE_END}"


def _upload(value: Any, file: Path) -> str:
    """The path of `file`, into which the bytes of a data URL or base64 text are written. Nothing
    else is read."""
    try:
        file.write_bytes(base64.b64decode(value.partition(";base64,")[2] or value, validate=True))
    except (AttributeError, ValueError):
        remedy = "send data:audio/wav;base64,...; URLs and paths are not read"
        raise problem(
            source="request",
            field="audio",
            value=value,
            reason="is no audio in base64",
            remedy=remedy,
        ) from None
    return str(file)


def _data_url(speech: Speech) -> str:
    with TemporaryDirectory(prefix="higgs-audio-") as folder:
        file = Path(folder) / "speech.wav"
        speech.save(file)
        return f"data:audio/wav;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _free_path(folder: Path, source: str) -> Path:
    """`FILE-LINE.wav`, or `FILE-LINE-2.wav` if that exists: MS-SWIFT appends to a result file of an
    earlier run."""
    file, _, line = source.rpartition(":")
    name = f"{Path(file).stem}-{int(line):05d}" if line.isdigit() else "speech"
    paths = (folder / f"{name}{'' if i == 1 else f'-{i}'}.wav" for i in count(1))
    return next(path for path in paths if not path.exists())


def _guard(engine: Any) -> None:
    """Let `engine` refuse what it cannot do before it answers at all, and honour `seed`."""
    original = engine.infer_async

    async def infer_async(
        infer_request: Any, request_config: Any = None, *, pre_infer_hook: Any = None, **kwargs: Any
    ) -> Any:
        if request_config is not None and request_config.stream:
            raise problem(
                source="request",
                field="stream",
                value=True,
                reason="is not available: speech is sent whole",
                remedy="leave it out",
            )

        def hook(batch: dict[str, Any]) -> dict[str, Any]:
            batch["generation_config"].seed = batch["request_config"].seed
            return batch if pre_infer_hook is None else pre_infer_hook(batch)

        return await original(infer_request, request_config, pre_infer_hook=hook, **kwargs)

    engine.infer_async = infer_async


def route_pipelines() -> None:
    """Let MS-SWIFT's commands tell our template what they were asked, and `swift sft` what it is to
    tune. Other models are left alone.

    4.6 gives a template neither its arguments (where do results go? which checkpoint is trained
    on?) nor a request's `stream` and `seed`, and answers `stream` with status 200 before anything
    of the template runs; a trainer comes after the tuner. Idempotent."""
    if not swift.__version__.startswith("4.6."):
        logger.warning(
            f"swift infer and swift deploy cannot speak: untested ms-swift {swift.__version__} (need 4.6)"
        )
        return
    if getattr(SwiftPipeline.main, "_prepares_speech", False):
        return
    original = SwiftPipeline.main

    def main(self: SwiftPipeline) -> Any:
        template, args = vars(self).get("template"), self.args
        if isinstance(template, SpeakingTemplate) and isinstance(args, InferArguments):
            template.prepare(self)
        elif isinstance(template, SpeakingTemplate) and isinstance(args, SftArguments):
            folders = (
                args.resume_from_checkpoint,
                *(args.adapters or ()),
                template.model_info.model_dir,
            )
            template.go_on_from(Path(next(filter(None, folders))))
            tuning.settle(args, self.model)
        return original(self)

    main._prepares_speech = True  # type: ignore[attr-defined]
    SwiftPipeline.main = main
