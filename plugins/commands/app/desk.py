"""Where requests wait for the one model, and which that is. Needs Gradio.

One model speaks for all: requests wait in one queue, so no two of them switch its adapters under
each other, or load another one while it speaks."""

from __future__ import annotations

import gc
import html
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from plugins.commands.app.parts import errors_in_page
from plugins.commands.app.workspace import Workspace
from plugins.errors import problem
from plugins.inference import HiggsAudioGenerator

# A LoRA folder, a whole model, and one in shards.
WEIGHTS = ("adapter_config.json", "model.safetensors", "model.safetensors.index.json")
_CODEC_FOLDER = "audio_tokenizer"


class Desk:
    """options: of the command line; its model is loaded at once if there is one."""

    def __init__(self, options: Namespace, workspace: Workspace) -> None:
        self._options, self._workspace = options, workspace
        # Gradio lets the next one come as soon as Stop was pressed, the model a frame later.
        self._lock = threading.Lock()
        self._visitor: gr.Request | None = None
        self._generator: HiggsAudioGenerator | None = None
        self._adapters, self.chosen = options.adapters, options.model
        if options.model is not None:
            self._generator = self._loaded(self.chosen, self._adapters)

    @property
    def is_ready(self) -> bool:
        return self.chosen is not None

    @property
    def generator(self) -> HiggsAudioGenerator:
        """Loaded again if it had to make room. Raises UserError if none was ever chosen."""
        if self._generator is None:
            if self.chosen is None:
                raise problem(
                    source="page",
                    field="model",
                    value=None,
                    reason="is not loaded",
                    remedy="choose a checkpoint under Model",
                )
            self._generator = self._loaded(self.chosen, self._adapters)
        return self._generator

    @property
    def tuned(self) -> str | None:
        """The name of the LoRA weights."""
        return next(iter(self.generator.adapters), None)

    @property
    def has_tuned(self) -> bool:
        return self._generator is not None and bool(self._generator.adapters)

    @property
    def cleans_texts(self) -> bool:
        return self._generator is None or self._generator.settings.prompts == "cleaned texts"

    @property
    def name(self) -> str:
        if self.chosen is None:
            return "no model is loaded"
        names = [Path(path).name for path in (self.chosen, self._adapters) if path]
        name = " + ".join(names)
        if self._options.adapter_scale != 1:
            name += f", adapter_scale {self._options.adapter_scale:g}"
        return name

    @property
    def name_html(self) -> str:
        return html.escape(self.name)

    def choices(self) -> list[str]:
        """What may be loaded: the model of the command line, and checkpoints of the workspace."""
        return [*filter(None, [self._options.model]), *checkpoints(self._workspace)]

    def load(self, model: str) -> None:
        """Within a turn. Raises UserError for what is no model, or not of this workspace; the one
        before stays."""
        if model == self._options.model:
            chosen, adapters = model, self._options.adapters
        else:
            folder = self._workspace.existing(model or "", field="model", folder=True)
            chosen, adapters = str(folder), None
        self._drop()
        generator = self._loaded(chosen, adapters)
        self.chosen, self._adapters, self._generator = chosen, adapters, generator

    def make_room(self, device: str) -> None:
        """For a job on `device`: the model leaves it, and comes back when it is asked to speak."""
        if device == "cpu" or self._generator is None:
            return
        if str(self._generator.model.device) == "cpu":
            return
        with self._lock:
            self._drop()

    def _loaded(self, model: str, adapters: str | None) -> HiggsAudioGenerator:
        return HiggsAudioGenerator.from_pretrained(
            model,
            adapters=adapters,
            adapter_scale=self._options.adapter_scale,
            codec=self._options.codec,
            device=self._options.device,
            marks=self._options.marks,
        )

    def _drop(self) -> None:
        import torch

        self._generator = None
        gc.collect()  # modules and hooks refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def turn_of(self, visitor: gr.Request) -> Iterator[None]:
        with self._lock, errors_in_page():
            self._visitor = visitor
            try:
                yield
            finally:
                self._visitor = None

    def stop(self, visitor: gr.Request) -> None:
        """Only one's own speech; returns when it has ended."""
        speaking = self._visitor
        if speaking is None or speaking.session_hash != visitor.session_hash:
            return
        # More than once: a long text is cut into lines before the first of them can be ended.
        while self._visitor is speaking and self._generator is not None:
            self._generator.stop()
            time.sleep(0.05)

    def queue(self, event: Callable[..., Any], does: Any, inputs: Any, outputs: Any) -> Any:
        """`does` at `event`, when the model is free."""
        return event(
            does,
            inputs,
            outputs,
            # All buttons of the page share one place in the queue: there is one model.
            concurrency_limit=1,
            concurrency_id="model",
            api_visibility="private",
            scroll_to_output=True,
        )

    def connect(
        self, button: gr.Button, stop: gr.Button, speak: Any, inputs: set[Any], outputs: list[Any]
    ) -> None:
        """`button` speaks, `stop` ends it, or lets it not begin."""
        spoken = self.queue(button.click, speak, inputs, outputs)
        # Two listeners: of one that cancels, Gradio calls no function.
        stop.click(None, cancels=[spoken], api_visibility="private")
        # Beside the queue of the model, where it would wait for what it is to end.
        stop.click(self.stop, concurrency_limit=None, api_visibility="private")


def checkpoints(workspace: Workspace) -> list[str]:
    """Folders of the workspace that a model is loaded from, and runs, whose newest is taken."""
    found = []
    for folder in workspace.folders(*WEIGHTS):
        if Path(folder).name == _CODEC_FOLDER:
            continue
        if Path(folder).name.startswith("checkpoint-"):
            run = str(Path(folder).parent)
            if run not in found:
                found.append(run)
        found.append(folder)
    return found
