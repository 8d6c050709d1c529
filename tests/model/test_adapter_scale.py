"""LoRA weights at another strength: what is added is scaled, whatever kind of LoRA adds it, beside
the base and merged into it; what is no sum is refused or left."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.cli import _parser, main
from plugins.commands import speak_list
from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.model import load as checkpoint
from plugins.model.load import bare, load_model
from plugins.speaking.sampling import Sampling

TARGETS = ["q_proj", "audio_mlp.down_proj"]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
CODES = "model.embed_audio_tokens.embed_audio_tokens.weight"


def adapter(tiny: Path, folder: Path, seed: int = 0, **options: Any) -> str:
    """A LoRA folder with weights that matter."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        **{"r": 4, "target_modules": TARGETS, "init_lora_weights": False, **options}
    )
    tuned = get_peft_model(checkpoint.native_model(str(tiny)), config)
    tuned.peft_config["default"].base_model_name_or_path = str(tiny)
    if config.modules_to_save:
        with torch.no_grad():
            tuned.get_base_model().audio_lm_head.modules_to_save["default"].weight.add_(0.1)
    tuned.save_pretrained(folder)
    return str(folder)


def merged(folder: str, scale: float) -> dict[str, torch.Tensor]:
    model, _ = load_model(folder, adapter_scale=scale, device="cpu")
    weights: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return weights


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        (Q_PROJ, {}),
        (Q_PROJ, {"use_rslora": True, "lora_alpha": 16}),
        (Q_PROJ, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}}),
        (CODES, {"target_modules": ["embed_audio_tokens.embed_audio_tokens"]}),
        ("audio_lm_head.weight", {"target_modules": ["audio_lm_head"]}),
    ],
    ids=["lora", "rslora", "patterns", "embedding", "head"],
)
def test_half_of_it_is_the_base_and_half_the_difference(
    tiny: Path, tmp_path: Path, changed: str, options: dict[str, Any]
) -> None:
    folder = adapter(tiny, tmp_path / "lora", **options)
    base = load_model(str(tiny), device="cpu")[0].state_dict()
    none, half, whole, twice = (merged(folder, scale) for scale in (0, 0.5, 1, 2))
    for name, weight in base.items():
        assert torch.equal(none[name], weight), f"{name}: 0 is the base, to the bit"
        difference = whole[name] - weight
        assert torch.allclose(half[name], weight + difference / 2, atol=1e-6), name
        assert torch.allclose(twice[name], weight + difference * 2, atol=1e-6), name
    assert not torch.equal(whole[changed], base[changed])
    unscaled = bare(load_model(folder, device="cpu")[0])
    scaled = bare(load_model(folder, adapter_scale=1.0, device="cpu")[0])
    for first, second in zip(unscaled.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(first, second)


def test_speech_of_several_adapters_beside_the_base_and_merged(tiny: Path, tmp_path: Path) -> None:
    """The one that is not active when they are loaded is scaled as well. Names may be as short as
    these, which stand in every key of peft."""
    short: dict[str, Any] = {"sampling": Sampling(temperature=0), "max_audio_s": 0.4}
    names = ("a", "b")
    folders = {name: adapter(tiny, tmp_path / name, seed) for seed, name in enumerate(names)}

    def said(generator: HiggsAudioGenerator, name: str | None) -> torch.Tensor:
        generator.use_adapter(name)
        return generator.generate("Hello.", **short).codes

    codes = {}
    for scale in (0, 0.5, 1):
        generator = HiggsAudioGenerator.from_pretrained(
            str(tiny), adapters=folders, adapter_scale=scale
        )
        for name in ("b", "a", None, "b"):
            codes[scale, name] = said(generator, name)
        for name, folder in folders.items():
            alone = HiggsAudioGenerator.from_pretrained(folder, adapter_scale=scale)
            assert torch.equal(alone.generate("Hello.", **short).codes, codes[scale, name])
            alone.merge_adapter()
            assert alone.adapters == ()
            assert torch.equal(alone.generate("Hello.", **short).codes, codes[scale, name])
    for name in names:
        assert torch.equal(codes[0, name], codes[0, None]), "0 is the base"
        assert not torch.equal(codes[0.5, name], codes[0, name])
        assert not torch.equal(codes[0.5, name], codes[1, name])


def test_ranks_that_were_cut_are_scaled_too(tiny: Path, tmp_path: Path) -> None:
    """AdaLoRA's own rule of scaling is not that of peft's `set_scale`."""
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(
        target_modules=TARGETS, total_step=10, lora_alpha=8, init_r=4, target_r=2
    )
    tuned = get_peft_model(checkpoint.native_model(str(tiny)), config)
    tuned.peft_config["default"].base_model_name_or_path = str(tiny)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name and weight.requires_grad:
                weight.normal_()
    tuned.save_pretrained(tmp_path)
    base = load_model(str(tiny), device="cpu")[0].state_dict()[Q_PROJ]
    half, whole = merged(str(tmp_path), 0.5)[Q_PROJ], merged(str(tmp_path), 1)[Q_PROJ]
    assert not torch.equal(whole, base)
    assert torch.allclose(half, base + (whole - base) / 2, atol=1e-5)


def test_modules_that_were_trained_whole_stay(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = adapter(tiny, tmp_path, modules_to_save=["audio_lm_head"])
    with caplog.at_level(logging.WARNING):
        none = merged(folder, 0)
    (line,) = [record.getMessage() for record in caplog.records if "adapter_scale" in record.msg]
    assert line.endswith("trained whole, so as trained and not scaled: audio_lm_head")
    base = load_model(str(tiny), device="cpu")[0].state_dict()
    assert torch.equal(none[Q_PROJ], base[Q_PROJ])
    assert torch.equal(none["audio_lm_head.weight"], base["audio_lm_head.weight"] + 0.1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "is not available for DoRA"),
        ({"init_lora_weights": "pissa"}, r"began as a part of the base \(pissa\)"),
        ({"init_lora_weights": "olora"}, r"began as a part of the base \(olora\)"),
    ],
)
def test_what_is_no_sum_is_refused(
    tiny: Path, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    folder = adapter(tiny, tmp_path, **options)
    with pytest.raises(UserError, match=f"request: adapter_scale: 0.5 .*{reason}"):
        load_model(folder, adapter_scale=0.5, device="cpu")
    load_model(folder, device="cpu")


def test_another_kind_is_refused(tiny: Path, tmp_path: Path) -> None:
    from peft import FourierFTConfig, get_peft_model

    config = FourierFTConfig(target_modules=["q_proj"], n_frequency=4)
    tuned = get_peft_model(checkpoint.native_model(str(tiny)), config)
    tuned.peft_config["default"].base_model_name_or_path = str(tiny)
    tuned.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is for LoRA weights, and these are of kind FOURIERFT"):
        load_model(str(tmp_path), adapter_scale=0.5, device="cpu")


@pytest.mark.parametrize("value", ["-0.1", "nan", "inf", "4.01", "-inf", "1e9"])
@pytest.mark.parametrize(
    "command",
    [
        ["speak", "--text", "Hello."],
        ["app"],
        ["evaluate", "--dataset", "gone.jsonl", "--output", "out"],
    ],
    ids=["speak", "app", "evaluate"],
)
def test_a_factor_is_checked_before_anything_is_loaded(
    value: str, command: list[str], capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--model", "gone", f"--adapter_scale={value}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"request: adapter_scale: {float(value)!r} is no number from 0 to 4; give 1" in line
    assert list(tmp_path.iterdir()) == []


def test_a_list_spoken_at_another_strength_is_spoken_again(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "Hello."}\n')

    def key(*scale: str) -> str:
        flags = ["--model", "x", "--input", str(rows), "--output_dir", str(tmp_path / "out")]
        options = _parser().parse_args(["speak", *flags, *scale])
        (line,) = speak_list._read(rows, options, seed=None)
        return line.key

    assert key() == key("--adapter_scale", "1"), "lists that were begun before go on"
    assert len({key(), key("--adapter_scale", "0.5"), key("--adapter_scale", "0")}) == 3


def test_without_an_adapter_it_is_refused(tiny: Path, capsys: Any, tmp_path: Path) -> None:
    scaled = ["--model", str(tiny), "--adapter_scale", "0.5"]
    out = tmp_path / "out"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "Hello."}\n')
    listed = ["--input", str(rows), "--output_dir", str(out)]
    for command in (
        ["speak", "--text", "Hello.", "--output", str(out), *scaled],
        ["speak", *listed, *scaled],
        ["evaluate", "--dataset", str(rows), "--output", str(out), *scaled],
        ["evaluate", "--generated", "x", "--adapter_scale", "0.5",
         "--dataset", str(rows), "--output", str(out)],
    ):  # fmt: skip
        assert main(command) == 1
        errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert errors == [
            "error: request: adapter_scale: 0.5 has no LoRA weights to scale;"
            " give a LoRA folder, or leave it out"
        ], command
    with pytest.raises(UserError, match="adapter_scale: True is no number"):
        load_model(str(tiny), adapter_scale=True)
    with pytest.raises(UserError, match="adapter_scale: '1' is no number"):
        load_model(str(tiny), adapter_scale="1")  # type: ignore[arg-type]
