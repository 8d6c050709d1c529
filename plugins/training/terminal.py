"""What `higgs-audio sft` shows on the terminal, and what goes into a file of the run's folder.

    our lines, warnings and errors                  --> terminal and file
    MS-SWIFT's dumps (arguments, model, one row)    --> file
    warnings that authors of libraries write to each other --> file

Standard library only, as it is there before MS-SWIFT is imported: that speaks while it loads."""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plugins.errors import UserError

LOG_FILE = "ms_swift.log"  # in the folder of the run

_PLUGINS = str(Path(__file__).parents[1]) + os.sep  # as records name it, links and all
_NEEDLESS = (
    "with trust_remote_code=True",  # not with our model types: docs/security.md
    "`torch_dtype` is deprecated",  # MS-SWIFT's call, which a user cannot change
)
_FILE_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class Log(logging.Filter):
    """Keeps all records, and lets those through that a user is to read."""

    def __init__(self) -> None:
        super().__init__()
        # On the other ranks they wait until the end: not more than tells how that came.
        self._waiting: deque[logging.LogRecord] = deque(maxlen=1000)
        self._file: logging.FileHandler | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if self._file is None:
            self._waiting.append(record)
        else:
            self._file.handle(record)
        return _is_for_users(record)

    def into(self, folder: Path) -> Path:
        """Write what was kept into `folder`, and what is still to come; returns the file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG_FILE
        self._file = logging.FileHandler(path, encoding="utf-8", delay=True)
        self._file.setFormatter(logging.Formatter(_FILE_FORMAT))
        for record in self._waiting:
            self._file.handle(record)
        self._waiting.clear()
        return path

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def spill(self) -> None:
        """Show what waits for a folder: the run has ended before it had one."""
        formatter = logging.Formatter(_FILE_FORMAT)
        for record in self._waiting:
            if not _is_for_users(record):  # the others have been seen
                print(formatter.format(record), file=sys.stderr)


@contextmanager
def quiet() -> Iterator[Log]:
    """Inside, the terminal is as the head of this file says."""
    log = Log()
    loggers = [logging.getLogger("swift"), logging.getLogger("py.warnings")]
    for logger in loggers:
        logger.addFilter(log)
    logging.captureWarnings(True)
    try:
        yield log
    except Exception as error:
        # One line says all of a user's error; of others the way there may tell more.
        if not isinstance(error, UserError):
            log.spill()
        raise
    finally:
        logging.captureWarnings(False)
        for logger in loggers:
            logger.removeFilter(log)
        for handler in _handlers():
            handler.removeFilter(log)
        log.close()


def settle(log: Log) -> None:
    """The handlers that MS-SWIFT and transformers made when they were imported: ours is the form
    of a line."""
    for handler in logging.getLogger("swift").handlers:
        handler.setFormatter(_Plain())
    for handler in _handlers():
        handler.addFilter(log)


def _handlers() -> list[logging.Handler]:
    # A filter of a logger does not see the records of those below it; that of a handler does.
    return logging.getLogger("transformers").handlers


class _Plain(logging.Formatter):
    """`text`, or `warning: text`."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def _is_for_users(record: logging.LogRecord) -> bool:
    if record.name == "py.warnings":
        return False
    if record.pathname.startswith(_PLUGINS):
        return True
    message = record.getMessage()
    return record.levelno >= logging.WARNING and not any(part in message for part in _NEEDLESS)
