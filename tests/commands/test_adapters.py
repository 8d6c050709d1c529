"""What the generator loads: LoRA folders that are switched, linked and refused, and quantized
weights."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from plugins import load_model
from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling

SHORT: dict[str, Any] = {"sampling": Sampling(temperature=0), "max_audio_s": 0.4}


@pytest.fixture(scope="module")
def loras(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two LoRA folders with weights that matter."""
    from peft import LoraConfig, get_peft_model

    from plugins.model import load as checkpoint

    folders = {}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=4, target_modules=["q_proj", "audio_mlp.down_proj"], init_lora_weights=False
        )
        tuned = get_peft_model(checkpoint.native_model(str(tiny)), config)
        tuned.peft_config["default"].base_model_name_or_path = str(tiny)
        folders[name] = str(tmp_path_factory.mktemp(name))
        tuned.save_pretrained(folders[name])
    return folders


def test_adapters_are_switched_without_loading_the_base_again(
    tiny: Path, loras: dict[str, str]
) -> None:
    generator = HiggsAudioGenerator.from_pretrained(str(tiny), adapters=loras)
    assert generator.adapters == ("first", "second")

    def said(name: str | None) -> torch.Tensor:
        generator.use_adapter(name)
        return generator.generate("Hello.", **SHORT).codes

    for name in ("first", "second"):
        alone = HiggsAudioGenerator.from_pretrained(loras[name])  # names its base
        assert alone.adapters == ("default",)
        assert torch.equal(said(name), alone.generate("Hello.", **SHORT).codes)
    base = HiggsAudioGenerator.from_pretrained(str(tiny))
    assert base.adapters == ()
    assert torch.equal(said(None), base.generate("Hello.", **SHORT).codes)
    assert not torch.equal(said("first"), said("second"))
    assert not torch.equal(said("first"), said(None))
    with pytest.raises(UserError, match="adapter: 'frist' is not loaded; did you mean 'first'"):
        generator.use_adapter("frist")


def test_the_only_adapter_is_merged_where_nothing_is_lost(
    tiny: Path, loras: dict[str, str]
) -> None:
    """In float32 the codes stay. In bfloat16 a change of a thousandth of a weight is none."""
    generator = HiggsAudioGenerator.from_pretrained(loras["first"])
    beside = generator.generate("Hello.", **SHORT).codes
    generator.merge_adapter()
    assert generator.adapters == ()
    projection = generator.model.model.layers[0].self_attn.q_proj
    assert type(projection) is torch.nn.Linear
    assert torch.equal(generator.generate("Hello.", **SHORT).codes, beside)

    weight = torch.rand(100).bfloat16() + 0.5
    assert torch.equal(weight + (weight.float() / 1000).bfloat16(), weight)
    half = HiggsAudioGenerator.from_pretrained(loras["first"], dtype=torch.bfloat16)
    several = HiggsAudioGenerator.from_pretrained(str(tiny), adapters=loras)
    for unmerged in (half, several):
        names = unmerged.adapters
        unmerged.merge_adapter()
        assert unmerged.adapters == names


def test_load_model_gives_what_the_generator_takes(
    tiny: Path, loras: dict[str, str], tmp_path: Path
) -> None:
    model, tokenizer = load_model(
        str(tiny), model_type="higgs-audio-v2-3b", adapters=loras["first"], attn_impl="eager"
    )
    speech = HiggsAudioGenerator(model, tokenizer).generate("Hello.", **SHORT)
    (tmp_path / "best").symlink_to(loras["first"])  # MS-SWIFT's `create_checkpoint_symlink`
    linked = HiggsAudioGenerator.from_pretrained(str(tmp_path / "best"))
    assert torch.equal(linked.generate("Hello.", **SHORT).codes, speech.codes)
    assert load_model(str(tiny), dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    with pytest.raises(
        UserError,
        match="model_type: 'higgs' is unknown; use one of higgs-audio-v2-3b, higgs-audio-v2-7b",
    ):
        load_model(str(tiny), model_type="higgs")
    with pytest.raises(UserError, match=r"adapters: 'adapter_config\.json' not found"):
        load_model(str(tiny), adapters=str(tmp_path))


def test_adapters_of_another_model_are_refused(
    tiny: Path, loras: dict[str, str], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(loras["first"], broken)
    file = broken / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file({key: value for key, value in weights.items() if key != name}, file)
    with pytest.raises(UserError, match=r"weights: .* does not belong to both \(1 such weights\)"):
        load_model(str(tiny), adapters=str(broken))


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="bitsandbytes 0.50 crashes on this machine's CPU"
)
def test_quantized_weights_speak(tiny: Path) -> None:
    model, tokenizer = load_model(str(tiny), quantization="4bit")
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
    assert type(model.audio_lm_head).__name__ == "Linear"
    assert HiggsAudioGenerator(model, tokenizer).generate("Hello.", **SHORT).codes.shape == (8, 10)


def test_quantization_keeps_the_audio_head_and_names_its_package(
    tiny: Path, monkeypatch: Any
) -> None:
    from plugins.model.load import _quantization

    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    config = _quantization("4bit", torch.bfloat16)
    assert (config.load_in_4bit, config.llm_int8_skip_modules) == (True, ["audio_lm_head"])
    assert _quantization("8bit", torch.bfloat16).load_in_8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        UserError, match=r"quantization: '4bit' needs bitsandbytes; pip install .*\[quantization\]"
    ):
        load_model(str(tiny), quantization="4bit")
