"""The tab Compare: a model's speech scored beside others, its listening page, and a blind
comparison by ear. Needs Gradio."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr

from plugins.audio import marks
from plugins.commands.app import actions, votes
from plugins.commands.app.actions import EVALUATIONS
from plugins.commands.app.data_tab import rows_of
from plugins.commands.app.desk import checkpoints
from plugins.commands.app.job_panel import Form, JobPanel
from plugins.commands.app.jobs import Action, require_room
from plugins.commands.app.parts import BESIDE, errors_in_page
from plugins.commands.app.reports import framed
from plugins.commands.app.studio import Studio
from plugins.commands.app.votes import EQUAL, A, B, Pair

_PAGE, _TABLE = "report.html", "report.md"


class CompareTab:
    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        with gr.Row():
            self._model = gr.Dropdown(
                [], label="Model", info="a LoRA checkpoint is compared with its base",
                allow_custom_value=True, elem_id="compare_model",
            )  # fmt: skip
            self._rows = gr.Dropdown(
                [], label="Rows", info="sentences that were not trained: validation rows",
                allow_custom_value=True, elem_id="compare_rows",
            )  # fmt: skip
            self._name = gr.Textbox("voice", label="Name", elem_id="compare_name")
        with gr.Row():
            limit = gr.Number(
                20, precision=0, minimum=0, label="Rows at most", info="0: all",
                elem_id="compare_limit",
            )  # fmt: skip
            longest_s = gr.Number(
                40, minimum=1, label="Longest speech, s", elem_id="compare_max_audio"
            )
            language = gr.Textbox("en", label="Language", elem_id="compare_language")
            device = gr.Dropdown(
                list(studio.devices), value=studio.devices[0], label="Device",
                elem_id="compare_device",
            )  # fmt: skip
        fields = {
            "model": self._model,
            "rows": self._rows,
            "name": self._name,
            "limit": limit,
            "max_audio_s": longest_s,
            "language": language,
            "device": device,
        }
        self._panel = JobPanel(
            studio, fields, self._action, kinds=("evaluate",), title="Evaluate", elem_id="evaluate"
        )
        self._folder = gr.Dropdown(
            [], label="Evaluation", allow_custom_value=True, elem_id="evaluation"
        )
        with gr.Tab("Scores"):
            self._table = gr.Markdown(elem_id="evaluation_table")
            self._page = gr.HTML(elem_id="evaluation_page")
        with gr.Tab("Blind, by ear", elem_id="blind"):
            self._ear = Ear(studio, self._folder)
        shown = [self._table, self._page, *self._ear.choices]
        self._folder.change(self._shown, self._folder, shown, **BESIDE)

    def _action(self, form: Form) -> Action:
        return actions.evaluate(self._studio.models, form)

    def connect_page(self, page: gr.Blocks, tab: gr.Tab, timer: gr.Timer) -> None:
        self._panel.connect_page(page, timer)
        self._panel.on_change(self._made, [self._folder])
        for event in (tab.select, page.load):
            event(self._lists, None, [self._model, self._rows, self._folder], **BESIDE)

    def _lists(self) -> list[Any]:
        return [
            gr.update(choices=checkpoints(self._studio.workspace)),
            gr.update(choices=rows_of(self._studio)),
            gr.update(choices=self._evaluations()),
        ]

    def _evaluations(self) -> list[str]:
        folders = self._studio.workspace.folders("summary.json")
        return [folder for folder in folders if not folder.startswith("higgs_jobs/")]

    def _made(self) -> Any:
        job = self._panel.job
        if job is None or job.state(self._studio.workspace).name != "done":
            return gr.skip()
        return gr.update(choices=self._evaluations(), value=job.action.makes)

    def _shown(self, folder: str | None) -> list[Any]:
        if not folder:
            return ["", "", gr.skip(), gr.skip()]
        with errors_in_page():
            place = self._studio.workspace.existing(folder, field="evaluation", folder=True)
            table = place / _TABLE
            text = table.read_text(encoding="utf-8") if table.is_file() else "no report yet"
            names = votes.systems(place)
            first = "tuned" if "tuned" in names else next(iter(names), None)
            second = next(
                (name for name in ("base", *names) if name != first and name in names), None
            )
            return [
                html.escape(text, quote=False),
                framed(self._studio.workspace, place / _PAGE),
                gr.update(choices=names, value=first),
                gr.update(choices=names, value=second),
            ]


class Ear:
    """Two that say the same, and nobody knows which is which."""

    def __init__(self, studio: Studio, folder: gr.Dropdown) -> None:
        self._studio, self._folder = studio, folder
        with gr.Row():
            self._first = gr.Dropdown([], label="One", allow_custom_value=True, elem_id="system_1")
            self._second = gr.Dropdown(
                [], label="The other", allow_custom_value=True, elem_id="system_2"
            )
            self._voter = gr.Textbox("", label="Who listens", elem_id="voter")
            begin = gr.Button("Hear a pair", elem_id="hear_pair")
        self._text = gr.Markdown(elem_id="pair_text")
        with gr.Row():
            a = gr.Audio(label="A", interactive=False, buttons=[], elem_id="pair_a")
            b = gr.Audio(label="B", interactive=False, buttons=[], elem_id="pair_b")
        with gr.Row():
            buttons = []
            for vote, title in ((A, "A is better"), (EQUAL, "no difference"), (B, "B is better")):
                button = gr.Button(title, interactive=False, elem_id=f"vote_{vote}")
                buttons.append((vote, button))
        # On the server: the browser is not told which is which.
        self._pair = gr.State(None)
        self._kept = gr.Markdown(elem_id="votes_kept")
        with gr.Accordion("Result: look when all have voted", open=False):
            result = gr.Button("Count the votes", elem_id="count_votes")
            self._result = gr.Markdown(elem_id="votes_result")
        inputs = [folder, self._first, self._second, self._voter]
        outputs = [self._text, a, b, self._pair, *(button for _, button in buttons)]
        begin.click(self._next, inputs, outputs, api_visibility="private")
        for vote, button in buttons:
            button.click(
                self._voting(vote),
                [self._pair, *inputs],
                [self._kept, *outputs],
                api_visibility="private",
            )
        result.click(self._count, folder, self._result, api_visibility="private")

    @property
    def choices(self) -> list[gr.Dropdown]:
        return [self._first, self._second]

    def _place(self, folder: str | None) -> Path:
        typed = folder or ""
        return self._studio.workspace.existing(typed, field="evaluation", folder=True)

    def _next(self, folder: str, first: str, second: str, voter: str) -> list[Any]:
        with errors_in_page():
            return self._shown(votes.next_pair(self._place(folder), first, second, voter=voter))

    def _shown(self, pair: Pair | None) -> list[Any]:
        if pair is None:
            silent = [gr.update(interactive=False)] * 3
            return ["no sentence was said by both", None, None, None, *silent]
        played = []
        for side in (A, B):
            file = self._studio.workspace.existing(str(pair.audio(side)), field="audio")
            # Marked as it was, but for the names: it is a blind comparison.
            played.append(marks.wav_of(file, is_named=False))
        return [html.escape(pair.text), *played, pair, *[gr.update(interactive=True)] * 3]

    def _voting(self, vote: str) -> Any:
        def keep(pair: Pair | None, folder: str, first: str, second: str, voter: str) -> list[Any]:
            with errors_in_page():
                if pair is None:
                    return [gr.skip()] * 8
                require_room(self._studio.workspace)
                votes.keep(pair, vote, voter=voter)
                place = self._studio.workspace.word(pair.folder / votes.VOTES)
                line = f"{len(votes.read(pair.folder))} votes in `{place}`"
                return [line, *self._next(folder, first, second, voter)]

        return keep

    def _count(self, folder: str) -> str:
        with errors_in_page():
            lines = ["| | better | | better | no difference | p |", "|---|---|---|---|---|---|"]
            for one, two, wins, losses, equal, p in votes.result(self._place(folder)):
                names = (html.escape(one), html.escape(two))
                lines.append(f"| {names[0]} | {wins} | {names[1]} | {losses} | {equal} | {p:.3f} |")
            if len(lines) == 2:
                return "no votes yet"
            return "\n".join([*lines, "", f"All of them: `{EVALUATIONS}/…/{votes.VOTES}`"])
