"""The golden tiny checkpoint of boson-multimodal as a folder (tests/golden/README.md), and the toy
tokenizer that belongs to it.

A test module takes the fixture by its name: `from helpers.originals import original  # noqa: F401`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import GOLDEN
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

SPECIAL = {
    "<|end_of_text|>": 1,
    "<|begin_of_text|>": 2,
    "<|start_header_id|>": 3,
    "<|end_header_id|>": 7,
    "<|eom_id|>": 297,
    "<|eot_id|>": 298,
    "<|audio_bos|>": 299,
    "<|audio_eos|>": 300,
    "<|audio_out_bos|>": 301,
    "<|reserved_special_token_6|>": 302,
    "<|AUDIO|>": 303,
    "<|AUDIO_OUT|>": 304,
    "<|scene_desc_start|>": 305,
    "<|scene_desc_end|>": 306,
}


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """The toy vocabulary of the golden model: 320 ids, a word for each that is not special."""
    names = {token_id: name for name, token_id in SPECIAL.items()}
    vocabulary = {names.get(token_id, f"word{token_id}"): token_id for token_id in range(320)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="word0"))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>",
    )


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "model"
    folder.mkdir()
    shutil.copy(GOLDEN / "tiny_original_config.json", folder / "config.json")
    # Rewritten, because transformers wants to read the format in the metadata.
    weights = load_file(GOLDEN / "tiny_original.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    toy_tokenizer().save_pretrained(folder)
    return folder
