"""Below the fields of a tab: the shell's command, Start, Stop, Resume, what has become of the job,
and its log. Needs Gradio.

What is shown is read from the workspace each time: it is the same in every tab, after a reload and
after the page was started anew."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from plugins.commands.app import jobs
from plugins.commands.app.jobs import Action, Job
from plugins.commands.app.parts import BESIDE, Values, errors_in_page, in_words
from plugins.commands.app.studio import Studio
from plugins.errors import UserError

Form = dict[str, Any]  # name of a field -> what it holds
_LOG_LINES = 14


class JobPanel:
    """Of the newest job of `kinds`. fields: name -> component; make: what they say -> the
    action."""

    def __init__(
        self,
        studio: Studio,
        fields: Mapping[str, Any],
        make: Callable[[Form], Action],
        *,
        kinds: tuple[str, ...],
        title: str,
        elem_id: str,
    ) -> None:
        self._studio, self._fields, self._make, self._kinds = studio, fields, make, kinds
        self._command = gr.Code(
            label="The same in a shell",
            language="shell",
            interactive=False,
            wrap_lines=True,
            elem_id=f"{elem_id}_command",
        )
        with gr.Row():
            self._start = gr.Button(title, variant="primary", elem_id=f"start_{elem_id}", scale=4)
            self._stop = gr.Button(
                "Stop", variant="stop", interactive=False, elem_id=f"stop_{elem_id}"
            )
            self._resume = gr.Button("Resume", interactive=False, elem_id=f"resume_{elem_id}")
        self._state = gr.Markdown(elem_id=f"{elem_id}_state")
        self._progress = gr.Markdown(elem_id=f"{elem_id}_progress")
        with gr.Accordion("Log", open=False):
            self._log = gr.Textbox(
                show_label=False,
                lines=_LOG_LINES,
                max_lines=_LOG_LINES,
                interactive=False,
                buttons=["copy"],
                elem_id=f"{elem_id}_log",
            )
        # What was shown last, so that a browser is sent only what is new.
        self.seen = gr.State("")
        self._shown = [self._state, self._progress, self._log, self._stop, self._resume, self.seen]
        self._connect()

    def also(self, title: str, make: Callable[[Form], Action], *, elem_id: str) -> None:
        """Another button, which does something else with the same fields."""
        button = gr.Button(title, elem_id=f"start_{elem_id}")
        button.click(
            self._starter(make),
            set(self._fields.values()),
            [self._command, *self._shown],
            api_visibility="private",
        )

    @property
    def job(self) -> Job | None:
        return jobs.newest(self._studio.workspace, *self._kinds)

    def connect_page(self, page: gr.Blocks, timer: gr.Timer) -> None:
        """Fields as they were when the newest job was started; then look again and again."""
        page.load(self._reopened, None, [*self._fields.values(), self.seen], **BESIDE)
        page.load(self._preview, set(self._fields.values()), self._command, **BESIDE)
        timer.tick(self._look, self.seen, self._shown, **BESIDE)

    def on_change(self, does: Callable[[], Any], outputs: list[Any]) -> None:
        """`does` when a job was started or has ended."""
        self.seen.change(does, None, outputs, **BESIDE)

    def _connect(self) -> None:
        inputs = set(self._fields.values())
        changes = [field.change for field in self._fields.values()]
        gr.on(changes, self._preview, inputs, self._command, **BESIDE)
        outputs = [self._command, *self._shown]
        self._start.click(self._starter(self._make), inputs, outputs, api_visibility="private")
        beside: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "private"}
        self._stop.click(self._end, None, self._shown, **beside)
        self._resume.click(self._go_on, None, self._shown, **beside)

    def form(self, values: Values) -> Form:
        return {name: _plain(values[field]) for name, field in self._fields.items()}

    def _preview(self, values: Values) -> str:
        form = self.form(values)
        try:
            return self._make(form).line(self._studio.workspace)
        except (UserError, OSError) as error:
            return f"# {in_words(error)}"

    def _starter(self, make: Callable[[Form], Action]) -> Callable[[Values], list[Any]]:
        def start(values: Values) -> list[Any]:
            with errors_in_page():
                form = self.form(values)
                action = make(form)
                self._studio.desk.make_room(action.device)
                jobs.start(self._studio.workspace, action, form)
                return [action.line(self._studio.workspace), *self._view("")]

        return start

    def _end(self) -> list[Any]:
        with errors_in_page():
            if self.job is not None:
                self.job.stop()
            return self._view("")

    def _go_on(self) -> list[Any]:
        with errors_in_page():
            job = self.job
            if job is not None:
                self._studio.desk.make_room(job.action.device)
                jobs.resume(self._studio.workspace, job)
            return self._view("")

    def _look(self, seen: str) -> list[Any]:
        return self._view(seen)

    def _view(self, seen: str) -> list[Any]:
        """For `_shown`."""
        job = self.job
        if job is None:
            return [gr.skip()] * len(self._shown)
        state, log = job.state(self._studio.workspace), job.log()
        progress = html.escape(state.progress) if not state.is_over else ""
        now = f"{job.name} {state.name} {progress} {len(log)} {hash(log)}"
        if now == seen:
            return [gr.skip()] * len(self._shown)
        line = f"**{state.name}** · {html.escape(state.line)}"
        return [
            line,
            f"<code>{progress}</code>" if progress else "",
            log,
            gr.update(interactive=not state.is_over),
            gr.update(interactive=state.can_resume),
            now,
        ]

    def _reopened(self) -> list[Any]:
        job = self.job
        shown: list[Any] = []
        for name in self._fields:
            is_kept = job is not None and name in job.form
            shown.append(job.form[name] if job is not None and is_kept else gr.skip())
        return [*shown, ""]


def _plain(value: Any) -> Any:
    """A text box that nobody filled in, or a list that nothing was chosen of, is empty."""
    return "" if value is None else value
