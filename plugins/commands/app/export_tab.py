"""The tab Export: a run -> one folder that a server takes, or the original format. Needs Gradio."""

from __future__ import annotations

from typing import Any

import gradio as gr

from plugins.commands.app import actions
from plugins.commands.app.desk import checkpoints
from plugins.commands.app.job_panel import Form, JobPanel
from plugins.commands.app.jobs import Action
from plugins.commands.app.parts import BESIDE
from plugins.commands.app.studio import Studio


class ExportTab:
    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        with gr.Row():
            self._model = gr.Dropdown(
                [], label="Model", info="a LoRA checkpoint is merged with its base",
                allow_custom_value=True, elem_id="export_model",
            )  # fmt: skip
            name = gr.Textbox(
                "voice", label="Name", info="of the new folder in exports/", elem_id="export_name"
            )
            dtype = gr.Dropdown(
                ["", "bfloat16", "float16", "float32"], value="", label="dtype",
                info="empty: that of the base's weights", elem_id="export_dtype",
            )  # fmt: skip
            to = gr.Dropdown(
                ["original", "native"], value="original", label="Format of Convert",
                info="boson-multimodal's, or transformers'; of a whole model",
                elem_id="export_to",
            )  # fmt: skip
        fields = {"model": self._model, "name": name, "dtype": dtype, "to": to}
        self._panel = JobPanel(
            studio,
            fields,
            self._export,
            kinds=("export", "convert"),
            title="Export: merged, for vLLM-Omni and transformers",
            elem_id="export_run",
        )
        self._panel.also("Convert to the other format", self._convert, elem_id="convert")

    def _export(self, form: Form) -> Action:
        return actions.export(self._studio.models, form)

    def _convert(self, form: Form) -> Action:
        return actions.convert(self._studio.models, form)

    def connect_page(self, page: gr.Blocks, tab: gr.Tab, timer: gr.Timer) -> None:
        self._panel.connect_page(page, timer)
        for event in (tab.select, page.load):
            event(self._lists, None, self._model, **BESIDE)

    def _lists(self) -> Any:
        return gr.update(choices=checkpoints(self._studio.workspace))
