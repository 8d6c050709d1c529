"""What the tuner options name is trained, saved and found again; whatever cannot be is one line
before it is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import corpus_rows, write_jsonl
from helpers.sft import coded, flags, sft
from safetensors.torch import save_file

from plugins.errors import UserError
from plugins.model.load import bare, native_model, with_adapters
from plugins.training import tuning

CODES = "embed_audio_tokens.embed_audio_tokens"
SAVED = ["audio_lm_head", "embed_audio_tokens"]
WHOLE: dict[str, Any] = {"modules_to_save": SAVED, "save_steps": 1}
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    return write_jsonl(folder / "train.jsonl", coded(tiny, corpus_rows(2)))


def train(tiny: Path, rows: Path, output_dir: Path, **options: Any) -> Any:
    """The trained model of `swift sft`, after two steps."""
    from swift.pipelines import SwiftSft

    from plugins.register import register_higgs_audio_all

    register_higgs_audio_all()
    lora = {
        "tuner_type": "lora",
        "learning_rate": 1e-2,
        "lora_dropout": 0,
        "per_device_train_batch_size": 2,
    }
    pipeline = SwiftSft(flags(tiny, rows, output_dir, **{**lora, **options}))
    pipeline.main()
    return pipeline.model


def logits(model: Any) -> torch.Tensor:
    """(6, K C) of a fixed prompt with six frames."""
    native = bare(model).eval()
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(20, 200, (1, 12), generator=generator)
    input_ids[0, 6:] = native.config.audio_token_id
    frames = torch.randint(1024, (1, 6, native.config.num_codebooks), generator=generator)
    heard = torch.ones(1, 6, dtype=torch.bool)
    with torch.no_grad():
        states = native.model(
            input_ids=input_ids, audio_input_ids=frames, audio_input_ids_mask=heard
        )
        return native.audio_lm_head(states.last_hidden_state[0, 6:])


@pytest.fixture(scope="module")
def whole(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The model and the folder of a run that trains two modules whole, one under the name of the
    module around it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train(tiny, rows, folder, **WHOLE), folder


def check_loading(trained: Any, base: Any, checkpoint: Path) -> None:
    before = logits(base)
    assert (before - logits(trained)).abs().max() > 0.01
    assert torch.equal(logits(with_adapters(base, {"default": str(checkpoint)})), logits(trained))


def test_two_modules_are_trained_saved_and_loaded(whole: tuple[Any, Path], tiny: Path) -> None:
    trained, folder = whole
    base = native_model(str(tiny))
    for module in (f"model.{CODES}", "audio_lm_head"):
        after, before = (model.get_submodule(module) for model in (bare(trained), base))
        assert (after.weight - before.weight).abs().max() > 1e-3, module
    check_loading(trained, base, folder / "checkpoint-2")


def test_a_run_with_two_modules_whole_is_resumed(
    whole: tuple[Any, Path], tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """Another `modules_to_save` than that of the checkpoint would be ignored."""
    trained, folder = whole
    options = {**WHOLE, "resume_from_checkpoint": folder / "checkpoint-1"}
    assert torch.equal(logits(train(tiny, rows, tmp_path, **options)), logits(trained))
    with pytest.raises(
        UserError, match=r"modules_to_save: \['audio_lm_head'.*in the checkpoint, None now"
    ):
        train(tiny, rows, tmp_path, **{**options, "modules_to_save": None})


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "audio_ffn.up_proj", "embed_audio_tokens"]},
        pytest.param(
            {"use_dora": "true", "use_rslora": "true", "modules_to_save": ["layers.1"]}, marks=slow
        ),
        pytest.param({"init_weights": "pissa"}, marks=slow),
        pytest.param({"tuner_type": "boft", "modules_to_save": SAVED}, marks=slow),
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_is_trained_is_what_is_loaded(
    options: dict[str, Any], tiny: Path, rows: Path, tmp_path: Path
) -> None:
    trained = train(tiny, rows, tmp_path, **options)
    check_loading(trained, native_model(str(tiny)), tmp_path / "checkpoint-2")


# The nets below know no names: with their settling taken away they must catch the fault that it was
# written for.


@pytest.fixture
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_settle_modules", lambda args, model: None)


@pytest.mark.usefixtures("unsettled")
def test_an_adapter_that_would_not_be_found_again_is_refused(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """Of two modules of one name, one inside the other, peft saves one weight and looks for two."""
    with pytest.raises(
        UserError, match=rf"adapter: base_model.model.model.{CODES}.weight would not be found again"
    ):
        train(tiny, rows, tmp_path, modules_to_save=SAVED)
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.usefixtures("unsettled")
def test_a_weight_without_gradient_is_refused(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft trains a copy of the inner module that the outer one, copied before, never calls."""
    monkeypatch.setattr(tuning, "lost", lambda model: [])
    with pytest.raises(UserError) as refused:
        train(tiny, rows, tmp_path, modules_to_save=SAVED)
    name = f"base_model.model.model.{CODES}.modules_to_save.default.weight"
    assert f"trainable parameter: '{name}' has no gradient after the first step" in str(
        refused.value
    )
    assert f"(1 in all: {name}); leave it out of modules_to_save" in str(refused.value)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_an_adapter_file_without_a_trained_weight_is_refused(tmp_path: Path) -> None:
    save_file({"a.lora_A.weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    tuning.check_saved(tmp_path, {"a.lora_A.weight"})
    tuning.check_saved(tmp_path / "full", set())
    with pytest.raises(
        UserError,
        match=r"weights: 'a\.lora_B\.weight' was trained and is not in the file \(1 in all",
    ):
        tuning.check_saved(tmp_path, {"a.lora_A.weight", "a.lora_B.weight"})


@pytest.fixture(scope="module")
def base(tiny: Path) -> Any:
    """As MS-SWIFT gives it."""
    from swift.model import get_model_processor

    from plugins.register import register_higgs_audio_all

    register_higgs_audio_all()
    return get_model_processor(
        str(tiny), model_type="higgs-audio-v2-3b", torch_dtype=torch.float32
    )[0]


UNMATCHED = "matches no module; did you mean"
NO_ADAPTER = "makes no adapter of this model that could be loaded"
TRAINED = "trainable_parameters"
OF_LORA = [
    ({"modules_to_save": ["audio_embed"]}, f"modules_to_save: 'audio_embed' {UNMATCHED}"),
    ({"target_modules": ["q_proj", "audio_up"]}, f"target_modules: 'audio_up' {UNMATCHED}"),
    (
        {"target_modules": ["all-linear", "audio_lm_head"]},
        r"\['audio_lm_head'\] are ignored beside all-linear",
    ),
    ({TRAINED: ["model.norm"]}, rf"{TRAINED}: \['model.norm'\] is ignored by"),
    (
        {"freeze_parameters_ratio": 0.5},
        "freeze_parameters_ratio: 0.5 is ignored by tuner_type lora",
    ),
    ({"safe_serialization": "false"}, "safe_serialization: False writes pickles"),
    (
        {"init_weights": "pissa_niter_4"},
        "init_weights: 'pissa_niter_4' changes the base at random, .*; use pissa,",
    ),
    ({"use_swift_lora": "true"}, f"use_swift_lora: True {NO_ADAPTER}"),
]
OF_OTHERS = [
    ("boft", {"modules_to_save": ["all-norm"]}, "modules_to_save: 'all-norm' matches no module"),
    ("full", {TRAINED: ["model.norms"]}, "'model.norms' is the beginning of no .* mean"),
    (
        "full",
        {"freeze_parameters_regex": "mlp["},
        r"freeze_parameters_regex: 'mlp\[' is no regular expression \(",
    ),
    ("full", {f"{TRAINED}_regex": "audio_ffn"}, f"{TRAINED}_regex: 'audio_ffn' matches"),
    ("adalora", {}, "tuner_type: 'adalora' cannot be resumed, and its .*; use lora, boft"),
    ("vera", {}, "tuner_type: 'vera' is not loaded to speak"),
    ("llamapro", {}, f"tuner_type: 'llamapro' {NO_ADAPTER}"),
]
REFUSED = [*(("lora", options, message) for options, message in OF_LORA), *OF_OTHERS]


@pytest.mark.parametrize(
    ("tuner", "options", "message"),
    REFUSED,
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_would_not_be_trained_is_one_line(
    tuner: str,
    options: dict[str, Any],
    message: str,
    base: Any,
    tiny: Path,
    rows: Path,
    tmp_path: Path,
) -> None:
    from swift.arguments import SftArguments
    from swift.utils import parse_args

    arguments = flags(tiny, rows, tmp_path, tuner_type=tuner, **options)
    args, _ = parse_args(SftArguments, arguments)
    with pytest.raises(UserError, match=f"^options: .*{message}") as refused:
        tuning.settle(args, base)
    assert "\n" not in str(refused.value)


def test_an_adapter_is_not_left_out_in_silence(
    base: Any, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """MS-SWIFT would train the base in full, and give the adapter to the reference of DPO."""
    from swift.arguments import SftArguments
    from swift.utils import parse_args

    args, _ = parse_args(SftArguments, flags(tiny, rows, tmp_path))
    args.adapters = ["tuned"]
    with pytest.raises(UserError, match="adapters: 'tuned' is ignored by tuner_type full; merge"):
        tuning.settle(args, base)


def test_plain_swift_refuses_before_it_wraps(tiny: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="options: target_modules: 'audio_up' matches no module"):
        sft(tiny, rows, tmp_path, tuner_type="lora", target_modules=["q_proj", "audio_up"])


def test_nothing_left_to_train_is_one_line(tiny: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match="freeze_parameters: 'all' are frozen: nothing is left to train; freeze less",
    ):
        sft(tiny, rows, tmp_path, freeze_parameters_ratio=1)


def test_an_adalora_folder_is_loaded_once(tiny: Path, tmp_path: Path) -> None:
    """peft cuts its matrices to the ranks that are left, at each loading; the second one found them
    cut."""
    from peft import AdaLoraConfig, get_peft_model

    config = AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["q_proj"])
    model: Any = get_peft_model(native_model(str(tiny)), config)
    for name, parameter in model.named_parameters():
        if "lora_E" in name:
            parameter.data = torch.tensor([[1.0], [0.0], [2.0], [0.0]])
            short = name.removeprefix("base_model.model.")
            config.rank_pattern = {**(config.rank_pattern or {}), short: [True, False, True, False]}
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = with_adapters(native_model(str(tiny)), {"default": str(tmp_path)})
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(logits(native_model(str(tiny))), expected, atol=1e-3)


def test_an_adapter_to_a_random_base_is_refused(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa_niter_4")
    get_peft_model(native_model(str(tiny)), config).save_pretrained(tmp_path)
    message = r"init_lora_weights: 'pissa_niter_4' changes .* random: .*; give .*converted/default"
    with pytest.raises(UserError, match=message):
        with_adapters(native_model(str(tiny)), {"default": str(tmp_path)})
