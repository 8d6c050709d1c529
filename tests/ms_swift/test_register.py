"""The seam with MS-SWIFT: idempotent registration, no traps on sys.path, other models untouched,
refusals."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, corpus_rows, write_jsonl

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
    sys.modules.pop(
        next((name for name in sys.modules if name.startswith("_swift_external")), ""), None
    )
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


def test_datasets_go_through_our_loader_once_a_higgs_template_exists(tmp_path: Path) -> None:
    from swift.dataset import DatasetMeta, load_dataset, register_dataset
    from swift.dataset.dataset_syntax import DatasetSyntax

    from plugins.dataset_registration import HiggsDatasetLoader, route_datasets

    route_datasets(lambda _: None, is_training=lambda: True)
    route_datasets(lambda _: None, is_training=lambda: True)
    register_dataset(DatasetMeta(hf_dataset_id="someone/registered"), exist_ok=True)
    assert (
        DatasetSyntax("someone/registered").get_dataset_meta(True).loader is not HiggsDatasetLoader
    )
    for name in ("someone/dataset", str(tmp_path)):
        assert DatasetSyntax(name).get_dataset_meta(False).loader is HiggsDatasetLoader
    path = write_jsonl(tmp_path / "train.jsonl", corpus_rows(1))
    assert DatasetSyntax(str(path)).get_dataset_meta(False).loader is HiggsDatasetLoader
    for name in ("gone.jsonl", "someone/dataset"):
        with pytest.raises(UserError, match=f"dataset: '{name}' not found; check the path"):
            load_dataset([name])


def load(*sources: Path | str, **options: Any) -> list[dict[str, Any]]:
    """What MS-SWIFT's own `load_dataset` reads, as `--dataset SOURCE ...` does."""
    from swift.dataset import load_dataset

    from plugins.dataset_registration import route_datasets

    route_datasets(lambda _: None, is_training=lambda: True)
    return load_dataset([str(source) for source in sources], **options)[0].to_list()


def test_rows_of_all_shapes_share_one_table(tmp_path: Path) -> None:
    """`Dataset.from_list` takes its columns from the first row: a reference in the second one would
    be lost."""
    plain, other = corpus_rows(2)
    voice = other["audios"][0]
    text = {
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "y", "loss": True},
        ]
    }
    first = write_jsonl(
        tmp_path / "first.jsonl", [text, plain, {**plain, "reference_audio": voice}]
    )
    second = write_jsonl(tmp_path / "second.jsonl", [{**plain, "audio_codes": [[[1] * 8]]}])
    rows = load(first, second)
    assert [row["audios"] for row in rows] == [[], *[plain["audios"]] * 3]
    assert [row["reference_audio"] for row in rows] == [[], [], [voice], []]
    assert rows[3]["audio_codes"] == [[[1] * 8]]
    assert [row["row_source"] for row in rows] == [
        f"{first}:1",
        f"{first}:2",
        f"{first}:3",
        f"{second}:1",
    ]


def recordings(folder: Path) -> Path:
    """Two speakers' clips with transcripts beside them."""
    for i, row in enumerate(corpus_rows(2)):
        clip = folder / f"voice{i}" / "clip.flac"
        clip.parent.mkdir(parents=True)
        clip.write_bytes(Path(row["audios"][0]).read_bytes())
        clip.with_suffix(".txt").write_text(f"Text {i}.\n")
    return folder


def test_a_folder_of_recordings_is_a_dataset(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "mine")
    rows = load(folder)
    assert [row["audios"] for row in rows] == [
        [str(folder / f"voice{i}" / "clip.flac")] for i in range(2)
    ]
    said = [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in rows]
    assert said == [[("user", f"Text {i}."), ("assistant", "")] for i in range(2)]
    assert [row["row_source"] for row in load(f"{folder}#1")] == [
        str(folder / "voice0" / "clip.flac")
    ]
    (folder / "voice1" / "clip.txt").unlink()
    with pytest.raises(
        UserError,
        match=r"voice1/clip\.flac: clip: .* no transcript; mend it, or let prepare_dataset",
    ):
        load(folder)


def test_a_hugging_face_dataset_is_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recordings that it holds as bytes become files once, under the cache of the library."""
    from datasets import Dataset, config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    clips = [Path(row["audios"][0]).read_bytes() for row in corpus_rows(2)]
    columns = {
        "sentence": ["One.", "Two."],
        "recording": [{"bytes": clip, "path": None} for clip in clips],
    }
    Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    for _ in range(2):
        rows = load(tmp_path / "saved", columns={"sentence": "text", "recording": "audio"})
        assert [row["messages"][0]["content"] for row in rows] == ["One.", "Two."]
        assert [Path(row["audios"][0]).read_bytes() for row in rows] == clips
    assert sum(path.is_file() for path in (tmp_path / "cache").rglob("*")) == 2
    with pytest.raises(UserError, match="saved: column: 'text' not found"):
        load(tmp_path / "saved")


def test_a_name_on_a_hub_is_not_asked_for_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    from plugins.corpora import huggingface

    asked = []
    monkeypatch.setattr(huggingface, "_downloaded", lambda *args: asked.append(args) or 1 / 0)
    with pytest.raises(
        UserError, match=r"dataset: 'owner/speech' not found; .*needs hf::ID or --use_hf true"
    ):
        load("owner/speech")
    assert not asked
    with pytest.raises(ZeroDivisionError):
        load("hf::owner/speech:clean#5")
    assert asked == [("owner/speech", "clean")]
    with pytest.raises(UserError, match="names 2 subsets; name each in an entry of its own"):
        load("hf::owner/speech:clean/other")


def test_other_file_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text\nx\n")
    with pytest.raises(UserError, match=r"train\.csv' is no \.jsonl file"):
        load(path)


def test_other_models_get_ms_swifts_own_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    from swift.trainers import Seq2SeqTrainer

    from plugins.trainer import HiggsAudioTrainer

    monkeypatch.setattr(Seq2SeqTrainer, "__init__", lambda self, **kwargs: None)
    trainer: Any = HiggsAudioTrainer(model=None, args=None, template=object())
    assert type(trainer) is Seq2SeqTrainer
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
    from plugins.trainer import refuse_unsupported

    template = {
        "_loss_scale": "default",
        "sequence_parallel_size": 1,
        "truncation_strategy": "raise",
    }
    args = {"enable_dft_loss": False, "enable_channel_loss": False, "loss_type": None, "label_smoothing_factor": 0.0,
            "predict_with_generate": False, "average_tokens_across_devices": True, "optimizer": None,
            "deepspeed": None}  # fmt: skip
    refuse_unsupported(SimpleNamespace(**args), SimpleNamespace(**template))  # type: ignore[arg-type]
    changed = SimpleNamespace(**{**args, **changes.get("args", {})})
    with pytest.raises(UserError, match=f"options: {option}: .*; leave it at its default"):
        refuse_unsupported(changed, SimpleNamespace(**{**template, **changes.get("template", {})}))  # type: ignore[arg-type]


def test_parameter_groups_split_audio_from_the_rest(tiny: object) -> None:
    from plugins.model.load import native_model
    from plugins.trainer import is_audio_parameter, parameter_groups

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
