"""`--dataset` through MS-SWIFT's own `load_dataset`: files, folders, Hugging Face datasets, and
what is refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
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


# Of MS-SWIFT's registry.


@pytest.fixture
def registered(tmp_path: Path) -> str:
    """A text dataset as somebody registers it."""
    from swift.dataset import DatasetMeta, register_dataset

    path = write_jsonl(
        tmp_path / "text.jsonl",
        [{"query": f"Question {i}?", "response": f"Answer {i}."} for i in range(3)],
    )
    register_dataset(DatasetMeta(dataset_path=str(path), dataset_name="text"), exist_ok=True)
    return str(path)


@pytest.mark.parametrize("first", [True, False])
def test_a_registered_text_dataset_is_mixed_with_rows_of_speech(
    first: bool, registered: str, tmp_path: Path, template: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template, "mode", "train")
    speech = write_jsonl(tmp_path / "train.jsonl", corpus_rows(2))
    rows = load(*([registered, speech] if first else [speech, registered]))
    texts = [row for row in rows if not row["audios"]]
    assert [row["messages"][0]["content"] for row in texts] == [f"Question {i}?" for i in range(3)]
    assert [row["row_source"] for row in texts] == [f"{registered}: row {i}" for i in (1, 2, 3)]
    assert len(rows) == 5
    for row in rows:
        assert len(template.encode(row, return_length=True)["input_ids"]) == row["lengths"][0]


def test_a_stream_of_a_registered_dataset_is_mixed_too(registered: str, tmp_path: Path) -> None:
    from swift.dataset import load_dataset

    speech = write_jsonl(tmp_path / "train.jsonl", corpus_rows(2))
    rows = list(load_dataset([str(speech), registered], streaming=True)[0])
    assert [len(row["audios"]) for row in rows] == [1, 1, 0, 0, 0]
    assert rows[4]["row_source"] == f"{registered}: row 3"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"query": "What is there?", "response": "A cat.", "images": ["cat.png"]},
            "column: 'images' is neither text nor speech, .*; leave .* out of --dataset",
        ),
        ({"query": "  ", "response": "x"}, r"messages\[0\]\.content: '.*' is empty"),
    ],
)
def test_rows_of_a_registered_dataset_that_this_model_cannot_learn_are_named(
    row: dict[str, Any], said: str, tmp_path: Path
) -> None:
    from swift.dataset import DatasetMeta, register_dataset

    path = write_jsonl(tmp_path / "other.jsonl", [row])
    register_dataset(DatasetMeta(dataset_path=str(path), dataset_name="other"), exist_ok=True)
    speech = write_jsonl(tmp_path / "train.jsonl", corpus_rows(1))
    with pytest.raises(UserError, match=rf"^{path}: row 1: {said}"):
        load(speech, path)


def test_clips_below_16_khz_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As README.md promises the rates from there up."""
    said: list[str] = []
    monkeypatch.setattr("plugins.ms_swift.dataset_loader.logger.warning", said.append)
    rows = []
    for rate_hz in (16_000, 15_999, 8000, 44_100):
        soundfile.write(tmp_path / f"{rate_hz}.wav", np.zeros(rate_hz), rate_hz)
        rows.append({**corpus_rows(1)[0], "audios": [f"{rate_hz}.wav"]})
    load(write_jsonl(tmp_path / "train.jsonl", rows))
    assert len(said) == 1
    assert said[0].startswith("2 clips have a sample rate below 16 kHz, the least for this model (")
    assert f"train.jsonl:2: {tmp_path}/15999.wav, 15999 Hz)" in said[0]
    said.clear()
    load(write_jsonl(tmp_path / "train.jsonl", rows[:1]))
    assert said == []


def test_pairs_keep_both_answers(
    template: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through MS-SWIFT's own encoding and collating of `swift rlhf`: the chosen rows of a batch,
    then the rejected ones."""
    from datasets import Dataset
    from swift.dataset import load_dataset

    from plugins.ms_swift.dataset_loader import aligned
    from plugins.ms_swift.dicts import encoded_answers, sample_of

    monkeypatch.setattr(template, "mode", "rlhf")
    codes = {"better": [[[1] * 8] * 4], "worse": [[[2] * 8] * 6]}
    rows = corpus_rows(2)
    for row in rows:
        del row["audios"]
        row |= {"audio_codes": codes["better"], "rejected_audio_codes": codes["worse"]}
    dataset, _ = load_dataset([str(write_jsonl(tmp_path / "pairs.jsonl", rows))], shuffle=False)
    assert dataset[0]["rejected_audio_codes"] == codes["worse"]
    encoded = [template.encode(row) for row in dataset]
    for row, pair in zip(dataset, encoded, strict=True):
        chosen, rejected = map(sample_of, encoded_answers(pair))
        assert (chosen.clips[0].unique().tolist(), chosen.clips[0].shape[1]) == ([1], 4)
        assert (rejected.clips[0].unique().tolist(), rejected.clips[0].shape[1]) == ([2], 6)
        assert row["lengths"] == [len(chosen.input_ids), len(rejected.input_ids)]
        assert row["lengths"][1] == row["lengths"][0] + 2
    batch = template.data_collator(encoded)
    assert batch["attention_mask"].sum(dim=1).tolist() == [
        *(row["lengths"][0] for row in dataset),
        *(row["lengths"][1] for row in dataset),
    ]
    other = Dataset.from_list([{"messages": rows[0]["messages"], "dataset": "someone/texts"}])
    with pytest.raises(UserError, match="dataset: 'someone/texts' is registered with MS-SWIFT"):
        aligned(other, template)
    stream = aligned(other.to_iterable_dataset(), template)
    with pytest.raises(UserError, match="has no rejected clips"):
        next(iter(stream))


def test_pairs_of_takes_are_what_the_loader_reads(
    template: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of `higgs-audio preferences`, from a folder of their own: with a voice, with codes of
    one, in the middle of a dialogue, raw, and of a text alone; down to the batch of a step."""
    from plugins.evaluation.items import read_items
    from plugins.evaluation.winners import pair_row
    from plugins.ms_swift.dicts import encoded_answers, sample_of

    voice, first = (row["audios"][0] for row in corpus_rows(2))
    one, two = ({"role": "user", "content": text} for text in ("One.", "Two."))
    said = {"role": "assistant", "content": ""}
    earlier = torch.full((8, 3), 5)
    (tmp_path / "texts").mkdir()
    shutil.copy(voice, tmp_path / "texts" / "voice.flac")
    items = read_items(
        str(
            write_jsonl(
                tmp_path / "texts" / "texts.jsonl",
                [
                    {"messages": [one], "reference_audio": "voice.flac", "reference_text": "Hi."},
                    {"messages": [one], "reference_codes": [earlier.T.tolist()], "speaker": "ann"},
                    {"messages": [one, said, two, said], "audios": [first, voice]},
                    {"messages": [one], "raw_prompt": True},
                    {"text": "A text alone."},
                ],
            )
        ),
        template.settings,
    )
    better, worse = torch.arange(32).reshape(8, 4), torch.arange(48).reshape(8, 6)
    spoken = [[], [], [earlier], [], []]
    rows = [pair_row(item, better, worse, clips) for item, clips in zip(items, spoken, strict=True)]
    monkeypatch.setattr(template, "mode", "rlhf")
    (tmp_path / "pairs").mkdir()
    read = load(write_jsonl(tmp_path / "pairs" / "pairs.jsonl", rows), shuffle=False)
    encoded = [template.encode(row) for row in read]
    for row, pair, clips in zip(read, encoded, spoken, strict=True):
        chosen, rejected = map(sample_of, encoded_answers(pair))
        for answer, codes in ((chosen, better), (rejected, worse)):
            trained = zip(answer.clips, answer.clips_trained, strict=True)
            assert [clip.tolist() for clip, is_trained in trained if is_trained] == [codes.tolist()]
        # The prompt is the same for both: the voice, and what was said before.
        assert len(chosen.clips) == len(rejected.clips)
        for clip, same in zip(chosen.clips[:-1], rejected.clips[:-1], strict=True):
            assert torch.equal(clip, same)
        if clips:
            assert torch.equal(chosen.clips[0], earlier)
        assert rejected.source == f"{chosen.source} (rejected)"
        assert row["lengths"] == [len(chosen.input_ids), len(chosen.input_ids) + 2]
    batch = template.data_collator(encoded)
    assert len(batch["labels"]) == 2 * len(rows)
    frames = (batch["audio_labels"][..., 0] != -100).sum(dim=1)
    assert frames.tolist() == [5] * 5 + [7] * 5, "codes, and the end of the stream"


def test_faults_of_rejected_answers_name_them(
    template: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too long, or damaged behind a whole header: of that a training hears in its middle."""
    monkeypatch.setattr(template, "mode", "rlhf")
    damaged = tmp_path / "damaged.flac"
    (row, other) = corpus_rows(2)
    damaged.write_bytes(Path(other["audios"][0]).read_bytes()[:-2000])
    long = {**row, "rejected_audio_codes": [[[2] * 8] * 300]}
    fine = {**row, "rejected_audios": [str(damaged)]}
    with monkeypatch.context() as patch:
        patch.setattr(template, "max_length", 200)
        with pytest.raises(UserError) as error:
            load(write_jsonl(tmp_path / "pairs.jsonl", [long]))
    (line,) = str(error.value).splitlines()
    assert "pairs.jsonl:1 (rejected): row: 402 tokens and frames are more than" in line
    assert "max_length 200; raise --max_length or cut" in line
    (read,) = load(write_jsonl(tmp_path / "damaged.jsonl", [fine]))
    reason = r"damaged.jsonl:1 \(rejected\): audio: .*damaged.flac' does not decode to its end"
    with pytest.raises(UserError, match=reason):
        template.encode(read)
