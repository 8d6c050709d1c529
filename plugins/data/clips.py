"""The clips of a dialogue: their lengths, their codes, their waveforms (L2).

In: a `Dialogue` whose clips have paths, and codes where the row brought them. Out: the same with
codes for every clip. Faults of a file are told by the row that names it."""

from __future__ import annotations

from dataclasses import replace

import torch

from plugins.audio import waveforms as audio
from plugins.audio.codec import FRAMES_PER_S, Codec
from plugins.audio.log_mel import SAMPLE_RATE_HZ
from plugins.data.prompt import AudioClip, Dialogue
from plugins.data.tokens import SpecialTokens
from plugins.errors import problem
from plugins.settings import HiggsAudioSettings


def num_frames(clip: AudioClip, source: str) -> int:
    """Codec frames of a clip, from its codes or, exactly, the header of its file. Raises UserError
    without either."""
    if clip.codes is not None:
        return clip.codes.shape[1]
    assert clip.path is not None
    num_samples = _header(clip.path, source).num_samples_at(audio.SAMPLE_RATE_HZ)
    return -(-num_samples * FRAMES_PER_S // audio.SAMPLE_RATE_HZ)


def _header(path: str, source: str) -> audio.AudioInfo:
    try:
        return audio.probe(path)
    except audio.AudioError as error:
        raise problem(
            source=source, field="audio", value=path, reason=error.reason, remedy=error.remedy
        ) from None


def with_clips(dialogue: Dialogue, codec: Codec, tokens: SpecialTokens) -> Dialogue:
    """`dialogue` with the codes of every clip, encoded where it has none, and with waveforms for an
    audio tower.

    Raises UserError naming the row if a file cannot be decoded.
    """

    def encoded(clip: AudioClip) -> AudioClip:
        if clip.codes is not None:
            return clip
        assert clip.path is not None
        try:
            return replace(clip, codes=codec.encode_file(clip.path))
        except audio.AudioError as error:
            raise problem(
                source=dialogue.source,
                field="audio",
                value=clip.path,
                reason=error.reason,
                remedy=error.remedy,
            ) from None

    coded = dialogue.map_clips(encoded)
    return (
        coded
        if tokens.tower is None
        else coded.map_heard(lambda clip: _with_waveform(clip, dialogue.source))
    )


def stand_ins(dialogue: Dialogue, tokens: SpecialTokens) -> Dialogue:
    """`dialogue` with silence of the same lengths, from headers: enough to count the positions of a
    row."""

    def silent(clip: AudioClip) -> AudioClip:
        codes = torch.zeros(
            tokens.num_codebooks, num_frames(clip, dialogue.source), dtype=torch.long
        )
        return AudioClip(clip.path, codes)

    def heard(clip: AudioClip) -> AudioClip:
        if clip.path is None:
            return _with_waveform(clip, dialogue.source)
        num_samples = _header(clip.path, dialogue.source).num_samples_at(SAMPLE_RATE_HZ)
        return replace(clip, waveform=torch.zeros(1).expand(num_samples))

    coded = dialogue.map_clips(silent)
    return coded if tokens.tower is None else coded.map_heard(heard)


def _with_waveform(clip: AudioClip, source: str) -> AudioClip:
    if clip.path is None:
        reason = "is not enough: this model hears references through its audio tower"
        raise problem(
            source=source,
            field="reference_codes",
            value="codes",
            reason=reason,
            remedy="give reference_audio",
        )
    try:
        waveform = audio.load(clip.path, sample_rate_hz=SAMPLE_RATE_HZ)
    except audio.AudioError as error:
        raise problem(
            source=source,
            field="reference_audio",
            value=clip.path,
            reason=error.reason,
            remedy=error.remedy,
        ) from None
    return replace(clip, waveform=torch.from_numpy(waveform))


def check_clips(dialogue: Dialogue, settings: HiggsAudioSettings) -> None:
    """Raise UserError for clips that cannot be read or are longer than `max_audio_length`, from
    their headers only."""
    for clip in dialogue.clips():
        frames = num_frames(clip, dialogue.source)
        if frames > settings.max_audio_length:
            reason = (
                f"has {frames} codec frames, more than max_audio_length {settings.max_audio_length}"
            )
            raise problem(
                source=dialogue.source,
                field="audio",
                value=clip.path,
                reason=reason,
                remedy="cut the clip or raise MAX_AUDIO_LENGTH",
            )
        if clip.codes is not None and clip.path is not None:
            of_audio = num_frames(AudioClip(clip.path), dialogue.source)
            if abs(frames - of_audio) > 1:
                reason = f"are {frames} frames for a clip of {of_audio} ({FRAMES_PER_S} per second)"
                remedy = "encode the clip itself, resampled to 24 kHz"
                raise problem(
                    source=dialogue.source,
                    field="audio_codes",
                    value=f"codes of {clip.path}",
                    reason=reason,
                    remedy=remedy,
                )
