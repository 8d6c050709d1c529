"""README.md of a model: the Hub's front matter, what it is, how to speak with it, what to keep to.
L3.

    training --plugins.training_card--+
    export   --plugins.commands-------+--card--> README.md <--complete-- evaluation: its section METRICS

Sections are what a later program may write again. They stand between two comments; all else, once
written, belongs to the user and stays as it is. No path of this machine goes into a card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugins.files.disk import replace_when_done
from plugins.model.config import HiggsAudioV2Config

CARD = "README.md"
BASE_3B = "bosonai/higgs-audio-v2-generation-3B-base"
TRAINING, METRICS, SAMPLES = "training", "metrics", "samples"
NO_METRICS = "Not evaluated yet: `higgs-audio evaluate` fills this in."

_CARD = """\
---
{base_model}license: other
license_name: boson-higgs-audio-2-community-license
license_link: https://huggingface.co/{published}/blob/main/LICENSE
library_name: {library}
pipeline_tag: text-to-speech
tags:
- text-to-speech
- higgs-audio-v2
- ms-swift
---

# {name}

{summary}
{sections}
## Speak

{speak}

## Licences

- Weights that derive from Boson AI's Higgs Audio 2 stay under its community licence, which among other things
  limits commercial use by the number of yearly users; the language model in them derives from Meta's Llama 3.2 and
  stays under that licence too. Read both before you use or pass on this model.
- The data it was fine-tuned on has licences of its own. Whoever publishes this model has to know them, keep to them
  and name them here: **not filled in yet**.

## Voices

This model imitates voices from a few seconds of speech. Clone a voice only with the consent of the person it belongs
to, say that the speech is synthetic, and do not use it to deceive, to impersonate or to get past a voice check. That
holds for the voices in the training data as well.
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
    example."""
    return _CARD.format(
        name=name,
        base_model=f"base_model: {base}\n" if base else "",
        published=BASE_3B,
        library=library,
        summary=summary,
        speak=speak,
        sections="".join(
            f"\n## {title.capitalize()}\n\n{_marked(title, text)}\n"
            for title, text in sections.items()
        ),
    )


def link_to(base: str | None) -> str:
    return (
        f"[{base}](https://huggingface.co/{base})"
        if base
        else "a checkpoint that has no name on the Hub"
    )


def name_on_the_hub(model: str, config: Any) -> str | None:
    """Of what was loaded from `model`, a Hub id or a folder; None if nobody knows it."""
    if not Path(model).exists():
        return model
    published = HiggsAudioV2Config()
    is_3b = all(
        getattr(config, name) == getattr(published, name)
        for name in ("hidden_size", "num_hidden_layers", "vocab_size")
    )
    return BASE_3B if is_3b else None  # there are no other public weights of this shape


def complete(folder: Path, sections: Mapping[str, str]) -> Path | None:
    """Write `sections` in place into the card of `folder`, or, for a checkpoint, of the training's
    folder above it.

    Returns the card, None if there is none that has room for one of them: other people's cards stay
    as they are."""
    folder = folder.resolve()
    for place in (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,):
        path = place / CARD
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not any(_place(title).search(text) for title in sections):
            continue
        for title, content in sections.items():
            text = _place(title).sub(_marked(title, content).replace("\\", r"\\"), text, count=1)
        with replace_when_done(
            path
        ) as temporary:  # what its reader wrote must not be lost by a kill
            temporary.write_text(text, encoding="utf-8")
        return path
    return None


def _marked(title: str, content: str) -> str:
    return f"<!-- higgs-audio {title} -->\n{content.strip()}\n<!-- end of {title} -->"


def _place(title: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- higgs-audio {title} -->.*?<!-- end of {title} -->", re.DOTALL)
