"""The clips of a row: what is asked of their files, and how often."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import CORPUS, write_jsonl
from helpers.published import PublishedConfig

from plugins.audio import waveforms
from plugins.data.clips import check_clips, num_frames, stand_ins
from plugins.data.dialogue import AudioClip, Dialogue
from plugins.data.sources import read_rows
from plugins.data.tokens import SpecialTokens, TowerInput
from plugins.settings import HiggsAudioSettings

TARGET, VOICE = (str(CORPUS / "wavs" / f"DEMO-000{number}.flac") for number in (1, 2))


def test_a_row_check_opens_the_header_of_each_file_once(
    llama_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Length, frames beside codes, and what an audio tower hears: each question opened it again."""
    tokens = SpecialTokens.from_config(PublishedConfig(), llama_tokenizer)
    tokens = replace(tokens, tower=TowerInput(128015, num_mel_bins=128, with_codes=True))
    frames = [num_frames(AudioClip(path), "") for path in (VOICE, TARGET)]
    row = {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}],
        "audios": [TARGET],
        "audio_codes": [[[0] * 8] * frames[1]],
        "reference_audio": VOICE,
    }
    opened: list[str] = []
    probe = waveforms.probe

    def noted(path: str) -> waveforms.AudioInfo:
        opened.append(path)
        return probe(path)

    def check(dialogue: Dialogue) -> None:
        check_clips(dialogue, HiggsAudioSettings())
        silent = stand_ins(dialogue, tokens)
        assert [num_frames(clip, "") for clip in silent.clips()] == frames
        heard = silent.references[0].clip.waveform
        assert heard is not None
        assert len(heard) == probe(VOICE).num_samples_at(16_000)

    monkeypatch.setattr(waveforms, "probe", noted)
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    read_rows(str(path), HiggsAudioSettings(), check=check)
    assert sorted(opened) == [TARGET, VOICE]
