"""What `higgs-audio sft` shows: our lines and what is wrong; all else stands in a file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.sft import LORA, flags

from plugins.errors import UserError
from plugins.settings import KNOBS
from plugins.train import main
from plugins.training import sft_help, terminal

OURS = str(Path(terminal.__file__).with_name("resume.py"))


def say(text: str, *, level: int = logging.INFO, file: str = "/lib/swift/x.py") -> None:
    logger = logging.getLogger("swift")
    record = logger.makeRecord("swift", level, file, 1, text, (), None)
    logger.handle(record)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the terminal, by a handler of its own."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.setFormatter(terminal._Plain())
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(handler.format(record)))
    monkeypatch.setattr(logging.getLogger("swift"), "handlers", [handler])
    return lines


def test_dumps_go_to_the_file_and_findings_to_the_terminal(
    shown: list[str], tmp_path: Path
) -> None:
    with terminal.quiet() as log:
        say("args: SftArguments(\nmodel=x)")
        say("Loading model with trust_remote_code=True.", level=logging.WARNING)
        path = log.into(tmp_path / "run")
        say("ok      labels: 4 rows", file=OURS)
        say("two steps were skipped", level=logging.WARNING)
        # Where `logging.captureWarnings` puts those of `warnings`, which pytest takes for itself.
        logging.getLogger("py.warnings").warning("for developers")
    say("afterwards")
    assert shown == ["ok      labels: 4 rows", "warning: two steps were skipped", "afterwards"]
    text = path.read_text(encoding="utf-8")
    for part in ("model=x", "trust_remote_code", "4 rows", "were skipped", "for developers"):
        assert part in text
    assert "afterwards" not in text


def test_a_run_that_breaks_before_it_has_a_folder_shows_what_it_said(
    shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """But an error of the user has said all in one line."""
    with pytest.raises(UserError):
        _end(UserError("one line"))
    assert capsys.readouterr().err == ""
    with pytest.raises(RuntimeError):
        _end(RuntimeError())
    assert "the last thing that was done" in capsys.readouterr().err
    assert shown == []


def _end(error: Exception) -> None:
    with terminal.quiet():
        say("the last thing that was done")
        raise error


def test_a_training_shows_plan_findings_and_how_to_speak(
    tiny: Path,
    dataset: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """670 lines before, the findings at line 633 and no last word."""
    out = tmp_path / "out"
    from swift.utils import get_logger

    # MS-SWIFT's own handler may have the stream of an earlier test.
    monkeypatch.setattr(get_logger(), "handlers", [logging.StreamHandler(sys.stderr)])
    main(flags(tiny, dataset, out, external_plugins=None, **LORA))
    text = capfd.readouterr().err
    before, _, _ = text.partition("Train:")
    assert len(before.splitlines()) <= 60
    for part in ("plan    model: ", "8 to train on, 0 for validation", "2 of 16 rows each"):
        assert part in text
    assert before.index("plan    model: ") < before.index("ok      labels: ")
    assert "SftArguments(" not in text
    assert "SftArguments(" in (out / terminal.LOG_FILE).read_text(encoding="utf-8")
    (last,) = [line for line in text.splitlines() if line.startswith("speak with: ")]
    assert last.endswith(f"speak --model {out}/checkpoint-2 --text Hello.")


def test_help_lists_our_settings_and_flags_that_are_there() -> None:
    from swift.arguments import RLHFArguments, SftArguments

    text = sft_help.text()
    for name in (*KNOBS, *sft_help.COMMON):
        assert f"  --{name}" in text
    assert len(sft_help.COMMON) >= 20
    assert set(sft_help.COMMON) <= set(SftArguments.__dataclass_fields__)
    of_preferences = sft_help.text("rlhf")
    for name in sft_help.PREFERENCES:
        assert f"--{name}" in of_preferences
        assert f"--{name} " not in text
    assert set(sft_help.PREFERENCES) <= set(RLHFArguments.__dataclass_fields__)
    assert "All flags: swift sft --help" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_stream_has_a_plan_too() -> None:
    from plugins.training.preflight import plan_lines

    assert plan_lines._shown(plan_lines._length(iter([]))) == "a stream"
    args: Any = SimpleNamespace(
        per_device_train_batch_size=4,
        dataloader_drop_last=False,
        gradient_accumulation_steps=4,
        world_size=1,
        max_steps=-1,
        num_train_epochs=2,
    )
    assert plan_lines.num_steps(args, 15) == (1, 2)
