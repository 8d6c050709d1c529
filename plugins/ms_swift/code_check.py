"""Cached codes against their files and the codec of this run.

In: a dialogue whose clips may have come with codes from a cache. Out: nothing, or a UserError that
names the row. It opens a file only if something about it may have changed."""

from __future__ import annotations

import os
from pathlib import Path

from plugins.audio.code_cache import codec_fingerprint, content_key
from plugins.audio.codec import Codec
from plugins.data.dialogue import AudioClip, Dialogue
from plugins.errors import problem
from plugins.files.disk import file_hash
from plugins.files.hub import local_folder


class CodeCheck:
    """Compares each codec that a cache names once; of the clips only those that were touched after
    they were encoded can have changed."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec.path
        self._compared: set[str | None] = set()  # fingerprints

    def check(self, dialogue: Dialogue) -> None:
        """Raise UserError if codes are of another codec, or of a file that has changed since."""
        for clip in dialogue.clips():
            if clip.key is None or clip.path is None:  # not from a cache
                continue
            status = os.stat(clip.path)
            # A copy over the file may keep the old mtime, but not the ctime.
            is_touched = max(status.st_mtime_ns, status.st_ctime_ns) > clip.encoded_ns
            if is_touched or clip.codec not in self._compared:
                self._compared.add(clip.codec)
                self._verify(clip, clip.path, dialogue.source)

    def _verify(self, clip: AudioClip, path: str, source: str) -> None:
        codec = codec_fingerprint(Path(local_folder(self._codec, option="codec")))
        remedy = "run prepare_dataset.py --encode_codes again"
        if clip.codec != codec:
            raise problem(
                source=source,
                field="audio_codes",
                value=f"codes of {path}",
                reason=f"were not made by the codec {self._codec}",
                remedy=f"{remedy}, with that --codec and another --codes_dir",
            )
        if content_key(file_hash(path), codec) != clip.key:
            raise problem(
                source=source,
                field="audio_codes",
                value=f"codes of {path}",
                reason="were made before the file changed",
                remedy=remedy,
            )
