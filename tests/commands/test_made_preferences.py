"""`higgs-audio preferences` of the tiny model, through kills, full disks and several processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import CORPUS, corpus_texts, write_jsonl
from helpers.commands import contents, in_child, read
from helpers.takes import Ears

from plugins.audio.codec import Codec, find_codec
from plugins.cli import main
from plugins.commands import preferences
from plugins.commands.app import votes
from plugins.data.sources import read_rows
from plugins.evaluation.journal import Journal
from plugins.files import disk, lock
from plugins.hearing import scorers
from plugins.settings import HiggsAudioSettings

FLAGS = ("--takes", "4", "--max_audio_s", "0.2", "--temperature", "1", "--batch_size", "1")
SYSTEMS = ("base", "tuned")


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> Ears:
    ears = Ears()
    monkeypatch.setattr(preferences, "judge_of", lambda options: ears)
    return ears


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [{"text": text, "id": name} for name, text in corpus_texts()[:4]]
    return write_jsonl(tmp_path / "texts.jsonl", rows)


def make(tiny: Path, texts: Path, output: Path, *more: Any) -> int:
    words = ["--model", tiny, "--dataset", texts, "--output", output, "--device", "cpu"]
    return main(["preferences", *map(str, words), *FLAGS, *map(str, more)])


def test_best_takes_and_pairs(
    tiny: Path, texts: Path, tmp_path: Path, ears: Ears, capsys: Any
) -> None:
    rows = [json.loads(line) for line in texts.read_text().splitlines()]
    rows.append({"text": "word " * 3000, "id": "endless"})
    texts = write_jsonl(texts, rows)
    output = tmp_path / "pairs.jsonl"
    assert make(tiny, texts, output) == 0
    heard = read(tmp_path / "pairs_takes" / "takes.jsonl")
    assert [len(row["takes"]) for row in heard] == [4, 4, 4, 4, 0]
    assert "leaves no room" in heard[4]["reason"]
    pairs, best = read(output), read(tmp_path / "pairs_best.jsonl")
    assert [row["id"] for row in best] == [r["id"] for r in heard if r["best"] is not None]
    assert [row["id"] for row in pairs] == [r["id"] for r in heard if r["rejected"] is not None]
    assert len(pairs) >= 2
    for row in pairs:
        assert len(row["audio_codes"]) == len(row["rejected_audio_codes"]) == 1
        assert row["audio_codes"] != row["rejected_audio_codes"]
    assert len(read_rows(str(tmp_path / "pairs_best.jsonl"), HiggsAudioSettings(), check=id)) >= 2
    assert read_rows(str(output), HiggsAudioSettings(), check=id, pairs=True)
    printed = capsys.readouterr()
    assert f"{output}: {len(pairs)} pairs" in printed.out
    assert "first takes: WER " in printed.out
    assert f"without a pair: 1: cannot be spoken (first: {texts}:5: text: " in printed.err

    # With another limit the rows are written anew; nothing is spoken.
    num_heard = len(ears.asked)
    assert make(tiny, texts, output, "--max_wer", "0.1") == 0
    assert len(ears.asked) == num_heard
    fit = []
    for row in heard[:4]:
        if row["takes"][row["best"]]["wer"] <= 0.1:
            fit.append(row["id"])
    assert [row["id"] for row in read(tmp_path / "pairs_best.jsonl")] == fit
    # Other takes are other work.
    capsys.readouterr()
    assert make(tiny, texts, output, "--seed", "1") == 1
    assert "seed: 0 is what" in capsys.readouterr().err


@pytest.mark.usefixtures("ears")
def test_a_killed_one_goes_on_and_several_processes_share_the_work(
    tiny: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = tmp_path / "whole" / "pairs.jsonl"
    assert make(tiny, texts, whole) == 0
    parts = tmp_path / "parts" / "pairs.jsonl"
    original, count = Journal.put, [0]

    def put_or_die(self: Journal, key: str, value: Any) -> None:
        count[0] += 1
        if count[0] == 3:  # after the settings and the first text, in the middle of a line
            self._file.write(json.dumps([key, value]).encode()[:-3])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "put", put_or_die)
        status = in_child(lambda: make(tiny, texts, parts, "--shard", "1/2"))
    assert status == -signal.SIGKILL
    stray = parts.parent / "pairs_takes" / f".DEMO-0003.npz.{'0' * 32}.tmp"
    stray.write_bytes(b"half")
    assert not parts.exists()
    capsys.readouterr()
    assert make(tiny, texts, parts, "--shard", "2/2") == 0
    shown = capsys.readouterr().out
    assert "3 of 4 texts are spoken; the process that ends last writes" in shown
    assert not parts.exists()
    assert make(tiny, texts, parts, "--shard", "1/2") == 0
    names = ("pairs.jsonl", "pairs_best.jsonl", "pairs_takes/takes.jsonl")
    for name in names:
        assert (parts.parent / name).read_bytes() == (whole.parent / name).read_bytes()
    assert not [name for name in contents(parts.parent) if name.endswith((".tmp", ".lock"))]


@pytest.mark.usefixtures("ears")
def test_of_processes_that_end_together_one_writes(
    tiny: Path, texts: Path, tmp_path: Path, capsys: Any
) -> None:
    """Each saw that all was spoken, and removed what the other was writing."""
    output = tmp_path / "pairs.jsonl"
    assert make(tiny, texts, output, "--limit", "2") == 0
    written = contents(tmp_path)
    other = tmp_path / f".pairs.jsonl.{'0' * 32}.tmp"
    other.write_bytes(b"of the other")
    capsys.readouterr()
    with (tmp_path / "pairs_takes" / ".rows.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert make(tiny, texts, output, "--limit", "2") == 0
        assert f"{output}: is being written by another process" in capsys.readouterr().out
        assert other.read_bytes() == b"of the other"
    # One that was killed has left both.
    assert make(tiny, texts, output, "--limit", "2") == 0
    assert contents(tmp_path) == written


@pytest.mark.usefixtures("ears")
def test_processes_divide_the_texts_alike(
    tiny: Path, texts: Path, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "pairs.jsonl"
    folder = tmp_path / "pairs_takes"
    folder.mkdir()
    # Another process has just begun, and has no journal yet.
    with (folder / ".progress-1-of-2.jsonl.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert make(tiny, texts, output, "--limit", "2", "--shard", "2/2") == 0
        assert "1 of 2 texts are spoken" in capsys.readouterr().out
        for shard in ("1/3", "1/1"):
            assert make(tiny, texts, output, "--limit", "2", "--shard", shard) == 1
            error = capsys.readouterr().err.splitlines()[-1]
            assert "is being filled by another process; wait for its end, or take its" in error
    # It was killed: another number goes on.
    assert make(tiny, texts, output, "--limit", "2", "--shard", "1/3") == 0
    assert f"{output}: " in capsys.readouterr().out
    assert not [name for name in os.listdir(folder) if name.endswith(".lock")]


def test_whose_voice_takes_are_compared_with(
    tiny: Path, tmp_path: Path, ears: Ears, capsys: Any
) -> None:
    one, two, three = (str(CORPUS / "wavs" / f"DEMO-000{n}.flac") for n in (1, 2, 3))
    voices = {"reference_audio": [one, two], "reference_text": ["One.", "Two."]}
    said = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": ""}]
    rows: list[dict[str, Any]] = [
        {"text": "[SPEAKER1] Hi.", **voices},
        {"messages": said, "audios": [three]},
        {"messages": said, "audios": [three], "reference_audio": one, "reference_text": "One."},
    ]
    texts = write_jsonl(tmp_path / "texts.jsonl", rows)
    make(tiny, texts, tmp_path / "pairs.jsonl")
    assert [reference for _, reference in ears.asked[::4]] == [two, three, one]


@pytest.mark.parametrize("share", ["x", "nan", "-0.1", "1.1", ""])
def test_what_is_no_share(share: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        make(tmp_path, tmp_path / "texts.jsonl", tmp_path / "a.jsonl", f"--max_wer={share}")
    assert f"--max_wer: {share!r} is not between 0 and 1" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["0/4", "5/4", "2", "2/", "a/b", "-1/2", "1/2/3", "1.5/2", ""])
def test_what_is_no_shard(shard: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        make(tmp_path, tmp_path / "texts.jsonl", tmp_path / "a.jsonl", f"--shard={shard}")
    assert f"{shard!r} is no shard: write 2/4 for the second of four" in capsys.readouterr().err


@pytest.mark.usefixtures("ears")
def test_a_full_disk_is_one_line_and_what_was_spoken_is_kept(
    tiny: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    output = tmp_path / "pairs.jsonl"
    sync, count = disk.sync, [0]

    def full(path: Any) -> None:
        count[0] += 1
        if count[0] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync", full)
        assert make(tiny, texts, output) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        f"error: options: output: '{output}' cannot be written (No space left on device);"
        " mend that and give the same command again: it goes on"
    )
    ears = Ears()
    monkeypatch.setattr(preferences, "judge_of", lambda options: ears)
    assert make(tiny, texts, output) == 0
    assert len(ears.asked) == 3 * 4, "one text was there"


def test_no_winner_at_all(tiny: Path, texts: Path, tmp_path: Path, ears: Ears, capsys: Any) -> None:
    ears.stopped = False
    output = tmp_path / "pairs.jsonl"
    assert make(tiny, texts, output, "--limit", "2") == 1
    shown = capsys.readouterr().err
    assert "without a pair: 2: no take stopped by itself (first: DEMO-0001)" in shown
    assert "takes.jsonl: takes: 2 texts have no winner: no row is written; look at" in shown
    assert "give --language and --asr" in shown
    assert not output.exists()


def test_what_is_refused_before_anything_is_spoken(
    tiny: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refused(output: Path, *more: Any) -> str:
        assert make(tiny, texts, output, *more) == 1
        return str(capsys.readouterr().err.splitlines()[-1])

    assert "is no .jsonl file" in refused(tmp_path / "pairs.csv")
    assert "is read" in refused(texts)
    assert "takes: 1 leaves nothing to choose from" in refused(tmp_path / "a.jsonl", "--takes", "1")
    other = tmp_path / "mine.jsonl"
    other.write_text("mine")
    assert "is there already" in refused(other)
    assert other.read_text() == "mine"
    assert "takes are all the same" in refused(tmp_path / "b.jsonl", "--temperature", "0")
    (tmp_path / "f_takes").touch()
    assert "f_takes/takes.jsonl' cannot be written (Not a dir" in refused(tmp_path / "f.jsonl")
    (tmp_path / "c_takes").mkdir()
    (tmp_path / "c_takes" / "mine.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(preferences, "judge_of", lambda options: Ears())
        assert "holds files, but no takes" in refused(tmp_path / "c.jsonl")
        held = tmp_path / "d_takes" / ".progress.jsonl.lock"
        held.parent.mkdir()
        (held.parent / "progress.jsonl").touch()
        patch.setattr(lock, "take", lambda file: "process 7")
        assert "is being filled by process 7; wait" in refused(tmp_path / "d.jsonl")
    monkeypatch.setattr(scorers, "find_spec", lambda name: None)
    message = refused(tmp_path / "e.jsonl")
    assert message.startswith("error: takes: recogniser is missing: package jiwer is not inst")
    assert "; run: pip install" in message


def test_blind_votes_become_pairs(tiny: Path, texts: Path, tmp_path: Path, capsys: Any) -> None:
    names = [name for name, _ in corpus_texts()[:4]]
    folder = tmp_path / "evaluation"
    for system in SYSTEMS:
        (folder / "audio" / system).mkdir(parents=True)
        for i, name in enumerate(names):
            # Named .wav, as evaluations have them: what a file is, its bytes say.
            source = names[i if system == "base" else (i + 1) % 4]
            target = folder / "audio" / system / f"{name}.wav"
            shutil.copy(CORPUS / "wavs" / f"{source}.flac", target)
    for voter, name, vote in (
        ("ann", names[0], votes.A),
        ("bob", names[0], votes.A),
        ("eve", names[0], votes.B),
        ("ann", names[1], votes.EQUAL),
        ("ann", names[2], votes.B),
        ("ann", "unknown", votes.A),
        ("bob", names[3], votes.A),
    ):
        votes.keep(votes.Pair(name, "", "base", "tuned", folder), vote, voter=voter)
    scores = {"base": {"stopped": 1.0}, "tuned": {"stopped": 0.0}, "truth": {"stopped": None}}
    write_jsonl(folder / "items.jsonl", [{"id": names[3], "text": "Hi.", "systems": scores}])
    output = tmp_path / "voted.jsonl"
    assert make(tiny, texts, output, "--votes", folder) == 0
    rows = read(output)
    codec = Codec(find_codec([str(tiny)]))
    for row, name, sides in zip(rows, (names[0], names[2]), (SYSTEMS, SYSTEMS[::-1]), strict=True):
        assert row["id"] == name
        better, worse = (codec.encode_file(f"{folder}/audio/{side}/{name}.wav") for side in sides)
        assert row["audio_codes"] == [better.T.tolist()]
        assert row["rejected_audio_codes"] == [worse.T.tolist()]
    assert len(read_rows(str(output), HiggsAudioSettings(), check=id, pairs=True)) == 2
    shown = capsys.readouterr()
    assert "without a pair: 1: the dataset has no such id" in shown.err
    assert "without a pair: 1: a clip was cut, so that its end is none" in shown.err
    assert "without a pair: 1: no more votes for one than for the other" in shown.err
    assert f"{output}: 2 pairs" in shown.out
    assert make(tiny, texts, tmp_path / "none.jsonl", "--votes", tmp_path) == 1
    assert "holds no votes.csv with votes" in capsys.readouterr().err
