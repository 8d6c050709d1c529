"""The tab Data: recordings dropped or a folder chosen -> prepared -> clips to hear and to correct.
Needs Gradio."""

from __future__ import annotations

import html
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from plugins.audio import waveforms as audio
from plugins.commands.app import actions
from plugins.commands.app.actions import RECORDINGS, ROWS
from plugins.commands.app.corrections import Clip, Corrected
from plugins.commands.app.job_panel import Form, JobPanel
from plugins.commands.app.jobs import Action, require_room
from plugins.commands.app.parts import BESIDE, errors_in_page, in_words, only_uploads
from plugins.commands.app.reports import framed
from plugins.commands.app.studio import Studio
from plugins.commands.app.workspace import safe_name
from plugins.errors import UserError, problem
from plugins.prepare.parser import parser_of

_CLIPS = 8  # on one page
_VIEWS = ("all", "doubtful first", "changed", "left out", "rejected")
_DROPPED = (*audio.AUDIO_SUFFIXES, *audio.CONVERTIBLE_SUFFIXES, ".srt", ".vtt", ".txt")
_NOT_ROWS = (".rejected.jsonl", ".transcripts.jsonl", ".original.jsonl", "clips.jsonl")


class DataTab:
    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._fields: dict[str, Any] = {}
        helps = _helps()
        with gr.Row():
            with gr.Column():
                self._name = gr.Textbox(
                    "voice", label="Name", info="of the voice or corpus", elem_id="voice_name"
                )
                self._drop = gr.File(
                    label="Drop recordings: of any length, kept in recordings/NAME",
                    file_count="multiple",
                    type="filepath",
                    elem_id="drop",
                )
                only_uploads(self._drop)
                self._dropped = gr.Markdown(elem_id="dropped")
            with gr.Column():
                self._kind = gr.Dropdown(
                    _kinds(), value="recordings", label="Kind", info=helps["dataset_type"],
                    elem_id="kind",
                )  # fmt: skip
                self._folder = self._choice("folder", "Folder", helps["input_dir"])
                self._list = self._choice(
                    "list", "List", "CSV, GPT-SoVITS list or JSONL, for the kinds that have one"
                )
                self._device = gr.Dropdown(
                    list(studio.devices), value=studio.devices[0], label="Device",
                    elem_id="data_device",
                )  # fmt: skip
        self._options(helps)
        self._fields |= {"name": self._name, "kind": self._kind, "folder": self._folder}
        self._fields |= {"list": self._list, "device": self._device}
        self._panel = JobPanel(
            studio,
            self._fields,
            self._action,
            kinds=("prepare",),
            title="Prepare",
            elem_id="prepare",
        )
        self._report = gr.HTML(elem_id="prepare_report")
        self._clips = ClipTable(studio)
        self._drop.upload(
            self._keep,
            [self._drop, self._name],
            [self._drop, self._dropped, self._folder, self._kind],
            api_visibility="private",
        )

    def _choice(self, name: str, label: str, info: str) -> gr.Dropdown:
        return gr.Dropdown(
            [], label=label, info=info, allow_custom_value=True, elem_id=f"data_{name}"
        )

    def _options(self, helps: dict[str, str]) -> None:
        def text(name: str, flag: str, label: str) -> gr.Textbox:
            return gr.Textbox(label=label, info=helps[flag], elem_id=f"data_{name}")

        def check(name: str, flag: str, label: str, value: bool) -> gr.Checkbox:
            return gr.Checkbox(value, label=label, info=helps[flag], elem_id=f"data_{name}")

        with gr.Row():
            self._fields["speaker"] = text("speaker", "single_speaker", "Speaker")
            self._fields["language"] = text("language", "language", "Language")
            self._fields["asr"] = text("asr", "asr", "Recogniser")
            self._fields["codec"] = text("codec", "codec", "Codec")
        with gr.Row():
            self._fields["split"] = check("split", "split", "Validation rows", True)
            self._fields["encode"] = check("encode", "encode_codes", "Encode now", True)
            self._fields["check"] = check("check", "check_transcripts", "Check transcripts", False)
            self._fields["references"] = check("references", "references", "References", False)
            self._fields["diarize"] = check("diarize", "diarize", "Tell speakers apart", False)

    def _action(self, form: Form) -> Action:
        return actions.prepare(self._studio.models, form)

    def _keep(self, files: list[str] | None, name: str) -> list[Any]:
        """Uploads -> recordings/NAME/."""
        with errors_in_page():
            workspace = self._studio.workspace
            folder = workspace.inside(f"{RECORDINGS}/{safe_name(name)}", field="name")
            kept, refused = [], []
            for file in files or ():
                require_room(workspace)
                try:
                    name = _recording_name(Path(file).name)
                    kept.append(workspace.keep(Path(file), folder=folder, name=name))
                except UserError as error:
                    refused.append(in_words(error))
            lines = [f"{len(kept)} recordings kept in `{workspace.word(folder)}`"]
            lines += [f"**refused** · {line}" for line in refused]
            shown = "\n\n".join(html.escape(line, quote=False) for line in lines)
            return [None, shown, workspace.word(folder), "recordings"]

    def connect_page(self, page: gr.Blocks, tab: gr.Tab, timer: gr.Timer) -> None:
        self._panel.connect_page(page, timer)
        self._clips.connect_page(page)
        self._panel.on_change(self._made, [self._report, self._clips.file])
        choices = [self._folder, self._list, self._clips.file]
        tab.select(self._choices, None, choices, **BESIDE)
        page.load(self._choices, None, choices, **BESIDE)

    def _choices(self) -> list[Any]:
        workspace = self._studio.workspace
        folders = sorted(
            {str(Path(file).parent) for file in workspace.files(*audio.AUDIO_SUFFIXES)}
        )
        lists = workspace.files(".csv", ".tsv", ".list", ".jsonl")
        return [
            gr.update(choices=folders),
            gr.update(choices=lists),
            gr.update(choices=rows_of(self._studio)),
        ]

    def _made(self) -> list[Any]:
        """When a job has ended: what it has written."""
        job = self._panel.job
        if job is None or job.state(self._studio.workspace).name != "done":
            return [gr.skip(), gr.skip()]
        rows = self._studio.workspace.inside(job.action.makes, field="rows")
        report = rows.with_suffix(".report.html")
        found = rows_of(self._studio)
        return [
            framed(self._studio.workspace, report),
            gr.update(choices=found, value=job.action.makes),
        ]


class ClipTable:
    """The clips of a file of rows, a page of them at a time, with what may be changed of each."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        with gr.Row():
            self.file = gr.Dropdown(
                [], label="Clips of", info="rows of this workspace", allow_custom_value=True,
                elem_id="clips_of", scale=3,
            )  # fmt: skip
            self._view = gr.Dropdown(list(_VIEWS), value="all", label="Show", elem_id="clips_view")
            self._page = gr.Number(1, precision=0, minimum=1, label="Page", elem_id="clips_page")
        self._summary = gr.Markdown(elem_id="clips_summary")
        self._keys = gr.State([])
        self._rows: list[tuple[gr.Group, gr.Markdown, gr.Audio, gr.Textbox, gr.Checkbox]] = []
        for number in range(_CLIPS):
            self._rows.append(_row(number))
        for number, (_, note, _, text, keep) in enumerate(self._rows):
            inputs = [self.file, self._keys, text, keep]
            for change in (text.input, keep.input):
                change(
                    partial(self._save, number),
                    inputs,
                    [note, self._summary],
                    api_visibility="private",
                    show_progress="hidden",
                    trigger_mode="always_last",
                )
        inputs = [self.file, self._view, self._page]
        changes = [self.file.change, self._view.change, self._page.change]
        gr.on(changes, self._load, inputs, self._shown, **BESIDE)

    @property
    def _shown(self) -> list[Any]:
        return [self._summary, self._keys, *(part for row in self._rows for part in row)]

    def connect_page(self, page: gr.Blocks) -> None:
        page.load(self._load, [self.file, self._view, self._page], self._shown, **BESIDE)

    def _corrected(self, file: str) -> Corrected:
        return Corrected(self._studio.workspace.existing(file, field="rows", folder=False))

    def _load(self, file: str | None, view: str, page: float | None) -> list[Any]:
        if not file:
            return ["", [], *(_hidden() * _CLIPS)]
        with errors_in_page():
            clips = self._corrected(file).clips()
            chosen = _in_view(clips, view)
            num_pages = max(1, -(-len(chosen) // _CLIPS))
            first = (min(max(1, int(page or 1)), num_pages) - 1) * _CLIPS
            shown = chosen[first : first + _CLIPS]
            parts: list[Any] = []
            for clip in shown:
                parts += self._part(clip)
            parts += _hidden() * (_CLIPS - len(shown))
            summary = f"{_summary(clips)} · {num_pages} pages"
            return [summary, [clip.key for clip in shown], *parts]

    def _part(self, clip: Clip) -> list[Any]:
        played = self._played(clip)
        return [
            gr.update(visible=True),
            _note(clip),
            played,
            gr.update(value=clip.text, interactive=clip.can_edit),
            clip.keep,
        ]

    def _played(self, clip: Clip) -> Any:
        """None for what cannot be played here."""
        try:
            folder = self._studio.workspace
            samples = audio.load(folder.existing(clip.audio or "", field="audio"))
        except (UserError, OSError, audio.AudioError):
            return None
        return audio.SAMPLE_RATE_HZ, audio.to_pcm16(samples)

    def _save(self, number: int, file: str, keys: list[str], text: str, keep: bool) -> list[Any]:
        """What was typed, at once: a tab may be closed at any moment."""
        if number >= len(keys):
            return [gr.skip(), gr.skip()]
        try:
            require_room(self._studio.workspace)
            corrected = self._corrected(file)
            clip = corrected.change(keys[number], text=text, keep=keep)
            clips = corrected.clips()
        except (UserError, OSError) as error:
            return [f"**not saved** · {html.escape(in_words(error))}", gr.skip()]
        return [f"{_note(clip)} · **saved**", _summary(clips)]


def _recording_name(name: str) -> str:
    """Safe. Raises UserError for what is neither a recording nor the text of one."""
    safe = safe_name(name)
    if not safe.lower().endswith(_DROPPED):
        raise problem(
            source="page",
            field="file name",
            value=name,
            reason="is that of no recording",
            remedy="drop sound, films, or subtitles (.srt, .vtt, .txt) of the same name",
        )
    return safe


def rows_of(studio: Studio) -> list[str]:
    """Files of rows, those that were prepared here first."""
    files = []
    for file in studio.workspace.files(".jsonl"):
        is_hidden = file.endswith(_NOT_ROWS) or file.startswith(("runs/", "evaluations/"))
        if not is_hidden and ".original-" not in file:
            files.append(file)
    return sorted(files, key=lambda file: (not file.startswith(f"{ROWS}/"), file))


def _row(number: int) -> tuple[gr.Group, gr.Markdown, gr.Audio, gr.Textbox, gr.Checkbox]:
    with gr.Group(visible=False, elem_id=f"clip_{number}") as group:
        note = gr.Markdown(elem_id=f"clip_note_{number}")
        with gr.Row():
            player = gr.Audio(
                show_label=False, interactive=False, buttons=[], elem_id=f"clip_audio_{number}",
                min_width=260,
            )  # fmt: skip
            text = gr.Textbox(
                show_label=False, lines=2, elem_id=f"clip_text_{number}", scale=3, container=False
            )
            keep = gr.Checkbox(label="keep", elem_id=f"clip_keep_{number}", scale=0, min_width=90)
    return group, note, player, text, keep


def _hidden() -> list[Any]:
    return [gr.update(visible=False), "", None, "", False]


def _in_view(clips: list[Clip], view: str) -> list[Clip]:
    rows = [clip for clip in clips if not clip.is_rejected]
    if view == "rejected":
        return [clip for clip in clips if clip.is_rejected]
    if view == "changed":
        return [clip for clip in clips if clip.is_changed]
    if view == "left out":
        return [clip for clip in rows if not clip.keep]
    if view == "doubtful first":
        return sorted(rows, key=lambda clip: -clip.doubt)
    return rows


def _summary(clips: list[Clip]) -> str:
    num_rows = sum(not clip.is_rejected for clip in clips)
    kept = sum(clip.keep for clip in clips)
    changed = sum(clip.text != clip.was for clip in clips)
    line = f"{kept} of {num_rows} clips kept · {changed} texts corrected"
    return f"{line} · {len(clips) - num_rows} rejected ones to be heard"


def _note(clip: Clip) -> str:
    parts = [f"`{html.escape(clip.key, quote=False)}`"]
    for part in (clip.speaker, clip.note):
        if part:
            parts.append(html.escape(str(part)))
    if clip.heard and clip.heard != clip.text:
        parts.append(f"heard: {html.escape(clip.heard)}")
    if clip.text != clip.was:
        parts.append(f"was: {html.escape(clip.was)}")
    return " · ".join(parts)


def _kinds() -> list[str]:
    for action in parser_of("")._actions:
        if action.dest == "dataset_type":
            kinds = [str(kind) for kind in action.choices or ()]
            return sorted(kinds, key=lambda kind: kind != "recordings")
    raise AssertionError("no --dataset_type")


def _helps() -> dict[str, str]:
    """Flag -> what the command's own help says."""
    helps = {}
    for action in parser_of("")._actions:
        text = action.help or ""
        helps[action.dest] = text.replace("%(default)s", str(action.default)).replace("%%", "%")
    return helps
