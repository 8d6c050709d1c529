"""The tab to listen in: a voice or a dialogue, base against tuned, with the model that is chosen.
Needs Gradio."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from plugins.commands.app.desk import Desk
from plugins.commands.app.fields import (
    MAX_SEED,
    line_of,
    lines_of,
    require_uploads,
    sampling_of,
    voice_of,
    voices_of,
)
from plugins.commands.app.parts import Values, only_uploads
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech
from plugins.speaking.voices import MAX_REFERENCE_S, MIN_REFERENCE_S, require_short

_NUM_VOICES = 4
_MAX_TAKES = 8  # one visitor's takes are spoken while the others wait
_EXAMPLES = [
    ["The birch canoe slid on the smooth planks.", "Indoor quiet", "warm, unhurried"],
    ["No way! You really did it? [laugh]", "A busy street", "young, excited"],
]
_DIALOGUE = "Alice: Have you read it?\nBob: Twice. The end is the best part."


class ListenTab:
    """What it shows of the model that is loaded. max_audio_s: the most that its sliders allow for
    one piece of speech."""

    def __init__(self, desk: Desk, max_audio_s: float) -> None:
        self._desk = desk
        self._controls: list[_Controls] = []
        with gr.Accordion("Model", open=not desk.is_ready, elem_id="model_choice"):
            with gr.Row():
                self.model = gr.Dropdown(
                    desk.choices(),
                    value=desk.chosen,
                    label="Checkpoint",
                    info="a run of this workspace: its newest whole checkpoint is taken",
                    allow_custom_value=True,
                    elem_id="model",
                    scale=4,
                )
                load = gr.Button("Load", elem_id="load_model", scale=1)
            self._name = gr.Markdown(desk.name_html, elem_id="model_name")
        with gr.Tab("Speak", elem_id="speak_tab"):
            self._compare = _speak_tab(desk, max_audio_s, self._controls)
        with gr.Tab("Dialogue", elem_id="dialogue_tab"):
            _dialogue_tab(desk, max_audio_s, self._controls)
        desk.queue(load.click, self._load, [self.model], self._shown)

    @property
    def _shown(self) -> list[Any]:
        return [self._name, self._compare, *(controls.clean_text for controls in self._controls)]

    def _load(self, model: str, visitor: gr.Request) -> list[Any]:
        with self._desk.turn_of(visitor):
            self._desk.load(model)
            return self.shown()

    def shown(self) -> list[Any]:
        """For `_shown`: as it is now, when a page is opened too."""
        is_cleaned = self._desk.cleans_texts
        texts = [gr.update(value=is_cleaned) for _ in self._controls]
        return [self._desk.name_html, gr.update(visible=self._desk.has_tuned), *texts]

    def connect_page(self, page: gr.Blocks, tab: gr.Tab) -> None:
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(self.shown, None, self._shown, **hidden)
        tab.select(lambda: gr.update(choices=self._desk.choices()), None, self.model, **hidden)


def _speak_tab(desk: Desk, max_audio_s: float, all_controls: list[_Controls]) -> gr.Checkbox:
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
    controls = _Controls(desk, max_audio_s)
    all_controls.append(controls)
    compare = gr.Checkbox(
        label="Compare with the base: the same request and seed without the LoRA weights",
        visible=desk.has_tuned,
        elem_id="compare",
    )
    _examples(_EXAMPLES, [text, scene, description], "examples")
    button, stop = _buttons("generate")
    with gr.Row():
        with gr.Column(visible=False) as beside:
            base, base_line = _player("Base", "base")
        with gr.Column():
            player, line = _player("Tuned" if desk.has_tuned else "Speech", "speech")

    # Gradio finds the bar by this default.
    def speak(
        values: Values,
        visitor: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Values:
        with desk.turn_of(visitor):
            require_short([values[field] for field in (text, scene, description, transcript)])
            require_uploads([values[recording]])
            generator, tuned = desk.generator, desk.tuned
            options = controls.options(values)
            options |= voice_of(values[description], values[recording], values[transcript])
            options["scene_description"] = values[scene].strip() or None
            is_compared = values[compare] and tuned is not None
            shown: Values = {beside: gr.update(visible=is_compared), base: None, base_line: ""}
            takes = [("", tuned, player, line)]
            if is_compared:
                takes = [(" by the tuned", tuned, player, line)]
                takes.insert(0, (" by the base", None, base, base_line))
            # The adapter is switched between the two takes: the queue lets nobody else speak then.
            for by, adapter, place, below in takes:
                generator.use_adapter(adapter)
                unit = f"s spoken{by}"
                speech = _spoken(generator, values[text], options, partial(progress, unit=unit))
                shown[place] = speech.wav()
                shown[below] = line_of(speech, options["sampling"].seed)
            return shown

    inputs = {text, scene, description, recording, transcript, compare, *controls.fields}
    desk.connect(button, stop, speak, inputs, [beside, base, base_line, player, line])
    return compare


def _spoken(
    generator: HiggsAudioGenerator, text: str, options: dict[str, Any], progress: Any
) -> Speech:
    """With the seconds that have been spoken in the bar; of several takes nobody knows them."""
    if options["sampling"].best_of > 1:
        return generator.generate(text, **options)
    stream = generator.stream(text, **options)
    spoken_s = 0.0
    for chunk in stream:
        spoken_s += len(chunk) / stream.sample_rate
        progress((int(spoken_s), None))
    return stream.speech


def _dialogue_tab(desk: Desk, max_audio_s: float, all_controls: list[_Controls]) -> None:
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
    controls = _Controls(desk, max_audio_s)
    all_controls.append(controls)
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
            generator = desk.generator
            generator.use_adapter(desk.tuned)
            speech = generator.synthesize_multi_speaker(
                lines,
                voices,
                scene_description=values[scene].strip() or None,
                pause_s=values[pause_s],
                **options,
            )
            return {player: speech.wav(), line: line_of(speech, options["sampling"].seed)}

    inputs = {text, scene, pause_s, *controls.fields, *(field for row in rows for field in row)}
    desk.connect(button, stop, speak, inputs, [player, line])


class _Controls:
    """How it is spoken."""

    def __init__(self, desk: Desk, max_audio_s: float) -> None:
        self._desk = desk
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
                self.clean_text = gr.Checkbox(
                    desk.cleans_texts,
                    label="Clean the text",
                    info="punctuation, units and [laugh] as the model's own examples write them;"
                    " set as it was trained",
                )
                best_of = gr.Slider(
                    1,
                    _MAX_TAKES,
                    1,
                    step=1,
                    label="Best of",
                    info="so many takes of an English text: the one with the fewest wrong words,"
                    " then of usual length, then in the likest voice, is kept",
                )
        self.fields = (temperature, top_k, top_p, seed, longest_s, self.clean_text, best_of)

    def options(self, values: Values) -> dict[str, Any]:
        """For the generator."""
        temperature, top_k, top_p, seed, longest_s, clean_text, best_of = (
            values[field] for field in self.fields
        )
        if complaint := self._desk.generator.mismatch(clean_text):
            gr.Warning(complaint)
        sampling = sampling_of(temperature, top_k, top_p, seed, best_of)
        return {"sampling": sampling, "max_audio_s": longest_s, "clean_text": clean_text}


def _recording(elem_id: str) -> gr.Audio:
    label = f"Recording to clone, {MIN_REFERENCE_S:g} to {MAX_REFERENCE_S:g} s"
    sources: list[Any] = ["upload", "microphone"]
    field = gr.Audio(label=label, sources=sources, type="filepath", buttons=[], elem_id=elem_id)
    only_uploads(field)
    return field


def _transcript(elem_id: str) -> gr.Textbox:
    return gr.Textbox(
        label="What the recording says", placeholder="cloning is better with it", elem_id=elem_id
    )


def _player(label: str, elem_id: str) -> tuple[gr.Audio, gr.Markdown]:
    player = gr.Audio(label=label, interactive=False, buttons=["download"], elem_id=elem_id)
    return player, gr.Markdown(elem_id=f"{elem_id}_line")


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
