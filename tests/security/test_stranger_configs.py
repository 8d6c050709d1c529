"""Configs of a checkpoint, a codec, a tokenizer or an adapter that name code, kernels or other
repositories: nothing of it is run or fetched."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from helpers.security import KERNEL, TYPE, adapter_folder, hostile_code, rewrite
from peft import PeftConfig, PeftModel
from swift.model import MODEL_MAPPING, get_model_processor
from swift.tuners import Swift
from transformers import HiggsAudioV2Config, HiggsAudioV2TokenizerConfig

from plugins.audio.codec import Codec, find_codec
from plugins.errors import UserError
from plugins.files.hub import MODELS_3B, local_folder
from plugins.model.load import base_and_adapters, load_model, native_model, with_adapters
from plugins.model.original_format import load_config
from plugins.register import register_higgs_audio_all
from plugins.settings import SETTINGS_FILE, HiggsAudioSettings


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    register_higgs_audio_all()


# --- code beside weights ---


@pytest.mark.parametrize("model_type", ["higgs_audio", "higgs_audio_v2", "hostile", None])
def test_code_that_a_config_names_is_not_run(
    model_type: str | None, tiny: Path, tmp_path: Path, marker: Path
) -> None:
    """MS-SWIFT reads config.json with trust_remote_code=True; a type that transformers knows has a
    class of its own, any other one would run the file."""
    folder = tmp_path / "hostile"
    shutil.copytree(tiny, folder)
    hostile_code(folder, marker)
    names = {"AutoConfig": "hostile.Config", "AutoModel": "hostile.Model"}
    names["AutoTokenizer"] = "hostile.Tokenizer"
    rewrite(folder / "config.json", auto_map=names, model_type=model_type)
    with contextlib.suppress(Exception, SystemExit):
        get_model_processor(str(folder), model_type=TYPE, torch_dtype=torch.float32)
    assert not marker.exists()


@pytest.mark.parametrize("tokenizer_class", ["HostileTokenizer", "PreTrainedTokenizerFast"])
def test_code_that_a_tokenizer_names_is_not_run(
    tokenizer_class: str, tiny: Path, tmp_path: Path, marker: Path
) -> None:
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
        load_model(str(folder))
    assert not marker.exists()


# --- entries of config.json ---


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
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    load_config(folder)
    # transformers takes this one instead, where `configuration_files` names it.
    shutil.copy(folder / "config.json", folder / "config.4.0.0.json")
    rewrite(folder / "config.4.0.0.json", attn_implementation=KERNEL)
    rewrite(folder / "config.json", **entries)
    taken = HiggsAudioV2Config.from_pretrained(folder)
    names_kernel = str(taken._attn_implementation).endswith(KERNEL)
    keeps_entry = getattr(taken, field, None) == entries[field]
    assert names_kernel or keeps_entry, "the proof of concept is none"
    refused = rf"config\.json: {field}: .*; remove the entry if you trust the rest"
    for read in (
        lambda: load_config(folder),
        lambda: native_model(str(folder)),
        lambda: get_model_processor(str(folder), model_type=TYPE, torch_dtype=torch.float32),
    ):
        with pytest.raises(UserError, match=refused):
            read()
    assert attempts == []


def test_attention_that_transformers_ships_may_be_named(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "config.json", tmp_path)
    rewrite(tmp_path / "config.json", attn_implementation="eager", quantization_config=None)
    assert load_config(tmp_path)._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("entries", "part", "name", "field"),
    [
        (
            {"attn_implementation": {"semantic_model_config": KERNEL}},
            "semantic_model_config",
            "_attn_implementation",
            "attn_implementation",
        ),
        (
            {"acoustic_model_config": {"model_type": "timm_backbone"}},
            "acoustic_model_config",
            "model_type",
            r"acoustic_model_config\.model_type",
        ),
    ],
)
def test_the_parts_of_a_codec_fetch_nothing(
    entries: dict[str, Any], part: str, name: str, field: str, tiny: Path, tmp_path: Path
) -> None:
    """transformers builds whichever model they name; timm's downloads its weights
    (`use_pretrained_backbone`)."""
    folder = Path(shutil.copytree(tiny / "audio_tokenizer", tmp_path / "codec"))
    rewrite(folder / "config.json", **entries)
    config = HiggsAudioV2TokenizerConfig.from_pretrained(folder)
    taken = getattr(getattr(config, part), name)
    assert taken in (KERNEL, "timm_backbone"), "the proof of concept is none"
    with pytest.raises(UserError, match=rf"config\.json: {field}: '{taken}' is "):
        _ = Codec(str(folder)).model


# --- adapters ---


def test_modules_that_an_adapter_names_are_not_imported(
    tiny: Path, tmp_path: Path, marker: Path
) -> None:
    """peft imports `megatron_core` by name; a folder below the working folder is a package."""
    folder = adapter_folder(tmp_path / "adapter")
    # Without `raise SystemExit`, which would end this test as well.
    (folder / "hostile.py").write_text(f"open({str(marker)!r}, 'w')\n", encoding="utf-8")
    hostile = {"megatron_config": {"hidden_size": 1}, "megatron_core": "adapter.hostile"}
    hostile["auto_mapping"] = {"parent_library": "adapter.hostile", "base_model_class": "Model"}
    rewrite(folder / "adapter_config.json", **hostile)
    with (
        contextlib.suppress(Exception),
        contextlib.chdir(tmp_path),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.syspath_prepend(str(tmp_path))
        PeftModel.from_pretrained(native_model(str(tiny)), str(folder))
    assert not marker.exists()


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
    folder = adapter_folder(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").touch()
    named = folder
    if below:  # MS-SWIFT loads every adapter that lies in the folder
        named = adapter_folder(folder / "second")
    rewrite(named / "adapter_config.json", **entries)
    if "peft_type" in entries:
        config = PeftConfig.from_pretrained(str(named))
        assert config.peft_type == entries["peft_type"], "peft takes it no more"
    model = native_model(str(tiny))
    # By it our patch of MS-SWIFT knows a model of ours.
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
    asked: list[tuple[str, bool]] = []

    def snapshot_download(name: str, local_files_only: bool = False) -> str:
        asked.append((name, local_files_only))
        raise huggingface_hub.errors.LocalEntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    folder = adapter_folder(tmp_path / "adapter")
    rewrite(folder / "adapter_config.json", base_model_name_or_path="evil/base")
    codec = {"audio_tokenizer_name_or_path": "evil/codec"}
    rewrite(folder / "processor_config.json", audio_tokenizer=codec)
    rewrite(folder / SETTINGS_FILE, codec="evil/other")
    refused = "is what the checkpoint names.*give it yourself with"
    with pytest.raises(UserError, match=rf"model: 'evil/base' {refused} --mod"):
        base_and_adapters(str(folder))
    settings = HiggsAudioSettings.of_checkpoint(folder, {})
    for name in (find_codec([str(folder)]), find_codec([], settings.codec)):
        with pytest.raises(UserError, match=rf"codec: 'evil/\w+' {refused} --codec"):
            _ = Codec(name).model
    # Only the cache of the Hub (`local_files_only`).
    assert asked == [("evil/base", True), ("evil/codec", True), ("evil/other", True)]
    asked.clear()
    # A published base is fetched, and so is what the user types.
    rewrite(folder / "adapter_config.json", base_model_name_or_path=MODELS_3B[0])
    for read in (lambda: base_and_adapters(str(folder)), lambda: local_folder("evil/base")):
        with pytest.raises(UserError, match="is neither a folder nor a Hub id that can be"):
            read()
    assert asked == [(MODELS_3B[0], False), ("evil/base", False)]
