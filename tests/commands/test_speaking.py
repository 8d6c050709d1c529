"""Everything that a user asks of the generator beyond one sentence: long texts, dialogues, voices,
lists, adapters."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from conftest import CORPUS

from plugins import Voice, load_model
from plugins.cli import main
from plugins.data.dialogue import AudioClip, Dialogue
from plugins.errors import UserError
from plugins.inference import HiggsAudioGenerator
from plugins.speaking.sampling import Sampling
from plugins.speaking.speaker import Speaker
from plugins.speaking.speech import Speech, join

VOICE, OTHER = (str(CORPUS / "wavs" / f"DEMO-000{i}.flac") for i in (2, 3))
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
    text = " ".join(f"This is sentence number {i}." for i in range(8))
    speech = generator.generate(text, max_chars=30, **SHORT)
    assert [texts(each)[-1] for each in heard] == [
        f"This is sentence number {i}." for i in range(8)
    ]
    assert speech.codes.shape == (8, 80)
    assert len(speech.audio) == 8 * 9600, "no pause and nothing cut inside one text"
    assert speech.text == text
    # Without a reference the first piece holds the voice.
    assert texts(heard[7]) == [f"This is sentence number {i}." for i in (0, 5, 6, 7)]
    assert torch.equal(clips(heard[7])[0].codes, speech.codes[:, :10])  # type: ignore[arg-type]
    assert torch.equal(clips(heard[7])[2].codes, speech.codes[:, 60:70])  # type: ignore[arg-type]
    heard.clear()
    generator.generate(text, max_chars=30, reference_audio=VOICE, reference_text="Glue.", **SHORT)
    assert texts(heard[7]) == [f"This is sentence number {i}." for i in (4, 5, 6, 7)]
    assert all(len(each.references) == 1 for each in heard)


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
    codes = torch.zeros(8, 1000, dtype=torch.long)
    spoken = [Speech(np.zeros(1), 24_000, codes, False, "x", 1.0)] * 3
    long, short = (generator.speaker.next_line(script, spoken, seconds) for seconds in (40.0, 10.0))
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
    assert [texts(each) for each in heard] == [said[:1], said[:2], said]
    assert all([r.text for r in each.references] == ["Glue.", "Smoke."] for each in heard)
    assert speech.codes.shape == (8, 30)
    assert len(speech.audio) <= 3 * 9600 + 2 * 12_000
    assert sf.info(tmp_path / "dialogue.wav").frames == len(speech.audio)


def test_voices_in_words_come_after_recorded_ones(
    generator: HiggsAudioGenerator, heard: list[Dialogue]
) -> None:
    voices = {"Alice": Voice(description="warm"), "Bob": Voice(OTHER, "Smoke.")}
    generator.synthesize_multi_speaker(LINES, voices, scene_description="A hall", **SHORT)
    assert [texts(each)[-1] for each in heard][:2] == [
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
    assert [texts(each) for each in heard] == [["Hello Bob."], ["Hi there!"], ["How are you?"]]
    assert [each.references[0].clip.path for each in heard] == [VOICE, OTHER, VOICE]


def test_bad_dialogues_are_one_line(generator: HiggsAudioGenerator) -> None:
    for lines, voices, message in (
        ([], {}, "dialogue: turns: .* is empty"),
        (
            [{"speaker": "Eve", "text": "x"}],
            {"Bob": OTHER},
            r"dialogue\[0\]: speaker: 'Eve' has no voice \(known: Bob\)",
        ),
        ([{"text": "x"}], None, r"dialogue\[0\]: speaker: None has no voice"),
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
    with pytest.raises(
        UserError, match="voice: audio: None needs either a recording or a description"
    ):
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


# --- loading ---


@pytest.fixture(scope="module")
def lora(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two LoRA folders with weights that matter."""
    from peft import LoraConfig, get_peft_model

    from plugins.model import load as checkpoint

    folders = {}
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=4, target_modules=["q_proj", "audio_mlp.down_proj"], init_lora_weights=False
        )
        tuned = get_peft_model(checkpoint.native_model(str(tiny)), config)
        tuned.peft_config["default"].base_model_name_or_path = str(tiny)
        folders[name] = str(tmp_path_factory.mktemp(name))
        tuned.save_pretrained(folders[name])
    return folders


def test_adapters_are_switched_without_loading_the_base_again(
    tiny: Path, lora: dict[str, str]
) -> None:
    generator = HiggsAudioGenerator.from_pretrained(str(tiny), adapters=lora)
    assert generator.adapters == ("first", "second")

    def said(name: str | None) -> torch.Tensor:
        generator.use_adapter(name)
        return generator.generate("Hello.", **SHORT).codes

    for name in ("first", "second"):
        alone = HiggsAudioGenerator.from_pretrained(lora[name])  # names its base
        assert alone.adapters == ("default",)
        assert torch.equal(said(name), alone.generate("Hello.", **SHORT).codes)
    base = HiggsAudioGenerator.from_pretrained(str(tiny))
    assert base.adapters == ()
    assert torch.equal(said(None), base.generate("Hello.", **SHORT).codes)
    assert not torch.equal(said("first"), said("second"))
    assert not torch.equal(said("first"), said(None))
    with pytest.raises(UserError, match="adapter: 'frist' is not loaded; did you mean 'first'"):
        generator.use_adapter("frist")


def test_load_model_gives_what_the_generator_takes(
    tiny: Path, lora: dict[str, str], tmp_path: Path
) -> None:
    model, tokenizer = load_model(
        str(tiny), model_type="higgs-audio-v2-3b", adapters=lora["first"], attn_impl="eager"
    )
    speech = HiggsAudioGenerator(model, tokenizer).generate("Hello.", **SHORT)
    (tmp_path / "best").symlink_to(lora["first"])  # MS-SWIFT's `create_checkpoint_symlink`
    linked = HiggsAudioGenerator.from_pretrained(str(tmp_path / "best"))
    assert torch.equal(linked.generate("Hello.", **SHORT).codes, speech.codes)
    assert load_model(str(tiny), dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    with pytest.raises(
        UserError,
        match="model_type: 'higgs' is unknown; use one of higgs-audio-v2-3b, higgs-audio-v2-7b",
    ):
        load_model(str(tiny), model_type="higgs")
    with pytest.raises(UserError, match=r"adapters: 'adapter_config\.json' not found"):
        load_model(str(tiny), adapters=str(tmp_path))


def test_adapters_of_another_model_are_refused(
    tiny: Path, lora: dict[str, str], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(lora["first"], broken)
    file = broken / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file({key: value for key, value in weights.items() if key != name}, file)
    with pytest.raises(UserError, match=r"weights: .* does not belong to both \(1 such weights\)"):
        load_model(str(tiny), adapters=str(broken))


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="bitsandbytes 0.50 crashes on this machine's CPU"
)
def test_quantized_weights_speak(tiny: Path) -> None:
    model, tokenizer = load_model(str(tiny), quantization="4bit")
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
    assert type(model.audio_lm_head).__name__ == "Linear"
    assert HiggsAudioGenerator(model, tokenizer).generate("Hello.", **SHORT).codes.shape == (8, 10)


def test_quantization_keeps_the_audio_head_and_names_its_package(
    tiny: Path, monkeypatch: Any
) -> None:
    from plugins.model.load import _quantization

    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    config = _quantization("4bit", torch.bfloat16)
    assert (config.load_in_4bit, config.llm_int8_skip_modules) == (True, ["audio_lm_head"])
    assert _quantization("8bit", torch.bfloat16).load_in_8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        UserError, match=r"quantization: '4bit' needs bitsandbytes; pip install .*\[quantization\]"
    ):
        load_model(str(tiny), quantization="4bit")


# --- the command ---


def speak(tiny: Path, *arguments: Any) -> int:
    flags = ["--model", tiny, "--temperature", 0, "--max_audio_s", 0.4]
    return main(["speak", *map(str, [*flags, *arguments])])


def test_a_list_is_spoken_into_a_folder_and_goes_on(
    tiny: Path, tmp_path: Path, capsys: Any
) -> None:
    shutil.copy(VOICE, tmp_path / "voice.flac")
    lines: list[dict[str, Any]] = [
        {"text": "Hello."},
        {"id": "cloned", "text": "Hi.", "reference_audio": "voice.flac", "reference_text": "Glue."},
        {"id": "none", "text": "..."},
        {"id": "scene", "text": "One more.", "scene_description": "A hall", "seed": 3},
    ]
    path, folder = tmp_path / "lines.jsonl", tmp_path / "out"

    def run(*arguments: Any) -> tuple[int, str, str]:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        code = speak(tiny, "--input", path, "--output_dir", folder, "--batch_size", 2, *arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    code, out, err = run()
    assert code == 1
    assert f"failed: {path}:3: request: text: '...' has no letter or digit" in err
    assert out.endswith("out: 3 spoken (3 truncated), 0 there already, 1 failed\n")
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [(row["id"], row["duration_s"], row["stopped"]) for row in results] == [
        ("00001", 0.4, False),
        ("cloned", 0.4, False),
        ("scene", 0.4, False),
    ]
    assert sf.info(folder / "cloned.wav").frames == 9600
    alone = tmp_path / "alone.wav"
    clone = ("--reference_audio", VOICE, "--reference_text", "Glue.")
    assert speak(tiny, "--text", "Hi.", *clone, "--output", alone) == 3
    capsys.readouterr()
    assert alone.read_bytes() == (folder / "cloned.wav").read_bytes()

    lines[2]["text"] = "Mended."
    lines[0]["text"] = "Changed."
    (folder / "scene.wav").unlink()
    with (folder / "results.jsonl").open("ab") as file:
        file.write(
            bytes(20) + b'\n[1]\n{"id": [], "key"\n{"id": "killed wh'
        )  # of a power cut, and of a kill
    code, out, err = run()
    assert (code, "failed:" in err) == (3, False)
    assert out.endswith("out: 3 spoken (3 truncated), 1 there already, 0 failed\n")
    assert run()[1].endswith("out: 0 spoken (0 truncated), 4 there already, 0 failed\n")

    # A file that is no longer what was written is spoken again; one that is not listed is somebody
    # else's.
    cloned = (folder / "cloned.wav").read_bytes()
    (folder / "cloned.wav").write_bytes(cloned[:1000])
    assert run()[1].endswith("out: 1 spoken (1 truncated), 3 there already, 0 failed\n")
    assert (folder / "cloned.wav").read_bytes() == cloned
    (folder / "mine.wav").write_text("a recording")
    lines.append({"id": "mine", "text": "Hello."})
    code, _, err = run()
    assert (code, err.splitlines()[-1]) == (
        1,
        f"error: {path}:5: id: 'mine' would be written over {folder / 'mine.wav'}, which results.jsonl there does not"
        " list; name another --output_dir, or move the file",
    )
    assert (folder / "mine.wav").read_text() == "a recording"
    for content in ("of another program", "of another program\n", '{"text": "x"}\n'):
        (folder / "results.jsonl").write_text(content)
        assert (
            "holds a results.jsonl that is not from this command; name another folder" in run()[2]
        )
        assert (folder / "results.jsonl").read_text() == content


def test_bad_lists_are_refused_before_anything_is_spoken(
    tiny: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "lines.jsonl"
    for line, message in (
        ("{", "line: '{' is no JSON"),
        ('{"id": "a"}', "is missing; write"),
        ('{"text": "x", "txet": 1}', "column: 'txet' is unknown; did you mean 'text'"),
        ('{"text": "x", "id": "../x"}', "id: '../x' is no name for a file, or taken"),
        ('{"text": "x", "reference_audio": "gone.wav"}', "reference_audio: 'gone.wav' not found"),
    ):
        path.write_text('{"text": "Hello."}\n' + line + "\n")
        assert speak(tiny, "--input", path, "--output_dir", tmp_path / "out") == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {path}:2: ")
        assert message in error
        assert not list(tmp_path.glob("out/*.wav"))
    for flags, message in (
        ([], "give --text or --input"),
        (["--text", "x", "--input", path], "give --text or --input"),
        (["--input", path], "give --output_dir, not --stream"),
    ):
        assert speak(tiny, *flags) == 1
        assert message in capsys.readouterr().err


def test_a_stream_is_raw_samples(tiny: Path, tmp_path: Path, capfdbinary: Any) -> None:
    assert speak(tiny, "--text", "Hello.", "--output", tmp_path / "whole.wav") == 3
    capfdbinary.readouterr()
    assert speak(tiny, "--text", "Hello.", "--stream", tmp_path / "raw.pcm") == 3
    samples = np.frombuffer((tmp_path / "raw.pcm").read_bytes(), "<i2")
    whole, _ = sf.read(tmp_path / "whole.wav", dtype="int16")
    assert np.abs(samples.astype(int) - whole).max() <= 4
    assert b"raw.pcm: 0.40 s, 10 frames" in capfdbinary.readouterr().err
