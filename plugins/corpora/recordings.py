"""The names in a list -> the recordings that are meant.

In: names, as somebody wrote them, perhaps on another system. Out: for each an utterance, or
`Rejected`. A name is taken as it is written; then with another case of its suffix, another form of
its accents, or backslashes; then by its last parts alone, wherever that leaves no doubt, which is
said. Looks at files, opens none."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from plugins.audio.waveforms import AUDIO_SUFFIXES, AudioError, resolve
from plugins.corpora.utterance import Rejected, Utterance, folders_of, utterance_of

logger = logging.getLogger(__name__)
# More than any path has parts in common: the whole name is the file's, only written otherwise.
_WHOLE = 1 << 20


class Recordings:
    """What each of `names` means in the corpus `folder`.

    source: the list, for what is said of it. below: folders in which names start, the first one
    first. root: refuse what lies outside of it (`plugins.audio.waveforms.resolve`)."""

    def __init__(
        self,
        names: Iterable[str],
        *,
        source: Path,
        folder: Path,
        root: Path | None = None,
        below: Sequence[str] = ("",),
    ) -> None:
        self._folder, self._root, self._below = folder, root, below
        self._found: dict[str, Path | AudioError] = {}
        lost = []
        for name in dict.fromkeys(names):
            self._found[name] = found = self._as_written(name)
            # What is there and unfit, or a URL, or forbidden, is not looked for elsewhere.
            if isinstance(found, AudioError) and found.reason.startswith(("not found", "is abs")):
                lost.append(name)
        if lost:
            self._search(lost, source)

    def utterance(
        self,
        place: str,
        name: str,
        *,
        text: str,
        id_: str = "",
        speaker: str | None = None,
        language: str | None = None,
    ) -> Utterance | Rejected:
        """That of the recording `name`; without an id, its path is the id."""
        found = self._found[name]
        if isinstance(found, AudioError):
            return Rejected(place, id_ or name, found.reason, str(found.path))
        return utterance_of(
            place,
            found,
            folder=self._folder,
            text=text,
            id_=id_,
            speaker=speaker,
            language=language,
        )

    def _as_written(self, name: str) -> Path | AudioError:
        errors = []
        for folder in self._below:
            for spelling in _with_suffixes(name):
                try:
                    path = folder + spelling if spelling else ""
                    return resolve(path, folders=[self._folder], root=self._root)
                except AudioError as error:
                    errors.append(error)
        # One may be there and unfit; that says more than the absence of the others.
        unfit = (error for error in errors if not error.reason.startswith("not found"))
        return next(unfit, errors[0])

    def _search(self, lost: Sequence[str], source: Path) -> None:
        """Look for the names `lost` among all files of the corpus."""
        files = self._files()
        claims: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for name in lost:
            scored = self._alike(name, files)
            best = max(scored.values(), default=0)
            fitting = [file for file, score in scored.items() if score == best]
            if len(fitting) > 1:
                self._refuse(name, f"{len(fitting)} files below {self._folder}/ are called so")
            elif fitting:
                claims[fitting[0]].append((best, name))
        # A file that another line has named as it is belongs to that one.
        named = {os.path.realpath(path) for path in self._found.values() if isinstance(path, Path)}
        moved = []
        for file, claimants in claims.items():
            best, _ = max(claimants)
            rivals = [name for score, name in claimants if score == best]
            owned = os.path.realpath(self._folder / file) in named or len(rivals) > 1
            for score, name in claimants:
                if score < best or (owned and score < _WHOLE // 2):
                    self._refuse(name, f"several lines would mean {file}")
                    continue
                self._found[name] = self._there(file)
                if score < _WHOLE // 2:
                    moved.append((name, file))
        if moved:
            logger.warning(
                "%s: %d of %d recordings are not where it says; taken by their names below %s/"
                " (%r -> %r, ...)",
                source,
                len(moved),
                len(self._found),
                self._folder,
                *moved[0],
            )

    def _refuse(self, name: str, detail: str) -> None:
        self._found[name] = AudioError(name, f"not found ({detail})", "mend the path")

    def _there(self, file: str) -> Path | AudioError:
        try:
            # "./": a file may be called "~a.wav".
            return resolve(f"./{file}", folders=[self._folder], root=self._root)
        except AudioError as error:
            return error

    def _files(self) -> dict[str, list[str]]:
        """Key of a name -> the files of the corpus that are called so, relative to it."""
        files: dict[str, list[str]] = defaultdict(list)
        for folder, names in folders_of(self._folder, self._root, skip=lambda *_: None):
            for name in names:
                relative = (folder / name).relative_to(self._folder)
                files[_key(name)].append(relative.as_posix())
        return files

    def _alike(self, name: str, files: dict[str, list[str]]) -> dict[str, int]:
        """Files that `name` may mean, each with the number of parts, from the last, that it
        shares."""
        scores = {}
        for spelling in _with_suffixes(name):
            written = _parts(spelling)
            for file in files.get(written[-1], []) if written else []:
                parts = _parts(file)
                score = _num_common(parts, written)
                for i, folder in enumerate(self._below):
                    if parts == _parts(folder) + written:
                        score = _WHOLE - i
                        break
                scores[file] = score
        return scores


def _with_suffixes(name: str) -> Iterator[str]:
    """`name`, and with each suffix that a list may leave out; but not the whole name."""
    yield name
    if name and not name.lower().endswith(AUDIO_SUFFIXES):
        for suffix in AUDIO_SUFFIXES:
            yield name + suffix


def _parts(path: str) -> list[str]:
    """The keys of the parts of a path, as POSIX or Windows writes it."""
    parts = re.split(r"[\\/]", path)
    return [_key(part) for part in parts if part not in ("", ".")]


def _key(name: str) -> str:
    """Equal for names that differ in the case of the suffix or in how accents are composed."""
    stem, dot, suffix = name.rpartition(".")
    return unicodedata.normalize("NFC", stem + dot + (suffix.lower() if dot else suffix))


def _num_common(a: Sequence[str], b: Sequence[str]) -> int:
    """How many parts are equal, from the last on."""
    count = 0
    for left, right in zip(reversed(a), reversed(b), strict=False):
        if left != right:
            break
        count += 1
    return count
