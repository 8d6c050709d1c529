"""Files of strangers: rows that point elsewhere, checkpoints that hold code. Each proof of concept is shown to work.

docs/security.md says what is promised; a promise without a test here is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus_rows, write_jsonl
from sft import REGISTER, run, sft
from trees import clip

from plugins.checkpoint import load_model, with_adapters
from plugins.codec import Codec
from plugins.errors import UserError
from plugins.row_sources import read_rows
from plugins.rows import canonical_row
from plugins.settings import HiggsAudioSettings

TYPE = "higgs-audio-v2-3b"


class Payload:
    """What a pickle runs when it is read: makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def plant(marker: Path) -> Callable[[Path], Path]:
    """Write a malicious file of torch.save; reading it as pickle does make the marker, which is then removed."""

    def write(file: Path) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state": Payload(marker)}, file)
        torch.load(file, weights_only=False)
        assert marker.exists(), "the proof of concept is none"
        marker.unlink()
        return file

    return write


# Rows.


@pytest.fixture
def root(tmp_path: Path) -> Path:
    clip(tmp_path / "outside.wav")
    clip(tmp_path / "root" / "sub" / "a.wav")
    (tmp_path / "root" / "link.wav").symlink_to(tmp_path / "outside.wav")
    (tmp_path / "root" / "inner.wav").symlink_to("sub/a.wav")
    (tmp_path / "alias").symlink_to("root")
    return tmp_path / "root"


def row(**columns: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": ""}]
    return {"messages": messages, **columns}


def audio_of(path: str, root: Path | str) -> str:
    canonical = canonical_row(row(audios=[path]), "t.jsonl:1", HiggsAudioSettings(audio_root=str(root)))
    return canonical["audios"][0]


def test_paths_that_lead_into_the_root_are_taken(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative and absolute, through links inside, and whichever name of the root a path or the setting goes by."""
    alias = root.with_name("alias")
    for path, of, found in (
        ("sub/a.wav", root, root / "sub" / "a.wav"),
        ("inner.wav", root, root / "inner.wav"),
        (str(root / "sub" / "a.wav"), root, root / "sub" / "a.wav"),
        (str(root / "inner.wav"), root, root / "inner.wav"),
        (str(root / "sub" / "a.wav"), alias, alias / "sub" / "a.wav"),
        (str(alias / "sub" / "a.wav"), root, root / "sub" / "a.wav"),
    ):
        assert audio_of(path, of) == str(found)
        assert audio_of(str(found), of) == str(found), "rows pass twice"
    monkeypatch.chdir(root.parent)
    assert audio_of("sub/a.wav", "root") == str(root / "sub" / "a.wav")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("{out}", "lies outside of the audio root"),
        ("/etc/passwd", "lies outside of the audio root"),
        ("/dev/zero", "lies outside of the audio root"),
        ("{root}/../outside.wav", 'holds "..", which the audio root forbids'),
        ("../outside.wav", 'holds "..", which the audio root forbids'),
        ("sub/../../outside.wav", 'holds "..", which the audio root forbids'),
        ("~/a.wav", 'starts with "~", which the audio root forbids'),
        ("link.wav", "leads out of the audio root"),
        ("{root}/link.wav", "leads out of the audio root"),
        ("{root}", "is a folder"),
        ("outside.wav", "not found"),  # it is there in the working folder
        ("http://127.0.0.1/a.wav", "is a URL"),
        ("file:///etc/passwd", "is a URL"),
    ],
)
@pytest.mark.parametrize("place", ["audios", "audio", "reference_audio", "content"])
def test_nothing_outside_of_the_root_is_read(
    place: str, path: str, reason: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = path.format(root=root, out=tmp_path / "outside.wav")
    hostile = row(audios=["sub/a.wav"]) | {place: named}
    if place == "content":
        hostile = row()
        hostile["messages"][1]["content"] = [{"type": "audio", "audio": named}]
    elif place == "audio":
        del hostile["audios"]
    dataset = write_jsonl(tmp_path / "t.jsonl", [hostile])
    opened: list[str] = []
    monkeypatch.setattr("soundfile.SoundFile", lambda path, *_: opened.append(str(path)))
    with pytest.raises(UserError, match=reason) as caught:
        read_rows(str(dataset), HiggsAudioSettings(audio_root=str(root)), check=lambda dialogue: None)
    assert str(caught.value).startswith(f"{dataset}:1: ")
    assert opened == []


@pytest.mark.parametrize("column", ["audio_codes", "audio_code_keys", "reference_codes", "reference_code_keys"])
def test_code_caches_are_read_below_the_root_or_beside_the_rows(column: str, root: Path, tmp_path: Path) -> None:
    """A cache is a folder of arrays: naming any folder of the machine would read it. Links count by where they lead."""
    rows, settings = tmp_path / "rows", HiggsAudioSettings(audio_root=str(root))
    (rows / "codes").mkdir(parents=True)
    (root / "codes").mkdir()
    (tmp_path / "private").mkdir()
    (rows / "link").symlink_to(tmp_path / "private")
    key = "0" * 32
    for allowed in ("codes", str(root / "codes"), str(rows / "codes")):
        canonical_row(row(**{column: [f"{allowed}#{key}"]}), "t.jsonl:1", settings, beside=rows)
    for refused in ("../private", str(tmp_path / "private"), "link", "/"):
        with pytest.raises(UserError, match="lies neither in the audio root nor beside this file"):
            canonical_row(row(**{column: [f"{refused}#{key}"]}), "t.jsonl:1", settings, beside=rows)


@pytest.mark.parametrize("jailed", [False, True])
def test_urls_are_never_fetched(
    jailed: bool, tiny: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MS-SWIFT's own loader follows URLs, with redirects, from `audios`, contents and tags alike."""
    attempts: list[Any] = []

    def refuse(*address: Any, **_: Any) -> Any:
        attempts.append(address)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(OSError, match="no network"):
        urllib.request.urlopen("http://203.0.113.1/a.wav")
    assert attempts, "the proof of concept is none"
    attempts.clear()
    url = "http://203.0.113.1/a.wav"
    hostile = [row(audios=[url]), row(audios=[str(root / "sub" / "a.wav")], reference_audio=url), row(audio=url)]
    hostile.append(row())
    hostile[-1]["messages"][1]["content"] = [{"type": "audio", "audio": url}]
    dataset = write_jsonl(tmp_path / "t.jsonl", hostile)
    if jailed:
        monkeypatch.setenv("AUDIO_ROOT", str(root))
    with pytest.raises(UserError) as caught:
        sft(tiny, dataset, tmp_path / "out", external_plugins=REGISTER)
    assert str(caught.value).count(f"{url!r} is a URL; download it first") == len(hostile)
    assert attempts == []


# Weights.


def adapter_folder(folder: Path) -> Path:
    folder.mkdir()
    config = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 4, "base_model_name_or_path": "x"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_pickled_adapter_is_refused(tiny: Path, tmp_path: Path, marker: Path, plant: Any) -> None:
    """By us for its name, and by peft, which MS-SWIFT calls when it resumes."""
    from swift.tuners import Swift

    folder = adapter_folder(tmp_path / "adapter")
    plant(folder / "adapter_model.bin")
    model = load_model(str(tiny))
    with pytest.raises(UserError, match=r"adapters: 'adapter_model.safetensors' not found"):
        with_adapters(model, {"default": str(folder)})
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        Swift.from_pretrained(load_model(str(tiny)), str(folder))
    assert not marker.exists()


def test_modules_that_an_adapter_names_are_not_imported(tiny: Path, tmp_path: Path, marker: Path) -> None:
    """peft imports `megatron_core` by name; a folder below the working folder is a package."""
    from peft import PeftModel

    folder = adapter_folder(tmp_path / "adapter")
    (folder / "hostile.py").write_text(f"open({str(marker)!r}, 'w')\n", encoding="utf-8")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    hostile = {"megatron_config": {"hidden_size": 1}, "megatron_core": "adapter.hostile"}
    hostile["auto_mapping"] = {"parent_library": "adapter.hostile", "base_model_class": "Model"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **hostile}), encoding="utf-8")
    with contextlib.suppress(Exception), contextlib.chdir(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        PeftModel.from_pretrained(load_model(str(tiny)), str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside safetensors"])
def test_pickled_weights_of_a_model_are_not_read(
    beside: bool, tiny: Path, tmp_path: Path, marker: Path, plant: Any
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    plant(folder / "pytorch_model.bin")
    if beside:
        load_model(str(folder))
    else:
        (folder / "model.safetensors").unlink()
        with pytest.raises(UserError, match=r"weights: '\*.safetensors' not found"):
            load_model(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_weights_of_an_original_codec_run_nothing(legacy: bool, tmp_path: Path, marker: Path, plant: Any) -> None:
    """The original codec has no safetensors: `model.pth` is read with `weights_only`."""
    folder = plant(tmp_path / "codec" / "model.pth").parent
    (folder / "config.json").write_text(json.dumps({"semantic_techer": "hubert_base_general"}), encoding="utf-8")
    if legacy:
        torch.save({"state": Payload(marker)}, folder / "model.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="refused, no code of this file was run"):
        _ = Codec(str(folder)).model
    assert not marker.exists()


# Code beside weights.


def hostile_code(folder: Path, marker: Path) -> None:
    (folder / "hostile.py").write_text(f"open({str(marker)!r}, 'w')\nraise SystemExit\n", encoding="utf-8")


def rewrite(file: Path, **values: Any) -> None:
    old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps({**old, **values}), encoding="utf-8")


@pytest.mark.parametrize("model_type", ["higgs_audio", "higgs_audio_v2", "hostile", None])
def test_code_that_a_config_names_is_not_run(model_type: str | None, tiny: Path, tmp_path: Path, marker: Path) -> None:
    """MS-SWIFT reads config.json with trust_remote_code=True; a type that transformers knows has a class of its own,
    any other one would run the file.
    """
    from swift.model import get_model_processor

    from plugins.register import register_higgs_audio_all

    register_higgs_audio_all()
    folder = tmp_path / "hostile"
    shutil.copytree(tiny, folder)
    hostile_code(folder, marker)
    names = {"AutoConfig": "hostile.Config", "AutoModel": "hostile.Model", "AutoTokenizer": "hostile.Tokenizer"}
    rewrite(folder / "config.json", auto_map=names, model_type=model_type)
    with contextlib.suppress(Exception, SystemExit):
        get_model_processor(str(folder), model_type=TYPE, torch_dtype=torch.float32)
    assert not marker.exists()


@pytest.mark.parametrize("tokenizer_class", ["HostileTokenizer", "PreTrainedTokenizerFast"])
def test_code_that_a_tokenizer_names_is_not_run(tokenizer_class: str, tiny: Path, tmp_path: Path, marker: Path) -> None:
    from plugins.loading import load_model as load

    folder = tmp_path / "hostile"
    shutil.copytree(tiny, folder)
    hostile_code(folder, marker)
    names = {"AutoTokenizer": ["hostile.Tokenizer", "hostile.Tokenizer"], "AutoProcessor": "hostile.Processor"}
    rewrite(folder / "tokenizer_config.json", auto_map=names, tokenizer_class=tokenizer_class)
    rewrite(folder / "processor_config.json", auto_map=names, processor_class="Hostile")
    with contextlib.suppress(Exception, SystemExit):
        load(str(folder))
    assert not marker.exists()


def test_plugins_that_an_adapter_names_are_not_imported(
    tiny: Path, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MS-SWIFT takes `external_plugins` from the adapter's args.json; our start-up hook does not."""
    from swift.arguments import InferArguments
    from swift.arguments.base_args.base_args import BaseArguments
    from swift.utils import parse_args

    import higgs_audio_swift_autoload as autoload

    folder = adapter_folder(tmp_path / "adapter")
    hostile_code(folder, marker)
    rewrite(folder / "args.json", external_plugins=[str(folder / "hostile.py")], model=str(tiny), model_type=TYPE,
            swift_version="4.6.0", custom_register_path=[str(folder / "hostile.py")])  # fmt: skip
    argv = ["--adapters", str(folder), "--use_hf", "true"]
    plain = "import sys; from swift.arguments import InferArguments as Arguments; from swift.utils import parse_args"
    run(sys.executable, "-c", f"{plain}; parse_args(Arguments, {argv!r})", HIGGS_AUDIO_AUTOLOAD="0")
    assert marker.exists(), "MS-SWIFT imports them no more: mend docs/security.md"
    marker.unlink()
    for name in ("_import_external_plugins", "load_args_from_ckpt"):
        monkeypatch.setattr(BaseArguments, name, getattr(BaseArguments, name))
    autoload._patch_arguments(BaseArguments)
    parse_args(InferArguments, argv)
    parse_args(InferArguments, [*argv, "--external_plugins", REGISTER])
    assert not marker.exists()


# Resuming.


@pytest.fixture(scope="module")
def resumable(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two steps with its first checkpoint, and its rows."""
    folder = tmp_path_factory.mktemp("resumable")
    dataset = write_jsonl(folder / "train.jsonl", corpus_rows(2))
    sft(tiny, dataset, folder / "out", max_steps=2, save_steps=1)
    return folder / "out" / "checkpoint-1", dataset


@pytest.fixture
def resume(resumable: tuple[Path, Path], tiny: Path, tmp_path: Path) -> tuple[Path, Callable[[], None]]:
    """A copy of that checkpoint, and a function that goes on from it: the stranger knows how to seal it."""
    from plugins.checkpoints import MARKER, seal

    checkpoint = tmp_path / "out" / "checkpoint-1"
    shutil.copytree(resumable[0], checkpoint)

    def go_on() -> None:
        (checkpoint / MARKER).unlink()
        seal(checkpoint, resumable=True)
        sft(tiny, resumable[1], tmp_path / "out", max_steps=2, save_steps=1, resume_from_checkpoint=checkpoint)

    return checkpoint, go_on


def test_every_pickle_of_a_resumed_checkpoint_is_read_with_weights_only(
    resume: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[str, Any] = {}
    original = torch.load

    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        read[os.path.basename(str(file))] = kwargs.get("weights_only")
        return original(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", load)
    resume[1]()
    assert read == {"optimizer.pt": True, "scheduler.pt": True, "rng_state.pth": True}


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_pickles_of_a_resumed_checkpoint_are_refused(name: str, resume: Any, marker: Path, plant: Any) -> None:
    checkpoint, go_on = resume
    plant(checkpoint / name)
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        go_on()
    assert not marker.exists()


@pytest.mark.parametrize("name", ["training_args.bin", "pytorch_model.bin", "optimizer.bin"])
def test_pickles_that_nobody_needs_are_not_read(name: str, resume: Any, marker: Path, plant: Any) -> None:
    """`training_args.bin`, which transformers writes, can only be read as a pickle."""
    checkpoint, go_on = resume
    plant(checkpoint / name)
    go_on()
    assert not marker.exists()
