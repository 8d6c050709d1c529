"""Wrong and damaged checkpoint folders: one line that names file, field, value and remedy; nothing
is left behind."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.codecs import ORIGINAL_CODEC
from safetensors.torch import load_file, save_file

from plugins.audio.codec import Codec, find_codec
from plugins.audio.original_codec import to_native
from plugins.cli import main
from plugins.errors import UserError
from plugins.files.disk import read_json
from plugins.model.convert import convert
from plugins.model.load import base_and_adapters, native_model
from plugins.settings import SETTINGS_FILE, HiggsAudioSettings

DAMAGED = {
    "cut": ('{"a": 1,', "is no JSON"),
    "empty": ("", "is no JSON"),
    "list": ("[]", "is no JSON object"),
    "bytes": (b"\xff\xfe{}", "is no JSON"),
}


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "original"))


@pytest.fixture
def codec(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny / "audio_tokenizer", tmp_path / "codec"))


def write(file: Path, content: str | bytes) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    files = filter(Path.is_file, folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(capsys: pytest.CaptureFixture[str], source: Path, target: Path, *options: str) -> str:
    """The one line of `convert`, which leaves its surroundings as they were."""
    # Beside it too: unfinished folders are hidden there.
    before = contents(target.parent)
    capsys.readouterr()
    assert main(["convert", str(source), str(target), *options]) == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, lines
    assert lines[-1] == errors[0]
    assert contents(target.parent) == before
    return errors[0]


# JSON.


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", lambda folder: native_model(str(folder))),
        ("model.safetensors.index.json", lambda folder: native_model(str(folder))),
        (SETTINGS_FILE, HiggsAudioSettings.of_checkpoint),
        ("adapter_config.json", lambda folder: base_and_adapters(str(folder))),
        ("processor_config.json", lambda folder: find_codec([str(folder)])),
    ],
)
def test_a_damaged_json_file_is_named(
    checkpoint: Path, name: str, read: Callable[[Path], Any], damage: str
) -> None:
    content, said = DAMAGED[damage]
    write(checkpoint / name, content)
    with pytest.raises(UserError, match=said) as raised:
        read(checkpoint)
    assert str(raised.value).startswith(f"{checkpoint / name}: ")
    assert "\n" not in str(raised.value)


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"absent\.json' cannot be read \(No such file or directory\); mend it"
    ):
        read_json(tmp_path / "absent.json", "mend it")


@pytest.mark.parametrize(
    "content", ['{"other": 1}', '{"weight_map": []}', '{"weight_map": {"a": 1}}']
)
def test_an_index_without_weight_map_is_named(checkpoint: Path, content: str) -> None:
    write(checkpoint / "model.safetensors.index.json", content)
    with pytest.raises(
        UserError, match=r"index\.json: weight_map(: .*)? does not map weights to files; downl"
    ):
        native_model(str(checkpoint))


@pytest.mark.parametrize(
    "content", ["{}", '{"base_model_name_or_path": null}', '{"base_model_name_or_path": 3}']
)
def test_a_lora_folder_that_names_no_base_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path / "adapter_config.json", content)
    with pytest.raises(
        UserError, match=r"adapter_config\.json: base_model_name_or_path(: .*)? names no model; w"
    ):
        base_and_adapters(str(tmp_path))


def test_partial_settings_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    write(tmp_path / SETTINGS_FILE, '{"raw_prompt": true}')
    assert HiggsAudioSettings.of_checkpoint(tmp_path, {}) == HiggsAudioSettings(
        raw_prompt=True, clean_text=False
    )
    write(tmp_path / SETTINGS_FILE, '{"codec": "mine"}')
    assert HiggsAudioSettings.of_checkpoint(tmp_path, {}) == HiggsAudioSettings(
        codec="mine", clean_text=False
    )


@pytest.mark.parametrize("named", ['"audio_tokenizer"', "null", "[]", "{}"])
def test_a_processor_that_names_no_codec_leaves_the_published_one(
    tmp_path: Path, named: str
) -> None:
    assert find_codec([str(tmp_path)]) == find_codec([])
    write(tmp_path / "processor_config.json", f'{{"audio_tokenizer": {named}}}')
    assert find_codec([str(tmp_path)]) == find_codec([])


# Original configs.


@pytest.mark.parametrize(
    "name",
    [
        "text_config",
        "skip_audio_tower",
        "encode_audio_in_tokens",
        "audio_num_codebooks",
        "audio_codebook_size",
        "audio_stream_bos_id",
        "audio_out_token_idx",
        "pad_token_id",
        "audio_adapter_type",
        "audio_dual_ffn_layers",
        "audio_ffn_intermediate_size",
        "text_config.num_hidden_layers",
        "text_config.rope_theta",
        "text_config.intermediate_size",
        "text_config.rope_scaling.rope_type",
        "text_config.rope_scaling.original_max_position_embeddings",
    ],
)
def test_a_missing_field_of_an_original_config_is_named(checkpoint: Path, name: str) -> None:
    *parents, last = name.split(".")

    def drop(values: dict[str, Any]) -> None:
        for parent in parents:
            values = values[parent]
        del values[last]

    edit(checkpoint / "config.json", drop)
    with pytest.raises(
        UserError, match=rf"config\.json: {name} is missing; download the file again"
    ):
        native_model(str(checkpoint))


def test_the_older_name_of_the_rope_type_is_not_taken_for_it(checkpoint: Path) -> None:
    def rename(values: dict[str, Any]) -> None:
        rope = values["text_config"]["rope_scaling"]
        rope["type"] = rope.pop("rope_type")

    edit(checkpoint / "config.json", rename)
    with pytest.raises(UserError, match=r"text_config\.rope_scaling\.rope_type is missing"):
        native_model(str(checkpoint))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text_config": [1]}, r"text_config: \[1\] is no JSON object"),
        ({"audio_num_codebooks": "8"}, "content: .*num_codebooks.* is no config of this model"),
        ({"audio_codebook_size": None}, "content: .* is no config of this model"),
        (
            {"skip_audio_tower": False, "encode_whisper_embed": False},
            "encode_whisper_embed: False switches off the",
        ),
    ],
)
def test_a_wrong_field_of_an_original_config_is_named(
    checkpoint: Path, change: dict[str, Any], said: str
) -> None:
    edit(checkpoint / "config.json", lambda values: values.update(change))
    with pytest.raises(UserError, match=rf"config\.json: {said}") as raised:
        native_model(str(checkpoint))
    assert "\n" not in str(raised.value)


def test_a_wrong_field_of_a_native_config_is_named(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "config.json", tmp_path)
    edit(tmp_path / "config.json", lambda values: values.update(num_codebooks="8"))
    with pytest.raises(
        UserError, match=r"config\.json: content: .*num_codebooks.* is no config of this model"
    ):
        native_model(str(tmp_path))


# Codecs.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_q", "8"),
        ("n_q", 0),
        ("bins", 1),
        ("bins", 1024.0),
        ("sample_rate", None),
        ("D", True),
        ("codebook_dim", []),
        ("ratios", []),
        ("ratios", [8, "5"]),
        ("ratios", 8),
        ("target_bandwidths", "2"),
        ("target_bandwidths", [None]),
        ("semantic_sample_rate", "16000"),
    ],
)
def test_a_codec_field_of_the_wrong_type_is_named(tmp_path: Path, name: str, value: Any) -> None:
    folder = Path(shutil.copytree(ORIGINAL_CODEC, tmp_path / "codec"))
    edit(folder / "config.json", lambda values: values.update({name: value}))
    with pytest.raises(UserError, match=rf"config\.json: {name}(: .*)? is no (whole number|list)"):
        to_native(folder)


def zeros(key: str, size: int) -> Callable[[Path], None]:
    """Puts a vector of zeros under `key`."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights[key] = torch.zeros(size)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda old: old.update(values))


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (config(model_type="dac"), "is the folder of a plain DAC, not of a codec; give a codec"),
        (config(model_type="higgs_audio_v2"), "is the folder of the generation model, not of a"),
        (config(model_type="llama"), "is the folder of a model of type 'llama', not of a codec"),
        (config(codebook_size="many"), "is not a codec that can be loaded"),
        (cut, "is not a codec that can be loaded"),
        (zeros("fc1.bias", 3), r"holds fc1\.bias of shape \[3\], its"),
        (zeros("fc9.bias", 3), r"holds fc9\.bias, no key of the"),
    ],
    ids=["dac", "generation", "llama", "type", "cut", "shape", "unexpected"],
)
def test_a_wrong_native_codec_is_named(
    codec: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(codec)
    with pytest.raises(UserError, match=rf"^settings: codec: '{codec}' {said}") as raised:
        _ = Codec(str(codec)).model
    assert "\n" not in str(raised.value)


def test_the_mask_vector_of_a_native_codec_is_no_surplus_key(codec: Path) -> None:
    zeros("semantic_model.masked_spec_embed", 64)(codec)
    assert Codec(str(codec)).sample_rate_hz == 24_000


# convert.


def drop_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop_tokenizer, r"tokenizer: 'tokenizer\.json' not found; put the tokenizer's files"),
        (
            lambda folder: write(folder / "tokenizer.json", "{"),
            r"tokenizer: 'tokenizer\*' cannot be loaded \(",
        ),
        (
            lambda folder: write(folder / "config.json", "{"),
            r"config\.json: line: .* is no JSON; download the file",
        ),
        (config(model_type="llama"), r"model_type: 'llama' is no Higgs-Audio V2; give the folder"),
        (
            lambda folder: (folder / "config.json").unlink(),
            r"model_type is no Higgs-Audio V2",
        ),
        (
            lambda folder: write(folder / "adapter_config.json", "{}"),
            r"'adapter_config\.json' says that these are LoRA weights, .*; merge it first: swift",
        ),
    ],
    ids=["no tokenizer", "tokenizer", "config", "llama", "no config", "lora"],
)
def test_convert_refuses_a_wrong_source(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], Any], said: str
) -> None:
    damage(checkpoint)
    assert re.search(said, refused(capsys, checkpoint, checkpoint.parent / "new"))


def test_a_native_model_without_tokenizer_is_not_converted(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    drop_tokenizer(tmp_path / "model")
    assert "tokenizer: " in refused(
        capsys, tmp_path / "model", tmp_path / "new", "--to", "original"
    )


def test_convert_refuses_a_source_that_is_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for name in ("file", "link"):
        assert "source: " in (line := refused(capsys, tmp_path / name, tmp_path / "new"))
        assert "is no folder; give the folder that holds config.json" in line
    assert "is neither a folder nor a Hub id" in refused(
        capsys, tmp_path / "absent", tmp_path / "new"
    )


@pytest.mark.parametrize("is_codec", [False, True])
def test_convert_refuses_a_target_that_would_touch_something(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_codec: bool
) -> None:
    source = Path(shutil.copytree(ORIGINAL_CODEC, tmp_path / "codec")) if is_codec else checkpoint
    assert "lies in the source" in refused(capsys, source, source / "new")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    assert "exists already" in refused(capsys, source, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "file").touch()
    assert "cannot be created" in refused(capsys, source, tmp_path / "file" / "new")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_conversion_leaves_nothing_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "mine.txt").write_text("mine")
    before = contents(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        assert list(tmp_path.glob(".new.*.partial")), "it had begun"
        raise error

    monkeypatch.setattr("plugins.model.convert._write_weights", fail)
    with pytest.raises(error):
        convert(checkpoint, tmp_path / "new", to="native", show_progress=False)
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.partial", "original"]


def test_settings_travel_with_a_converted_model(checkpoint: Path, tmp_path: Path) -> None:
    HiggsAudioSettings(raw_prompt=True).save(checkpoint)
    before = contents(checkpoint)
    convert(checkpoint, tmp_path / "new", to="native", show_progress=False)
    assert HiggsAudioSettings.of_checkpoint(tmp_path / "new", {}).raw_prompt
    assert contents(checkpoint) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "original"]
