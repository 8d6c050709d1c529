"""Files and names as disks have them: long names, links to themselves, what may not be read, what
vanishes. None of them takes more than itself out of a corpus."""

import json
import os

import pytest
from helpers.commands import (
    TEXT,
    ids,
    prepare,
    read,
    reasons,
    speech,
    table,
)
from helpers.trees import as_nobody, clip, folder_of_others, in_memory_mb, said

from plugins.corpora import read_folder, read_libritts, read_vctk
from plugins.prepare import checking
from plugins.prepare.clips import Work

NAMES = {
    "214 bytes": "é" * 105,
    "three bytes a letter": "你" * 80,
    "four bytes a letter": "😀" * 60,
    "a cut within a letter": "a" + "你" * 80,
    "letters only": "a" * 214,
    "folders": "/".join(["你好" * 20] * 4),
    "250 bytes": "x" * 246,
}


@pytest.mark.parametrize("case", NAMES)
def test_long_names_are_cut_by_their_bytes(tmp_path, case):
    """Cut by characters they were too long for a file system, and no row was written at all."""
    folder, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    for number, end in enumerate(("1.wav", "2.wav")):
        stem = NAMES[case][:-1] + end
        sound = speech(folder / "x.wav", seed=number)
        (folder / stem).parent.mkdir(parents=True, exist_ok=True)
        sound.rename(folder / stem)
        said((folder / stem).with_suffix(".txt"), TEXT)
    arguments = ["--dataset_type", "folder", "--input_dir", folder, "--output_file", output]
    arguments += ["--audio_output", tmp_path / "24k", "--noise_snr_db", "20"]
    assert prepare(*arguments) == 0
    copies = [row["audios"][0] for row in read(output)]
    assert len(set(copies)) == 4
    assert all(os.path.getsize(copy) for copy in copies)


def test_a_short_name_stays_as_it_was(tmp_path):
    work = Work(audio_dir=tmp_path)
    assert work.path_of("speaker/clip-1") == tmp_path / "speaker" / "clip-1.flac"
    assert work.path_of("x" * 150) == tmp_path / f"{'x' * 150}.flac"


def test_a_link_to_itself_stops_no_corpus(tmp_path):
    """`DirEntry.is_dir` raises for one."""
    clip(tmp_path / "wav48" / "p1" / "a.wav")
    said(tmp_path / "txt" / "p1" / "a.txt", "Hello")
    clip(tmp_path / "s" / "1_2.wav")
    for suffix in (".txt", ".normalized.txt"):
        said(tmp_path / "s" / f"1_2{suffix}", "Hello")
    for folder in ("wav48", "wav48/p1", "txt", "txt/p1", "s", "."):
        for name in ("loop", "loop.wav", "loop.txt", "loop.normalized.txt"):
            (tmp_path / folder / name).symlink_to(name)
    for reader in (read_folder, read_libritts, read_vctk):
        results = list(reader(tmp_path))
        assert any(getattr(result, "text", "") == "Hello" for result in results), reader
        json.dumps([vars(result) for result in results if not hasattr(result, "text")])


def test_an_unreadable_folder_takes_only_its_own_clips(tmp_path):
    with folder_of_others() as corpus:
        for tree in ("wav48", "txt"):
            for speaker in ("p1", "p2"):
                clip(corpus / tree / speaker / f"{speaker}_1.wav")
                said(corpus / tree / speaker / f"{speaker}_1.txt", "Hello")
        (corpus / "wav48" / "p2").chmod(0)

        def outcome() -> str:
            results = []
            for reader in (read_folder, read_libritts, read_vctk):
                for entry in reader(corpus):
                    results.append([entry.id, getattr(entry, "reason", "")])
            return json.dumps(results)

        results = json.loads(as_nobody(outcome))
        reason = "folder may not be read (Permission denied)"
        assert results.count(["wav48/p2", reason]) == 3
        assert ["wav48/p1/p1_1.wav", ""] in results
        assert ["p1_1", ""] in results
        (corpus / "wav48" / "p2").chmod(0o755)


@pytest.mark.parametrize("flags", [[], ["header"], ["full"], ["audio"]])
def test_a_clip_that_vanishes_takes_only_itself(tmp_path, monkeypatch, flags):
    """Between the reading of the list and its turn: a download that is cleaned up, a lost mount."""
    root, output = tmp_path / "corpus", tmp_path / "train.jsonl"
    names = ["a.wav", "b.wav", "c.wav"]
    for number, name in enumerate(names):
        speech(root / name, seed=number)
    run_all = checking.run_all

    def later(*arguments, **options):
        (root / "b.wav").unlink()
        return run_all(*arguments, **options)

    monkeypatch.setattr(checking, "run_all", later)
    arguments = [*table(root, names), "--output_file", output]
    if flags == ["audio"]:
        arguments += ["--audio_output", tmp_path / "24k"]
    elif flags:
        arguments += ["--validate", *flags]
    assert prepare(*arguments) == 0
    assert reasons(output) == [("b.wav", "not found")]
    assert ids(output) == ["a.wav", "c.wav"]


@pytest.mark.parametrize("kind", ["folder", "libritts", "vctk"])
def test_a_sparse_transcript_takes_no_memory(tmp_path, kind):
    """3 GB of nothing took 6 GB of memory."""
    audio, text, reader = {
        "folder": ("s/a.wav", "s/a.txt", read_folder),
        "libritts": ("1/2/1_2.wav", "1/2/1_2.normalized.txt", read_libritts),
        "vctk": ("wav48/p1/p1_1.wav", "txt/p1/p1_1.txt", read_vctk),
    }[kind]
    clip(tmp_path / audio)
    os.truncate(said(tmp_path / text, "Hello"), 3 << 30)
    with in_memory_mb(20):
        (rejected,) = reader(tmp_path)
    assert rejected.reason == "transcript is larger than 1,000,000 bytes"
