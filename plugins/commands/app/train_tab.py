"""The tab Train: a base, a recipe that has room on the device, settings with their explanation; the
run's own curves and samples while it goes. Needs Gradio."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from plugins.audio import marks
from plugins.audio.waveforms import AudioError
from plugins.commands.app import actions, curves
from plugins.commands.app.data_tab import rows_of
from plugins.commands.app.desk import checkpoints
from plugins.commands.app.job_panel import Form, JobPanel
from plugins.commands.app.jobs import Action
from plugins.commands.app.parts import BESIDE
from plugins.commands.app.presets import (
    FIRST,
    MORE,
    Need,
    Preset,
    chosen,
    default_of,
    explanation,
    needs,
    presets,
)
from plugins.commands.app.studio import Studio, gib_of
from plugins.errors import UserError, problem

BASE = "bosonai/higgs-audio-v2-generation-3B-base"
_RUN = "voice"  # until there is a better name
_SAMPLES = 4
_COLUMNS = {"step": int, "curve": str, "value": float}


class TrainTab:
    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._settings: dict[str, gr.Textbox] = {}
        fields = self._choices_row()
        self._settings_fields()
        fields |= {f"set_{flag}": field for flag, field in self._settings.items()}
        self._panel = JobPanel(
            studio,
            fields,
            self._action,
            kinds=("sft", "doctor"),
            title="Train",
            elem_id="train_run",
        )
        self._panel.also("Check first: what the doctor proves", self._doctor, elem_id="doctor")
        self._of_run()
        inputs = [self._base, self._device]
        # By hand only: what is filled in again on a reload chooses no recipe anew.
        self._device.select(self._fitting, inputs, self._of_memory, **BESIDE)
        self._base.change(lambda *chosen: self._fitting(*chosen)[0], inputs, self._memory, **BESIDE)
        self._preset.change(
            self._defaults, self._preset, [self._about, *self._settings.values()], **BESIDE
        )
        suggested = [self._validation, self._run]
        self._rows.input(self._suggested, [self._rows, *suggested], suggested, **BESIDE)

    def _choices_row(self) -> dict[str, Any]:
        studio, names = self._studio, list(presets())
        with gr.Row():
            self._base = gr.Dropdown(
                [BASE], value=studio.desk.chosen or BASE, label="Base",
                info=explanation("model"), allow_custom_value=True, elem_id="base",
            )  # fmt: skip
            self._preset = gr.Dropdown(
                names, value=names[0] if names else None, label="Recipe", elem_id="preset",
                info="chosen by the memory of the device, as the doctor estimates it",
            )  # fmt: skip
            self._device = gr.Dropdown(
                list(studio.devices), value=studio.devices[0], label="Device",
                elem_id="train_device",
            )  # fmt: skip
        with gr.Row():
            self._rows = gr.Dropdown(
                [], label="Rows", info=explanation("dataset"), allow_custom_value=True,
                elem_id="train_rows",
            )  # fmt: skip
            self._validation = gr.Dropdown(
                [], label="Validation rows", info=explanation("val_dataset"),
                allow_custom_value=True, elem_id="validation",
            )  # fmt: skip
            self._run = gr.Textbox(
                _RUN, label="Name of the run", info="the same name goes on with it",
                elem_id="run",
            )  # fmt: skip
        self._memory = gr.Markdown(elem_id="memory")
        self._about = gr.Markdown(elem_id="about_preset")
        return {
            "base": self._base,
            "preset": self._preset,
            "device": self._device,
            "rows": self._rows,
            "validation": self._validation,
            "run": self._run,
        }

    def _settings_fields(self) -> None:
        first = next(iter(presets().values()), None)
        values = first.values() if first is not None else {}

        def add(flags: tuple[str, ...]) -> None:
            for begin in range(0, len(flags), 3):
                with gr.Row():
                    for flag in flags[begin : begin + 3]:
                        self._settings[flag] = gr.Textbox(
                            label=flag,
                            info=explanation(flag),
                            placeholder=default_of(flag, values),
                            lines=2 if flag == "sample_texts" else 1,
                            elem_id=f"set_{flag}",
                        )

        gr.Markdown("Empty fields are as the recipe has them.")
        add(FIRST)
        with gr.Accordion("More settings", open=False):
            add(MORE)

    def _of_run(self) -> None:
        """Curves and samples."""
        self._line = gr.Markdown(elem_id="run_line")
        with gr.Row():
            self._group = gr.Dropdown(list(curves.GROUPS), value="loss", label="Curves",
                                      elem_id="curve_group", scale=1)  # fmt: skip
            # One for each group: a plot keeps the colours of the names that it began with.
            self._plots = {}
            for group in curves.GROUPS:
                self._plots[group] = gr.LinePlot(
                    _table(group, []), x="step", y="value", color="curve", height=320, scale=4,
                    visible=group == "loss", show_label=False, elem_id=f"curves_{group[:4]}",
                )  # fmt: skip
        self._step = gr.Dropdown(
            [], label="Samples of step", allow_custom_value=True, elem_id="sample_step"
        )
        self._samples = []
        with gr.Row():
            for number in range(_SAMPLES):
                with gr.Column(visible=False, min_width=220) as column:
                    text = gr.Markdown(elem_id=f"sample_text_{number}")
                    player = gr.Audio(
                        show_label=False, interactive=False, buttons=["download"],
                        elem_id=f"sample_{number}",
                    )  # fmt: skip
                self._samples.append((column, text, player))
        self._seen = gr.State("")

    # --- what is chosen ---

    @property
    def _of_memory(self) -> list[Any]:
        return [self._memory, self._preset]

    def _preset_of(self, form: Form) -> Preset:
        known = presets()
        if form["preset"] not in known:
            raise problem(
                source="page",
                field="recipe",
                value=form["preset"],
                reason="is no recipe of this kit",
                remedy="choose one; an installed package has none: use a checkout",
            )
        return known[form["preset"]]

    def _action(self, form: Form) -> Action:
        settings = {}
        for name, value in form.items():
            if name.startswith("set_"):
                settings[name.removeprefix("set_")] = str(value)
        form = {**form, "settings": settings}
        return actions.train(self._studio.models, form, self._preset_of(form))

    def _doctor(self, form: Form) -> Action:
        return actions.doctor(self._studio.models, form, self._preset_of(form))

    def _fitting(self, base: str, device: str) -> list[Any]:
        """What each recipe needs, and the one that has room."""
        gib = gib_of(device)
        try:
            needed = needs(_config_of(self._studio, base), gib=gib)
        except (UserError, OSError) as error:
            return [f"memory is not estimated: {html.escape(str(error))}", gr.skip()]
        best = chosen(needed)
        where = "there is no GPU to compare with" if gib is None else f"{device} has {gib:.0f} GiB"
        parts = [f"{name} {_said(need)}" for name, need in needed.items()]
        line = f"{where} · {' · '.join(parts)}"
        if best is None:
            line += " · **no recipe has room here**: a larger card, or the CPU"
        return [line, gr.skip() if best is None or gib is None else best]

    def _opened(self, base: str, device: str) -> list[Any]:
        line, best = self._fitting(base, device)
        return [line, best if self._panel.job is None else gr.skip()]

    def _defaults(self, name: str | None) -> list[Any]:
        preset = presets().get(name or "")
        values = preset.values() if preset is not None else {}
        shown = [gr.update(placeholder=default_of(flag, values)) for flag in self._settings]
        about = html.escape(preset.about) if preset is not None else ""
        return [about.replace("\n", "<br>"), *shown]

    def _suggested(self, rows: str | None, validation: str | None, run: str) -> list[Any]:
        """The validation rows beside, and a name, where nobody has chosen any: a list is asked
        whenever it is left, too."""
        if not rows:
            return [gr.skip(), gr.skip()]
        beside = rows.replace("_train.jsonl", "_val.jsonl")
        is_there = beside != rows and beside in rows_of(self._studio)
        return [
            beside if is_there and not validation else gr.skip(),
            actions.name_for(rows) if run in ("", _RUN) else gr.skip(),
        ]

    # --- what is shown ---

    def connect_page(self, page: gr.Blocks, tab: gr.Tab, timer: gr.Timer) -> None:
        self._panel.connect_page(page, timer)
        outputs = [self._base, self._rows, self._validation]
        for event in (tab.select, page.load):
            event(self._choices, None, outputs, **BESIDE)
        page.load(self._opened, [self._base, self._device], self._of_memory, **BESIDE)
        page.load(self._defaults, self._preset, [self._about, *self._settings.values()], **BESIDE)
        shown = [self._line, self._step, self._seen, *self._plots.values()]
        timer.tick(self._look, [self._group, self._seen], shown, **BESIDE)
        parts = [part for sample in self._samples for part in sample]
        self._step.change(self._heard, self._step, parts, **BESIDE)

    def _choices(self) -> list[Any]:
        bases = dict.fromkeys([BASE, *filter(None, [self._studio.desk.chosen])])
        bases |= dict.fromkeys(checkpoints(self._studio.workspace))
        rows = rows_of(self._studio)
        return [
            gr.update(choices=list(bases)),
            gr.update(choices=rows),
            gr.update(choices=["", *rows]),
        ]

    @property
    def _folder(self) -> Path | None:
        """Of the newest run."""
        job = self._panel.job
        if job is None or job.action.kind != "sft":
            return None
        return self._studio.workspace.inside(job.action.makes, field="run")

    def _look(self, group: str, seen: str) -> list[Any]:
        run = self._folder
        nothing = [gr.skip()] * (3 + len(self._plots))
        if run is None:
            return nothing
        now = f"{group} {curves.stamp(run)}"
        if now == seen:
            return nothing
        plots = []
        for name in self._plots:
            if name == group:
                table = _table(group, curves.points(run, group))
                plots.append(gr.update(value=table, visible=True))
            else:
                plots.append(gr.update(visible=False))
        steps = list(map(str, curves.sample_steps(run)))
        choice = gr.update(choices=steps, value=steps[0]) if steps else gr.skip()
        return [html.escape(curves.summary(run)), choice, now, *plots]

    def _heard(self, step: str | None) -> list[Any]:
        run, parts = self._folder, []
        found = []
        if run is not None and step and step.isdigit():
            found = list(curves.samples(run, int(step)))[:_SAMPLES]
        for sample in found:
            try:
                played = marks.wav_of(sample.file)
            except (AudioError, OSError):
                continue
            text = f"{html.escape(sample.text)}<br>{html.escape(sample.note)}"
            parts += [gr.update(visible=True), text, played]
        num_left = _SAMPLES - len(parts) // 3
        return parts + [gr.update(visible=False), "", None] * num_left


def _table(group: str, points: list[tuple[int, str, float]]) -> pd.DataFrame:
    """Of numbers, however few, and with every name of the group: from its first table a plot takes
    its axes and colours."""
    there = {name for _, name, _ in points}
    for name in curves.GROUPS[group]:
        if name not in there:
            points = [*points, (points[0][0] if points else 0, name, math.nan)]
    return pd.DataFrame(points, columns=list(_COLUMNS)).astype(_COLUMNS)


def _said(need: Need) -> str:
    if need.gib is None:
        return f"(not estimated: {html.escape(need.reason)})"
    mark = {None: "", True: " ✓", False: " too large"}[need.is_enough]
    return f"{need.gib:.0f} GiB{mark}"


def _config_of(studio: Studio, base: str) -> Any:
    """Of a folder, its own; of the published base, which may not be here yet, transformers'
    default."""
    from plugins.model.config import HiggsAudioV2Config
    from plugins.model.load import base_and_adapters, load_config

    if base == BASE:
        return HiggsAudioV2Config()
    word = studio.models.word(base or "", field="base")
    folder = studio.workspace.root / word
    if not folder.is_dir():
        reason = "is not here yet"
        raise problem(source="page", field="base", value=base, reason=reason,
                      remedy="the run estimates it once it is downloaded")  # fmt: skip
    return load_config(Path(base_and_adapters(str(folder))[0]))
