"""Shared fixtures: the embedded corpus, a tiny checkpoint of the real classes, the real Llama-3
tokenizer."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is imported. Tensors are tiny here: a second thread only waits for the first, for
# long if the machine has other work, and rounds differently.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests" / "corpus"
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Our settings, and many of MS-SWIFT's, are environment variables that a run sets: no test may
    see another's.

    But `NATIVE_LAYERS=1 make test` runs all of them on transformers' own layers.
    """
    from plugins.settings import KNOBS

    before = dict(os.environ)
    for knob in set(KNOBS) - {"native_layers"}:
        os.environ.pop(knob.upper(), None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny native checkpoint with text head, tokenizer and codec."""
    from demo import tiny
    from plugins.audio import waveforms as audio

    folder = tmp_path_factory.mktemp("tiny") / "model"
    texts = [text for _, text in corpus_texts()]
    waveforms = map(audio.load, sorted((CORPUS / "wavs").glob("*.flac")))
    tiny.build(folder, texts, list(waveforms))
    return folder


@pytest.fixture(scope="session")
def dataset(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL of eight rows of the embedded corpus, with their codes."""
    from helpers.sft import coded

    folder = tmp_path_factory.mktemp("dataset")
    return write_jsonl(folder / "train.jsonl", coded(tiny, corpus_rows(8)))


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden tiny checkpoint of boson-multimodal; not to be changed."""
    from helpers.originals import write_original

    folder = tmp_path_factory.mktemp("original") / "model"
    write_original(folder)
    return folder


@pytest.fixture(scope="session")
def sampled(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished training of four steps that spoke at steps 0, 2 and 4 (`sampled.SampledRun`)."""
    from helpers.sampled import run

    return run(tiny, tmp_path_factory.mktemp("sampled") / "out")


@pytest.fixture(scope="session")
def lora(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA folder as MS-SWIFT writes it, with two modules whole, one of them named like the
    module around it; trained hard enough to speak otherwise than its base."""
    from helpers.sft import sft

    folder = tmp_path_factory.mktemp("lora")
    rows = write_jsonl(folder / "train.jsonl", corpus_rows(2))
    options = {"learning_rate": 3e-2, "max_steps": 3, "per_device_train_batch_size": 2}
    options |= {"tuner_type": "lora", "target_modules": "all-linear"}
    whole = ["audio_lm_head", "embed_audio_tokens"]
    sft(tiny, rows, folder / "out", modules_to_save=whole, **options)
    return folder / "out" / "checkpoint-3"


@pytest.fixture(scope="session")
def app_server(tiny: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """`higgs-audio app` of the LoRA folder (`app.Server`); nothing that it was sent stays."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip('needs gradio: pip install -e ".[app]"')
    from helpers.app import Server

    model = ("--model", str(tiny), "--adapters", str(lora))
    limits = ("--max_upload_mb", "1", "--max_audio_s", "2")
    server = Server(tmp_path_factory.mktemp("app"), *model, *limits)
    yield server
    server.end(signal.SIGTERM)
    assert list(server.temporary.iterdir()) == []


@pytest.fixture(scope="session")
def learnt(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after 100 steps on three clips: as a published model is, far better than
    chance on these rows (`preflight.learn`)."""
    from helpers.preflight import learn

    return learn(tiny, tmp_path_factory.mktemp("learnt") / "model")


@pytest.fixture
def edited_codec(tmp_path: Path) -> Callable[..., Path]:
    """Writes a copy of the original codec, edited as `codecs.write_codec` says."""
    from helpers.codecs import write_codec

    return partial(write_codec, tmp_path / "original")


@pytest.fixture(scope="session")
def native_codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original codec in the native format; not to be changed."""
    from helpers.codecs import ORIGINAL_CODEC

    from plugins.audio.original_codec import save_native

    folder = tmp_path_factory.mktemp("native") / "codec"
    save_native(ORIGINAL_CODEC, folder)
    return folder


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that a stranger's code would make."""
    return tmp_path / "executed"


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Connections and look-ups of names that this test tries (`security.refuse_connections`)."""
    from helpers.security import refuse_connections

    return refuse_connections(monkeypatch)


def corpus_texts() -> list[tuple[str, str]]:
    """The name of each embedded clip, and what it says."""
    texts = []
    for line in (CORPUS / "metadata.csv").read_text(encoding="utf-8").splitlines():
        clip, text, _ = line.split("|")
        texts.append((clip, text))
    return texts


@pytest.fixture
def only_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one scorer of `higgs-audio evaluate` that takes no time; test_evaluation_speech.py tries
    those with weights."""
    from plugins.commands import evaluate

    scorers, _ = evaluate.load_scorers()
    monkeypatch.setattr(evaluate, "load_scorers", lambda **_: (scorers[:1], []))


def corpus_rows(num_rows: int = 16, **columns: Any) -> list[dict[str, Any]]:
    """Rows of the seed document's shape for the embedded clips."""
    scene = "<|scene_desc_start|> Indoor quiet <|scene_desc_end|>"
    rows = []
    for clip, text in corpus_texts()[:num_rows]:
        messages = [
            {"role": "system", "content": scene},
            {"role": "user", "content": f"Please speak: {text}"},
            {"role": "assistant", "content": ""},
        ]
        audios = [str(CORPUS / "wavs" / f"{clip}.flac")]
        rows.append({"messages": messages, "audios": audios, **columns})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def llama_tokenizer() -> Any:
    """The published model's tokenizer: Llama-3's with real ids; six reserved tokens carry audio
    names."""
    spec = importlib.util.find_spec("llama_models")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the Llama-3 tokenizer: pip install --no-deps llama-models==0.3.0")
    vocabulary = next(Path(spec.submodule_search_locations[0]).rglob("llama3/**/tokenizer.model"))
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    names = [f"<|reserved_special_token_{i}|>" for i in range(256)]
    # Slots 0..9 of Llama-3, then the names that the published tokenizer gives to ids 128011 and up.
    head = [
        "<|begin_of_text|>", "<|end_of_text|>",
        "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>",
        "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
        "<|python_tag|>", "<|audio_bos|>", "<|audio_eos|>", "<|audio_out_bos|>",
        "<|reserved_special_token_6|>", "<|AUDIO|>", "<|AUDIO_OUT|>",
        "<|reserved_special_token_9|>", "<|scene_desc_start|>", "<|scene_desc_end|>",
    ]  # fmt: skip
    # Llama-3 has 256 special tokens; those of audio take the places of reserved ones.
    unused = [name for name in names if name not in head]
    specials = (head + unused)[:256]
    converter = TikTokenConverter(
        vocab_file=str(vocabulary),
        # Of Meta's own tokenizer: how a text falls into words before bytes are merged.
        pattern=(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        extra_special_tokens=specials,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>",
    )
