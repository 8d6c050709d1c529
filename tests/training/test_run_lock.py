"""Two trainings into one output folder: the second is refused before it writes anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import write_jsonl
from faults.runs import options
from helpers.processes import TIMEOUT_S, ended, running, torchrun, training
from helpers.sft import BIN, flags

from plugins.errors import UserError
from plugins.files import lock
from plugins.train import main
from plugins.training import run_lock
from plugins.training.arguments import final_output_dir


def occupied(out: Path) -> dict[str, bytes]:
    """Files of `out`, which this process trains in as far as others can see."""
    out.mkdir()
    (out / "args.json").write_text("{}")
    run_lock.hold(out)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def refusal(out: Path) -> str:
    return f"options: output_dir: '{out}' is being trained in by process "


@pytest.mark.parametrize("taken", ["held", "unsaid"])
def test_the_second_is_refused_before_a_model_is_loaded(
    taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = lock.Holder(7, "node-3", "train.py", 0.0) if taken == "held" else "another process"
    monkeypatch.setattr(lock, "take", lambda file: who)
    out = tmp_path / "out"
    out.mkdir()
    words = flags(Path("no/model"), write_jsonl(tmp_path / "rows.jsonl", []), out, **options())
    with pytest.raises(UserError, match=r"is being trained in by (process 7|another)") as error:
        main(words)
    remedy = f"remove {out / lock.NAME}"
    # Only a folder on a network without locks may be held by nobody.
    assert (remedy in str(error.value)) == (taken == "held")


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["--output_dir", "out", "--add_version", "false"], "out"),
        (["--output_dir", "~/out", "--add_version", "False"], str(Path.home() / "out")),
        (["--output_dir", "out"], None),
        (["--output_dir", "out", "--add_version", "true"], None),
        (["--add_version", "false"], None),
    ],
)
def test_the_folder_is_known_early_only_without_a_version(
    words: list[str], folder: str | None
) -> None:
    assert final_output_dir(words) == folder


def test_a_folder_is_free_after_an_error(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fail() -> None:
        with run_lock.released():
            run_lock.hold(out)
            assert (out / lock.NAME).is_file()
            raise UserError("no rows")

    with pytest.raises(UserError, match="no rows"):
        fail()
    assert list(out.iterdir()) == []


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"output_dir: '.*out' cannot be locked \(File exists\)"):
        run_lock.hold(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ranks", "swift"])
def test_ranks_and_plain_swift_are_refused(
    launcher: str, tiny: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with run_lock.released():
        before = occupied(out)
        words = training(tiny, dataset, out)
        command = torchrun(*words) if launcher == "ranks" else [str(BIN / "swift"), "sft", *words]
        with running(*command) as process:
            output = ended(process, TIMEOUT_S)
        assert process.returncode == 1, output[-3000:]
        assert refusal(out) in output
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with running(*torchrun(*words)) as process:
        output = ended(process, TIMEOUT_S)
    assert process.returncode == 0, output[-3000:]
    assert not (out / lock.NAME).exists()
