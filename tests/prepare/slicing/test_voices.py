"""Who speaks: speech -> speakers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.joined import RATE_HZ, KnowingRecogniser, join, prompts
from helpers.recorded import FRENCH, decoded

from plugins.audio import waveforms as audio
from plugins.prepare.cli import main
from plugins.prepare.slicing import diarising, hearing
from plugins.prepare.slicing.diarising import Turn, turn_at
from plugins.prepare.slicing.voices import SIZE, speakers_of


def spoken_by(*speakers: int, seed: int = 0, spread: float = 0.4) -> np.ndarray:
    """An embedding for each: that of the speaker, and as much of something else."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(speakers) + 1, SIZE))
    voices = centres[list(speakers)] + spread * random.standard_normal((len(speakers), SIZE))
    voices = (voices / np.linalg.norm(voices, axis=1, keepdims=True)).astype(np.float32)
    return np.stack([voices] * 3, axis=1)  # from the first moment to the last


@pytest.mark.parametrize("speakers", [[0] * 20, [0, 1] * 10, [0, 0, 1, 2, 1] * 8, [0], [0, 1]])
@pytest.mark.parametrize("is_told", [True, False])
def test_speakers_are_told_apart(speakers: list[int], is_told: bool) -> None:
    number = max(speakers) + 1 if is_told else None
    found = speakers_of(spoken_by(*speakers), [2.0] * len(speakers), number)
    assert found.indices == speakers, "in the order in which they begin to speak"
    assert found.expected_purity > 0.99


def test_a_laugh_is_no_speaker() -> None:
    found = speakers_of(spoken_by(*[0, 1] * 40, 2), [2.0] * 81, None)
    assert found.count == 2
    assert found.indices[:80] == [0, 1] * 40


def test_alike_voices_are_said_to_be_doubtful() -> None:
    speakers = [0, 1] * 20
    clear = speakers_of(spoken_by(*speakers, spread=0.2), [2.0] * 40, 2)
    voices = spoken_by(*[0] * 40, spread=0.4)
    unclear = speakers_of(voices, [2.0] * 40, 2)
    assert unclear.expected_purity < clear.expected_purity


def test_short_speech_is_given_to_the_nearest() -> None:
    lengths_s = [2.0] * 20 + [0.5] * 20
    found = speakers_of(spoken_by(*[0, 1] * 20), lengths_s, None)
    assert found.indices == [0, 1] * 20


def test_a_span_of_two_voices_is_of_neither() -> None:
    voices = spoken_by(*[0, 1] * 20)
    voices[7, 2] = voices[8, 0]
    voices[20, 1] = voices[21, 0]
    found = speakers_of(voices, [2.0] * 40, 2)
    assert [i for i, is_shared in enumerate(found.shared) if is_shared] == [7, 20]


def test_nobody_speaks() -> None:
    assert speakers_of(np.zeros((0, 3, SIZE), np.float32), [], None).count == 0


def test_the_turn_that_holds_the_most() -> None:
    turns = [Turn(0, 1, "a", 1), Turn(2, 5, "b", 1)]
    assert turn_at(turns, (0.5, 2.4)) == turns[0]
    assert turn_at(turns, (0.9, 2.4)) == turns[1]
    assert turn_at(turns, (1.2, 1.8)) is None


class Halves:
    """Takes the louder speech for one voice's, the other for another's."""

    num_asked = 0

    def voices(self, heard: np.ndarray, speech: Any) -> np.ndarray:
        Halves.num_asked += 1
        levels = []
        for start_s, end_s in speech:
            piece = heard[round(start_s * RATE_HZ) : round(end_s * RATE_HZ)]
            levels.append(int(np.abs(piece).max() > 0.15))
        return spoken_by(*levels, 1, 0)[:-2]


def test_clips_are_of_one_speaker_and_voices_are_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("faster_whisper")
    from helpers.joined import embedded

    spoken = []
    for i, (text, samples) in enumerate(embedded(16)):
        level = 0.5 if i // 3 % 2 else 0.05
        spoken.append((text, samples / np.abs(samples).max() * level))
    path = tmp_path / "in" / "a.wav"
    said = join(path, spoken, pauses_s=(0.3, 0.5))
    monkeypatch.setattr(hearing, "listener", KnowingRecogniser((path, said)).listener)
    monkeypatch.setattr(diarising, "VoiceMeter", Halves)
    words = ["--dataset_type", "recordings", "--input_dir", str(path.parent), "--diarize", "auto"]
    words += ["--output_file", str(tmp_path / "x.jsonl")]
    assert main(words) == 0
    assert "2 speakers told apart" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    for row in rows:
        text = row["messages"][0]["content"]
        groups = {i // 3 % 2 for i, one in enumerate(said) if one.text in text}
        assert groups == {int(row["speaker"] == "speaker2")}
    num_asked = Halves.num_asked
    assert main(words) == 0
    assert Halves.num_asked == num_asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--diarize", "two"], "neither auto nor a number"),
        (["--diarize", "0"], "neither auto nor a number"),
        (["--diarize", "2", "--single_speaker", "ann"], "no effect with --single_speaker"),
    ],
)
def test_wrong_usage(options: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    words = ["--dataset_type", "recordings", "--input_dir", str(tmp_path), *options]
    with pytest.raises(SystemExit):
        main([*words, "--output_file", str(tmp_path / "x.jsonl")])
    assert message in capsys.readouterr().err


def of_flite(texts: Iterable[str], wav: Path) -> Iterator[np.ndarray]:
    if shutil.which("flite") is None:
        pytest.skip("needs Debian's flite: apt-get install flite")
    for text in texts:
        command = ["flite", "-voice", "slt", "-t", text, "-o", str(wav)]
        subprocess.run(command, check=True, timeout=60)
        yield audio.load(wav, sample_rate_hz=RATE_HZ)


def of_june() -> Iterator[np.ndarray]:
    """Asterisk's French voice: what she says does not matter."""
    paths = [path for path in sorted(FRENCH.glob("vm-*.g722")) if path.stat().st_size > RATE_HZ]
    return map(decoded, paths)


@pytest.mark.slow
@pytest.mark.parametrize("voice", ["flite", "june"])
def test_two_real_voices_are_told_apart(
    voice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asterisk's English one and another, three sentences at most before the other goes on."""
    pytest.importorskip("faster_whisper")
    pytest.importorskip("resemblyzer")
    own = prompts(120)
    if voice == "june":
        if not FRENCH.is_dir():
            pytest.skip("needs Debian's asterisk-core-sounds-fr-g722")
        others = of_june()
    else:
        others = of_flite([text for text, _ in own], tmp_path / "flite.wav")
    spoken, by_other = [], []
    random = np.random.default_rng(0)
    is_other, left = False, 1
    for text, samples in own:
        if not left:
            is_other, left = not is_other, int(random.integers(1, 4))
        left -= 1
        spoken.append((text, next(others) if is_other else samples))
        by_other.append(is_other)
    path = tmp_path / "in" / "a.wav"
    said = join(path, spoken)
    monkeypatch.setattr(hearing, "listener", KnowingRecogniser((path, said)).listener)
    words = ["--dataset_type", "recordings", "--input_dir", str(path.parent), "--diarize", "auto"]
    assert main([*words, "--output_file", str(tmp_path / "x.jsonl")]) == 0
    seconds = {"speaker1": [0.0, 0.0], "speaker2": [0.0, 0.0]}
    for line in (tmp_path / "x_clips" / "clips.jsonl").read_text().splitlines():
        clip = json.loads(line)
        for one, other in zip(said, by_other, strict=True):
            overlap_s = min(one.end_s, clip["end_s"]) - max(one.start_s, clip["start_s"])
            seconds[clip["speaker"]][other] += max(0.0, overlap_s)
    purity = sum(map(max, seconds.values())) / sum(map(sum, seconds.values()))
    print(f"purity {purity:.4f}", seconds)
    assert purity >= 0.97
