"""The README.md of a model: name, base, summary and sections -> Markdown that the Hub reads.

    training, export --card--> README.md <--complete-- evaluation: its section METRICS

A section stands between two comments, so that a later program can write it again; all other lines,
once written, belong to the user and stay as they are. No path of this machine goes into a card.
What was trained, exported or measured is the callers' to say: nothing here reads a model or a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from plugins.files.disk import replace_when_done
from plugins.model.config import HiggsAudioV2Config

CARD = "README.md"
BASE_3B = "bosonai/higgs-audio-v2-generation-3B-base"
TRAINING, METRICS, SAMPLES = "training", "metrics", "samples"
NO_METRICS = "Not evaluated yet: `higgs-audio evaluate` fills this in."

_CARD = """\
---
{front_matter}
---

# {name}

{summary}
{sections}
## Speak

{speak}

## Licences

- Weights that derive from Boson AI's Higgs Audio 2 stay under its community licence, which among
  other things limits commercial use by the number of yearly users; the language model in them
  derives from Meta's Llama 3.2 and stays under that licence too. Read both before you use or pass
  on this model.
- The data it was fine-tuned on has licences of its own. Whoever publishes this model has to know
  them, keep to them and name them here: **not filled in yet**.

## Voices

This model imitates voices from a few seconds of speech. Clone a voice
only with the consent of the person it belongs to, say that the speech is synthetic, and do not use
it to deceive, to impersonate or to get past a voice check. That holds for the voices in the
training data as well.

Files that `higgs-audio` writes of its speech say in their metadata that they are synthetic
(`higgs-audio inspect FILE` reads it). Other software that speaks with it leaves that to you.
"""


def card(
    name: str,
    *,
    base: str | None,
    summary: str,
    speak: str,
    sections: Mapping[str, str],
    library: str = "transformers",
) -> str:
    """base: Hub id of what was fine-tuned, None if unknown. sections: Markdown by name, METRICS for
    example. library: what loads the folder, in the Hub's words."""
    front_matter = ModelCardData(
        base_model=base,
        license="other",
        license_name="boson-higgs-audio-2-community-license",
        license_link=f"https://huggingface.co/{BASE_3B}/blob/main/LICENSE",
        library_name=library,
        pipeline_tag="text-to-speech",
        tags=["text-to-speech", "higgs-audio-v2", "ms-swift"],
    )
    chapters = ""
    for title, text in sections.items():
        chapters += f"\n## {title.capitalize()}\n\n{_marked(title, text)}\n"
    return _CARD.format(
        front_matter=front_matter.to_yaml(),
        name=name,
        summary=summary,
        sections=chapters,
        speak=speak,
    )


def link_to(base: str | None) -> str:
    if base is None:
        return "a checkpoint that has no name on the Hub"
    return f"[{base}](https://huggingface.co/{base})"


def name_on_the_hub(model: str, config: Any) -> str | None:
    """Of what was loaded from `model`, a Hub id or a folder; None if nobody knows it."""
    if not Path(model).exists():
        return model
    published = HiggsAudioV2Config()
    for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
        if getattr(config, name) != getattr(published, name):
            return None
    return BASE_3B  # there are no other public weights of this shape


def complete(folder: Path, sections: Mapping[str, str]) -> Path | None:
    """Write `sections` in place into the card of `folder`, or, for a checkpoint, of the training's
    folder above it.

    Returns the card, None if there is none that has room for one of them: other people's cards stay
    as they are."""
    for path in _cards(folder.resolve()):
        try:
            text = path.read_bytes().decode()  # its line ends stay as they are, too
        except UnicodeDecodeError:
            continue
        if not any(_place(title).search(text) for title in sections):
            continue
        for title, content in sections.items():
            # A backslash of the content is no group of the pattern.
            text = _place(title).sub(_marked(title, content).replace("\\", r"\\"), text, count=1)
        # What its reader wrote must not be lost by a kill.
        with replace_when_done(path) as temporary:
            temporary.write_bytes(text.encode())
        return path
    return None


def section(text: str, title: str) -> str | None:
    """The section `title` of a card, without its comments; None if it has none."""
    found = _place(title).search(text)
    if found is None:
        return None
    return "\n".join(found[0].split("\n")[1:-1])


def _cards(folder: Path) -> Iterator[Path]:
    """The README files that may be about `folder`, nearest first."""
    places = [folder]
    if folder.name.startswith("checkpoint-"):
        places.append(folder.parent)  # a checkpoint's own README is of peft
    for place in places:
        if (place / CARD).is_file():
            yield place / CARD


def _marked(title: str, content: str) -> str:
    return f"<!-- higgs-audio {title} -->\n{content.strip()}\n<!-- end of {title} -->"


def _place(title: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- higgs-audio {title} -->.*?<!-- end of {title} -->", re.DOTALL)
