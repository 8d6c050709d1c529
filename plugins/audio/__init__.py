"""Audio files, codes, and what lies between them.

waveforms.py              audio files <-> mono waveforms
log_mel.py                waveforms -> log-mel features of a Whisper encoder
codec.py                  waveform <-> codes, lazy and picklable
stream_decoder.py         codes that arrive frame by frame -> samples as soon as they are final
marks.py                  what a file says of its making: that it is synthetic
code_cache.py             codes of clips on disk (SQLite), encoded once
original_codec.py         the codec of boson-multimodal <-> the native one
original_codec_config.py  its config
original_codec_keys.py    the keys and shapes of its weights
"""
