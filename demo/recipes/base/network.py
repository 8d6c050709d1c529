"""The base's tokenizer, one token for each word of the vocabulary, and its random model.

What is known beforehand need not be learnt: words that begin alike get tokens that begin alike, and
codes that sound alike are near each other."""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo import tiny
from demo.recipes.base import corpus, phrases
from demo.recipes.base.flite import Flite
from demo.recipes.codec.targets import UNUSED
from plugins.data.wording import INSTRUCTION
from plugins.model.load import native_model

_BEGINS = "Ġ"  # what byte-level vocabularies write for the space before a word
_PROMPT = ("system", "user", "assistant", *phrases.words_of(INSTRUCTION), "speaker0", "speaker1")
_PHONES = 10  # of a word, from its beginning
_SCALE = 0.3  # of the vectors that are given
# Nine million parameters.
SIZE = {
    "hidden_size": 256,
    "intermediate_size": 304,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word of the vocabulary is one token wherever it stands and however it is written; any other
    is spelled, byte by byte."""
    words = (*phrases.vocabulary(), *_PROMPT, *corpus.VOICES, *string.punctuation)
    tokens = [*tiny.SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [_BEGINS + word.lower() for word in words]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    # No merges: a word is looked up as a whole.
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    tokenizer.normalizer = normalizers.Lowercase()
    # Words, with their apostrophes, and signs; the space between them says nothing.
    units = pre_tokenizers.Split(Regex(r"[\w']+|[^\w\s]"), behavior="removed", invert=True)
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([units, spelled])
    tokenizer.decoder = decoders.ByteLevel()
    return tiny.with_specials(tokenizer)


def build(folder: Path, sounds: Mapping[str, Sequence[str]], books: Tensor, *, seed: int) -> None:
    """Write the random model and its tokenizer.

    sounds: the phones of words. books: (K, NUM_CODES, D), what each code adds to a frame."""
    tokenizer = build_tokenizer()
    tiny.build_model(folder, tokenizer, seed=seed, **SIZE)
    model = native_model(str(folder))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _spell(model.model.embed_tokens.weight, tokenizer, sounds, generator)
        _place(model, books, generator)
    model.save_pretrained(folder)


def sounds_of(words: Iterable[str]) -> dict[str, list[str]]:
    """Needs flite."""
    flite = Flite(corpus.VOICES[0])
    return {word.lower(): flite.speak(word).sounds for word in words}


@torch.no_grad()
def _spell(
    table: Tensor, tokenizer: Any, sounds: Mapping[str, Sequence[str]], generator: torch.Generator
) -> None:
    """A word's vector is the sum of those of its phones, another one for each place in the word."""
    drawn = partial(torch.randn, table.shape[1], generator=generator)
    vectors = defaultdict(drawn)
    for word, phones in sorted(sounds.items()):
        total = torch.zeros(table.shape[1])
        for place in enumerate(phones[:_PHONES]):
            total += vectors[place]
        # Not all of it: words that sound alike are still two.
        own = 0.3 * drawn()
        row = tokenizer.convert_tokens_to_ids(_BEGINS + word)
        table[row] = _SCALE * (total / max(len(phones), 1) ** 0.5 + own)


def _place(model: Any, books: Tensor, generator: torch.Generator) -> None:
    """Embeddings of codes whose sum over the codebooks is the frame, turned at random; heads in
    which codes that sound alike are near each other."""
    num_codebooks, num_codes, size = books.shape
    hidden = model.config.hidden_size

    def turned(vectors: Tensor) -> Tensor:
        return vectors @ (torch.randn(size, hidden, generator=generator) / size**0.5)

    used = books.amax(dim=2) < UNUSED
    books = books * used[..., None]
    # What only the first codebook has chooses its codes: no sound, so its scale says nothing.
    spread = books[0][used[0]].std(dim=0)
    alone = (books[1:] == 0).all(dim=(0, 1))
    books = books / spread.where(alone, spread[~alone].mean()).clamp(min=1e-6)
    table = model.model.embed_audio_tokens.embed_audio_tokens.weight
    embedded = table.view(num_codebooks, -1, hidden)
    # A frame has about the length of its first vector.
    embedded[:, :num_codes] += turned(_SCALE * books)
    heads = model.audio_lm_head.weight.view(num_codebooks, -1, hidden)
    for book, among, head in zip(books, used, heads, strict=True):
        head[:num_codes] += turned(model.config.initializer_range * (book / book[among].std()))
