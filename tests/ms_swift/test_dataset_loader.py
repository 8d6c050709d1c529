"""`--dataset` through MS-SWIFT's own `load_dataset`: files, folders, Hugging Face datasets, and
what is refused."""

from pathlib import Path
from typing import Any

import pytest
from conftest import corpus_rows, write_jsonl

from plugins.errors import UserError
from plugins.ms_swift.dataset_loader import HiggsDatasetLoader
from plugins.register import register_higgs_audio_all


@pytest.fixture(scope="module")
def template(tiny: Path) -> Any:
    register_higgs_audio_all()
    from swift.model import get_model_processor
    from swift.template import get_template

    _, processor = get_model_processor(str(tiny), model_type="higgs-audio-v2-3b", load_model=False)
    return get_template(processor)


@pytest.fixture(autouse=True)
def _in_use(template: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of ours, as setting its template up leaves it."""
    monkeypatch.setattr(HiggsDatasetLoader, "template", template)


def test_setting_a_template_up_puts_it_in_use(
    template: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HiggsDatasetLoader, "template", None)
    template.init_env_args()
    assert HiggsDatasetLoader.template is template


def test_datasets_go_through_our_loader_while_a_template_of_ours_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swift.dataset import DatasetMeta, load_dataset, register_dataset
    from swift.dataset.dataset_syntax import DatasetSyntax

    def loader(name: str | Path) -> Any:
        return DatasetSyntax(str(name)).get_dataset_meta(False).loader

    register_dataset(DatasetMeta(hf_dataset_id="someone/registered"), exist_ok=True)
    registered = DatasetSyntax("someone/registered").get_dataset_meta(True)
    assert registered.loader is not HiggsDatasetLoader
    path = write_jsonl(tmp_path / "train.jsonl", corpus_rows(1))
    for name in ("someone/dataset", tmp_path, path):
        assert loader(name) is HiggsDatasetLoader
    for name in ("gone.jsonl", "someone/dataset"):
        with pytest.raises(UserError, match=f"dataset: '{name}' not found; check the path"):
            load_dataset([name])

    monkeypatch.setattr(HiggsDatasetLoader, "template", None)
    assert loader(path) is not HiggsDatasetLoader, "other models keep MS-SWIFT's own"


def load(*sources: Path | str, **options: Any) -> list[dict[str, Any]]:
    """What MS-SWIFT's own `load_dataset` reads, as `--dataset SOURCE ...` does."""
    from swift.dataset import load_dataset

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
    codes = [[1] * 8] * 55  # as many frames as the clip has
    second = write_jsonl(tmp_path / "second.jsonl", [{**plain, "audio_codes": [codes]}])
    rows = load(first, second)
    assert [row["audios"] for row in rows] == [[], *[plain["audios"]] * 3]
    assert [row["reference_audio"] for row in rows] == [[], [], [voice], []]
    assert rows[3]["audio_codes"] == [codes]
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
    for i, row in enumerate(rows):
        user, assistant = row["messages"]
        assert (user["role"], user["content"]) == ("user", f"Text {i}.")
        assert (assistant["role"], assistant["content"]) == ("assistant", "")
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
