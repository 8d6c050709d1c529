"""The file beside a clip -> what the clip says.

In: ``x.txt``, or ``x.json`` as the shards of a WebDataset have it, of ``x.wav``. Out: its text.
What cannot be read is an `AudioError`: it takes its clip along, but no others."""

from __future__ import annotations

from pathlib import Path

from plugins.audio.waveforms import AudioError
from plugins.corpora.shapes import SPEAKER_NAMES, TEXT_NAMES
from plugins.corpora.utterance import collapse, keep_inside
from plugins.files.lines import NoJson, parse_json

NOTE_SUFFIX = ".json"
# Hours of speech. A sparse file of gigabytes would take twice as much memory.
_MAX_BYTES = 1_000_000


def read_transcript(path: Path, input_dir: Path, root: Path | None) -> str:
    """The whole text of `path`, whitespace collapsed. Raises `AudioError`."""
    return collapse(read_whole(path, input_dir, root))


def read_note(path: Path, input_dir: Path, root: Path | None) -> dict[str, str | None]:
    """`text`, `speaker` and `language` of a clip, of the JSON beside it. Raises `AudioError`."""
    content = read_whole(path, input_dir, root)
    try:
        note = parse_json(content)
    except NoJson as error:
        raise AudioError(path, error.reason, error.remedy) from None
    names = note if isinstance(note, dict) else {}
    text = next((names[name] for name in TEXT_NAMES if isinstance(names.get(name), str)), None)
    if text is None:
        raise AudioError(path, f"names no text ({', '.join(TEXT_NAMES)})", "add one")
    speaker = next((names[name] for name in SPEAKER_NAMES if names.get(name)), None)
    language = names.get("language")
    return {
        "text": collapse(text),
        "speaker": str(speaker) if isinstance(speaker, str | int) else None,
        "language": language if isinstance(language, str) else None,
    }


def read_whole(path: Path, input_dir: Path, root: Path | None) -> str:
    """All of `path`, as it is. Raises `AudioError`."""
    keep_inside(path, input_dir, root)
    # Reading a pipe would wait for its writer forever.
    if not path.is_file():
        raise AudioError(path, "is not a regular file", "write a text file")
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            reason = f"is larger than {_MAX_BYTES:,} bytes"
            raise AudioError(path, reason, "write what the clip says, no more")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise AudioError(path, "is not UTF-8", "save it as UTF-8") from None
    except OSError as error:
        reason = f"may not be read ({error.strerror})"
        raise AudioError(path, reason, "grant read permission") from None
