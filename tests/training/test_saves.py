"""Checkpoint folders: which are whole, which is the newest, which may go. No training here:
`faults/test_resume.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.checkpoints import RUN, checkpoint

from plugins.errors import UserError
from plugins.files.checkpoints import MARKER, damage, newest
from plugins.trainer import HiggsAudioTrainer
from plugins.training import saves
from plugins.training.saves import (
    NOTE,
    Owner,
    discard,
    owner,
    require_whole,
    reserve,
    rotate,
    seal,
)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda folder: flip(folder / "model-1.safetensors"),
        "(model-1.safetensors has changed since it was saved)",
    ),
    (
        lambda folder: flip(folder / "audio_tokenizer" / "config.json"),
        "(audio_tokenizer/config.json has changed",
    ),
    (
        lambda folder: (folder / "model-1.safetensors").unlink(),
        "is damaged (model-1.safetensors is missing)",
    ),
    (
        lambda folder: rewrite(folder / "trainer_state.json", ""),
        "(trainer_state.json has 0 bytes instead of 18)",
    ),
    (
        lambda folder: (folder / MARKER).unlink(),
        "is incomplete (no valid higgs_audio_complete.json",
    ),
    (lambda folder: rewrite(folder / MARKER, '{"files":'), "is incomplete"),
    (lambda folder: rewrite(folder / MARKER, '{"files": [1]}'), "is incomplete"),
    (lambda folder: rewrite(folder / MARKER, "[]"), "is incomplete"),
]


@pytest.mark.parametrize(("harm", "reason"), DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_passed_over(
    harm: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    older, newer = checkpoint(tmp_path / "checkpoint-9"), checkpoint(tmp_path / "checkpoint-10")
    assert newest(tmp_path, warn=pytest.fail) == newer
    harm(newer)
    told: list[str] = []
    assert newest(tmp_path, warn=told.append) == older
    assert len(told) == 1
    assert told[0].startswith(f"{newer} ")
    assert reason in told[0]
    assert told[0].endswith("not resumed from, left as it is")
    with pytest.raises(UserError) as error:
        require_whole(newer)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_what_was_added_later_does_no_harm(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint-2")
    (folder / "notes.txt").write_text("good voice")
    assert damage(folder) is None


def test_a_marker_that_points_elsewhere_is_none(tmp_path: Path) -> None:
    """Whoever gives away a checkpoint must not make us read other files, least of all endless
    ones."""
    folder = checkpoint(tmp_path / "checkpoint-2")
    for name in ("/dev/zero", "../secret"):
        marker = json.loads((folder / MARKER).read_text())
        marker["files"] = {name: {"bytes": 0, "sha256": ""}}
        rewrite(folder / MARKER, json.dumps(marker))
        assert "is incomplete" in str(damage(folder))


def test_without_optimizer_it_is_not_resumed_from(tmp_path: Path) -> None:
    assert "save_only_model" in str(damage(checkpoint(tmp_path / "checkpoint-2", resumable=False)))


def test_the_newest_is_that_of_the_last_version(tmp_path: Path) -> None:
    checkpoint(tmp_path / "v9-20260101-000000" / "checkpoint-500")
    last = checkpoint(tmp_path / "v10-20260102-000000" / "checkpoint-10")
    checkpoint(tmp_path / "checkpoint-700")
    checkpoint(tmp_path / "v11-20260103-000000" / "checkpoint-1", sealed=False)
    told: list[str] = []
    assert newest(tmp_path, told.append) == last
    assert ["v11" in line for line in told] == [True]


def test_the_newest_is_the_one_saved_last_not_that_of_most_steps(tmp_path: Path) -> None:
    """`--add_version false` and a run that was started anew in the folder of a longer one."""
    checkpoint(tmp_path / "checkpoint-500")
    later = checkpoint(tmp_path / "checkpoint-10")
    assert newest(tmp_path, pytest.fail) == later


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-old").mkdir()
    assert newest(tmp_path, pytest.fail) is None
    assert newest(tmp_path / "gone", pytest.fail) is None


def test_rotation_keeps_the_last_whole_ones_and_the_best(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / f"checkpoint-{step}") for step in (8, 9, 10, 11)]
    rotate(paths[-1], RUN, limit=2, best=str(paths[0]))
    assert {path for path in paths if path.exists()} == {paths[0], paths[-1]}
    rotate(paths[-1], RUN, limit=None, best=None)
    assert paths[0].exists()
    rotate(paths[-1], RUN, limit=1, best=None)
    assert {path for path in paths if path.exists()} == {paths[-1]}


def test_rotation_does_not_count_broken_ones(tmp_path: Path) -> None:
    """transformers counts folders: two that were cut short would push out the last whole one."""
    first = checkpoint(tmp_path / "checkpoint-2")
    broken = [checkpoint(tmp_path / f"checkpoint-{step}", sealed=False) for step in (4, 6)]
    last = checkpoint(tmp_path / "checkpoint-8")
    rotate(last, RUN, limit=2, best=None)
    assert [path.exists() for path in (first, *broken, last)] == [True, False, False, True]


def test_rotation_keeps_what_was_just_saved_beside_a_later_step(tmp_path: Path) -> None:
    """The run was resumed from an earlier checkpoint than its last one."""
    later = checkpoint(tmp_path / "checkpoint-500")
    saved = checkpoint(tmp_path / "checkpoint-10")
    rotate(saved, RUN, limit=1, best=None)
    assert (saved.exists(), later.exists()) == (True, False)


def test_rotation_removes_nothing_that_the_run_did_not_write(tmp_path: Path) -> None:
    """It took a folder without our marker for one of ours that was cut short, and an older run for
    a part of this."""
    other = Owner("b" * 32, "something else")
    same_command = Owner("c" * 32, RUN.trained)
    kept = [
        checkpoint(tmp_path / "checkpoint-100", sealed=False, by=None),  # of another program
        checkpoint(tmp_path / "checkpoint-200", by=other),
        checkpoint(tmp_path / "checkpoint-300", by=other, sealed=False),
        checkpoint(tmp_path / "checkpoint-400", by=same_command),
        checkpoint(tmp_path / "checkpoint-500", by=None),  # of an earlier release, without a note
    ]
    checkpoint(tmp_path / "elsewhere" / "checkpoint-600")
    kept.append(tmp_path / "checkpoint-600")
    kept[-1].symlink_to(tmp_path / "elsewhere" / "checkpoint-600")
    half = [
        checkpoint(tmp_path / "checkpoint-1", sealed=False),
        # Killed before it had a checkpoint to be resumed from, and given again.
        checkpoint(tmp_path / "checkpoint-2", sealed=False, by=same_command),
    ]
    first, last = checkpoint(tmp_path / "checkpoint-3"), checkpoint(tmp_path / "checkpoint-4")
    rotate(last, RUN, limit=1, best=None)
    assert [path for path in [*half, first] if path.exists()] == []
    assert [path for path in [*kept, last] if not (path / "model-1.safetensors").exists()] == []


def test_a_checkpoint_of_others_that_is_in_the_way_goes_aside(tmp_path: Path) -> None:
    """transformers would write into it, and we used to remove it."""
    path = checkpoint(tmp_path / "checkpoint-2", by=None)
    (tmp_path / "checkpoint-2.1").mkdir()
    told: list[str] = []
    reserve(path, RUN, told.append)
    assert told == [f"{path} is not of this run: it is {path}.2 from now on"]
    assert damage(tmp_path / "checkpoint-2.2") is None
    assert os.listdir(path) == [NOTE]
    reserve(path, RUN, pytest.fail)  # one's own is saved anew
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-2", "checkpoint-2.1", "checkpoint-2.2"]


def test_who_resumes_a_run_is_that_run(tmp_path: Path) -> None:
    saved = checkpoint(tmp_path / "checkpoint-2")
    assert owner({"seed": 1}, saved).run == RUN.run
    assert owner({"seed": 1}, None).run != owner({"seed": 1}, None).run
    assert (
        owner({"seed": 1}, None).trained
        == owner({"seed": 1}, saved).trained
        != owner({"seed": 2}, saved).trained
    )
    rewrite(saved / NOTE, "[]")
    assert owner({"seed": 1}, saved).run != RUN.run


def test_a_removal_that_was_cut_short_is_ended_and_nothing_else_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is out of sight at once: what a kill leaves cannot be taken for a damaged
    one."""
    path, saved = checkpoint(tmp_path / "checkpoint-2"), checkpoint(tmp_path / "checkpoint-4")
    others = [
        tmp_path / name
        for name in (".checkpoint-2.old", f".checkpoint-2.{'a' * 31}.old", ".checkpoint-2")
    ]
    for folder in others:
        folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(saves.shutil, "rmtree", lambda *_, **__: None)
        discard(path)
    assert not path.exists()
    assert len(list(tmp_path.glob(".checkpoint-*"))) == 4
    rotate(saved, RUN, limit=None, best=None)
    assert sorted(tmp_path.iterdir()) == sorted([*others, saved])


def test_files_are_on_disk_before_the_marker_that_vouches_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power failure needs and no test can stage: the order of syncing and naming."""
    folder = checkpoint(tmp_path / "checkpoint-2", sealed=False)
    events: list[str] = []

    def name_of(descriptor: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name

    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(name_of(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("replace"), replace(*names)))
    seal(folder, resumable=True)
    assert sorted(events[:4]) == ["config.json", NOTE, "model-1.safetensors", "trainer_state.json"]
    assert sorted(events[4:7]) == sorted(["audio_tokenizer", "checkpoint-2", tmp_path.name])
    assert events[7].startswith(f".{MARKER}.")
    assert events[8:] == ["replace", "checkpoint-2"]


def test_only_the_rank_that_writes_saves(tmp_path: Path) -> None:
    """From transformers 5.23 on every rank is told to. MS-SWIFT's `_save`, which takes itself for
    the first, wrote one checkpoint twice at once."""
    other_rank: Any = SimpleNamespace(args=SimpleNamespace(should_save=False))
    HiggsAudioTrainer._save(other_rank, str(tmp_path / "checkpoint-2"))
    assert not (tmp_path / "checkpoint-2").exists()


def test_a_whole_checkpoint_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "checkpoint-2")
    assert damage(folder) is None
    monkeypatch.setattr(saves.disk, "file_hash", lambda path: pytest.fail("read again"))
    assert damage(folder) is None
