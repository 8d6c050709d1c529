"""Everything that a user asks of the generator beyond one sentence: long texts, voices, dialogues.

Adapters: test_adapters.py; the command: test_speak.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from conftest import CORPUS

from plugins import Voice
from plugins.data.dialogue import AudioClip, Dialogue
from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling
from plugins.speaking.speaker import Speaker
from plugins.speaking.speech import Speech, join

VOICE = str(CORPUS / "wavs" / "DEMO-0002.flac")
OTHER = str(CORPUS / "wavs" / "DEMO-0003.flac")
GREEDY = Sampling(temperature=0)
SHORT: dict[str, Any] = {"sampling": GREEDY, "max_audio_s": 0.4}


@pytest.fixture(scope="module")
def generator(tiny: Path) -> HiggsAudioGenerator:
    return HiggsAudioGenerator.from_pretrained(str(tiny))


@pytest.fixture
def heard(generator: HiggsAudioGenerator, monkeypatch: pytest.MonkeyPatch) -> list[Dialogue]:
    """Every prompt that is spoken from, in order."""
    prompts: list[Dialogue] = []
    original = Speaker.speak

    def speak(self: Speaker, dialogues: Sequence[Dialogue], **options: Any) -> list[Speech]:
        prompts.extend(dialogues)
        return original(self, dialogues, **options)

    monkeypatch.setattr(Speaker, "speak", speak)
    return prompts


def texts(dialogue: Dialogue) -> list[str]:
    return [part for turn in dialogue.turns for part in turn.parts if isinstance(part, str)]


def clips(dialogue: Dialogue) -> list[AudioClip]:
    return [part for turn in dialogue.turns for part in turn.parts if isinstance(part, AudioClip)]


# --- texts ---


def test_a_list_is_spoken_in_one_batch(generator: HiggsAudioGenerator) -> None:
    lines = ["Hello.", "The harbour lights went out one by one.", "Hi."]
    together = generator.generate(lines, scene_description="Indoor quiet", **SHORT)
    for text, speech in zip(lines, together, strict=True):
        alone = generator.generate(text, scene_description="Indoor quiet", **SHORT)
        assert speech.text == text
        assert torch.equal(speech.codes, alone.codes)
        assert np.array_equal(speech.audio, alone.audio)


def test_results_tell_how_long_it_took(generator: HiggsAudioGenerator) -> None:
    speech = generator.generate("Hello.", **SHORT)
    assert speech.truncated
    assert speech.took_s > 0
    assert speech.real_time_factor == speech.took_s / 0.4


def test_a_long_text_is_spoken_in_pieces_that_hear_each_other(
    generator: HiggsAudioGenerator, heard: list[Dialogue]
) -> None:
    sentences = [f"This is sentence number {i}." for i in range(8)]
    text = " ".join(sentences)
    speech = generator.generate(text, max_chars=30, **SHORT)
    assert [texts(prompt)[-1] for prompt in heard] == sentences
    assert speech.codes.shape == (8, 80)
    assert len(speech.audio) == 8 * 9600, "no pause and nothing cut inside one text"
    assert speech.text == text
    # Without a reference the first piece holds the voice.
    assert texts(heard[7]) == [sentences[0], *sentences[5:]]
    assert torch.equal(clips(heard[7])[0].codes, speech.codes[:, :10])  # type: ignore[arg-type]
    assert torch.equal(clips(heard[7])[2].codes, speech.codes[:, 60:70])  # type: ignore[arg-type]
    heard.clear()
    generator.generate(text, max_chars=30, reference_audio=VOICE, reference_text="Glue.", **SHORT)
    assert texts(heard[7]) == sentences[4:]
    assert all(len(prompt.references) == 1 for prompt in heard)


def test_a_stream_of_a_long_text_is_the_same(generator: HiggsAudioGenerator) -> None:
    options: dict[str, Any] = {
        "max_chars": 20,
        "sampling": GREEDY,
        "max_audio_s": 0.6,
        "reference_audio": VOICE,
    }
    text = "The first sentence. The second one. The third."
    whole = generator.generate(text, **options)
    stream = generator.stream(text, **options)
    np.testing.assert_allclose(np.concatenate(list(stream)), whole.audio, rtol=0, atol=1e-4)
    assert torch.equal(stream.speech.codes, whole.codes)


def test_what_was_spoken_is_forgotten_before_there_is_no_room(
    generator: HiggsAudioGenerator,
) -> None:
    """Of 2048 positions three lines of 40 s would take 3000."""
    script = generator.script("One sentence. Another one. A third one. A fourth.", max_chars=14)
    spoken = [torch.zeros(8, 1000, dtype=torch.long)] * 3
    long = generator.speaker.next_line(script, spoken, 40.0)
    short = generator.speaker.next_line(script, spoken, 10.0)
    assert texts(long) == ["A fourth."]
    assert texts(short) == ["One sentence.", "A fourth."], "the first holds the voice"
    assert len(generator.speaker.prompt(short).input_ids) + 250 < 2048


def test_ten_thousand_characters(generator: HiggsAudioGenerator, heard: list[Dialogue]) -> None:
    """In pieces they fit; in one piece they are told not to."""
    text = "Some words of a sentence go on. " * 313
    with pytest.raises(UserError, match="leaves no room in 2048; shorten text or reference"):
        generator.generate(text, max_chars=20_000, **SHORT)
    heard.clear()
    speech = generator.generate(text, sampling=GREEDY, max_audio_s=0.04)
    assert len(heard) == 35
    assert speech.codes.shape[1] == len(heard)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Wow 🙂 nice", "Wow 🙂 nice."),
        ("שלום עולם", "שלום עולם."),
        ("مرحبا بالعالم؟", "مرحبا بالعالم؟."),
        ("Stop <|eot_id|> here", "Stop <|eot_id|> here."),
        ("Ha! [laugh] Yes", "Ha! <SE>[Laughter]</SE> Yes."),
    ],
)
def test_texts_of_every_kind(
    generator: HiggsAudioGenerator, heard: list[Dialogue], text: str, spoken: str
) -> None:
    assert generator.generate(text, **SHORT).text == spoken
    assert generator.generate(text, clean_text=False, **SHORT).text == text


@pytest.mark.parametrize("text", ["", "   ", "...", "🙂🙂", "[SPEAKER0]"])
def test_a_text_without_words_is_refused(generator: HiggsAudioGenerator, text: str) -> None:
    with pytest.raises(UserError, match="has no letter or digit; give the text to speak"):
        generator.generate(text, **SHORT)


# --- voices ---


def test_several_references_and_voices_in_words(
    generator: HiggsAudioGenerator, heard: list[Dialogue]
) -> None:
    generator.generate(
        "[SPEAKER0] One. [SPEAKER1] Two.",
        reference_audio=[VOICE, OTHER],
        reference_text=["Glue.", "Smoke."],
        **SHORT,
    )
    assert [reference.text for reference in heard[0].references] == ["Glue.", "Smoke."]
    generator.generate(
        "Hello.", voice_description="warm, unhurried", scene_description="A hall", **SHORT
    )
    assert heard[1].scene == "A hall\n\nSPEAKER0: warm, unhurried"


def test_a_transcriber_hears_the_reference(
    generator: HiggsAudioGenerator, heard: list[Dialogue]
) -> None:
    asked: list[str] = []

    def transcribe(path: str) -> str:
        asked.append(path)
        return "Glue the sheet."

    generator.generate("Hello.", reference_audio=VOICE, reference_text=transcribe, **SHORT)
    assert asked == [VOICE]
    assert heard[0].references[0].text == "Glue the sheet."


def test_a_reference_is_encoded_once(
    generator: HiggsAudioGenerator, tmp_path: Path, monkeypatch: Any
) -> None:
    voice = shutil.copy(VOICE, tmp_path / "voice.flac")
    encoded: list[str] = []
    original = type(generator.codec).encode_file
    monkeypatch.setattr(
        type(generator.codec),
        "encode_file",
        lambda self, path: encoded.append(path) or original(self, path),
    )
    first = generator.generate("Hello.", reference_audio=voice, **SHORT)
    assert torch.equal(
        generator.generate("Hello.", reference_audio=voice, **SHORT).codes, first.codes
    )
    assert len(encoded) == 1
    shutil.copy(OTHER, voice)
    os.utime(voice, (1, 1))
    assert not torch.equal(
        generator.generate("Hello.", reference_audio=voice, **SHORT).codes, first.codes
    )
    assert len(encoded) == 2


def sound(
    path: Path, seconds: float, rate: int = 24_000, channels: int = 1, level: float = 0.4
) -> str:
    """A tone of 180 Hz in a file."""
    time_s = np.arange(round(seconds * rate)) / rate
    tone = level * np.sin(2 * np.pi * 180 * time_s)
    sf.write(path, np.stack([tone] * channels, axis=1), rate)
    return str(path)


def test_references_that_hold_no_voice_are_refused(
    generator: HiggsAudioGenerator, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.flac"
    broken.write_bytes(Path(VOICE).read_bytes()[:2000])
    for path, reason in (
        (
            sound(tmp_path / "short.wav", 0.5),
            r"lasts 0\.5 s, less than 1; give 3 to 15 seconds of clear speech",
        ),
        (sound(tmp_path / "long.wav", 31), r"lasts 31\.0 s, more than 30; give 3 to 15"),
        (sound(tmp_path / "silent.wav", 3, level=0.0), "is silent"),
        (str(broken), "does not decode|is truncated"),
        ("gone.wav", "not found"),
        ("https://example.org/a.wav", "is a URL"),
        ("/etc/passwd", "is not readable audio"),
    ):
        with pytest.raises(UserError, match=rf"request: reference_audio: .*({reason})"):
            generator.generate("Hello.", reference_audio=path, **SHORT)
    with pytest.raises(
        UserError, match="are 1 transcripts for 0 references; give one per reference_audio"
    ):
        generator.generate("Hello.", reference_text="Glue.", **SHORT)


def test_references_of_other_formats_are_heard(
    generator: HiggsAudioGenerator, tmp_path: Path
) -> None:
    """Stereo is averaged, 8 kHz resampled: nothing that a telephone recorded is refused."""
    for path in (
        sound(tmp_path / "stereo.wav", 2, 44_100, 2),
        sound(tmp_path / "phone.mp3", 2, 8_000),
    ):
        assert generator.generate("Hello.", reference_audio=path, **SHORT).codes.shape == (8, 10)


# --- dialogues ---

LINES = [
    {"speaker": "Alice", "text": "Hello Bob"},
    {"speaker": "Bob", "text": "Hi there!"},
    {"speaker": "Alice", "text": "How are you?"},
]


def test_a_dialogue_is_one_prompt_whose_lines_hear_each_other(
    generator: HiggsAudioGenerator, heard: list[Dialogue], tmp_path: Path
) -> None:
    speech = generator.synthesize_multi_speaker(
        dialogue=LINES,
        speaker_voices={"Alice": (VOICE, "Glue."), "Bob": (OTHER, "Smoke.")},
        output_path=tmp_path / "dialogue.wav",
        pause_s=0.5,
        **SHORT,
    )
    said = ["[SPEAKER0] Hello Bob.", "[SPEAKER1] Hi there!", "[SPEAKER0] How are you?"]
    assert [texts(prompt) for prompt in heard] == [said[:1], said[:2], said]
    for prompt in heard:
        assert [reference.text for reference in prompt.references] == ["Glue.", "Smoke."]
    assert speech.codes.shape == (8, 30)
    assert len(speech.audio) <= 3 * 9600 + 2 * 12_000
    assert sf.info(tmp_path / "dialogue.wav").frames == len(speech.audio)


def test_voices_in_words_come_after_recorded_ones(
    generator: HiggsAudioGenerator, heard: list[Dialogue]
) -> None:
    voices = {"Alice": Voice(description="warm"), "Bob": Voice(OTHER, "Smoke.")}
    generator.synthesize_multi_speaker(LINES, voices, scene_description="A hall", **SHORT)
    assert [texts(prompt)[-1] for prompt in heard][:2] == [
        "[SPEAKER1] Hello Bob.",
        "[SPEAKER0] Hi there!",
    ]
    assert heard[0].scene == "A hall\n\nSPEAKER1: warm"


def test_without_voices_the_model_chooses_two(
    generator: HiggsAudioGenerator, heard: list[Dialogue]
) -> None:
    generator.synthesize_multi_speaker(LINES, **SHORT)
    assert heard[0].scene == "SPEAKER0: feminine\nSPEAKER1: masculine"


def test_separately_each_line_hears_its_speaker_only(
    generator: HiggsAudioGenerator, heard: list[Dialogue]
) -> None:
    voices = {"Alice": (VOICE, "Glue."), "Bob": OTHER}
    generator.synthesize_multi_speaker(LINES, voices, separately=True, **SHORT)
    assert [texts(prompt) for prompt in heard] == [["Hello Bob."], ["Hi there!"], ["How are you?"]]
    assert [prompt.references[0].clip.path for prompt in heard] == [VOICE, OTHER, VOICE]


def test_bad_dialogues_are_one_line(generator: HiggsAudioGenerator) -> None:
    for lines, voices, message in (
        ([], {}, "dialogue: turns: .* is empty"),
        (
            [{"speaker": "Eve", "text": "x"}],
            {"Bob": OTHER},
            r"dialogue\[0\]: speaker: 'Eve' has no voice \(known: Bob\)",
        ),
        ([{"text": "x"}], None, r"dialogue\[0\]: speaker has no voice"),
        (
            [{"speaker": "Bob", "text": "..."}],
            {"Bob": OTHER},
            r"dialogue\[0\]: text: '...' has no letter or digit",
        ),
        (
            [{"speaker": "Bob", "text": "x"}],
            {"Bob": "gone.wav"},
            "reference_audio: 'gone.wav' not found",
        ),
    ):
        with pytest.raises(UserError, match=message):
            generator.synthesize_multi_speaker(lines, voices, **SHORT)
    with pytest.raises(UserError, match="voice: audio needs either a recording or a description"):
        Voice()


def test_joints_are_trimmed_and_ends_are_not() -> None:
    def part(before: int, loud: int, after: int) -> Speech:
        wave = np.concatenate([np.zeros(before), np.full(loud, 0.5), np.zeros(after)]).astype(
            np.float32
        )
        return Speech(wave, 24_000, torch.zeros(8, 1, dtype=torch.long), True, "x", 1.0)

    kept = 1200  # 50 ms
    joined = join([part(5000, 100, 9000), part(7000, 200, 8000)], pause_s=0.1, trim=True)
    assert len(joined.audio) == 5000 + 100 + kept + 2400 + kept + 200 + 8000
    assert len(join([part(5000, 100, 9000), part(7000, 200, 8000)]).audio) == 14_100 + 15_200
    silent = join([part(50, 0, 0), part(0, 0, 60)], trim=True)
    assert len(silent.audio) == 110
