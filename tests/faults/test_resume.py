"""A training that is killed anywhere and resumed ends as if nothing had happened, or one line says
why it cannot."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, corpus_rows, write_jsonl
from faults.runs import Runs, adapter_of, options, timeless
from helpers.sft import BIN, coded, flags, run

from plugins.files.checkpoints import MARKER, newest
from plugins.training.resume import END_FILE, RUN_FILE

LAST = "checkpoint-6"
Sft = Callable[..., int]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    process = Runs(tmp_path_factory.mktemp("runs") / "log")
    yield process
    process.close()


@pytest.fixture(scope="module")
def rows(tiny: Path) -> list[dict[str, Any]]:
    return coded(tiny, corpus_rows(5))


@pytest.fixture(scope="module")
def command(
    tiny: Path, rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """(output folder, options that differ) -> flags of the usual run."""
    dataset = write_jsonl(tmp_path_factory.mktemp("data") / "train.jsonl", rows)
    return lambda folder, **changed: flags(
        tiny, changed.pop("dataset", dataset), folder, **options(**changed)
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(
    runs: Runs, command: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run that nothing happened to, with its checkpoints 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert runs.sft(command(folder)) == 0, runs.end()
    return folder


def last_line(runs: Runs) -> str:
    return runs.said().splitlines()[-1]


# --- exact ---

VARIANTS: dict[str, dict[str, Any]] = {
    "a log line spans the kill": {"logging_steps": 4},
    "at the end of an epoch": {"save_steps": 3},
    "two workers": {"dataloader_num_workers": 2, "logging_steps": 5},
    "evaluation": {"split_dataset_ratio": 0.2, "eval_steps": 1, "eval_strategy": "steps"},
    # 5 rows are 2 steps and a batch that is left over: the second is over, the third has begun.
    "a stream, between two epochs": {"streaming": "true"},
    "a stream, inside its second epoch": {"streaming": "true", "save_steps": 3},
}
QUICK = {"a log line spans the kill", "a stream, inside its second epoch"}


def check_exact(runs: Runs, command: Callable[..., Any], tmp_path: Path, **variant: Any) -> None:
    assert runs.sft(command(tmp_path / "never", **variant)) == 0, runs.end()
    folder = tmp_path / "killed"
    assert runs.sft(command(folder, **variant), folder=str(folder / LAST), at=1) == -9, runs.end()
    resumed = newest(folder, lambda text: None)
    assert resumed is not None
    assert runs.sft(command(folder, **variant, resume_from_checkpoint="auto")) == 0, runs.end()
    assert f"resuming from {resumed}" in runs.said()
    assert adapter_of(folder / LAST) == adapter_of(tmp_path / "never" / LAST)
    assert timeless(folder / "logging.jsonl") == timeless(tmp_path / "never" / "logging.jsonl")


@pytest.mark.parametrize(
    "variant",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS],
)
def test_killed_and_resumed_is_never_killed(
    variant: str, runs: Runs, command: Callable[..., Any], tmp_path: Path
) -> None:
    """Adapter and log, to the bit: dropout, shuffling and accumulation are on."""
    check_exact(runs, command, tmp_path, **VARIANTS[variant])


@pytest.mark.slow
def test_a_codec_that_is_loaded_after_the_resume(
    runs: Runs, command: Callable[..., Any], tmp_path: Path
) -> None:
    """Building it draws random numbers: at the end of an epoch it came after the generators had
    been restored."""
    dataset = write_jsonl(tmp_path / "clips.jsonl", corpus_rows(5))
    check_exact(runs, command, tmp_path, dataset=dataset, save_steps=3)


def test_a_finished_training_has_nothing_left_to_do(
    runs: Runs, command: Callable[..., Any], tmp_path: Path
) -> None:
    """transformers takes one step more, beyond max_steps, whenever the last epoch is not over."""
    assert runs.sft(command(tmp_path, max_steps=5)) == 0, runs.end()
    adapter = adapter_of(tmp_path / "checkpoint-5")
    log = timeless(tmp_path / "logging.jsonl")
    for _ in range(2):
        assert runs.sft(command(tmp_path, max_steps=5, resume_from_checkpoint="auto")) == 0, (
            runs.end()
        )
        assert "is the end of its training: nothing is left to do" in runs.said()
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert names == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    assert adapter_of(tmp_path / "checkpoint-5") == adapter
    assert timeless(tmp_path / "logging.jsonl") == log


ENDINGS: dict[str, dict[str, Any]] = {
    "samples": {"samples": "true", "sample_texts": "Hello.", "logging_steps": 4},
    "after an evaluation": {
        "samples": "true", "sample_texts": "Hello.", "logging_steps": 4, "max_steps": 3,
        "save_steps": 3, "split_dataset_ratio": 0.2, "eval_strategy": "steps", "eval_steps": 3,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", ENDINGS)
def test_what_follows_the_last_save_is_done_by_the_rerun(
    case: str, runs: Runs, command: Callable[..., Any], tmp_path: Path
) -> None:
    """Killed after the last checkpoint: last log line, samples and card came never."""
    options_ = ENDINGS[case]
    # Of one name, which stands in the marks of samples.
    never, folder = tmp_path / "never" / "run", tmp_path / "killed" / "run"
    assert runs.sft(command(never, **options_)) == 0, runs.end()
    last = max(never.glob("checkpoint-*"))
    shutil.copytree(never, folder)
    # As a kill right after the last save leaves it.
    held = json.loads((last / RUN_FILE).read_text())
    os.truncate(folder / "logging.jsonl", held["log_bytes"])
    for name in ("README.md", END_FILE):
        (folder / name).unlink()
    if case == "samples":
        shutil.rmtree(folder / "samples" / "step-6")
    for _ in range(2):
        words = command(folder, **options_, resume_from_checkpoint="auto")
        assert runs.sft(words) == 0, runs.end()
        assert timeless(folder / "logging.jsonl") == timeless(never / "logging.jsonl")
        for file in never.rglob("samples/**/*"):
            if file.is_file():
                assert (folder / file.relative_to(never)).read_bytes() == file.read_bytes()
        card = (folder / "README.md").read_text().replace("killed", "never")
        assert card == (never / "README.md").read_text()
    assert "nothing is left to do" in runs.said()


FEW: dict[str, tuple[int, dict[str, Any], str]] = {
    "no epoch": (5, {"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs: 0.0 leaves no"),
    "no full batch": (
        1,
        {"per_device_train_batch_size": 2, "dataloader_drop_last": "true"},
        "number of rows: 1 leaves no step to take (1 processes, 2 rows each); give 2 rows or more,",
    ),
    "stream": (1, {"streaming": "true"}, "steps: 0 were taken when the rows were at their end"),
}


@pytest.mark.parametrize("case", FEW)
def test_a_run_without_a_step_is_no_success(
    case: str,
    runs: Runs,
    command: Callable[..., Any],
    rows: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    num_rows, changed, expected = FEW[case]
    dataset = write_jsonl(tmp_path / "train.jsonl", rows[:num_rows])
    assert runs.sft(command(tmp_path / "out", dataset=dataset, **changed)) == 1, runs.end()
    assert expected in last_line(runs)
    assert not (tmp_path / "out" / "README.md").exists()


def test_auto_in_yaml_goes_on_in_the_version_folder(
    runs: Runs, command: Callable[..., Any], whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("resume_from_checkpoint: auto\nadd_version: true\n")
    words = [str(tmp_path / "run.yaml"), *command(tmp_path / "out", add_version=None)]
    fault = {"folder": str(tmp_path / "out"), "at": 150}
    assert runs.sft(words, **fault) == -9
    assert "training starts anew" in runs.said()
    assert runs.sft(words) == 0, runs.end()
    (version,) = (tmp_path / "out").iterdir()
    assert version.name.startswith("v0-")
    assert adapter_of(version / LAST) == adapter_of(whole / LAST)


# --- beside the checkpoints of others ---


def test_a_training_removes_only_checkpoints_of_its_own(
    runs: Runs, command: Callable[..., Any], tmp_path: Path
) -> None:
    """With a limit of one and evaluation transformers removed all but the best at the end, whoever
    wrote them."""
    foreign = {f"checkpoint-{step}": f"weights of step {step}" for step in (1, 4, 100)}
    for name, weights in foreign.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(weights)
    words = command(
        tmp_path, **VARIANTS["evaluation"], save_total_limit=1, max_steps=4, save_steps=1
    )
    assert runs.sft(words) == 0, runs.end()
    moved = tmp_path / "checkpoint-4.1"
    assert (
        f"{tmp_path / 'checkpoint-4'} is not of this run: it is {moved} from now on" in runs.said()
    )
    foreign[moved.name] = foreign.pop("checkpoint-4")
    foreign["checkpoint-1.1"] = foreign.pop("checkpoint-1")
    for name, weights in foreign.items():
        assert (tmp_path / name / "model.safetensors").read_text() == weights
    own = [path for path in tmp_path.glob("checkpoint-*") if path.name not in foreign]
    assert (tmp_path / "checkpoint-4" / MARKER).is_file()
    assert len(own) <= 2, "the last and the best"


@pytest.mark.slow
def test_the_log_of_another_run_in_the_folder_is_not_cut(
    runs: Runs, command: Callable[..., Any], whole: Path, tmp_path: Path
) -> None:
    """A run, another one started anew in its folder, and the first one again."""
    shutil.copytree(whole, tmp_path / "out")
    folder, log = tmp_path / "out", tmp_path / "out" / "logging.jsonl"
    assert runs.sft(command(folder, max_steps=3, save_steps=3)) == 0, runs.end()
    second_log = log.read_bytes()
    assert (folder / "logging.1.jsonl").read_bytes() == (whole / "logging.jsonl").read_bytes()
    shutil.rmtree(folder / LAST)
    assert runs.sft(command(folder, resume_from_checkpoint=folder / "checkpoint-4")) == 0, (
        runs.end()
    )
    assert (folder / "logging.2.jsonl").read_bytes() == second_log
    assert adapter_of(folder / LAST) == adapter_of(whole / LAST)


# --- killed at each effect on the disk ---


def killed_at(runs: Runs, command: Callable[..., Any], whole: Path, folder: Path, at: int) -> bool:
    """Kill a run with rotation at its `at`-th effect, resume it, compare; False: it ended
    before."""
    limit = {"save_total_limit": 1}
    status = runs.sft(command(folder, **limit), folder=str(folder), at=at)
    assert status in (0, -9), (at, runs.end())
    if (folder / "checkpoint-4").exists():
        assert newest(folder, print) is not None, f"{at}: the last whole checkpoint is gone"
    if status:
        words = command(folder, **limit, resume_from_checkpoint="auto")
        assert runs.sft(words) == 0, (at, runs.end())
    assert [path.name for path in folder.iterdir() if "checkpoint-" in path.name] == [LAST], at
    assert adapter_of(folder / LAST) == adapter_of(whole / LAST), at
    assert timeless(folder / "logging.jsonl") == timeless(whole / "logging.jsonl"), at
    assert (folder / "README.md").is_file(), at
    shutil.rmtree(folder)
    return status != 0


@pytest.mark.slow
def test_killed_at_some_effects(
    runs: Runs, command: Callable[..., Any], whole: Path, tmp_path: Path
) -> None:
    """Three saves and two removals; `make faults` tries every one."""
    num_kills = 0
    for at in range(7, 180, 38):
        num_kills += killed_at(runs, command, whole, tmp_path / "out", at)
    assert num_kills > 3, "it has fewer effects than it had"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_killed_at_every_effect(command: Callable[..., Any], whole: Path, tmp_path: Path) -> None:
    numbers = itertools.count(1)  # shared by both threads; taking the next one is atomic

    def until_it_ends(name: str) -> int:
        process = Runs(tmp_path / f"{name}.log")
        try:
            while killed_at(process, command, whole, tmp_path / name, at := next(numbers)):
                pass
        finally:
            process.close()
        return at

    with ThreadPoolExecutor(2) as threads:
        first_without_kill = min(threads.map(until_it_ends, ("a", "b")))
    print(f"killed at each of {first_without_kill - 1} effects")
    assert first_without_kill > 40


# --- refused, in one line ---


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (
        lambda path: flip(path / "optimizer.pt"),
        "(optimizer.pt has changed since it was saved)",
    ),
    "missing shard": (
        lambda path: (path / "adapter_model.safetensors").unlink(),
        "safetensors is missing)",
    ),
    "empty state": (
        lambda path: (path / "trainer_state.json").write_text(""),
        "(trainer_state.json has 0 bytes",
    ),
    "no marker": (lambda path: (path / MARKER).unlink(), "is incomplete"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_checkpoint(
    case: str, runs: Runs, command: Callable[..., Any], whole: Path, tmp_path: Path
) -> None:
    """Named explicitly it is refused; `auto` names it, takes the one before, and ends as if nothing
    had happened."""
    harm, reason = DAMAGES[case]
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / LAST)
    damaged = folder / "checkpoint-4"
    harm(damaged)
    assert runs.sft(command(folder, resume_from_checkpoint=damaged)) == 1
    assert last_line(runs).startswith(f"error: options: resume_from_checkpoint: '{damaged}' is ")
    assert reason in last_line(runs)
    assert runs.sft(command(folder, resume_from_checkpoint="auto")) == 0, runs.end()
    assert f"{damaged} is " in runs.said()
    assert f"resuming from {folder / 'checkpoint-2'}" in runs.said()
    assert adapter_of(folder / LAST) == adapter_of(whole / LAST)


CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "rank": ({"lora_rank": 8}, ["lora_rank: 4 in the checkpoint, 8 now"]),
    "seed": (
        {"seed": 7, "data_seed": 7},
        ["content of the rows: ", "seed: 42 in the checkpoint, 7 now", "data_seed: 42 in the"],
    ),
    "batch": (
        {"per_device_train_batch_size": 2},
        ["per_device_train_batch_size: 1 in the checkpoint, 2 now"],
    ),
    "loss": ({"audio_loss_weight": 0.5}, ["audio_loss_weight: 1.0 in the checkpoint, 0.5 now"]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_another_run_is_refused_with_what_differs(
    case: str, runs: Runs, command: Callable[..., Any], whole: Path, tmp_path: Path
) -> None:
    changed, expected = CHANGES[case]
    checkpoint = whole / "checkpoint-4"
    assert runs.sft(command(tmp_path, **changed, resume_from_checkpoint=checkpoint)) == 1, (
        runs.end()
    )
    start, *lines = runs.said().splitlines()[-1 - len(expected) :]
    assert start == (
        f"error: options: resume_from_checkpoint: '{checkpoint}' is of another run; undo them, or"
        " accept another result with --force_resume true:"
    )
    for line, text in zip(lines, expected, strict=True):
        assert line.startswith(f"  {text}")


def test_other_rows_are_refused_unless_forced(
    runs: Runs, command: Callable[..., Any], rows: list[dict[str, Any]], whole: Path, tmp_path: Path
) -> None:
    changed = [*rows[:-1], {**rows[-1], "messages": rows[0]["messages"]}]
    dataset = write_jsonl(tmp_path / "train.jsonl", changed)
    words = command(
        tmp_path / "out", dataset=dataset, resume_from_checkpoint=whole / "checkpoint-4"
    )
    assert runs.sft(words) == 1
    assert last_line(runs).startswith("  content of the rows: '")
    assert runs.sft([*words, "--force_resume", "true"]) == 0, runs.end()
    assert "resumed although content of the rows: '" in runs.said()
    assert (tmp_path / "out" / LAST / MARKER).is_file()


def test_the_same_rows_elsewhere_are_the_same(
    runs: Runs, command: Callable[..., Any], rows: list[dict[str, Any]], whole: Path, tmp_path: Path
) -> None:
    dataset = write_jsonl(tmp_path / "moved.jsonl", rows)
    words = command(
        tmp_path / "out", dataset=dataset, resume_from_checkpoint=whole / "checkpoint-4"
    )
    assert runs.sft(words) == 0, runs.end()
    assert adapter_of(tmp_path / "out" / LAST) == adapter_of(whole / LAST)


@pytest.mark.slow
def test_two_processes_are_resumed_exactly_and_not_by_one(
    command: Callable[..., Any], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """And one row for both is refused: that was a success of 0 steps."""

    def launch(folder: Path, processes: int, **changed: Any) -> Any:
        words = command(folder, ddp_backend="gloo", max_steps=4, logging_steps=3, **changed)
        env = {"NPROC_PER_NODE": str(processes), "OMP_NUM_THREADS": "1"}
        return run(str(BIN / "python"), "-m", "plugins", "sft", *words, cwd=ROOT, **env)

    done = launch(tmp_path / "out", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    last, log = tmp_path / "out" / "checkpoint-4", tmp_path / "out" / "logging.jsonl"
    adapter, logged = adapter_of(last), timeless(log)
    (last / MARKER).unlink()
    done = launch(tmp_path / "out", 2, resume_from_checkpoint="auto")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checkpoint-4 is incomplete" in done.stdout + done.stderr
    assert adapter_of(last) == adapter
    assert timeless(log) == logged
    dataset = write_jsonl(tmp_path / "one.jsonl", rows[:1])
    one_row = launch(tmp_path / "one", 2, dataset=dataset)
    assert one_row.returncode == 1
    assert "number of rows: 1 leaves no step to take (2 processes, 1 rows" in one_row.stderr
    assert not (tmp_path / "one" / "README.md").exists()
    alone = launch(tmp_path / "alone", 1, resume_from_checkpoint=last.with_name("checkpoint-2"))
    assert alone.returncode == 1
    assert (
        "world_size: 2 in the checkpoint, 1 now" in alone.stderr
    )  # beneath which torchrun says its own
