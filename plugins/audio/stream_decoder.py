"""Codes that arrive frame by frame -> the samples of `Codec.decode`, as soon as they are final.

In: undelayed codes (K, n), pushed in order. Out: pieces (N,) float32 that together are
`codec.decode` of all codes. A frame is decoded inside a window so wide that the window's edges,
where convolutions see zeros instead of neighbours, cannot reach its samples: no fades, no clicks.
This file knows neither where the codes come from nor who listens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plugins.audio.codec import Codec
from plugins.errors import problem


class StreamDecoder:
    """Decodes a stream of codes, one piece at a time.

    With the published codec a frame is final 10 frames (0.4 s) later: the first piece comes with
    frame 11. Pieces hold 1, 2, 4, ... frames up to `chunk_frames`, or all that a long push
    completes. A listener who starts with the first piece hears no gap if frames come, decoding
    included, at twice real time (50/s); else hold the first pieces back.

    Each piece costs a decode of its own frames and of up to 20 around them: with pieces of 25
    frames 1.8 times the frames of one decode at the end, whatever the length. Raises UserError if
    `chunk_frames` is not positive."""

    def __init__(self, codec: Codec, *, chunk_frames: int = 25) -> None:
        if chunk_frames < 1:
            raise problem(
                source="request",
                field="chunk_frames",
                value=chunk_frames,
                reason="is not positive",
                remedy="give frames of 40 ms",
            )
        self._codec = codec
        self._chunk_frames = chunk_frames
        self._num_left, self._num_right = receptive_field_frames(codec.model.acoustic_decoder)
        self._start()

    def _start(self) -> None:
        num_codebooks = len(self._codec.model.quantizer.quantizers)
        self._window = torch.empty(num_codebooks, 0, dtype=torch.int64)
        self._num_done = 0  # frames of the window whose samples have been returned: context
        self._num_wanted = 1

    def push(self, codes: Tensor) -> np.ndarray:
        """The next codes (K, n), n >= 0 -> the samples (N,) float32 that are final now: none, or a
        whole piece.

        Raises ValueError if `codes` is not (K, n): a single frame is (K, 1).
        """
        num_codebooks = len(self._window)
        if codes.ndim != 2 or len(codes) != num_codebooks:
            shape = tuple(codes.shape)
            raise ValueError(f"codes of shape {shape}, expected ({num_codebooks}, frames)")
        self._window = torch.cat([self._window, codes.to(self._window)], dim=1)
        num_final = self._window.shape[1] - self._num_right
        if num_final - self._num_done < self._num_wanted:
            return np.empty(0, dtype=np.float32)
        return self._decode_until(num_final)

    def finish(self) -> np.ndarray:
        """The samples (N,) float32 of all frames not yet returned. What is pushed next starts a new
        stream."""
        num_frames = self._window.shape[1]
        rest = np.empty(0, dtype=np.float32)
        # Nothing pushed, nothing to decode: the codec takes one frame, not none.
        if num_frames:
            rest = self._decode_until(num_frames)
        self._start()
        return rest

    def _decode_until(self, end: int) -> np.ndarray:
        """The samples of the frames [num_done, end) of the window, which then keeps only what later
        frames need."""
        waveform = self._codec.decode(self._window)
        hop = len(waveform) // self._window.shape[1]
        # A view would keep the whole window alive.
        piece = waveform[self._num_done * hop : end * hop].copy()
        # Short pieces first, so that a listener hears something soon.
        self._num_wanted = min(self._chunk_frames, 2 * (end - self._num_done))
        self._num_done = min(end, self._num_left)
        self._window = self._window[:, end - self._num_done :]
        return piece


def receptive_field_frames(decoder: nn.Module) -> tuple[int, int]:
    """How many frames before and after a frame its samples depend on: (10, 10) for the published
    decoder.

    decoder: DAC's, a chain of convolutions; what lies between them (Snake, skips) adds no width,
    and nothing is global: no attention, no recurrence, no norm over time. Followed from the last
    convolution to the first, the outputs first..last of a layer depend on the inputs (padding p,
    stride s, kernel k, dilation d, reach r = (k - 1) d):

        Conv1d            out[t] = sum_j w[j] in[t - p + j d]
                          first - p .. last - p + r
        ConvTranspose1d   in[i] adds to out[i s - p + j d]
                          ceil((first + p - r) / s) .. floor((last + p) / s)
    """
    layers: list[Any] = []
    samples_per_frame = 1
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            layers.append(layer)
            samples_per_frame *= layer.stride[0]
    first, last = 0, samples_per_frame - 1  # the samples of frame 0
    for layer in reversed(layers):
        (padding,), (stride,) = layer.padding, layer.stride
        reach = (layer.kernel_size[0] - 1) * layer.dilation[0]
        if isinstance(layer, nn.ConvTranspose1d):
            first, last = -((reach - padding - first) // stride), (last + padding) // stride
        else:
            first, last = first - padding, last - padding + reach
    return -first, last
