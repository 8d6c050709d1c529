"""Registration with MS-SWIFT: idempotent, no traps on sys.path, other models untouched, and options
that our trainer refuses."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT

from plugins.errors import UserError
from plugins.register import register_higgs_audio_all

REGISTER = str(ROOT / "plugins" / "register.py")


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    register_higgs_audio_all()
    register_higgs_audio_all()  # idempotent


def test_both_types_are_in_the_registry() -> None:
    from swift.model import MODEL_MAPPING
    from swift.model.model_meta import get_matched_model_meta, get_matched_model_types

    assert {"higgs-audio-v2-3b", "higgs-audio-v2-7b"} <= MODEL_MAPPING.keys()
    for name in ("bosonai/higgs-audio-v2-generation-3B-base", "bosonai/higgs-tts-2-3b-base"):
        meta = get_matched_model_meta(name)
        assert meta is not None
        assert meta.model_type == "higgs-audio-v2-3b"
    assert get_matched_model_types(["HiggsAudioV2ForConditionalGeneration"]) == [
        "higgs-audio-v2-3b"
    ]


def test_the_plugin_file_leaves_no_shadow_on_sys_path() -> None:
    """MS-SWIFT puts plugins/ first on sys.path: `import audio` or `import loss` elsewhere would
    then find ours."""
    from swift.utils import import_external_file

    before = list(sys.path)
    for name in list(sys.modules):
        if name.startswith("_swift_external"):
            del sys.modules[name]  # so that it is imported anew
    try:
        import_external_file(REGISTER)
        assert str(ROOT / "plugins") not in sys.path
        assert str(ROOT) in sys.path
    finally:
        sys.path[:] = before


def test_our_columns_survive_ms_swifts_preprocessing() -> None:
    from datasets import Dataset
    from swift.dataset import RowPreprocessor

    row = {
        "messages": [{"role": "user", "content": "x"}],
        "reference_audio": ["a.wav"],
        "row_source": "t.jsonl:1",
    }
    kept = RowPreprocessor.remove_useless_columns(Dataset.from_list([{**row, "nonsense": 1}]))
    assert set(kept.column_names) == set(row)


def test_other_models_get_ms_swifts_own_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    from swift.rlhf_trainers import DPOTrainer
    from swift.trainers import Seq2SeqTrainer

    from plugins.preference_trainer import HiggsAudioPreferenceTrainer
    from plugins.trainer import HiggsAudioTrainer

    monkeypatch.setattr(Seq2SeqTrainer, "__init__", lambda self, **kwargs: None)
    monkeypatch.setattr(DPOTrainer, "__init__", lambda self, **kwargs: None)
    trainer: Any = HiggsAudioTrainer(model=None, args=None, template=object())
    assert type(trainer) is Seq2SeqTrainer
    trainer = HiggsAudioPreferenceTrainer(model=None, args=None, template=object(), ref_model=None)
    assert type(trainer) is DPOTrainer
    ours = SimpleNamespace(model_meta=SimpleNamespace(template="higgs_audio_v2"))
    with pytest.raises(UserError, match="template: 'object' is no template for this model"):
        HiggsAudioTrainer(model=ours, args=None, template=object())


@pytest.mark.parametrize(
    ("option", "changes"),
    [
        ("loss_scale", {"template": {"_loss_scale": "last_round"}}),
        ("sequence_parallel_size", {"template": {"sequence_parallel_size": 2}}),
        ("truncation_strategy", {"template": {"truncation_strategy": "left"}}),
        ("enable_dft_loss", {"args": {"enable_dft_loss": True}}),
        ("enable_channel_loss", {"args": {"enable_channel_loss": True}}),
        ("loss_type", {"args": {"loss_type": "mse"}}),
        ("label_smoothing_factor", {"args": {"label_smoothing_factor": 0.1}}),
        ("predict_with_generate", {"args": {"predict_with_generate": True}}),
        ("average_tokens_across_devices", {"args": {"average_tokens_across_devices": False}}),
        ("optimizer", {"args": {"optimizer": "muon"}}),
        ("deepspeed", {"args": {"deepspeed": {"optimizer": {"type": "AdamW"}}}}),
    ],
)
def test_options_that_would_change_the_loss_in_silence_are_refused(
    option: str, changes: dict[str, Any]
) -> None:
    from plugins.training.options import refuse_unsupported

    template = {
        "_loss_scale": "default",
        "sequence_parallel_size": 1,
        "truncation_strategy": "raise",
        "compares": False,
    }
    args: dict[str, Any] = {
        "enable_dft_loss": False,
        "enable_channel_loss": False,
        "loss_type": None,
        "label_smoothing_factor": 0.0,
        "predict_with_generate": False,
        "average_tokens_across_devices": True,
        "optimizer": None,
        "deepspeed": None,
    }

    def check() -> None:
        refuse_unsupported(SimpleNamespace(**args), SimpleNamespace(**template))

    check()
    args |= changes.get("args", {})
    template |= changes.get("template", {})
    with pytest.raises(UserError, match=f"options: {option}: .*; leave it at its default"):
        check()


def test_parameter_groups_split_audio_from_the_rest(tiny: object) -> None:
    from plugins.model.load import native_model
    from plugins.training.optimizer import is_audio_parameter, parameter_groups

    model = native_model(str(tiny))
    decay = {name for name, _ in model.named_parameters() if "norm" not in name}
    groups = parameter_groups(
        model, decay_names=decay, learning_rate=1e-5, audio_learning_rate=1e-4, weight_decay=0.1
    )
    kinds = [(group["audio"], group["lr"], group["weight_decay"]) for group in groups]
    assert kinds == [(False, 1e-5, 0.1), (False, 1e-5, 0.0), (True, 1e-4, 0.1), (True, 1e-4, 0.0)]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert is_audio_parameter(
        "base_model.model.model.layers.0.audio_mlp.up_proj.lora_A.default.weight"
    )
    assert not is_audio_parameter(
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight"
    )
