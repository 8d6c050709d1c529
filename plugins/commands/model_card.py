"""The card of an exported folder (`plugins.model.card`). L4."""

from __future__ import annotations

from collections.abc import Sequence

from plugins import __version__
from plugins.audio.codec import CODEC_FOLDER
from plugins.commands.vllm_omni import launch_line
from plugins.data.wording import INSTRUCTION
from plugins.model.card import METRICS, NO_METRICS, card, link_to

_SUMMARY = """\
A Higgs-Audio V2 text-to-speech model, fine-tuned from {base}{how}.
{parameters} parameters, {dtype}; transformers' native format, text head inside, the codec in `{codec}/`. Written by
higgs-audio-swift {version}."""

_SPEAK = """\
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
transformers takes from the working folder. If you publish this folder on the Hub, write the Hub id of a codec there."""


def model_card(
    name: str,
    *,
    base: str | None,
    adapters: bool,
    parameters: int,
    dtype: str,
    notes: Sequence[str] = (),
) -> str:
    """base: Hub id of what was fine-tuned, None if unknown. notes: lines on serving. No path of
    this machine inside."""
    summary = _SUMMARY.format(
        base=link_to(base),
        how=" with LoRA, merged in" if adapters else "",
        parameters=f"{parameters / 1e9:.2f} billion" if parameters > 1e8 else f"{parameters:,}",
        dtype=dtype,
        codec=CODEC_FOLDER,
        version=__version__,
    )
    speak = _SPEAK.format(name=name, instruction=INSTRUCTION, launch=launch_line("FOLDER", name))
    text = card(name, base=base, summary=summary, speak=speak, sections={METRICS: NO_METRICS})
    return text + "".join(f"\nNote: {note}.\n" for note in notes)
