"""Hugging Face datasets -> utterances, from folders and from the Hub; without torchcodec and
without network."""

import json
import re
import shutil
import socket
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow.parquet as parquet
import pytest
from datasets import Audio, DatasetDict
from helpers.hub import alone, saved, sound, table  # noqa: F401 (a fixture)
from helpers.trees import clip, heard, sorted_out, utterances

from plugins.corpora import Columns, huggingface, read_huggingface
from plugins.data.sources import read_rows
from plugins.errors import UserError
from plugins.prepare.cli import main as prepare
from plugins.settings import HiggsAudioSettings

pytestmark = pytest.mark.usefixtures("alone")


def test_splits(tmp_path):
    """The only one is meant without being named, and of several `train`."""
    train, test = (
        table([sound(tmp_path, "a.wav")], text=["A"]),
        table([sound(tmp_path, "b.wav")], text=["B"]),
    )
    both = saved(tmp_path / "both", DatasetDict(train=train, test=test))
    others = saved(tmp_path / "others", DatasetDict(dev=train, test=test))
    single = saved(tmp_path / "single", DatasetDict(train=train))
    unsplit = saved(tmp_path / "unsplit", train)

    def texts(source: str, split: str | None = None) -> list[str]:
        results = read_huggingface(source, Columns(), audio_dir=tmp_path, split=split)
        return [utterance.text for utterance in utterances(results)]

    assert texts(both) == texts(both, "train") == texts(single) == texts(unsplit) == ["A"]
    assert texts(both, "test") == ["B"]
    for source, split, message in (
        (others, None, "huggingface: split is not named; use one of dev, test"),
        (both, "tran", "huggingface: split: 'tran' not found; did you mean 'train'?"),
        (
            unsplit,
            "train",
            "huggingface: split: 'train' is none: the folder holds one table; leave it out",
        ),
    ):
        with pytest.raises(UserError) as caught:
            texts(source, split)
        assert str(caught.value) == message


def test_a_folder_of_parquet_files(tmp_path):
    """A clone of a dataset repository, which `load_dataset` reads; slices of splits are its own
    syntax."""
    sounds = [sound(tmp_path, f"{number}.wav", 200 + number) for number in range(4)]
    (tmp_path / "clone").mkdir()
    table(sounds).cast_column("audio", Audio()).to_parquet(tmp_path / "clone" / "train.parquet")
    source = str(tmp_path / "clone")

    def texts(split: str | None) -> list[str]:
        results = read_huggingface(source, Columns(), audio_dir=tmp_path, split=split)
        return [utterance.text for utterance in utterances(results)]

    assert texts(None) == ["Text 0", "Text 1", "Text 2", "Text 3"]
    assert texts("train[:50%]") == ["Text 0", "Text 1"]
    with pytest.raises(UserError, match="split: 'nope' not found; use one of train"):
        texts("nope")


def test_configurations_and_splits_are_found_by_name(tmp_path):
    """As `push_to_hub`, the Hub's conversion and people name them; README.md is not asked."""
    clone = tmp_path / "clone"
    for name in (
        "clean/train.100-00000-of-00002.parquet",
        "clean/train.100-00001-of-00002-0a1b.parquet",
        "clean/dev.clean-00000-of-00001.parquet",
        "other/test/0000.parquet",
        "other/my_val.parquet",
        "other/rest.parquet",
    ):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        table([sound(tmp_path, "a.wav")], text=[name]).to_parquet(clone / name)

    def texts(config: str | None, split: str | None) -> list[str]:
        results = read_huggingface(
            str(clone), Columns(), audio_dir=tmp_path, config=config, split=split
        )
        return [text.partition("-0")[0] for _, text, _ in heard(results)]

    assert texts("clean", "train.100") == ["clean/train.100", "clean/train.100"]
    assert texts("clean", "dev.clean+train.100[:1]") == ["clean/dev.clean", "clean/train.100"]
    assert texts("other", "test") == ["other/test/0000.parquet"]
    assert texts("other", "validation") == ["other/my_val.parquet"]
    assert texts("other", None) == ["other/rest.parquet"]
    with pytest.raises(UserError, match="config: 'clear' not found; did you mean 'clean'"):
        texts("clear", None)
    shutil.rmtree(clone / "other")
    shutil.copytree(clone / "clean", clone / "dirty")
    with pytest.raises(UserError, match="config is not named; use one of clean, dirty"):
        texts(None, "train.100")


def test_a_folder_without_tables_is_told(tmp_path):
    clip(tmp_path / "folder" / "train" / "a.wav")
    (tmp_path / "folder" / "train" / "metadata.csv").write_text("file_name,text\na.wav,Hello\n")
    with pytest.raises(
        UserError,
        match=r"holds no \.parquet file; name a folder of save_to_disk or of Parquet files",
    ):
        list(read_huggingface(str(tmp_path / "folder"), Columns(), audio_dir=tmp_path / "out"))


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses that were connected to, or asked for."""
    made: list[Any] = []

    def refuse(*address: Any, **_: Any) -> Any:
        made.append(address)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return made


@pytest.mark.parametrize(
    "path",
    [
        "http://127.0.0.1:1/rows.jsonl",
        "zip://rows.csv::http://127.0.0.1:1/rows.zip",
        "hf://datasets/nobody/nothing/rows.csv",
        "{folder}/private/rows.csv",
        "../private/*.csv",
    ],
)
def test_what_a_readme_names_is_not_read(tmp_path, attempts, capsys, path):
    """`configs: data_files` may be URLs and any file of the machine; `load_dataset` reads them,
    offline or not."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "rows.csv").write_text("text,audio\nsecret,a.wav\n")
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    named = path.format(folder=tmp_path)
    (hostile / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: {named!r}\n---\n"
    )
    try:
        read = datasets.load_dataset(str(hostile), split="train")["text"][:]
    except OSError:
        read = []
    assert read == ["secret"] or attempts or "hf:" in path, "the proof of concept is none"
    attempts.clear()
    settings = HiggsAudioSettings(audio_root=str(tmp_path))
    for root in (None, hostile):
        with pytest.raises(UserError, match=r"holds no \.parquet file"):
            list(read_huggingface(str(hostile), Columns(), audio_dir=tmp_path / "out", root=root))
    with pytest.raises(UserError, match="there is no row"):
        read_rows(str(hostile), settings, check=lambda dialogue: None)
    flags = ["--dataset_type", "huggingface", "--input_dir", str(hostile)]
    assert prepare([*flags, "--output_file", str(tmp_path / "train.jsonl")]) == 1
    assert re.fullmatch(r"[^\n]*holds no \.parquet file[^\n]*\n", capsys.readouterr().err)
    # Beside a table of its own, whose recordings lie elsewhere.
    own = [{"bytes": None, "path": "http://127.0.0.1:1/a.wav"}, sound(tmp_path, "a.wav")]
    rows = table(own).cast_column("audio", Audio(decode=False))
    # `to_parquet` itself would ask the URL for its size.
    parquet.write_table(rows.data.table.cast(rows.features.arrow_schema), hostile / "rows.parquet")
    read, rejected = sorted_out(
        read_huggingface(str(hostile), Columns(), audio_dir=tmp_path / "out")
    )
    assert (len(read), [reason for _, reason, _ in rejected]) == (1, ["is a URL"])
    assert attempts == []


def test_saved_datasets_name_files_beside_them_only(tmp_path):
    """`load_from_disk` joins whatever state.json and dataset_dict.json say to the folder."""
    private = Path(saved(tmp_path / "private", table([sound(tmp_path, "a.wav")], text=["secret"])))
    arrow = next(private.glob("*.arrow"))
    both = DatasetDict(
        train=table([sound(tmp_path, "b.wav")]), test=table([sound(tmp_path, "c.wav")])
    )
    for file, key, value in (
        ("train/state.json", "_data_files", [{"filename": f"../../../private/saved/{arrow.name}"}]),
        ("train/state.json", "_data_files", [{"filename": str(arrow)}]),
        ("train/state.json", "_data_files", []),
        ("train/state.json", "_data_files", [7]),
        ("dataset_dict.json", "splits", ["../../private/saved"]),
        ("dataset_dict.json", "splits", "train"),
    ):
        shutil.rmtree(tmp_path / "hostile", ignore_errors=True)
        source = saved(tmp_path / "hostile", both)
        target = Path(source) / file
        target.write_text(json.dumps({**json.loads(target.read_text()), key: value}))
        if isinstance(value, list) and "private" in str(value):
            loaded = datasets.load_from_disk(source)
            assert "secret" in str([split["text"][:] for split in loaded.values()]), (
                "the proof of concept is none"
            )
        with pytest.raises(
            UserError, match=f"{file}: {key}: .*(does not lie beside this file|lists nothing)"
        ):
            list(read_huggingface(source, Columns(), audio_dir=tmp_path / "out"))


@pytest.mark.parametrize("kind", ["saved", "parquet", "folder"])
def test_root_refuses_tables_that_lead_out(tmp_path, kind):
    """Without it a link may lead anywhere, as in the Hub's own cache."""
    rows = table([sound(tmp_path, "a.wav")], text=["secret"])
    source = Path(saved(tmp_path / "corpus", rows))
    outside = tmp_path / "outside" / "rows.parquet"
    if kind == "saved":
        arrow = next(source.glob("*.arrow"))
        outside.parent.mkdir()
        arrow.rename(outside)
        arrow.symlink_to(outside)
    else:
        shutil.rmtree(source)
        rows.to_parquet(outside)
        source.mkdir()
        link = source / ("rows.parquet" if kind == "parquet" else "rows")
        link.symlink_to(outside if kind == "parquet" else outside.parent)

    def read(root: Path | None) -> list[str]:
        results = read_huggingface(str(source), Columns(), audio_dir=tmp_path / "out", root=root)
        return [text for _, text, _ in heard(results)]

    assert read(None) == read(tmp_path) == ["secret"]
    with pytest.raises(
        UserError, match=r"leads out of the audio root \(to .*/outside.*\); move it into [^\n]*$"
    ):
        read(source)


def test_a_hub_id_is_asked_for_its_tables_only(tmp_path, monkeypatch, attempts):
    """Those of the configuration. What its README.md names elsewhere is not, and of this machine it
    reads nothing."""
    snapshot = tmp_path / "hub" / "datasets--owner--speech-1.0" / "snapshots" / ("0" * 40)
    for config in ("clean", "other"):
        (snapshot / config).mkdir(parents=True)
        blob = snapshot.parents[1] / config
        table([sound(tmp_path, "a.wav")], text=[config]).to_parquet(blob)
        (snapshot / config / "train-00000-of-00001.parquet").symlink_to(blob)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    (snapshot / "README.md").write_text(
        "---\nconfigs: [{config_name: clean, data_files: /etc/*.csv}]\n---\n"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    download = partial(huggingface_hub.snapshot_download, cache_dir=tmp_path / "hub")
    asked = []

    def note(*args: Any, **kwargs: Any) -> str:
        asked.append((args, kwargs))
        return download(*args, **kwargs)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", note)

    def texts() -> list[str]:
        here = {"audio_dir": tmp_path / "out", "root": Path("owner/speech-1.0")}
        results = read_huggingface("owner/speech-1.0", Columns(), config="clean", **here)
        return [utterance.text for utterance in utterances(results)]

    assert texts() == ["clean"], "offline: from the cache"
    names = [
        "README.md",
        *(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.parquet")),
    ]
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda self, *args, **kwargs: names
    )
    assert texts() == ["clean"]
    # Offline nothing is known of the names, so all tables are wanted.
    tables = [["*.parquet"], ["clean/train-00000-of-00001.parquet"]]
    for (args, kwargs), wanted in zip(asked, tables, strict=True):
        assert args == ("owner/speech-1.0",)
        assert kwargs == {"repo_type": "dataset", "allow_patterns": wanted}
    assert attempts == []


def test_offline_is_said_in_one_line(tmp_path):
    """The cluster's nodes have no network; the message of the Hub's client has a second line."""
    with pytest.raises(UserError) as error:
        list(read_huggingface("nobody/nothing", Columns(), audio_dir=tmp_path))
    assert str(error.value).startswith(
        "huggingface: dataset: 'nobody/nothing' does not load (Cannot"
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "source", ["/nowhere/set", "../set", "~/set", "https://x.org/set", "a/b/c", "file.parquet"]
)
def test_what_is_neither_folder_nor_id_stays_off_the_network(tmp_path, monkeypatch, source):
    """A mistyped path must not be asked for on the Hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.parquet").touch()
    monkeypatch.setattr(huggingface, "_downloaded", lambda *args: pytest.fail("asked"))
    with pytest.raises(UserError, match="is neither a folder nor a Hub id; name one of the two"):
        list(read_huggingface(source, Columns(), audio_dir=tmp_path / "out"))
