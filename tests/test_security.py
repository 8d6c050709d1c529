"""Files of strangers: rows that point elsewhere, checkpoints that hold code. Each proof of concept
is shown to work.

docs/security.md says what is promised; a promise without a test here is none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pickle
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus_rows, write_jsonl
from helpers.sft import REGISTER, sft
from helpers.trees import clip

from plugins.audio.codec import Codec
from plugins.corpora.canonical import canonical_row
from plugins.data.sources import read_rows
from plugins.errors import UserError
from plugins.model.load import native_model, with_adapters
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
    """Write a malicious file of torch.save; reading it as pickle does make the marker, which is
    then removed."""

    def write(file: Path) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state": Payload(marker)}, file)
        torch.load(file, weights_only=False)
        assert marker.exists(), "the proof of concept is none"
        marker.unlink()
        return file

    return write


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every connection that is tried and every name that is looked up from now on; all are
    refused."""
    tried: list[Any] = []

    def refuse(*address: Any, **_: Any) -> Any:
        tried.append(address)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(OSError, match="no network"):
        urllib.request.urlopen("http://203.0.113.1/a.wav")
    assert tried, "the proof of concept is none"
    tried.clear()
    return tried


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
    canonical = canonical_row(
        row(audios=[path]), "t.jsonl:1", HiggsAudioSettings(audio_root=str(root))
    )
    return canonical["audios"][0]


def test_paths_that_lead_into_the_root_are_taken(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative and absolute, through links inside, and whichever name of the root a path or the
    setting goes by."""
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
        read_rows(
            str(dataset), HiggsAudioSettings(audio_root=str(root)), check=lambda dialogue: None
        )
    assert str(caught.value).startswith(f"{dataset}:1: ")
    assert opened == []


def test_a_folder_of_recordings_is_its_own_root(root: Path, tmp_path: Path) -> None:
    """`a.txt -> ../key` made a text of any file. What lies in the folder is trusted, wherever it
    is."""
    (tmp_path / "key").write_text("secret", encoding="utf-8")
    (root / "sub" / "a.txt").symlink_to(tmp_path / "key")
    (root / "link.wav").unlink()
    (root / "inner.wav").unlink()

    def texts(audio_root: str | None) -> list[str]:
        settings = HiggsAudioSettings(audio_root=audio_root)
        rows = read_rows(str(root), settings, check=lambda dialogue: None)
        return [row["messages"][0]["content"] for row in rows]

    assert texts(None) == ["secret"], "the proof of concept is none"
    with pytest.raises(UserError, match="transcript leads out of the audio root"):
        texts(str(tmp_path))
    (root / "sub" / "a.txt").unlink()
    (root / "sub" / "a.txt").write_text("Hello.", encoding="utf-8")
    assert texts(str(tmp_path / "elsewhere")) == ["Hello."]


@pytest.mark.parametrize(
    "column", ["audio_codes", "audio_code_keys", "reference_codes", "reference_code_keys"]
)
def test_code_caches_are_read_below_the_root_or_beside_the_rows(
    column: str, root: Path, tmp_path: Path
) -> None:
    """A cache is a folder of arrays: naming any folder of the machine would read it. Links count by
    where they lead."""
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
    jailed: bool,
    tiny: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attempts: list[Any],
) -> None:
    """MS-SWIFT's own loader follows URLs, with redirects, from `audios`, contents and tags
    alike."""
    url = "http://203.0.113.1/a.wav"
    hostile = [
        row(audios=[url]),
        row(audios=[str(root / "sub" / "a.wav")], reference_audio=url),
        row(audio=url),
    ]
    hostile.append(row())
    hostile[-1]["messages"][1]["content"] = [{"type": "audio", "audio": url}]
    dataset = write_jsonl(tmp_path / "t.jsonl", hostile)
    if jailed:
        monkeypatch.setenv("AUDIO_ROOT", str(root))
    with pytest.raises(UserError) as caught:
        sft(tiny, dataset, tmp_path / "out", external_plugins=REGISTER)
    assert str(caught.value).count(f"{url!r} is a URL; download it first") == len(hostile)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: {url}\n---\n"
    )
    with pytest.raises(UserError, match=r"^[^\n]*there is no row[^\n]*$"):
        sft(tiny, folder, tmp_path / "out", external_plugins=REGISTER)
    assert attempts == []


# Weights.


def adapter_folder(folder: Path) -> Path:
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "target_modules": ["q_proj"],
        "r": 4,
        "base_model_name_or_path": "x",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_pickled_adapter_is_refused(tiny: Path, tmp_path: Path, marker: Path, plant: Any) -> None:
    """By us for its name, and by peft, which MS-SWIFT calls when it resumes."""
    from swift.tuners import Swift

    folder = adapter_folder(tmp_path / "adapter")
    plant(folder / "adapter_model.bin")
    model = native_model(str(tiny))
    with pytest.raises(UserError, match=r"adapters: 'adapter_model.safetensors' not found"):
        with_adapters(model, {"default": str(folder)})
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        Swift.from_pretrained(native_model(str(tiny)), str(folder))
    assert not marker.exists()


def test_modules_that_an_adapter_names_are_not_imported(
    tiny: Path, tmp_path: Path, marker: Path
) -> None:
    """peft imports `megatron_core` by name; a folder below the working folder is a package."""
    from peft import PeftModel

    folder = adapter_folder(tmp_path / "adapter")
    (folder / "hostile.py").write_text(f"open({str(marker)!r}, 'w')\n", encoding="utf-8")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    hostile = {"megatron_config": {"hidden_size": 1}, "megatron_core": "adapter.hostile"}
    hostile["auto_mapping"] = {"parent_library": "adapter.hostile", "base_model_class": "Model"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **hostile}), encoding="utf-8")
    with (
        contextlib.suppress(Exception),
        contextlib.chdir(tmp_path),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.syspath_prepend(str(tmp_path))
        PeftModel.from_pretrained(native_model(str(tiny)), str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside safetensors"])
def test_pickled_weights_of_a_model_are_not_read(
    beside: bool, tiny: Path, tmp_path: Path, marker: Path, plant: Any
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    plant(folder / "pytorch_model.bin")
    if beside:
        native_model(str(folder))
    else:
        (folder / "model.safetensors").unlink()
        with pytest.raises(UserError, match=r"weights: '\*.safetensors' not found"):
            native_model(str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_weights_of_an_original_codec_run_nothing(
    legacy: bool, tmp_path: Path, marker: Path, plant: Any
) -> None:
    """The original codec has no safetensors: `model.pth` is read with `weights_only`."""
    folder = plant(tmp_path / "codec" / "model.pth").parent
    (folder / "config.json").write_text(
        json.dumps({"semantic_techer": "hubert_base_general"}), encoding="utf-8"
    )
    if legacy:
        torch.save(
            {"state": Payload(marker)}, folder / "model.pth", _use_new_zipfile_serialization=False
        )
    with pytest.raises(UserError, match="refused, no code of this file was run"):
        _ = Codec(str(folder)).model
    assert not marker.exists()


# Code beside weights.


def hostile_code(folder: Path, marker: Path) -> None:
    (folder / "hostile.py").write_text(
        f"open({str(marker)!r}, 'w')\nraise SystemExit\n", encoding="utf-8"
    )


def rewrite(file: Path, **values: Any) -> None:
    old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps({**old, **values}), encoding="utf-8")


@pytest.mark.parametrize("model_type", ["higgs_audio", "higgs_audio_v2", "hostile", None])
def test_code_that_a_config_names_is_not_run(
    model_type: str | None, tiny: Path, tmp_path: Path, marker: Path
) -> None:
    """MS-SWIFT reads config.json with trust_remote_code=True; a type that transformers knows has a
    class of its own, any other one would run the file."""
    from swift.model import get_model_processor

    from plugins.register import register_higgs_audio_all

    register_higgs_audio_all()
    folder = tmp_path / "hostile"
    shutil.copytree(tiny, folder)
    hostile_code(folder, marker)
    names = {
        "AutoConfig": "hostile.Config",
        "AutoModel": "hostile.Model",
        "AutoTokenizer": "hostile.Tokenizer",
    }
    rewrite(folder / "config.json", auto_map=names, model_type=model_type)
    with contextlib.suppress(Exception, SystemExit):
        get_model_processor(str(folder), model_type=TYPE, torch_dtype=torch.float32)
    assert not marker.exists()


@pytest.mark.parametrize("tokenizer_class", ["HostileTokenizer", "PreTrainedTokenizerFast"])
def test_code_that_a_tokenizer_names_is_not_run(
    tokenizer_class: str, tiny: Path, tmp_path: Path, marker: Path
) -> None:
    from plugins.model.load import load_model as load

    folder = tmp_path / "hostile"
    shutil.copytree(tiny, folder)
    hostile_code(folder, marker)
    names = {
        "AutoTokenizer": ["hostile.Tokenizer", "hostile.Tokenizer"],
        "AutoProcessor": "hostile.Processor",
    }
    rewrite(folder / "tokenizer_config.json", auto_map=names, tokenizer_class=tokenizer_class)
    rewrite(folder / "processor_config.json", auto_map=names, processor_class="Hostile")
    with contextlib.suppress(Exception, SystemExit):
        load(str(folder))
    assert not marker.exists()


# Arguments that a folder brings along.


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MS-SWIFT's class of arguments as it comes, though an installation's hook may have been
    there."""
    import swift.utils.utils
    from swift.arguments.base_args import base_args

    spec = importlib.util.spec_from_file_location(
        f"{base_args.__name__}_as_it_comes", base_args.__file__
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("_import_external_plugins", "load_args_from_ckpt"):
        monkeypatch.setattr(base_args.BaseArguments, name, vars(module.BaseArguments)[name])
    # What was imported is imported again in data workers.
    monkeypatch.setattr(swift.utils.utils, "_external_files", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield base_args.BaseArguments
    for name in [name for name in sys.modules if name.startswith("_swift_external")]:
        del sys.modules[name]


@pytest.fixture
def guard(unguarded: Any) -> Callable[[], None]:
    """What the start-up hook does."""
    import higgs_audio_swift_autoload

    return lambda: higgs_audio_swift_autoload._patch_arguments(unguarded)


def stranger(folder: Path, *, base: dict[str, Any] | None = None, **arguments: Any) -> str:
    """An adapter's folder with these `arguments` in its args.json, `hostile.py`, and a base with
    this config."""
    adapter_folder(folder)
    hostile_code(folder, folder / "executed")
    if base is not None:
        (folder / "base").mkdir()
        hostile_code(folder / "base", folder / "executed")
        rewrite(folder / "base" / "config.json", **base)
        arguments["model"] = str(folder / "base")
    rewrite(folder / "args.json", swift_version="4.6.0", tuner_type="lora", **arguments)
    return str(folder)


def test_nothing_in_a_folder_decides_whether_its_code_is_run(
    tiny: Path, tmp_path: Path, guard: Callable[[], None], attempts: list[Any]
) -> None:
    """MS-SWIFT imports the plugins that an adapter's args.json names, and reads the base that it
    names with trust_remote_code=True. Its model type is what the stranger has written there: none,
    another's, ours."""
    from swift.arguments import InferArguments
    from swift.utils import parse_args

    def plugin(name: str) -> str:
        return str(tmp_path / name / "hostile.py")

    coded = {"model_type": "hostile", "auto_map": {"AutoConfig": "hostile.Config"}}
    others = {
        # The case file of this fault, `adapter_args.json`.
        "none": stranger(tmp_path / "none", external_plugins=[plugin("none")], model_type=None),
        "missing": stranger(tmp_path / "missing", external_plugins=[plugin("missing")]),
        "another": stranger(
            tmp_path / "another", external_plugins=[plugin("another")], model_type="qwen3"
        ),
        "nonsense": stranger(
            tmp_path / "nonsense", external_plugins=[plugin("nonsense")], model_type=[1]
        ),
        "ours": stranger(
            tmp_path / "ours", external_plugins=[plugin("ours")], model_type=TYPE, model=str(tiny)
        ),
        "text": stranger(tmp_path / "text", external_plugins=plugin("text")),
        "object": stranger(tmp_path / "object", external_plugins={plugin("object"): 1}),
        "base": stranger(tmp_path / "base", base=coded),
    }
    for name, folder in others.items():
        with contextlib.suppress(BaseException):
            parse_args(InferArguments, ["--adapters", folder, "--use_hf", "true"])
        assert Path(folder, "executed").exists(), f"the proof of concept is none: {name}"
        Path(folder, "executed").unlink()
    guard()
    # Nothing to be shown in a test: what they name is on a hub, in a file that is read, or imports
    # nothing.
    register = tmp_path / "register" / "plugins" / "register.py"
    others |= {
        "register": stranger(
            tmp_path / "register", external_plugins=[str(register)], model_type="qwen3"
        ),
        "kernel": stranger(tmp_path / "kernel", attn_impl="evil/kernel", model=str(tiny)),
        "our kernel": stranger(
            tmp_path / "our kernel", attn_impl="evil/kernel", model=str(tiny), model_type=TYPE
        ),
        "method": stranger(
            tmp_path / "method", quant_method="eetq", model=str(tiny), model_type=TYPE
        ),
        "system": stranger(
            tmp_path / "system", system="secret.txt", model=str(tiny), model_type=TYPE
        ),
        "tokens": stranger(tmp_path / "tokens", new_special_tokens=["secret.txt"], model=str(tiny)),
        "rope": stranger(
            tmp_path / "rope", rope_scaling=str(tiny / "config.json"), model=str(tiny)
        ),
        "hub": stranger(tmp_path / "hub", model="evil/base", model_type=TYPE),
        "elsewhere": stranger(
            tmp_path / "elsewhere", base={"auto_map": {"AutoConfig": "evil/repo--code.Config"}}
        ),
    }
    (tmp_path / "elsewhere" / "base" / "hostile.py").unlink()
    said = {
        "base": r"model: '.*' holds code \(hostile\.py\), which would be run; if you trust it, give it with --model",
        "kernel": "attn_impl: 'evil/kernel' would be fetched from a hub and run; .* give it with --attn_impl",
        "our kernel": "attn_impl: 'evil/kernel' would be fetched from a hub and run; .* give it with --attn_impl",
        "method": "quant_method: 'eetq' may fetch code from a hub",
        "system": "system: 'secret.txt' is a file, which would be read",
        "tokens": "new_special_tokens: 'secret.txt' is a file, which would be read",
        "rope": r"rope_scaling: '.*config\.json' is a file, which would be read",
        "hub": "model: 'evil/base' is no folder here and no published model; .* give it with --model",
        "elsewhere": r"model: '.*' holds code \(config\.json\), which would be run",
    }
    for name, folder in others.items():
        refused = said.get(
            name,
            "external_plugins: .* would be imported; if you trust it, give it with --external_plu",
        )
        with pytest.raises(ValueError, match=refused) as caught:
            parse_args(InferArguments, ["--adapters", folder, "--use_hf", "true"])
        assert str(caught.value).startswith(f"{folder}/args.json: ")
        assert "\n" not in str(caught.value)
        assert not Path(folder, "executed").exists(), name
    assert attempts == []


def test_every_command_that_takes_a_folder_is_guarded(
    tmp_path: Path, guard: Callable[[], None]
) -> None:
    import swift.arguments
    from swift.utils import parse_args

    folder = stranger(
        tmp_path / "adapter", external_plugins=[str(tmp_path / "adapter" / "hostile.py")]
    )
    (tmp_path / "data.jsonl").touch()
    guard()
    for command in (
        "App",
        "Deploy",
        "Eval",
        "Export",
        "Infer",
        "Rollout",
        "Sampling",
        "Sft",
        "RLHF",
    ):
        for flag in ("--adapters", "--model"):
            arguments = [
                flag,
                folder,
                "--load_args",
                "true",
                "--dataset",
                str(tmp_path / "data.jsonl"),
            ]
            with pytest.raises(ValueError, match=r"external_plugins: .* would be imported"):
                parse_args(getattr(swift.arguments, f"{command}Arguments"), arguments)
    assert not Path(folder, "executed").exists()


def test_our_own_and_other_models_arguments_are_taken_over(
    tiny: Path, tmp_path: Path, guard: Callable[[], None]
) -> None:
    """A training of ours names the register.py of its installation; ours takes the place of that
    file, whatever it holds. Whoever types another model's type has MS-SWIFT's own behaviour."""
    from swift.arguments import InferArguments
    from swift.utils import parse_args

    guard()
    folder = tmp_path / "ours"
    theirs = folder / "plugins" / "register.py"
    argv = [
        "--adapters",
        stranger(folder, external_plugins=[str(theirs)], model=str(tiny), model_type=TYPE),
    ]
    theirs.parent.mkdir()
    shutil.copy(folder / "hostile.py", theirs)
    parse_args(InferArguments, argv)
    parse_args(InferArguments, [*argv, "--external_plugins", REGISTER])
    assert not (folder / "executed").exists()
    other = stranger(tmp_path / "other", external_plugins=[str(tmp_path / "other" / "hostile.py")])
    with pytest.raises(SystemExit):
        parse_args(InferArguments, ["--adapters", other, "--model_type", "qwen3"])
    assert (tmp_path / "other" / "executed").exists()


# Entries of configs.

KERNEL = "evil/kernel"


@pytest.mark.parametrize(
    ("entries", "field"),
    [
        ({"attn_implementation": KERNEL}, "attn_implementation"),
        ({"_attn_implementation": KERNEL}, "_attn_implementation"),
        ({"attn_implementation": {"": KERNEL}}, "attn_implementation"),
        ({"attn_implementation": f"paged|{KERNEL}"}, "attn_implementation"),
        (
            {"attribute_map": {"harmless": "_attn_implementation"}, "harmless": KERNEL},
            "attribute_map",
        ),
        ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files"),
        ({"quantization_config": {"quant_method": "eetq"}}, "quantization_config"),
        ({"transformers_weights": "pytorch_model.bin"}, "transformers_weights"),
    ],
)
def test_entries_of_a_config_that_fetch_or_run_are_refused(
    entries: dict[str, Any], field: str, tiny: Path, tmp_path: Path, attempts: list[Any]
) -> None:
    """transformers takes them from config.json: a kernel of a hub is code, whatever
    `trust_remote_code` says."""
    from swift.model import get_model_processor
    from transformers import HiggsAudioV2Config

    from plugins.model.original_format import load_config
    from plugins.register import register_higgs_audio_all

    register_higgs_audio_all()
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    load_config(folder)
    rewrite(
        folder / "config.4.0.0.json",
        **json.loads((folder / "config.json").read_text()),
        attn_implementation=KERNEL,
    )
    rewrite(folder / "config.json", **entries)
    taken = HiggsAudioV2Config.from_pretrained(folder)
    honoured = (
        str(taken._attn_implementation).endswith(KERNEL)
        or getattr(taken, field, None) == entries[field]
    )
    assert honoured, "the proof of concept is none"
    for read in (
        lambda: load_config(folder),
        lambda: native_model(str(folder)),
        lambda: get_model_processor(str(folder), model_type=TYPE, torch_dtype=torch.float32),
    ):
        with pytest.raises(
            UserError, match=rf"config\.json: {field}: .*; remove the entry if you trust the rest"
        ):
            read()
    assert attempts == []


def test_attention_that_transformers_ships_may_be_named(tiny: Path, tmp_path: Path) -> None:
    from plugins.model.original_format import load_config

    shutil.copy(tiny / "config.json", tmp_path)
    rewrite(tmp_path / "config.json", attn_implementation="eager", quantization_config=None)
    assert load_config(tmp_path)._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("entries", "part", "name", "field"),
    [
        ({"attn_implementation": {"semantic_model_config": KERNEL}}, "semantic_model_config", "_attn_implementation",
         "attn_implementation"),
        ({"acoustic_model_config": {"model_type": "timm_backbone"}}, "acoustic_model_config", "model_type",
         r"acoustic_model_config\.model_type"),
    ],
)  # fmt: skip
def test_the_parts_of_a_codec_fetch_nothing(
    entries: dict[str, Any], part: str, name: str, field: str, tiny: Path, tmp_path: Path
) -> None:
    """transformers builds whichever model they name; timm's downloads its weights
    (`use_pretrained_backbone`)."""
    from transformers import HiggsAudioV2TokenizerConfig

    folder = Path(shutil.copytree(tiny / "audio_tokenizer", tmp_path / "codec"))
    rewrite(folder / "config.json", **entries)
    taken = getattr(getattr(HiggsAudioV2TokenizerConfig.from_pretrained(folder), part), name)
    assert taken in (KERNEL, "timm_backbone"), "the proof of concept is none"
    with pytest.raises(UserError, match=rf"config\.json: {field}: '{taken}' is "):
        _ = Codec(str(folder)).model


@pytest.mark.parametrize(
    ("entries", "field"),
    [
        ({"peft_type": "XLORA", "adapters": {"a": "evil/adapter"}}, "peft_type"),  # loads these
        ({"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "evil/tokenizer"}, "peft_type"),
        ({"megatron_config": {"a": 1}, "megatron_core": "megatron.core"}, "megatron_config"),
        ({"swift_type": "REFT"}, "swift_type"),
    ],
)
@pytest.mark.parametrize("below", [False, True], ids=["", "below"])
def test_adapters_of_kinds_that_fetch_or_import_are_refused(
    entries: dict[str, Any],
    field: str,
    below: bool,
    tiny: Path,
    tmp_path: Path,
    attempts: list[Any],
) -> None:
    """By us, and where MS-SWIFT loads any: `infer`, `deploy`, `export`, `sft --adapters`, and what
    lies in folders."""
    from peft import PeftConfig
    from swift.model import MODEL_MAPPING
    from swift.tuners import Swift

    from plugins.register import register_higgs_audio_all

    register_higgs_audio_all()
    folder = adapter_folder(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").touch()
    named = adapter_folder(folder / "second") if below else folder
    rewrite(named / "adapter_config.json", **entries)
    if "peft_type" in entries:
        assert PeftConfig.from_pretrained(str(named)).peft_type == entries["peft_type"], (
            "peft takes it no more"
        )
    model = native_model(str(tiny))
    model.model_meta = MODEL_MAPPING[TYPE]
    for load in (
        lambda: with_adapters(model, {"a": str(folder)}),
        lambda: Swift.from_pretrained(model, str(folder)),
    ):
        with pytest.raises(UserError, match=rf"adapter_config\.json: {field}: "):
            load()
    assert attempts == []


def test_what_only_a_folder_names_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base of an adapter, the codec of a processor or of our settings: in the cache, published,
    or typed."""
    import huggingface_hub

    from plugins.audio.codec import find_codec
    from plugins.files.hub import MODELS_3B, local_folder
    from plugins.model.load import base_and_adapters
    from plugins.settings import SETTINGS_FILE

    asked: list[tuple[str, bool]] = []

    def snapshot_download(name: str, local_files_only: bool = False) -> str:
        asked.append((name, local_files_only))
        raise huggingface_hub.errors.LocalEntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    folder = adapter_folder(tmp_path / "adapter")
    rewrite(folder / "adapter_config.json", base_model_name_or_path="evil/base")
    rewrite(
        folder / "processor_config.json",
        audio_tokenizer={"audio_tokenizer_name_or_path": "evil/codec"},
    )
    rewrite(folder / SETTINGS_FILE, codec="evil/other")
    with pytest.raises(
        UserError,
        match=r"model: 'evil/base' is what the checkpoint names.*give it yourself with --mod",
    ):
        base_and_adapters(str(folder))
    for name in (
        find_codec([str(folder)]),
        find_codec([], HiggsAudioSettings.of_checkpoint(folder, {}).codec),
    ):
        with pytest.raises(
            UserError,
            match=r"codec: 'evil/\w+' is what the checkpoint names.*yourself with --codec",
        ):
            _ = Codec(name).model
    assert asked == [("evil/base", True), ("evil/codec", True), ("evil/other", True)]
    asked.clear()
    rewrite(folder / "adapter_config.json", base_model_name_or_path=MODELS_3B[0])
    for read in (lambda: base_and_adapters(str(folder)), lambda: local_folder("evil/base")):
        with pytest.raises(
            UserError, match="is neither a folder nor a Hub id that can be downloaded"
        ):
            read()
    assert asked == [(MODELS_3B[0], False), ("evil/base", False)]


# Resuming.


@pytest.fixture(scope="module")
def resumable(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two steps with its first checkpoint, and its rows."""
    folder = tmp_path_factory.mktemp("resumable")
    dataset = write_jsonl(folder / "train.jsonl", corpus_rows(2))
    sft(tiny, dataset, folder / "out", max_steps=2, save_steps=1)
    return folder / "out" / "checkpoint-1", dataset


@pytest.fixture
def resume(
    resumable: tuple[Path, Path], tiny: Path, tmp_path: Path
) -> tuple[Path, Callable[[], None]]:
    """A copy of that checkpoint, and a function that goes on from it: the stranger knows how to
    seal it."""
    from plugins.files.checkpoints import MARKER
    from plugins.training.saves import seal

    checkpoint = tmp_path / "out" / "checkpoint-1"
    shutil.copytree(resumable[0], checkpoint)

    def go_on() -> None:
        (checkpoint / MARKER).unlink()
        seal(checkpoint, resumable=True)
        sft(
            tiny,
            resumable[1],
            tmp_path / "out",
            max_steps=2,
            save_steps=1,
            resume_from_checkpoint=checkpoint,
        )

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


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"]
)
def test_pickles_of_a_resumed_checkpoint_are_refused(
    name: str, resume: Any, marker: Path, plant: Any
) -> None:
    checkpoint, go_on = resume
    plant(checkpoint / name)
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        go_on()
    assert not marker.exists()


@pytest.mark.parametrize("name", ["training_args.bin", "pytorch_model.bin", "optimizer.bin"])
def test_pickles_that_nobody_needs_are_not_read(
    name: str, resume: Any, marker: Path, plant: Any
) -> None:
    """`training_args.bin`, which transformers writes, can only be read as a pickle."""
    checkpoint, go_on = resume
    plant(checkpoint / name)
    go_on()
    assert not marker.exists()
