"""Joined matrices: the same weights in one place, read at once while a model speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.speaking import GREEDY, decoded, dialogues, prompts
from peft import LoraConfig, get_peft_model

from plugins.inference import HiggsAudioGenerator
from plugins.model.joined import groups, join, joined
from plugins.model.load import bare, native_model
from plugins.speaking import step
from plugins.speaking.sampling import Sampling


@pytest.fixture
def generator(tiny: Path) -> HiggsAudioGenerator:
    return HiggsAudioGenerator.from_pretrained(str(tiny))


def all_joined(model: Any) -> list[bool]:
    flags = []
    for layer in model.model.layers:
        flags += [joined(modules) is not None for modules in groups(layer)]
    return flags


def test_weights_stay_what_they_are_and_lie_together(generator: HiggsAudioGenerator) -> None:
    model = generator.model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert not any(all_joined(model))
    join(model)
    assert all(all_joined(model))
    after = model.state_dict()
    assert before.keys() == after.keys()
    for name, weight in after.items():
        assert torch.equal(weight, before[name]), name
    for modules in groups(model.model.layers[0]):
        whole = joined(modules)
        assert whole is not None
        assert torch.equal(whole, torch.cat([module.weight for module in modules]))
        assert whole.untyped_storage().nbytes() == whole.nbytes, "no copy beside it"


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=7)])
def test_the_speech_is_the_same_with_fewer_matrices(
    generator: HiggsAudioGenerator, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32; in half precision sums may round otherwise, as any two kernels do."""
    calls: list[str] = []
    real = torch.nn.functional.linear

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append("")
        return real(*args, **kwargs)

    prompts(generator, dialogues(generator))  # the references are encoded once
    said, counts = [], []
    for _ in range(2):
        with monkeypatch.context() as patched:
            calls.clear()
            patched.setattr(step.F, "linear", counted)
            said.append(decoded(generator, dialogues(generator), 30, sampling))
        counts.append(len(calls))
        join(generator.model)
    for separate, together in zip(*said, strict=True):
        assert torch.equal(separate, together)
    # Three matrices become one, two become one, in each of 29 steps.
    assert counts[0] - counts[1] == 29 * generator.model.config.num_hidden_layers * 3


def test_what_moves_is_parted_and_speaks_on(generator: HiggsAudioGenerator) -> None:
    (before,) = decoded(generator, dialogues(generator, 0), 20)
    join(generator.model)
    generator.model.double().float()
    assert not any(all_joined(generator.model))
    (after,) = decoded(generator, dialogues(generator, 0), 20)
    assert torch.equal(before, after)
    join(generator.model)
    with torch.no_grad():
        generator.model.model.layers[0].self_attn.k_proj.weight.zero_()
    whole = joined(groups(generator.model.model.layers[0])[0])
    assert whole is not None
    num_keys = generator.model.model.layers[0].self_attn.k_proj.out_features
    assert (whole == 0).all(dim=1).sum() == num_keys, "a change of one is seen by both"


def test_it_is_saved_as_before(generator: HiggsAudioGenerator, tiny: Path, tmp_path: Path) -> None:
    model = native_model(str(tiny))
    join(model)
    model.save_pretrained(tmp_path)
    again = native_model(str(tmp_path))
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_layers_with_adapters_stay_apart(generator: HiggsAudioGenerator) -> None:
    config = LoraConfig(r=4, target_modules=["k_proj"], init_lora_weights=False)
    tuned = get_peft_model(generator.model, config)
    join(bare(tuned))
    num_layers = generator.model.config.num_hidden_layers
    assert all_joined(bare(tuned)) == [False, True] * num_layers
    assert len(decoded(generator, dialogues(generator, 0), 20)[0]) == 20
