"""Whether the codec is the model's: one clip there and back, and codes that rows bring compared.

Dialogues in, findings out. It knows neither the language model nor the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from plugins.audio import waveforms
from plugins.audio.codec import FRAMES_PER_S, NUM_CODEBOOKS, NUM_CODES, Codec
from plugins.data.dialogue import Dialogue
from plugins.errors import UserError, problem
from plugins.training.preflight.report import Report

# Other hardware rounds a few codes otherwise; another codec, or an order lost, agrees by chance
# (0.1 %).
_SAME_CODEC = 0.5


def check_codec(report: Report, codec: Codec, dialogues: Sequence[Dialogue]) -> None:
    """One clip there and back: codes in range and varied, one frame per 40 ms, a waveform of the
    same length. Raises UserError if the codec gives anything else."""
    path = _first_file(dialogues)
    if path is None:
        report.add("codec", "info", "left out: no row names an audio file")
        return
    waveform = waveforms.load(path, sample_rate_hz=codec.sample_rate_hz)
    codes, back = _round_trip(codec, waveform)
    distance = _log_mel_distance(waveform, back[: len(waveform)], codec.sample_rate_hz)
    text = f"round trip of one clip: {distance:.1f} dB mean log-mel distance"
    report.add("codec", "ok", f"{codes.shape[1]} frames in range; {text}", path)


def check_given_codes(report: Report, codec: Codec, dialogues: Sequence[Dialogue]) -> None:
    """Codes that rows bring beside the audio must be those that the codec gives for it: looked at
    for the first such clip. Raises UserError if they are not."""
    for dialogue in dialogues:
        for clip in dialogue.clips():
            if clip.path is None or clip.codes is None:
                continue
            codes = codec.encode_file(clip.path)
            num_frames = min(codes.shape[1], clip.codes.shape[1])
            is_same = codes[:, :num_frames] == clip.codes[:, :num_frames]
            agreement = float(is_same.float().mean())
            if agreement < _SAME_CODEC:
                raise problem(
                    source=dialogue.source,
                    field="audio_codes",
                    value=f"codes of {clip.path}",
                    reason=f"agree with the codec's in {agreement:.0%} of all codes",
                    remedy="encode the clips with the model's codec, and keep codebooks and frames"
                    " in order",
                )
            report.add("audio_codes", "ok", f"agree with the codec in {agreement:.0%} of one clip")
            return


def _first_file(dialogues: Sequence[Dialogue]) -> str | None:
    for dialogue in dialogues:
        for clip in dialogue.clips():
            if clip.path is not None:
                return clip.path
    return None


def _round_trip(codec: Codec, waveform: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """(N,) samples -> codes (K, F) and the samples that they are decoded to."""
    codes = codec.encode(waveform)
    num_codebooks, num_frames = codes.shape
    if num_codebooks != NUM_CODEBOOKS:
        raise _wrong(codec, f"gives {num_codebooks} codebooks, not {NUM_CODEBOOKS}")
    right = -(-len(waveform) * FRAMES_PER_S // codec.sample_rate_hz)  # rounded up
    if num_frames != right:
        reason = f"gives {num_frames} frames for {len(waveform)} samples, not {right}"
        raise _wrong(codec, f"{reason} (25 per second)")
    if codes.min() < 0 or codes.max() >= NUM_CODES:
        raise _wrong(codec, f"gives codes up to {int(codes.max())}, outside 0..{NUM_CODES - 1}")
    # Within one second of silence a codebook may well stand still.
    if num_frames > FRAMES_PER_S and any(len(row.unique()) == 1 for row in codes):
        raise _wrong(codec, "gives one and the same code for a whole clip: its codebooks are empty")
    back = codec.decode(codes)
    num_samples = num_frames * codec.sample_rate_hz // FRAMES_PER_S
    if len(back) != num_samples or not np.isfinite(back).all():
        raise _wrong(codec, "does not give a waveform of the clip's length back")
    return codes, back


def _wrong(codec: Codec, reason: str) -> UserError:
    remedy = "give the codec that belongs to this model"
    return problem(source="settings", field="codec", value=codec.path, reason=reason, remedy=remedy)


def _log_mel_distance(a: np.ndarray, b: np.ndarray, sample_rate_hz: int) -> float:
    """Mean absolute difference in dB of 80 mel bands, both clipped to 80 dB below their peaks."""
    import librosa

    def decibels(waveform: np.ndarray) -> np.ndarray:
        mel = librosa.feature.melspectrogram(y=waveform, sr=sample_rate_hz, n_mels=80)
        return librosa.power_to_db(mel, ref=1.0, top_db=80.0)

    return float(np.abs(decibels(a) - decibels(b)).mean())
