"""The page: its tabs, and the server that shows them. Needs Gradio."""

from __future__ import annotations

import hmac
from argparse import Namespace
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from plugins.commands.app.compare_tab import CompareTab
from plugins.commands.app.data_tab import DataTab
from plugins.commands.app.export_tab import ExportTab
from plugins.commands.app.listen import ListenTab
from plugins.commands.app.served import OnlyReports
from plugins.commands.app.studio import Studio
from plugins.commands.app.train_tab import TrainTab
from plugins.commands.hosts import OnlyOwnNames

_CLEANED_EVERY_S, _KEPT_S = 600, 3600  # uploads and speeches
_MAX_WAITING = 64
_LOOKS_EVERY_S = 1.5  # at jobs
# Gradio's own fonts lie on this server too, but its themes may name others: the system's are here
# for certain.
_THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)


def build(studio: Studio, *, max_audio_s: float) -> gr.Blocks:
    """The page of a workspace. max_audio_s: the most that its sliders allow for one piece of
    speech."""
    with gr.Blocks(
        title="Higgs Audio", analytics_enabled=False, delete_cache=(_CLEANED_EVERY_S, _KEPT_S)
    ) as page:
        gr.Markdown("# Higgs Audio")
        timer = gr.Timer(_LOOKS_EVERY_S)
        # Who names a model wants to hear it.
        with gr.Tabs(selected="listen" if studio.desk.is_ready else "data"):
            with gr.Tab("Data", id="data", elem_id="data") as data_tab:
                data = DataTab(studio)
            with gr.Tab("Train", id="train", elem_id="train") as train_tab:
                train = TrainTab(studio)
            with gr.Tab("Listen", id="listen", elem_id="listen") as listen_tab:
                listen = ListenTab(studio.desk, max_audio_s)
            with gr.Tab("Compare", id="compare", elem_id="compare_systems") as compare_tab:
                compare = CompareTab(studio)
            with gr.Tab("Export", id="export", elem_id="export") as export_tab:
                export = ExportTab(studio)
        data.connect_page(page, data_tab, timer)
        train.connect_page(page, train_tab, timer)
        compare.connect_page(page, compare_tab, timer)
        export.connect_page(page, export_tab, timer)
        listen.connect_page(page, listen_tab)
    # Closed to direct requests: they would not wait for the one that is being spoken.
    return page.queue(max_size=_MAX_WAITING, api_open=False)


def launch(page: gr.Blocks, options: Namespace, studio: Studio, *, port: int) -> None:
    """Serve in the background, for this machine's own browsers unless `--host` says otherwise."""
    root = studio.workspace.root
    password: dict[str, Any] = {}
    if options.password is not None:
        password["auth"] = lambda user, given: hmac.compare_digest(
            given.encode(), options.password.encode()
        )
        password["auth_message"] = "Any user name; the password is the one of this server."
    page.launch(
        server_name=options.host,
        server_port=port,
        max_file_size=options.max_upload_mb * 2**20,
        theme=_THEME,
        prevent_thread_lock=True,  # the caller waits, and ends in order
        # Of these only what OnlyReports lets through.
        allowed_paths=[str(root)],
        # Each would open another way in or out, and variables of Gradio may turn some of them on.
        share=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        app_kwargs={
            "middleware": [
                Middleware(OnlyOwnNames, host=options.host),
                Middleware(OnlyReports, root=root),
            ]
        },
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        quiet=True,
        **password,
    )
