"""Defects of MS-SWIFT (and of `datasets` below it): each test asserts what would be right.

They fail today, strictly: a test that passes turns the suite red and names the workaround that can
go. `docs/upstream.md` lists them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from native import given, training_batch
from swift.arguments import BaseArguments
from swift.dataset import AddLengthPreprocessor, AutoPreprocessor, LazyLLMDataset, RowPreprocessor
from swift.dataset.dataset_syntax import DatasetSyntax
from swift.model import get_model_info_meta
from swift.template import Template
from swift.template.vision_utils import load_file
from swift.trainers import Seq2SeqTrainer
from swift.utils import import_external_file
from transformers import HiggsAudioV2ForConditionalGeneration


@pytest.fixture
def model(tiny: Path) -> Any:
    return HiggsAudioV2ForConditionalGeneration.from_pretrained(tiny, use_text_head=True)


# Rows


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="another row in place of a failed one; workaround: plugins/trainer.py:HiggsAudioTrainer",
)
def test_a_row_that_fails_to_encode_is_not_replaced() -> None:
    """By default (`--strict false`) a row whose `encode` raises is replaced by a random other one.

    A missing file or a mistyped path trains other rows twice; the log shows ten tracebacks and no
    row number, and none at all for a row that is too long."""

    def encode(row: dict[str, Any], return_length: bool = False) -> dict[str, Any]:
        if row["number"] == 0:
            raise ValueError("broken")
        return row

    rows = LazyLLMDataset(Dataset.from_list([{"number": 0}, {"number": 1}]), encode)
    encoded = None
    with contextlib.suppress(ValueError):
        encoded = rows[0]
    assert encoded is None


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="faulty rows are deleted;"
    " workaround: plugins/ms_swift/dataset_loader.py:HiggsDatasetLoader",
)
def test_a_faulty_row_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default a row that the preprocessor cannot read, here for a mistyped role, is deleted from
    the data set.

    With a mistake of the script that wrote the file, most of a corpus can be gone: the log says how
    many rows went, not which."""
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    rows = []
    for role in ("assistant", "assistent"):
        reply = {"role": role, "content": "Hello."}
        rows.append({"messages": [{"role": "user", "content": "Hi."}, reply]})
    kept = None
    with contextlib.suppress(AssertionError, ValueError):
        kept = AutoPreprocessor()(Dataset.from_list(rows))
    assert kept is None


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="a missing file is taken for a hub id;"
    " workaround: plugins/ms_swift/dataset_loader.py:_check_name",
)
def test_a_missing_file_is_not_a_hub_repository() -> None:
    """`--dataset data/trian.jsonl`, with a typing mistake, is looked for on the hub as a repository
    of that name.

    Offline it ends in a connection error after three attempts; the message never says that the file
    is not there."""
    assert DatasetSyntax("data/trian.jsonl").dataset_type != "repo"


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="lengths cost a whole epoch of encoding;"
    " workaround: plugins/ms_swift/patches.py:_known_lengths",
)
def test_rows_that_bring_their_lengths_are_not_encoded_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--group_by_length` and `--packing` need the length of every row, and no row or template can
    tell it.

    So every row is encoded in full before the first step, which is thrown away but for its length:
    for a model with an audio codec that is hours of decoding and encoding, on every start."""
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))

    def encode(row: dict[str, Any], return_length: bool = False) -> dict[str, Any]:
        return {"lengths": [6]}  # seen from outside: it runs in a process of its own

    rows = Dataset.from_list([{"messages": [{"role": "user", "content": "Hi."}], "lengths": [5]}])
    # Not called as such: our patch may already be there.
    measured = RowPreprocessor.__call__(
        AddLengthPreprocessor(template=SimpleNamespace(encode=encode)), rows
    )
    assert measured["lengths"] == [[5]]


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="URLs are followed inwards; workaround: plugins/audio/waveforms.py:resolve",
)
def test_a_url_of_a_row_does_not_reach_inner_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL in the place of a file is fetched, redirects are followed to any host, and the answer
    has no size limit.

    A row of somebody else's data set makes the training machine send requests into its own network.
    """
    monkeypatch.setenv("NO_PROXY", "*")
    with _server() as (port, requested):
        with contextlib.suppress(OSError, ValueError):
            load_file(f"http://127.0.0.1:{port}/outer")
        assert "/inner" not in requested


@contextlib.contextmanager
def _server() -> Iterator[tuple[int, list[str]]]:
    """A port where /outer redirects to /inner of another host name, and the paths requested so
    far."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(302 if self.path == "/outer" else 200)
            self.send_header("Location", f"http://localhost:{server.server_port}/inner")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port, requested
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="os.environ is replaced; workaround: plugins/settings.py:from_env",
)
def test_mapping_in_processes_keeps_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` puts a copy in the place of `os.environ` when `map(num_proc=...)` ends, and
    MS-SWIFT maps like that.

    A default argument or a module that holds the old object sees none of the settings that a later
    run makes."""
    before = os.environ
    monkeypatch.setattr(os, "environ", before)  # puts it back afterwards
    Dataset.from_list([{"number": 0}]).map(_same, num_proc=1)
    assert os.environ is before


def _same(row: dict[str, Any]) -> dict[str, Any]:
    return row


# Loss


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="micro-batches are weighed by text labels;"
    " workaround: plugins/trainer.py:_get_num_items_in_batch",
)
def test_the_loss_of_a_step_does_not_depend_on_its_split(model: Any) -> None:
    """The default `compute_sft_loss` weighs a micro-batch by its share of the step's *text* labels.

    All text-to-speech rows have three, so the frames of a short clip weigh more than those of a
    long one, and the loss changes with batch size, accumulation and number of GPUs."""
    template: Any = None  # the method does not use it
    whole = training_batch(model.config, 2, 40)
    num_text_labels = (whole["labels"][:, 1:] != -100).sum()

    def loss(*num_frames: int) -> Any:
        batch = training_batch(model.config, *num_frames)
        return Template.compute_sft_loss(template, model, batch, num_text_labels).loss

    torch.testing.assert_close(loss(2) + loss(40), loss(2, 40))


@pytest.mark.xfail(
    strict=True,
    raises=ValueError,
    reason="logits are cut, audio labels not; workaround: plugins/model/modeling.py:forward",
)
def test_the_trainer_does_not_cut_logits_that_have_labels(model: Any) -> None:
    """A model whose `forward` has `logits_to_keep` gets it, from the position of the first *text*
    label on.

    transformers' class cuts the audio logits with it, and its audio labels no longer match: the
    first step fails, until somebody finds `--use_logits_to_keep false`."""
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(use_logits_to_keep=None, tuner_backend="peft"),
        template=SimpleNamespace(get_base_model=lambda model: model, sequence_parallel_size=1),
        model=model,
    )
    model.model_meta = SimpleNamespace(is_multimodal=True)
    batch = training_batch(model.config, 3)
    expected = model(**batch).loss
    if Seq2SeqTrainer.get_use_logits_to_keep(trainer):
        Seq2SeqTrainer.prepare_logits_to_keep(trainer, batch)
    torch.testing.assert_close(model(**batch).loss, expected)


# Plugins and checkpoints


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="code of a checkpoint runs; workaround: plugins/ms_swift/patches.py:_checked_model",
)
def test_a_config_is_read_without_running_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`config.json` is always read with `trust_remote_code=True`, before any loader can say that it
    needs none.

    A downloaded checkpoint of a native architecture runs whatever file its `auto_map` names; a log
    line says so."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["Other"],
        "auto_map": {"AutoConfig": "configuration_other.LlamaConfig"},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code = (
        f"from transformers import LlamaConfig\nopen({str(tmp_path / 'it_ran')!r}, 'w').close()\n"
    )
    (folder / "configuration_other.py").write_text(code, encoding="utf-8")
    get_model_info_meta(str(folder), download_model=False)
    assert not (tmp_path / "it_ran").exists()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An external plugin with a class `Thing`, imported as `--external_plugins` does it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("swift.utils.utils._external_files", [])
    (tmp_path / "plugin.py").write_text("class Thing: pass\n", encoding="utf-8")
    (tmp_path / "colorsys.py").write_text("", encoding="utf-8")
    module = import_external_file(str(tmp_path / "plugin.py"))
    yield module
    sys.modules.pop(module.__name__, None)


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="neighbours of a plugin shadow packages;"
    " workaround: plugins/register.py:_make_importable",
)
def test_neighbours_of_a_plugin_do_not_shadow_other_modules(plugin: Any) -> None:
    """The folder of an external plugin becomes the first entry of `sys.path` and stays there.

    Every file beside the plugin hides the module or package of its name, in this process and all
    that it starts: an `audio.py` or `evaluate.py` there breaks imports in places that never heard
    of it."""
    module = PathFinder.find_spec("colorsys", sys.path)
    given(module is not None and module.origin)
    assert Path(module.origin).parent != Path(plugin.__file__).parent


@pytest.mark.xfail(
    strict=True,
    raises=ModuleNotFoundError,
    reason="classes of a plugin do not unpickle;"
    " workaround: plugins/register.py:register_higgs_audio_all",
)
def test_classes_of_a_plugin_travel_into_spawned_workers(plugin: Any) -> None:
    """A plugin is imported under a name that only this process knows, so other processes cannot
    unpickle its classes.

    Workers do import the plugins, but after they have unpickled their data set: a template of a
    plugin fails there."""
    data = pickle.dumps(plugin.Thing())
    del sys.modules[plugin.__name__]  # as in a worker that has just been spawned
    assert type(pickle.loads(data)).__name__ == "Thing"


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="plugin paths stay relative; workaround: plugins/trainer.py:_settle_output_folder",
)
def test_a_checkpoint_finds_its_plugins_from_another_folder(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`args.json` keeps `external_plugins` as typed, and `swift export --adapters CHECKPOINT` reads
    it from there.

    Merging or serving a checkpoint then works in the folder where it was trained, and nowhere else.
    """
    arguments = BaseArguments.__new__(BaseArguments)
    arguments.external_plugins, arguments.custom_register_path = ["plugin.py"], []
    monkeypatch.setattr(
        "swift.arguments.base_args.base_args.patch_dataloader_external_plugins", lambda: None
    )
    monkeypatch.chdir(tmp_path)
    arguments._import_external_plugins()
    arguments.save_args(str(tmp_path))
    (path,) = BaseArguments.from_pretrained(str(tmp_path)).external_plugins
    assert Path(path).is_absolute()


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="templates share one list; workaround: plugins/ms_swift/template.py:init_env_args",
)
def test_templates_do_not_share_their_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Placeholder ids are appended to a list of the class `Template` itself.

    A second template, of another tokenizer, takes the ids of the first for its own: logged prompts
    and truncation skip tokens that mean something else there."""
    monkeypatch.setattr(Template, "placeholder_tokens", [])
    # Of two classes, as templates are, and without their constructors, which want a processor.
    first = Template.__new__(type("First", (Template,), {}))
    second = Template.__new__(type("Second", (Template,), {}))
    first.processor = SimpleNamespace(audio_token_id=7)
    first._init_placeholder_tokens()
    given(first.placeholder_tokens == [7])
    assert second.placeholder_tokens == []
