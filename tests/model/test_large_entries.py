"""Folders of models, codecs and adapters whose few bytes ask for too much, or hold what is none:
one line, at once, however they are changed."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.codecs import write_codec
from safetensors.torch import load_file, save_file

from plugins.audio.codec import Codec
from plugins.audio.original_codec import to_native
from plugins.errors import UserError
from plugins.files.untrusted import ADAPTER_CONFIG, check_adapter
from plugins.model.load import native_model, with_adapters
from plugins.model.original_format import load_config, load_tokenizer

MAX_S = 5  # a hundred million layers take hours; what is refused at once takes a hundredth


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < MAX_S


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def codec(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny / "audio_tokenizer", tmp_path / "codec"))


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=2, target_modules=["q_proj"])
    get_peft_model(native_model(str(tiny)), config).save_pretrained(folder)
    return folder


def edit(file: Path, **values: Any) -> None:
    """`part__name=value` changes an entry of a part."""
    fields = json.loads(file.read_text(encoding="utf-8"))
    for path, value in values.items():
        *parts, name = path.split("__")
        place = fields
        for part in parts:
            place = place[part]
        place[name] = value
    file.write_text(json.dumps(fields), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 10**8),
        ("num_hidden_layers", 10**30),
        ("num_labels", 10**8),
        ("hidden_size", 10**18),
        ("hidden_size", 10**12),
        ("vocab_size", 10**12),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 0),
        ("num_codebooks", 10**8),
        ("audio_encoder_config", {"encoder_layers": 10**8}),
        ("audio_encoder_config", []),
        ("rope_parameters", {"rope_type": []}),
        ("rope_parameters", {"rope_type": "longrope", "rope_theta": 1.0, "short_factor": [1]}),
        ("hidden_act", "nope"),
        ("pad_token_id", 10**9),
        ("rms_norm_eps", float("inf")),
        ("sub_configs", 1),
        ("dtype", 1.5),
    ],
)
def test_configs_of_models(name: str, value: Any, model: Path) -> None:
    edit(model / "config.json", **{name: value})
    with pytest.raises(UserError, match=rf"^{model}(/config\.json)?: ") as raised:
        native_model(str(model))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "",
        "[]",
        '{"max_new_tokens": -5}',
        '{"cache_implementation": "nope"}',
        '{"watermarking_config": 5}',
        '{"compile_config": 7}',
        '{"early_stopping": "x"}',
        '{"temperature": 1e400}',
        '{"a": ' + "[" * 900 + "]" * 900 + "}",
    ],
)
def test_damaged_generation_configs(content: str, model: Path) -> None:
    (model / "generation_config.json").write_text(content)
    for read in (lambda: load_config(model), lambda: native_model(str(model))):
        with pytest.raises(UserError, match=r"generation_config\.json: .*; download the file ag"):
            read()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_bandwidths", [1e300]),
        ("target_bandwidths", [1e6]),
        ("target_bandwidths", [float("nan")]),
        ("target_bandwidths", []),
        ("sample_rate", 0),
        ("semantic_sample_rate", 0),
        ("downsample_factor", 0),
        ("codebook_size", 10**12),
        ("codebook_size", 1),
        ("codebook_dim", 10**9),
        ("kernel_size", 10**9),
        ("block_dilations", [1] * 100_000),
        ("acoustic_model_config__n_codebooks", 10**8),
        ("acoustic_model_config__hidden_size", 10**7),
        ("acoustic_model_config__downsampling_ratios", [0]),
        ("semantic_model_config__num_hidden_layers", 10**8),
        ("semantic_model_config__num_conv_pos_embeddings", 10**9),
    ],
)
def test_configs_of_codecs(name: str, value: Any, codec: Path) -> None:
    edit(codec / "config.json", **{name: value})
    with pytest.raises(UserError) as raised:
        _ = Codec(str(codec)).model
    assert str(codec) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_q", 10**8),
        ("target_bandwidths", [1e300]),
        ("target_bandwidths", [float("inf")]),
        ("ratios", [1] * 100_000),
        ("bins", 10**18),
        ("D", 10**12),
        ("codebook_dim", 10**12),
        ("sample_rate", 10**15),
    ],
)
def test_configs_of_original_codecs(name: str, value: Any, tmp_path: Path) -> None:
    folder = tmp_path / "codec"
    write_codec(folder, **{name: value})
    with pytest.raises(UserError, match=rf"^{folder}"):
        to_native(folder)


def test_a_layer_whose_number_is_huge(tmp_path: Path) -> None:
    name = "semantic_model.encoder.layers.99999999.feed_forward.intermediate_dense.bias"
    write_codec(tmp_path / "codec", edit=lambda weights: weights.update({name: torch.zeros(1)}))
    with pytest.raises(UserError, match="weights"):
        to_native(tmp_path / "codec")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_codec_that_are_no_numbers(value: float, codec: Path) -> None:
    """All of its speech would be NaN, found out when it is saved."""
    weights = load_file(codec / "model.safetensors")
    weights["fc1.bias"][3] = value
    save_file(weights, codec / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"holds NaN or infinite fc1\.bias; download the codec ag"):
        _ = Codec(str(codec)).model


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_modules", "(.*a+)+$"),
        ("target_modules", "("),
        ("exclude_modules", ".*.*.*.*.*.*x"),
        ("rank_pattern", {"(a+)+": 2}),
        ("alpha_pattern", {"(a|a)*": 2}),
        ("modules_to_save", ["(.*a+)+$"]),
        ("layers_pattern", ["(.*a+)+$"]),
        ("r", 10**8),
        ("r", 1e300),
        ("rank_pattern", {"q_proj": 10**8}),
        ("layer_replication", [[0, 1]] * 1000),
        ("lora_alpha", float("nan")),
        ("target_modules", ["x"] * 10_001),
    ],
)
def test_configs_of_adapters(name: str, value: Any, adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    edit(folder / ADAPTER_CONFIG, **{name: value})
    with pytest.raises(UserError, match=rf"^{folder}/adapter_config\.json: {name}"):
        check_adapter(folder)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tokenizer.json", lambda content: content[:-5]),
        ("tokenizer.json", lambda content: content[: len(content) // 3]),
        ("tokenizer.json", lambda content: b""),
        ("tokenizer.json", lambda content: b"\xff\xfe"),
        ("tokenizer.json", lambda content: b"[" * 200_000),
        ("tokenizer_config.json", lambda content: content[:50]),
        ("tokenizer_config.json", lambda content: b'{"model_max_length": "x"}'),
        ("tokenizer_config.json", lambda content: b'{"eos_token": 5}'),
        ("tokenizer_config.json", lambda content: b'{"added_tokens_decoder": []}'),
        ("tokenizer_config.json", lambda content: b'{"padding_side": "x"}'),
    ],
)
def test_damaged_tokenizers(name: str, damage: Callable[[bytes], bytes], model: Path) -> None:
    (model / name).write_bytes(damage((model / name).read_bytes()))
    with pytest.raises(UserError, match=r"tokenizer: 'tokenizer\*' cannot be loaded .*; put the"):
        load_tokenizer(model)


# Whatever is written there.

VALUES = [
    None, True, -1, 0, 3, 10**8, 10**30, 1.5, 1e300, float("nan"), "", "x", "(a+)+$", [], [0], [[]],
    ["x"] * 3, [10**9], {}, {"x": 1}, {"a": {"b": [None]}},
]  # fmt: skip


def places(fields: Any) -> list[tuple[Any, Any]]:
    """Every object of `fields` with each of its names."""
    found: list[tuple[Any, Any]] = []
    if isinstance(fields, dict):
        for name, value in fields.items():
            found += [(fields, name), *places(value)]
    return found


def fuzz(file: Path, read: Callable[[], Any], *, rounds: int, seed: int) -> None:
    """One entry at a time, each anything: read, or refused in a line of ours."""
    draw = random.Random(seed)
    original = json.loads(file.read_text(encoding="utf-8"))
    for _ in range(rounds):
        fields = copy.deepcopy(original)
        place, name = draw.choice(places(fields))
        place[name] = draw.choice(VALUES)
        file.write_text(json.dumps(fields), encoding="utf-8")
        with contextlib.suppress(UserError):
            read()


def test_any_config_of_a_model(model: Path) -> None:
    fuzz(model / "config.json", lambda: native_model(str(model)), rounds=60, seed=1)


def test_any_generation_config(model: Path) -> None:
    fuzz(model / "generation_config.json", lambda: native_model(str(model)), rounds=25, seed=2)


def test_any_config_of_a_codec(codec: Path) -> None:
    silence = np.zeros(2000, np.float32)
    fuzz(codec / "config.json", lambda: Codec(str(codec)).encode(silence), rounds=12, seed=3)


def test_any_config_of_an_original_codec(tmp_path: Path) -> None:
    write_codec(tmp_path / "codec")
    fuzz(
        tmp_path / "codec" / "config.json", lambda: to_native(tmp_path / "codec"), rounds=8, seed=4
    )


def test_any_config_of_an_adapter(adapter: Path, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    base = native_model(str(tiny))

    def read() -> None:
        with_adapters(copy.deepcopy(base), {"a": str(folder)})

    fuzz(folder / ADAPTER_CONFIG, read, rounds=30, seed=5)


def test_any_tokenizer_config(model: Path) -> None:
    fuzz(model / "tokenizer_config.json", lambda: load_tokenizer(model), rounds=60, seed=6)
