"""Higgs-Audio V2 fine-tuning for MS-SWIFT: the map.

training   JSONL row --dataset_registration--> Dialogue --template/prompt--> EncodedSample --collator--> batch
           --modeling.forward (sums and counts of both losses)--> trainer (one exact scalar,
           metrics)
speaking   text, voices --prompt--> token ids + reference codes --decoding--> delayed frames
           --delay_pattern.undo_delay--> codes --codec.decode--> waveform

Legend of dimensions, used in every file: B batch, S sequence positions, F codec frames, T delayed
frames of a row, K codebooks (8), C codebook size with its two specials (1026), V text vocabulary, H
hidden, N samples.

L0  errors.py                one-line user errors
    installation.py          why torch, torchaudio, transformers or MS-SWIFT cannot be imported, and what mends it
    delay_pattern.py         codes <-> delayed frames and their labels
    loss.py                  labelled hidden rows -> sums and counts; combine -> scalar
    tokens.py                every special token id, once
    settings.py              our own knobs, one frozen dataclass
    untrusted.py             entries of a checkpoint's files that are refused: they import, fetch or run something
    speech_text.py           texts as the model was shown them; long ones in pieces
    signals.py               what SIGINT, SIGTERM and SIGHUP do outside of a step
    launcher.py              MS-SWIFT's command -> its process, with nobody between a signal and the training
L1  audio.py                 probing, decoding and resampling of audio files
    hub.py                   folder or Hub id -> folder
    audio_tower.py           waveforms -> embeddings of a Whisper encoder, for checkpoints that have one
    code_cache.py            codes of clips on disk (SQLite), encoded once
    codec.py                 waveform <-> codes, lazy and picklable
    stream_decoder.py        codes that arrive frame by frame -> samples as soon as they are final
    original_codec.py        boson-multimodal's codec <-> the native one
    model_config.py          the native config, plus the audio tower of some original checkpoints
    corpora/                 LJSpeech, VCTK, LibriTTS, tables, folders, Hugging Face datasets -> utterances
    prompt.py                Dialogue -> token ids and labels: the one prompt layout
    collator.py              list of EncodedSample -> batch tensors
    sampling.py              logits of a step -> the next frames
    cuda_graphs.py           a step over tensors -> the same, compiled, and on a GPU replayed as one graph
    speech.py                what was said, joined and saved
L2  rows.py                  a row of any accepted shape -> Dialogue
    row_clips.py             its clips: lengths, codes, waveforms
    row_sources.py           JSONL file, folder or Hugging Face dataset -> checked rows
    dataset_registration.py  MS-SWIFT's dataset loader
    packs.py                 MS-SWIFT's packs of rows
    template.py              MS-SWIFT Template: row -> EncodedSample
    dual_ffn.py              decoder layers that look up once per batch which rows are text and which audio
    modeling.py              the native class with both losses inside forward
    decode_step.py           delayed frames -> logits of the next: one position through the audio half of the model
    decoding.py              prompts -> delayed frames, step by step
    voices.py                texts, recordings, descriptions -> Dialogue
    weights.py               which key lies where, in native and original checkpoints
    original_format.py       boson-multimodal's checkpoints <-> native ones
    checkpoint.py            strict loading of both
    relaunch.py              the command line that resumes a run, or trains after its dry run
L3  model_registration.py    loaders and ModelMeta for 3B and 7B
    tuning.py                what MS-SWIFT's tuner options train, and whether loading finds it
    preflight/               what is about to be trained, proved before the first step; `higgs-audio doctor`
    checkpoints.py           which checkpoint folders are whole, which is the newest, which may go
    resume.py                a run that is killed and resumed equals one that is not
    meters.py                padding, speed, memory
    samples.py               prompts that are spoken while the model trains
    run_facts.py             data, settings and versions of a run, for those who read about it
    model_card.py            README.md of a model, with sections that are completed later
    training_card.py         that of a training's folder
    guards.py                sick steps, signals, exhausted GPUs
    disk_guard.py            checkpoints and log lines on a disk that may be full
    trainer.py               HiggsAudioTrainer, audio learning rate, metrics
    loading.py               a checkpoint of any kind -> model and tokenizer
    inference.py             HiggsAudioGenerator
    swift_inference.py       `swift infer`, `swift deploy`
    evaluation/              scores of what was said, beside base, codec and recordings
L4  register.py              register_higgs_audio_all(); the file for --external_plugins
    train.py, cli.py         our own entry points
    commands/                speak, evaluate, app: a page in the browser, export: one folder for servers
    prepare/, demo/          corpora -> JSONL; the embedded default
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
    "load_model": "plugins.model.loading",
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
