"""Higgs-Audio V2 fine-tuning for MS-SWIFT: the map.

training   recordings --corpora, prepare--> JSONL row --dataset_registration, data--> Dialogue
           --ms_swift, data--> EncodedSample --collator--> batch
           --model (sums and counts of both losses)--> trainer (one exact scalar, metrics)
speaking   texts, voices --inference, speaking--> Dialogue --data--> EncodedSample
           --collator, speaking--> delayed frames --delay_pattern--> codes --audio--> waveform

What training sees is what speaking sees, to the token: both ways walk through `data`. Rooms, from
below; a folder's own map stands in its `__init__.py`.

errors.py                 what a user can mend, in one line
delay_pattern.py          codes <-> delayed frames, and their labels
settings.py               our own knobs, one frozen dataclass
files/                    what lies on the disk and may not be ours; the installation
audio/                    audio file <-> waveform <-> codes; the cache of codes; streams
corpora/                  the folder of a corpus -> utterances
data/                     row -> Dialogue -> EncodedSample: texts, clips, the one prompt layout
model/                    batch -> loss sums; checkpoints loaded, converted, and their cards
collator.py               EncodedSamples -> the tensors of a batch
speaking/                 request -> delayed frames -> Speech
inference.py              HiggsAudioGenerator, the face of speaking
ms_swift/                 what knows MS-SWIFT's insides: its template, for training and speaking
training/                 what surrounds the steps: launch, meters, guards, resume, samples
training/preflight/       what is proved before the first step
trainer.py                HiggsAudioTrainer: one loss, however a step is split; audio learning rate
preference_trainer.py     HiggsAudioPreferenceTrainer: the same on pairs of clips (DPO)
evaluation/               did it learn: what several systems said -> scores side by side
hearing/                  waveform -> words; what is heard against what is written
prepare/                  utterances -> checked JSONL, code cache, report
commands/                 the larger subcommands: speak, serve, evaluate, doctor, app, export ...
model_registration.py     3B and 7B for MS-SWIFT
dataset_registration.py   its loader of our rows
register.py               register_higgs_audio_all(); the file for --external_plugins
train.py                  our own training entry: MS-SWIFT's, plus typed flags
cli.py                    `higgs-audio`, a subcommand per job

Legend of dimensions, used in every file: B batch, R rows that still speak, S sequence positions, F
codec frames, T delayed frames of a row, K codebooks (8), C codebook size with its two specials
(1026), V text vocabulary, H hidden, D head, N samples of a waveform.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "HiggsAudioGenerator": "plugins.inference",
    "HiggsAudioSettings": "plugins.settings",
    "Sampling": "plugins.speaking.sampling",
    "Speech": "plugins.speaking.speech",
    "UserError": "plugins.errors",
    "Voice": "plugins.speaking.voices",
    "load_model": "plugins.model.load",
    "register_higgs_audio_all": "plugins.register",
}
__all__ = list(_EXPORTS)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Lazy exports: importing the package costs nothing, neither torch nor MS-SWIFT."""
    if name in _EXPORTS:
        from plugins.files.installation import explained

        with explained():
            return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'plugins' has no attribute {name!r}")
