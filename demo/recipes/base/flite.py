"""Speech of flite with the end of each word, through its C library (`apt-get install flite`)."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_short, c_void_p
from dataclasses import dataclass

import numpy as np

from plugins.errors import UserError

SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True)
class Spoken:
    """A text as one voice says it."""

    samples: np.ndarray  # (N,) int16 at 16 kHz
    starts_s: float  # of the first sound
    ends_s: list[float]  # of each word
    sounds: list[str]  # of all words, as flite's lexicon writes phones


class _Wave(ctypes.Structure):
    _fields_ = (
        ("type", c_char_p),
        ("sample_rate", c_int),
        ("num_samples", c_int),
        ("num_channels", c_int),
        ("samples", POINTER(c_short)),
    )


_FUNCTIONS = {  # result and arguments
    "flite_synth_text": (c_void_p, c_char_p, c_void_p),
    "utt_wave": (POINTER(_Wave), c_void_p),
    "utt_relation": (c_void_p, c_void_p, c_char_p),
    "relation_head": (c_void_p, c_void_p),
    "item_next": (c_void_p, c_void_p),
    "item_feat_float": (c_float, c_void_p, c_char_p),
    "path_to_item": (c_void_p, c_void_p, c_char_p),
    "flite_ffeature_string": (c_char_p, c_void_p, c_char_p),
    "delete_utterance": (None, c_void_p),
}


class Flite:
    """One voice of CMU ARCTIC: slt, rms, awb."""

    def __init__(self, voice: str) -> None:
        """Raises UserError without flite's libraries."""
        self._core = core = _library("libflite.so.1")
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(core, name)
            function.restype, function.argtypes = result, arguments
        # The voices look for symbols of the others.
        _library("libflite_usenglish.so.1")
        _library("libflite_cmulex.so.1")
        own = _library(f"libflite_cmu_us_{voice}.so.1")
        register = getattr(own, f"register_cmu_us_{voice}")
        register.restype, register.argtypes = c_void_p, (c_char_p,)
        core.flite_init()
        self._voice = register(None)
        # Its noise is the C library's: what comes next is to hang on nothing that was said before.
        ctypes.CDLL(None).srand(1)

    def speak(self, text: str) -> Spoken:
        core = self._core
        utterance = core.flite_synth_text(text.encode(), self._voice)
        wave = core.utt_wave(utterance).contents
        samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).copy()
        starts_s, ends_s, sounds = 0.0, [], []
        before_s, last = 0.0, None
        segment = core.relation_head(core.utt_relation(utterance, b"Segment"))
        while segment:
            end_s = core.item_feat_float(segment, b"end")
            word = core.path_to_item(segment, b"R:SylStructure.parent.parent")
            if word:
                sounds.append(core.flite_ffeature_string(segment, b"name").decode())
                if word != last:
                    starts_s = starts_s if ends_s else before_s
                    ends_s.append(end_s)
                ends_s[-1] = end_s
                last = word
            before_s = end_s
            segment = core.item_next(segment)
        core.delete_utterance(utterance)
        return Spoken(samples, starts_s, ends_s, sounds)


def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        raise UserError(f"flite: {name} not found; apt-get install flite") from None
