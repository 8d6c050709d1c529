"""The clips of a dialogue: their headers and lengths, their codes, their waveforms.

In: a `Dialogue` whose clips have paths, and codes where the row brought them. Out: the same with
what is asked for: headers (`measured`), silence of the same lengths (`stand_ins`), codes of every
clip (`with_clips`). Faults of a file are told by the row that names it."""

from __future__ import annotations

from dataclasses import replace

import torch

from plugins.audio import waveforms as audio
from plugins.audio.codec import FRAMES_PER_S, Codec
from plugins.audio.log_mel import SAMPLE_RATE_HZ as TOWER_RATE_HZ
from plugins.data.codes import require_codes
from plugins.data.dialogue import AudioClip, Dialogue
from plugins.data.tokens import SpecialTokens
from plugins.errors import UserError, problem
from plugins.settings import HiggsAudioSettings

# What `prepare` rejects by default, too: consonants have their energy above 4 kHz.
MIN_SAMPLE_RATE_HZ = 16_000


def measured(dialogue: Dialogue) -> Dialogue:
    """`dialogue` with the header of every file, so that all checks of a row together open each
    once. Raises UserError, naming the row, for a file without readable audio."""

    def with_header(clip: AudioClip) -> AudioClip:
        if clip.path is None:
            return clip
        return replace(clip, header=_header(clip, dialogue.source))

    return dialogue.map_clips(with_header)


def num_frames(clip: AudioClip, source: str) -> int:
    """Codec frames of a clip, from its codes or, exactly, the header of its file. Raises UserError
    without either."""
    if clip.codes is not None:
        return clip.codes.shape[1]
    return _num_frames_of_file(clip, source)


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
            codes = codec.encode_file(clip.path)
        except audio.AudioError as error:
            raise _fault(error, clip.path, dialogue.source) from None
        require_codes(codes, dialogue.source, f"codec {codec.path}")
        return replace(clip, codes=codes)

    coded = dialogue.map_clips(encoded)
    if tokens.tower is None:
        return coded
    # The tower hears the recording itself, at a rate of its own.
    return coded.map_heard(lambda clip: _with_waveform(clip, dialogue.source))


def stand_ins(dialogue: Dialogue, tokens: SpecialTokens) -> Dialogue:
    """`dialogue` with silence of the same lengths, from headers: enough to count the positions of a
    row."""

    def silent(clip: AudioClip) -> AudioClip:
        frames = num_frames(clip, dialogue.source)
        codes = torch.zeros(tokens.num_codebooks, frames, dtype=torch.long)
        return AudioClip(clip.path, codes, waveform=clip.waveform, header=clip.header)

    def heard(clip: AudioClip) -> AudioClip:
        if clip.path is None:
            return _with_waveform(clip, dialogue.source)
        num_samples = _header(clip, dialogue.source).num_samples_at(TOWER_RATE_HZ)
        # Expanded: ten minutes of silence take the memory of one sample.
        return replace(clip, waveform=torch.zeros(1).expand(num_samples))

    coded = dialogue.map_clips(silent)
    return coded if tokens.tower is None else coded.map_heard(heard)


class LowRates:
    """Which clips were recorded at less than `MIN_SAMPLE_RATE_HZ`, as telephones do: the model
    would learn their dull sound."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}  # of such clips, and where and what they are

    def look_at(self, dialogue: Dialogue) -> None:
        """dialogue: `measured`; clips without a header have codes alone."""
        for clip in dialogue.clips():
            if clip.path is None or clip.header is None:
                continue
            rate_hz = clip.header.sample_rate_hz
            if rate_hz < MIN_SAMPLE_RATE_HZ:
                self._paths.setdefault(clip.path, f"{dialogue.source}: {clip.path}, {rate_hz} Hz")

    @property
    def warning(self) -> str | None:
        """One line, or None if there is no such clip."""
        if not self._paths:
            return None
        first = next(iter(self._paths.values()))
        least = f"{MIN_SAMPLE_RATE_HZ // 1000} kHz"
        return (
            f"{len(self._paths)} clips have a sample rate below {least}, the least for this model"
            f" ({first}): it would learn to speak as dully; record them again, or leave them out"
        )


def check_clips(dialogue: Dialogue, settings: HiggsAudioSettings) -> None:
    """Raise UserError for clips that cannot be read or are longer than `max_audio_length`, from
    their headers only."""
    source = dialogue.source
    for clip in dialogue.clips():
        frames = num_frames(clip, source)
        if frames > settings.max_audio_length:
            limit = settings.max_audio_length
            raise problem(
                source=source,
                field="audio",
                value=clip.path,
                reason=f"has {frames} codec frames, more than max_audio_length {limit}",
                remedy="cut the clip or raise --max_audio_length",
            )
        if clip.codes is None or clip.path is None:
            continue
        of_file = _num_frames_of_file(clip, source)
        if abs(frames - of_file) > 1:
            raise problem(
                source=source,
                field="audio_codes",
                value=f"codes of {clip.path}",
                reason=f"are {frames} frames for a clip of {of_file} ({FRAMES_PER_S} per second)",
                remedy="encode the clip itself, resampled to 24 kHz",
            )


def _num_frames_of_file(clip: AudioClip, source: str) -> int:
    num_samples = _header(clip, source).num_samples_at(audio.SAMPLE_RATE_HZ)
    # Rounded up: the codec pads the last frame.
    return -(-num_samples * FRAMES_PER_S // audio.SAMPLE_RATE_HZ)


def _header(clip: AudioClip, source: str) -> audio.AudioInfo:
    if clip.header is not None:
        return clip.header
    assert clip.path is not None
    try:
        return audio.probe(clip.path)
    except audio.AudioError as error:
        raise _fault(error, clip.path, source) from None


def _with_waveform(clip: AudioClip, source: str) -> AudioClip:
    if clip.waveform is not None:
        return clip
    if clip.path is None:
        raise problem(
            source=source,
            field="reference_codes",
            value="codes",
            reason="is not enough: this model hears references through its audio tower",
            remedy="give reference_audio",
        )
    try:
        waveform = audio.load(clip.path, sample_rate_hz=TOWER_RATE_HZ)
    except audio.AudioError as error:
        raise _fault(error, clip.path, source, field="reference_audio") from None
    return replace(clip, waveform=torch.from_numpy(waveform))


def _fault(error: audio.AudioError, path: str, source: str, *, field: str = "audio") -> UserError:
    return problem(source=source, field=field, value=path, reason=error.reason, remedy=error.remedy)
