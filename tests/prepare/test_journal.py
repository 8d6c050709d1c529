"""What an interrupted run has left is believed where it is true; and runs that are in each other's
way, or on a full disk."""

import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile as sf
from helpers.commands import (
    TEXT,
    command_line,
    contents,
    corpus,
    logged_checks,
    one_line_error,
    prepare,
    prepare_apart,
    read,
    speech,
    table,
)
from helpers.trees import at_most

from plugins.corpora import Utterance
from plugins.prepare import cli
from plugins.prepare import run as run_module
from plugins.prepare.clips import Work
from plugins.prepare.run import journal_of, run_all

# --- what the journal of an interrupted run claims ---


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], list[str]]]:
    """A run that ended when all clips were in its journal, two copies each. The same command again,
    which must give the bytes of one that was never interrupted; what it has checked again."""
    folders = [tmp_path / "out", tmp_path / "audio"]
    arguments = [*corpus(tmp_path / "corpus", 4), "--validate", "--noise_snr_db", "20"]
    arguments += ["--output_file", folders[0] / "x.jsonl", "--audio_output", folders[1]]
    assert prepare(*arguments) == 0
    expected = contents(*folders)
    for folder in folders:
        shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(cli, "write_files", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(*arguments)

    def again() -> list[str]:
        with logged_checks(tmp_path / "log") as log:
            assert prepare(*arguments) == 0
        assert contents(*folders) == expected
        return [line.removeprefix("checked ") for line in log.read_text().splitlines()]

    return again


def test_a_journal_that_is_true_is_believed(interrupted):
    assert interrupted() == []


def test_copies_that_are_gone_are_made_again(interrupted, tmp_path):
    """It ended well, with rows that named files which were not there."""
    shutil.rmtree(tmp_path / "audio")
    assert len(interrupted()) == 4


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm", [Path.unlink, lambda path: os.truncate(path, 1000), _flip], ids=["gone", "cut", "bit"]
)
def test_a_copy_that_is_no_longer_what_was_written_is_made_again(harm, interrupted, tmp_path):
    """The second copy of a clip, so that the first one's being there does not count for it."""
    (copy,) = (tmp_path / "audio").glob("clip002*snr20*.flac")
    harm(copy)
    assert interrupted() == ["clip002.wav"]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda line: bytes(len(line)),
    "half": lambda line: line[: len(line) // 2],
    "another half before it": lambda line: line[: len(line) // 2] + line,
    "a digit": lambda line: line.replace(b"1.2", b"9.2", 1),
    "another type": lambda line: b"[1, 2]",
    "a number": lambda line: b"7",
    "deep": lambda line: b"[" * 100_000,
    "not UTF-8": lambda line: b"\xff\xfe",
    "empty": lambda line: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_of_the_journal_is_redone(damage, interrupted, tmp_path):
    """A power cut leaves zeros where a line was; it was a traceback, and the corpus had to be done
    anew."""
    journal = tmp_path / "out" / ".x.jsonl.journal"
    lines = journal.read_bytes().splitlines()
    lines[1] = DAMAGES[damage](lines[1])
    journal.write_bytes(b"".join(line + b"\n" for line in lines))
    assert interrupted() == ["clip001.wav"]


def test_a_journal_of_anything_is_no_traceback(tmp_path):
    """Bytes changed, cut, doubled and mixed at random: what is believed is what was written."""
    clips = [speech(tmp_path / f"{number}.wav", seed=number) for number in range(3)]
    utterances = [Utterance(clip.name, clip.name, TEXT, clip, "anna") for clip in clips]
    journal, work = tmp_path / "journal", Work("header")
    journal.touch()
    expected = run_all(utterances, work, journal=journal, num_workers=1)
    whole = journal.read_bytes()
    generator = random.Random(18)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(generator.randrange(1, 6)):
            start = generator.randrange(len(content) + 1)
            end = start + generator.randrange(40)
            pieces = (b"", b"\n", b"\0" * 9, b"[" * 50, content[:start], generator.randbytes(8))
            content[start:end] = generator.choice(pieces)
        journal.write_bytes(content)
        assert run_all(utterances, work, journal=journal, num_workers=1) == expected
        # And what it has added is read again.
        assert run_all(utterances, work, journal=journal, num_workers=1) == expected


@pytest.mark.parametrize(
    "content",
    [b"7", b"[]", b"[1, 2, 3]", b"null", b'"x"', b'[[], {}]', b'["k", []]', b'["k", {"files": 7}]',
     b'["k", {"files": [{}], "fault": null}]', b'["k", {"files": [], "fault": 7}]', b"[" * 100_000,
     b'["k", {"files": [], "fault": ["a"]}]', b"{", b"\xff"],
)  # fmt: skip
def test_a_line_of_another_program_is_redone(tmp_path, content):
    """Its checksum may be right: another release wrote it."""
    clip = speech(tmp_path / "a.wav")
    journal = tmp_path / "journal"
    journal.write_bytes(b"%s %s\n" % (run_module._hash(content), content))
    utterance = Utterance("a", "a.wav", TEXT, clip, None)
    (outcome,) = run_all([utterance], Work("header"), journal=journal, num_workers=1)
    assert outcome.fault is None


def test_the_journal_names_no_file_that_is_not_on_the_disk(tmp_path, monkeypatch):
    """After a power cut the next run would take an empty file for a finished clip."""
    synced: list[str] = []
    output, journal = tmp_path / "train.jsonl", tmp_path / ".train.jsonl.journal"

    def sync(path: str) -> None:
        assert path not in journal.read_text()
        assert sf.info(path).duration > 1  # whole, under its own name
        synced.append(path)

    monkeypatch.setattr(run_module, "sync", sync)
    flags = ["--audio_output", tmp_path / "audio", "--noise_snr_db", "20"]
    assert prepare(*corpus(tmp_path / "corpus", 4), "--output_file", output, *flags) == 0
    assert synced == [row["audios"][0] for row in read(output)]


def test_what_cannot_be_synced_is_not_done(tmp_path, monkeypatch):
    def sync(path: str) -> None:
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr(run_module, "sync", sync)
    output = tmp_path / "train.jsonl"
    arguments = [*corpus(tmp_path / "corpus", 2), "--output_file", output]
    assert prepare(*arguments, "--audio_output", tmp_path / "audio") == 1
    assert not output.exists()
    assert (tmp_path / ".train.jsonl.journal").read_text() == ""


# --- two at once ---


def test_two_runs_into_one_file(tmp_path):
    """The second is refused by the lock of the first, which works on."""
    output = tmp_path / "train.jsonl"
    arguments = [*corpus(tmp_path / "corpus", 3), "--output_file", output]
    os.mkfifo(tmp_path / "gate")
    call = Work.__call__

    def waiting(self: Work, utterance: Any) -> Any:
        (tmp_path / "gate").read_text()  # until the other has been refused
        Work.__call__ = call
        return call(self, utterance)

    first = os.fork()
    if first == 0:
        try:
            Work.__call__ = waiting
            assert prepare(*arguments) == 0
        finally:
            os._exit(0)
    with at_most(20), (tmp_path / "gate").open("w"):  # opens when the first has come to it
        second = prepare_apart(*arguments)
    with at_most(20):
        os.waitpid(first, 0)
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr == (
        f"error: --output_file: path: '{output}' is being written by another run; wait for it, or"
        " name another one\n"
    )
    assert len(read(output)) == 3
    assert prepare(*arguments) == 0


def test_one_run_at_a_time_writes_into_a_folder_of_audio(tmp_path, capsys):
    """Each takes what the other has half written for strays."""
    folder = tmp_path / "24k"
    arguments = [*corpus(tmp_path / "corpus", 1), "--audio_output", folder]
    with journal_of(folder):
        assert prepare(*arguments, "--output_file", tmp_path / "a.jsonl") == 1
    error = one_line_error(capsys)
    assert f"--audio_output: path: '{folder}' is being written by another run" in error
    assert prepare(*arguments, "--output_file", tmp_path / "b.jsonl") == 0


def test_two_runs_into_two_files_of_one_folder(tmp_path):
    arguments = [*corpus(tmp_path / "corpus", 40), "--validate", "header", "--workers", "1"]
    a, b = tmp_path / "out" / "a.jsonl", tmp_path / "out" / "b.jsonl"
    other = subprocess.Popen(
        command_line(*arguments, "--output_file", a), stdout=subprocess.DEVNULL
    )
    assert prepare(*arguments, "--output_file", b) == 0
    assert other.wait(60) == 0
    assert a.read_bytes() == b.read_bytes()
    assert len(read(a)) == 40


@pytest.mark.slow
def test_two_runs_into_one_codes_folder(tiny, tmp_path):
    """Both finish, and the codes serve both."""
    from plugins.audio.code_cache import CodeCache

    children, outputs = [], [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for seed, output in zip((0, 50), outputs, strict=True):
        names = [f"{number}.wav" for number in range(8)]
        for number, name in enumerate(names):
            speech(tmp_path / output.stem / name, seed=seed + number)
        run = [*table(tmp_path / output.stem, names), "--output_file", output]
        run += ["--encode_codes", "--codec", tiny / "audio_tokenizer"]
        children.append(subprocess.Popen(command_line(*run), stdout=subprocess.DEVNULL))
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    keys = []
    for output in outputs:
        keys += [row["audio_codes"][0].split("#")[1] for row in read(output)]
    assert sorted(CodeCache(tmp_path / "codes")) == sorted(keys)
    assert len(set(keys)) == 16


# --- disk full ---


def limited(num_bytes: int) -> Callable[[], None]:
    """No file of this process may become larger, as on a disk that is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


@pytest.mark.parametrize(
    ("num_bytes", "flags"),
    [(1_500, []), (4_000, ["--validate", "header"]), (10_000, ["--split"])],
    ids=["journal", "picture", "rows"],
)
def test_disk_full_is_one_line_and_leaves_the_old_output(tmp_path, num_bytes, flags):
    output = tmp_path / "out" / "train.jsonl"
    arguments = corpus(tmp_path / "corpus", 12 if num_bytes < 10_000 else 40)
    arguments += ["--output_file", output, "--workers", "1", *flags]
    output.parent.mkdir()
    for name in ("train.jsonl", "train.rejected.jsonl", "val.jsonl", "train.report.json"):
        (output.parent / name).write_text(f"old {name}")
    old = contents(output.parent)
    run = prepare_apart(*arguments, preexec_fn=limited(num_bytes))
    assert (run.returncode, run.stdout) == (1, ""), run
    assert run.stderr.strip() == f"error: {output}: File too large"
    visible = contents(output.parent)
    assert {name: visible[name] for name in visible if not name.startswith("out/.")} == old
    assert prepare(*arguments) == 0
    assert not list(output.parent.glob(".*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_disk_full_while_clips_are_written(tmp_path, workers):
    """libsndfile tells of it in its own way."""
    output = tmp_path / "out" / "train.jsonl"
    arguments = [*corpus(tmp_path / "corpus", 6), "--output_file", output, "--workers", workers]
    arguments += ["--audio_output", tmp_path / "audio", "--noise_snr_db", "10"]
    run = prepare_apart(*arguments, preexec_fn=limited(30_000))
    assert (run.returncode, run.stdout) == (1, ""), run
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert not output.exists()
    assert all(sf.info(path).duration == 1.2 for path in (tmp_path / "audio").glob("*.flac"))
    assert prepare(*arguments) == 0
    assert len(read(output)) == 12
