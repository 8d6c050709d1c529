"""The page: fields, buttons, players, and what they do. Needs Gradio.

One model speaks for all: requests wait in one queue, so no two of them switch its adapters under
each other."""

from __future__ import annotations

import html
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from plugins.audio import waveforms as audio
from plugins.commands.app.fields import (
    MAX_SEED,
    line_of,
    lines_of,
    require_uploads,
    sampling_of,
    voice_of,
    voices_of,
)
from plugins.commands.app.hosts import OnlyOwnNames
from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech
from plugins.speaking.voices import MAX_REFERENCE_S, MIN_REFERENCE_S, require_short

_NUM_VOICES = 4
_CLEANED_EVERY_S, _KEPT_S = 600, 3600  # uploads and speeches
_MAX_WAITING = 32
_EXAMPLES = [
    ["The birch canoe slid on the smooth planks.", "Indoor quiet", "warm, unhurried"],
    ["No way! You really did it? [laugh]", "A busy street", "young, excited"],
]
_DIALOGUE = "Alice: Have you read it?\nBob: Twice. The end is the best part."
# Gradio's own fonts lie on this server too, but its themes may name others: the system's are here
# for certain.
_THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)

Values = dict[Any, Any]  # component -> what it holds


def build(generator: HiggsAudioGenerator, *, name: str, max_audio_s: float) -> gr.Blocks:
    """The page for a loaded model. max_audio_s: the most that its sliders allow for one piece of
    speech."""
    desk = _Desk(generator)
    with gr.Blocks(
        title="Higgs Audio", analytics_enabled=False, delete_cache=(_CLEANED_EVERY_S, _KEPT_S)
    ) as page:
        gr.Markdown(f"# Higgs Audio\n{html.escape(name)}")
        with gr.Tab("Speak"):
            _speak_tab(generator, desk, max_audio_s)
        with gr.Tab("Dialogue"):
            _dialogue_tab(generator, desk, max_audio_s)
    # Closed to direct requests: they would not wait for the one that is being spoken.
    return page.queue(max_size=_MAX_WAITING, api_open=False)


def launch(page: gr.Blocks, *, host: str, port: int, max_upload_mb: int) -> None:
    """Serve in the background, for this machine's own browsers unless `host` says otherwise."""
    page.launch(
        server_name=host,
        server_port=port,
        max_file_size=max_upload_mb * 2**20,
        theme=_THEME,
        prevent_thread_lock=True,  # the caller waits, and ends in order
        # Each would open another way in or out, and variables of Gradio may turn some of them on.
        share=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        app_kwargs={"middleware": [Middleware(OnlyOwnNames, host=host)]},
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        quiet=True,
    )


def _speak_tab(generator: HiggsAudioGenerator, desk: _Desk, max_audio_s: float) -> None:
    tuned = next(iter(generator.adapters), None)
    with gr.Row():
        with gr.Column():
            text = gr.Textbox(label="Text", lines=4, autofocus=True, elem_id="text")
            scene = gr.Textbox(label="Scene", placeholder="Indoor quiet", elem_id="scene")
            description = gr.Textbox(
                label="Voice in words", placeholder="warm, unhurried", elem_id="voice"
            )
        with gr.Column():
            recording = _recording("recording")
            transcript = _transcript("transcript")
    controls = _Controls(generator, max_audio_s)
    compare = gr.Checkbox(
        label="Compare with the base: the same request and seed without the LoRA weights",
        visible=tuned is not None,
        elem_id="compare",
    )
    _examples(_EXAMPLES, [text, scene, description], "examples")
    button, stop = _buttons("generate")
    with gr.Row():
        with gr.Column(visible=False) as beside:
            base, base_line = _player("Base", "base")
        with gr.Column():
            player, line = _player("Speech" if tuned is None else "Tuned", "speech")

    # Gradio finds the bar by this default.
    def speak(
        values: Values,
        visitor: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Values:
        with desk.turn_of(visitor):
            require_short([values[field] for field in (text, scene, description, transcript)])
            require_uploads([values[recording]])
            options = controls.options(values)
            options |= voice_of(values[description], values[recording], values[transcript])
            options["scene_description"] = values[scene].strip() or None
            shown: Values = {beside: gr.update(visible=values[compare]), base: None, base_line: ""}
            takes = [("", tuned, player, line)]
            if values[compare]:
                takes = [
                    (" by the base", None, base, base_line),
                    (" by the tuned", tuned, player, line),
                ]
            # The adapter is switched between the two takes: the queue lets nobody else speak then.
            for by, adapter, place, below in takes:
                generator.use_adapter(adapter)
                stream = generator.stream(values[text], **options)
                spoken_s = 0.0
                for chunk in stream:
                    spoken_s += len(chunk) / stream.sample_rate
                    progress((int(spoken_s), None), unit=f"s spoken{by}")
                shown[place] = _played(stream.speech)
                shown[below] = line_of(stream.speech, options["sampling"].seed)
            return shown

    inputs = {text, scene, description, recording, transcript, compare, *controls.fields}
    desk.connect(button, stop, speak, inputs, [beside, base, base_line, player, line])


def _dialogue_tab(generator: HiggsAudioGenerator, desk: _Desk, max_audio_s: float) -> None:
    tuned = next(iter(generator.adapters), None)
    text = gr.Textbox(
        label="Lines",
        lines=5,
        placeholder="Alice: Hello!\nBob: Hi there, how are you?",
        elem_id="lines",
    )
    scene = gr.Textbox(label="Scene", placeholder="Indoor quiet", elem_id="dialogue_scene")
    rows = []
    with (
        gr.Accordion("Voices to clone: one for each speaker, or none, and the model chooses"),
        gr.Row(),
    ):
        for number in range(1, _NUM_VOICES + 1):
            with gr.Column(min_width=200):
                name = gr.Textbox(
                    label=f"Speaker {number}", placeholder="name", elem_id=f"name_{number}"
                )
                recording = _recording(f"recording_{number}")
                rows.append((name, recording, _transcript(f"transcript_{number}")))
    pause_s = gr.Slider(0, 2, value=0.2, step=0.1, label="Pause between lines, s", elem_id="pause")
    controls = _Controls(generator, max_audio_s)
    _examples([[_DIALOGUE]], [text], "dialogue_examples")
    button, stop = _buttons("generate_dialogue")
    player, line = _player("Dialogue", "dialogue")

    def speak(values: Values, visitor: gr.Request) -> Values:
        with desk.turn_of(visitor):
            names_and_transcripts = [values[field] for row in rows for field in (row[0], row[2])]
            require_short([values[text], values[scene], *names_and_transcripts])
            require_uploads([values[row[1]] for row in rows])
            options = controls.options(values)
            lines = lines_of(values[text])
            given = []
            for name, recording, transcript in rows:
                given.append((values[name], values[recording], values[transcript]))
            voices = voices_of(given)
            generator.use_adapter(tuned)
            speech = generator.synthesize_multi_speaker(
                lines,
                voices,
                scene_description=values[scene].strip() or None,
                pause_s=values[pause_s],
                **options,
            )
            return {player: _played(speech), line: line_of(speech, options["sampling"].seed)}

    inputs = {text, scene, pause_s, *controls.fields, *(field for row in rows for field in row)}
    desk.connect(button, stop, speak, inputs, [player, line])


class _Controls:
    """How it is spoken."""

    def __init__(self, generator: HiggsAudioGenerator, max_audio_s: float) -> None:
        self._generator = generator
        default = Sampling()
        with gr.Accordion("Sampling", open=False):
            with gr.Row():
                temperature = gr.Slider(
                    0, 2, default.temperature, step=0.05, label="Temperature", info="0 is greedy"
                )
                top_k = gr.Slider(
                    1, 1024, default.top_k, step=1, label="Top k", info="codes to draw from"
                )
                top_p = gr.Slider(0.05, 1, default.top_p, step=0.05, label="Top p", info="1 is off")
            with gr.Row():
                seed = gr.Number(
                    None,
                    precision=0,
                    minimum=0,
                    maximum=MAX_SEED,
                    label="Seed",
                    info="empty: drawn, and shown below",
                )
                longest_s = gr.Slider(
                    0.2,
                    max_audio_s,
                    max_audio_s,
                    step=0.2,
                    label="Longest speech, s",
                    info="of one piece; long texts are spoken in several",
                )
                clean_text = gr.Checkbox(
                    generator.settings.prompts == "cleaned texts",
                    label="Clean the text",
                    info="punctuation, units and [laugh] as the model's own examples write them;"
                    " set as it was trained",
                )
        self.fields = (temperature, top_k, top_p, seed, longest_s, clean_text)

    def options(self, values: Values) -> dict[str, Any]:
        """For the generator."""
        temperature, top_k, top_p, seed, longest_s, clean_text = (
            values[field] for field in self.fields
        )
        if complaint := self._generator.mismatch(clean_text):
            gr.Warning(complaint)
        sampling = sampling_of(temperature, top_k, top_p, seed)
        return {"sampling": sampling, "max_audio_s": longest_s, "clean_text": clean_text}


def _recording(elem_id: str) -> gr.Audio:
    label = f"Recording to clone, {MIN_REFERENCE_S:g} to {MAX_REFERENCE_S:g} s"
    sources: list[Any] = ["upload", "microphone"]
    field = gr.Audio(label=label, sources=sources, type="filepath", buttons=[], elem_id=elem_id)
    # Gradio downloads what a request calls a recording if it is a URL. On the instance, because
    # Gradio writes a file beside the source of every class of components.
    keep = field.async_move_resource_to_block_cache

    async def only_uploads(url_or_file_path: str | Path | None) -> str | None:
        if url_or_file_path is not None and not os.path.isabs(url_or_file_path):
            raise gr.Error("recordings are uploaded, not named", print_exception=False)
        return await keep(url_or_file_path)

    field.async_move_resource_to_block_cache = only_uploads  # type: ignore[method-assign]
    return field


def _transcript(elem_id: str) -> gr.Textbox:
    return gr.Textbox(
        label="What the recording says", placeholder="cloning is better with it", elem_id=elem_id
    )


def _player(label: str, elem_id: str) -> tuple[gr.Audio, gr.Markdown]:
    player = gr.Audio(label=label, interactive=False, buttons=["download"], elem_id=elem_id)
    return player, gr.Markdown(elem_id=f"{elem_id}_line")


def _played(speech: Speech) -> tuple[int, Any]:
    """As 16 bit: floats would be made as loud as they can be."""
    return speech.sample_rate, audio.to_pcm16(speech.audio)


def _buttons(elem_id: str) -> tuple[gr.Button, gr.Button]:
    """Generate and Stop."""
    with gr.Row():
        button = gr.Button("Generate", variant="primary", elem_id=elem_id, scale=4)
        stop = gr.Button("Stop", variant="stop", elem_id=f"stop_{elem_id}", scale=1)
    return button, stop


def _examples(rows: list[list[str]], fields: list[Any], elem_id: str) -> None:
    """A click fills the fields."""
    gr.Examples(
        rows, fields, elem_id=elem_id, cache_examples=False, preload=False, api_visibility="private"
    )


class _Desk:
    """Where requests wait for the one model, and who is being spoken for."""

    def __init__(self, generator: HiggsAudioGenerator) -> None:
        self._generator = generator
        # Gradio lets the next one come as soon as Stop was pressed, the model a frame later.
        self._lock = threading.Lock()
        self._visitor: gr.Request | None = None

    @contextmanager
    def turn_of(self, visitor: gr.Request) -> Iterator[None]:
        with self._lock, _errors_in_page():
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
        while self._visitor is speaking:
            self._generator.stop()
            time.sleep(0.05)

    def connect(
        self, button: gr.Button, stop: gr.Button, speak: Any, inputs: set[Any], outputs: list[Any]
    ) -> None:
        """`button` speaks, `stop` ends it, or lets it not begin."""
        spoken = button.click(
            speak,
            inputs,
            outputs,
            # All buttons of the page share one place in the queue: there is one model.
            concurrency_limit=1,
            concurrency_id="model",
            api_visibility="private",
            scroll_to_output=True,
        )
        # Two listeners: of one that cancels, Gradio calls no function.
        stop.click(None, cancels=[spoken], api_visibility="private")
        # Beside the queue of the model, where it would wait for what it is to end.
        stop.click(self.stop, concurrency_limit=None, api_visibility="private")


@contextmanager
def _errors_in_page() -> Iterator[None]:
    """What the user can mend becomes one line in the page."""
    try:
        yield
    except UserError as error:
        # Whatever else names a file names it by where uploads happen to lie; "..." stands for the
        # middle of a long path.
        folder = re.escape(os.environ["GRADIO_TEMP_DIR"])
        message = re.sub(rf"{folder}/([0-9a-f.]+/)?", "", str(error))
        raise gr.Error(html.escape(message), print_exception=False) from None
