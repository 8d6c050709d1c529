"""It learns what it is shown: sixteen clips by heart, from random weights, with the embedded
codec; prepared, trained, spoken and, slowly, heard by a recogniser.

    learnt     the sentences, each in the voice that it has when nobody is named
    cloned     each in the other voice, after a reference that it was never trained with
    dialogue   two sentences that never stood together, hers and his"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from by_heart import rows
from conftest import write_jsonl
from helpers.commands import prepare, read
from helpers.sft import flags, log_of, swift

from demo import tiny
from demo.recipes.codec import sentences
from demo.recipes.codec.training import Recipe
from demo.run import CODEC
from plugins.audio.codec import CODEC_FOLDER
from plugins.cli import main
from plugins.corpora.canonical import canonical_row
from plugins.data.rows import dialogue_from_row
from plugins.data.wording import INSTRUCTION, MULTI_SPEAKER_INSTRUCTION
from plugins.inference import HiggsAudioGenerator
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling
from plugins.speaking.speech import Speech
from plugins.speaking.voices import Script, request

SETTINGS = HiggsAudioSettings()
CORPUS = Path(__file__).parent / "corpus"
# Five million parameters.
SIZE = {
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
}
LEARNING = {
    "max_steps": 320,
    "save_steps": 320,
    "save_only_model": "true",
    "logging_steps": 10,
    "max_length": 512,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,  # MS-SWIFT would make it two
    "learning_rate": 3e-3,  # for a model of five million parameters
    "model_kwargs": json.dumps({"audio_learning_rate": 3e-3}),
    "adam_beta2": 0.95,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "dataloader_num_workers": 0,  # the clips are encoded already
    "strict": "true",
}
MAX_AUDIO_S = 8.0  # the longest clip has 4.6 s


@dataclass(frozen=True)
class Taught:
    losses: list[float]  # nats per code, every ten steps
    summaries: dict[str, dict[str, Any]]  # of each evaluation
    dialogue: Speech


def transcripts() -> list[list[str]]:
    """File, text and voice of each clip."""
    lines = (CORPUS / "metadata.csv").read_text(encoding="utf-8").splitlines()
    return [line.split("|") for line in lines[1:]]  # the first names the columns


@pytest.fixture(scope="module")
def clips() -> list[dict[str, Any]]:
    """As prepare_dataset.py writes them, codes left out."""
    clips: list[dict[str, Any]] = []
    for audio, text, speaker in transcripts():
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        clip = {"messages": messages, "audios": [str(CORPUS / audio)], "id": audio}
        clips.append({**clip, "audio_codes": ["codes#none"], "speaker": speaker})
    return clips


def pairs(written: list[rows.Row]) -> set[tuple[str, str]]:
    """Targets and the references they are said after."""
    with_reference = [row for row in written if "reference_audio" in row]
    return {(row["audios"][0], row["reference_audio"][0]) for row in with_reference}


def user_texts(row: rows.Row) -> list[str]:
    return [message["content"] for message in row["messages"] if message["role"] == "user"]


def voice_of(path: str) -> str:
    return Path(path).stem.partition("-")[0]


def test_what_is_asked_for_was_never_trained(clips: list[dict[str, Any]]) -> None:
    trained = list(rows.trained(clips))
    asked = rows.cloned(clips)
    assert len(asked) == 8
    assert not pairs(trained) & pairs(asked)
    first, second = (line["text"] for line in rows.lines(clips))
    dialogue = [f"[SPEAKER0] {first}", f"[SPEAKER1] {second}"]
    taught = list(map(user_texts, trained))
    assert dialogue not in taught
    # But each of its lines was, in its place.
    dialogues = [texts for texts in taught if len(texts) == 2]
    firsts, seconds = map(set, zip(*dialogues, strict=True))
    assert dialogue[0] in firsts
    assert dialogue[1] in seconds


def test_a_reference_is_another_sentence_of_the_voice_that_answers(
    clips: list[dict[str, Any]],
) -> None:
    for row in [*rows.trained(clips), *rows.cloned(clips)]:
        references, texts = row.get("reference_audio", []), row.get("reference_text", [])
        for reference, text in zip(references, texts, strict=True):
            assert reference != row["audios"][0]
            assert voice_of(reference) == voice_of(row["audios"][0]) == row["speaker"]
            (transcript,) = (rows.text_of(clip) for clip in clips if clip["audios"] == [reference])
            assert text == transcript


def test_cloned_sentences_are_in_the_other_voice(clips: list[dict[str, Any]]) -> None:
    plain = {rows.text_of(row): row["speaker"] for row in rows.plain(clips)}
    cloned = {rows.text_of(row): row["speaker"] for row in rows.cloned(clips)}
    assert set(plain) == set(cloned)
    assert len(plain) == 8
    assert all(plain[text] != cloned[text] for text in plain)
    assert sorted(plain.values()) == ["rms"] * 4 + ["slt"] * 4


def test_a_dialogue_is_asked_for_as_it_was_trained(clips: list[dict[str, Any]]) -> None:
    """Instruction, scene and turns: what `synthesize_multi_speaker` writes is what the rows say."""
    row = next(row for row in rows.trained(clips) if len(row["audios"]) == 2)
    plain = {**row}
    del plain["audio_codes"]  # they lie nowhere
    trained = dialogue_from_row(canonical_row(plain, "row", SETTINGS), SETTINGS)
    texts = [turn.parts[0] for turn in trained.turns if turn.role == "user"]
    whole = request("\n".join(map(str, texts)), None, [], SETTINGS)
    asked = Script(whole, tuple(map(str, texts))).next_line([], max_frames=100)
    assert (asked.instruction, asked.scene) == (trained.instruction, trained.scene)
    assert asked.turns == trained.turns[:1]


def test_the_codec_never_heard_these_sentences(clips: list[dict[str, Any]]) -> None:
    recipe = Recipe()
    heard = sentences.training(2 * recipe.sentences, seed=recipe.seed)
    assert not {rows.text_of(clip) for clip in clips} & {*heard, *sentences.held_out()}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    folder = tmp_path_factory.mktemp("by_heart")
    write_model(folder / "model")
    clips = encoded(folder)
    asked = {"learnt": rows.plain(clips), "cloned": rows.cloned(clips)}
    shown = write_jsonl(folder / "shown.jsonl", list(rows.trained(clips)))
    done = swift("sft", *flags(folder / "model", shown, folder / "run", **LEARNING))
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = folder / "run" / "checkpoint-320"
    summaries = {}
    for name, asked_rows in asked.items():
        summaries[name] = evaluated(folder / name, asked_rows, "--model", checkpoint)
    lines = rows.lines(clips)
    dialogue = HiggsAudioGenerator.from_pretrained(str(checkpoint)).synthesize_multi_speaker(
        lines,
        output_path=folder / "spoken" / "dialogue.wav",
        sampling=Sampling(temperature=0),
        max_audio_s=MAX_AUDIO_S,
    )
    said = " ".join(line["text"] for line in lines)
    row = {"id": "dialogue", "messages": [{"role": "user", "content": said}]}
    spoken = ("--generated", folder / "spoken")
    summaries["dialogue"] = evaluated(folder / "dialogue", [row], *spoken)
    # The end of the training is a record too.
    records = [record for record in log_of(folder / "run") if "loss_audio" in record]
    losses = [record["loss_audio"] for record in records]
    return Taught(losses, summaries, dialogue)


def write_model(folder: Path) -> None:
    """Random weights and the embedded codec; its tokenizer knows the corpus."""
    texts = [text for _, text, _ in transcripts()]
    texts += [INSTRUCTION, MULTI_SPEAKER_INSTRUCTION]
    tiny.build_model(folder, tiny.build_tokenizer(texts, num_merges=300), **SIZE)
    # Only what a codec is loaded from: demo/codec/ also holds its pictures and figures.
    (folder / CODEC_FOLDER).mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(CODEC / name, folder / CODEC_FOLDER)


def encoded(folder: Path) -> list[dict[str, Any]]:
    """The clips as rows with codes."""
    table = ("--csv_file", CORPUS / "metadata.csv", "--speaker_column", "speaker")
    corpus = ("--dataset_type", "custom", "--input_dir", CORPUS, *table, "--validate")
    # As loud as the speech that the codec was trained on.
    loudness = ("--audio_output", folder / "wavs", "--loudness_lufs", -24)
    codec = ("--encode_codes", "--codec", folder / "model" / CODEC_FOLDER)
    output = folder / "clips.jsonl"
    assert prepare(*corpus, *loudness, *codec, "--output_file", output) == 0
    return read(output)


def evaluated(folder: Path, asked: list[rows.Row], *system: Any) -> dict[str, Any]:
    """The summary of `higgs-audio evaluate`."""
    dataset = write_jsonl(folder.with_suffix(".jsonl"), asked)
    # Greedy: what was learnt by heart has one most likely code at each step.
    drawing = ("--temperature", 0, "--max_audio_s", MAX_AUDIO_S)
    arguments = ("evaluate", *system, *drawing, "--dataset", dataset, "--output", folder)
    assert main(list(map(str, arguments))) == 0
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert not summary["missing"]
    return summary


def mean(summary: dict[str, Any], system: str, score: str) -> float:
    return float(summary["systems"][system]["scores"][score]["mean"])


@pytest.mark.slow
def test_it_learns_what_it_is_shown(taught: Taught) -> None:
    assert taught.losses[0] > 6.5  # a guess among 1024 codes: 6.9
    assert taught.losses[-1] < 0.02  # it has 0.03 when it says any sentence but the one asked for
    learnt = taught.summaries["learnt"]
    assert mean(learnt, "model", "stopped") == 1
    assert mean(learnt, "model", "wer") <= mean(learnt, "codec", "wer") + 0.05


@pytest.mark.slow
def test_its_voice_is_that_of_the_reference(taught: Taught) -> None:
    cloned = taught.summaries["cloned"]
    assert mean(cloned, "model", "similarity") > mean(cloned, "model", "similarity_others")


@pytest.mark.slow
def test_it_converses(taught: Taught) -> None:
    assert taught.dialogue.stopped
    assert taught.dialogue.duration_s > 2 * 3  # two lines
    assert mean(taught.summaries["dialogue"], "generated", "wer") < 0.5
