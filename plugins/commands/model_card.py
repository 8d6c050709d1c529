"""README.md of an exported folder: the Hub's front matter, what it is, how to speak with it, what to keep to. L4."""

from __future__ import annotations

from collections.abc import Sequence

from plugins import __version__
from plugins.codec import CODEC_FOLDER
from plugins.commands.vllm_omni import launch_line
from plugins.prompt_text import INSTRUCTION

BASE_3B = "bosonai/higgs-audio-v2-generation-3B-base"

_CARD = """\
---
{base_model}license: other
license_name: boson-higgs-audio-2-community-license
license_link: https://huggingface.co/{published}/blob/main/LICENSE
library_name: transformers
pipeline_tag: text-to-speech
tags:
- text-to-speech
- higgs-audio-v2
- ms-swift
---

# {name}

A Higgs-Audio V2 text-to-speech model, fine-tuned from {base}{how}.
{parameters} parameters, {dtype}; transformers' native format, text head inside, the codec in `{codec}/`. Written by
higgs-audio-swift {version}.

## Speak

With the kit that made it:

```bash
higgs-audio speak --model . --text "Hello." --output hello.wav
higgs-audio speak --model . --text "Hello." --reference_audio voice.wav --reference_text "What the voice says."
```

As a server, with a GPU and vLLM-Omni, which knows Higgs-Audio V2 since 0.22 (written after its sources, not run):

```bash
{launch}
curl localhost:8000/v1/audio/speech -H "Content-Type: application/json" -o hello.wav \\
    -d '{{"model": "{name}", "input": "Hello.", "response_format": "wav"}}'
```

`ref_audio` and `ref_text`, given together, clone a voice. The server writes the system message `{instruction}`
and no scene. It has to be started in this folder: `processor_config.json` names the codec by a relative path, which
transformers takes from the working folder. If you publish this folder on the Hub, write the Hub id of a codec there.

## Licences

- The weights derive from Boson AI's Higgs Audio 2 and stay under its community licence, which among other things
  limits commercial use by the number of yearly users; the language model in it derives from Meta's Llama 3.2 and stays
  under that licence too. Read both before you use or pass on this model.
- The data it was fine-tuned on has licences of its own. Whoever publishes this model has to know them, keep to them
  and name them here: **not filled in yet**.

## Voices

This model imitates voices from a few seconds of speech. Clone a voice only with the consent of the person it belongs
to, say that the speech is synthetic, and do not use it to deceive, to impersonate or to get past a voice check. That
holds for the voices in the training data as well.
"""


def model_card(
    name: str, *, base: str | None, adapters: bool, parameters: int, dtype: str, notes: Sequence[str] = ()
) -> str:
    """base: Hub id of what was fine-tuned, None if unknown. notes: lines on serving. No path of this machine inside."""
    card = _CARD.format(
        name=name,
        base_model=f"base_model: {base}\n" if base else "",
        published=BASE_3B,
        base=f"[{base}](https://huggingface.co/{base})" if base else "a checkpoint that has no name on the Hub",
        how=" with LoRA, merged in" if adapters else "",
        parameters=f"{parameters / 1e9:.2f} billion" if parameters > 1e8 else f"{parameters:,}",
        dtype=dtype,
        codec=CODEC_FOLDER,
        instruction=INSTRUCTION,
        version=__version__,
        launch=launch_line("FOLDER", name),
    )
    return card + "".join(f"\nNote: {note}.\n" for note in notes)
