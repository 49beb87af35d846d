"""An engine that keeps each entry in a file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from ..errors import CacheError
from .engine import checked


class FileCache:
    """Keeps entries in the files of one directory, for as long as nobody removes them.

    An entry is written aside and moved into place whole. So any number of threads and processes may share the
    directory: nobody ever reads half an entry, and of two that write the same one the later wins. Files can be read and
    written by their owner alone.

    Args:
        directory: Where; it is made where it is not there yet. A ``~`` at its beginning is the home directory. On
            Windows a path that others cannot read is the caller's to choose.

    Raises:
        TypeError, ValueError: ``directory`` is no path.
        CacheError: It cannot be made or written to.

    Thread safety: every method may be called from any thread, and from any process.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        try:
            self.directory = Path(directory).expanduser().absolute()
        except TypeError:
            raise TypeError(f"directory: expected a path, got {directory!r}") from None
        if directory in ("", b""):  # a variable that is not set, say: not the current directory by chance
            raise ValueError("directory: expected a path, got nothing")
        try:
            self._make()
            with tempfile.TemporaryFile(dir=self.directory):
                pass
        except OSError as error:
            raise CacheError(f"directory: cannot write to {self.directory}: {error.strerror or error}") from error

    def get(self, key: str) -> bytes | None:
        """Return an entry; None where there is none.

        Raises:
            CacheError: The file is there and cannot be read.
            ValueError: ``key`` is not made of hexadecimal digits.
        """
        path = self._path(key)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error.strerror or error}") from error

    def set(self, key: str, data: bytes) -> None:
        """Keep an entry.

        Raises:
            CacheError: It cannot be written; what was there before is there still.
            ValueError: ``key`` is not made of hexadecimal digits.
        """
        path = self._path(key)
        try:
            self._make()  # somebody may have cleaned up
            aside = _written(self.directory, data)
            try:
                aside.replace(path)
            except BaseException:
                aside.unlink()
                raise
        except OSError as error:
            raise CacheError(f"cannot write {path}: {error.strerror or error}") from error

    def _make(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self.directory / f"{checked(key)}.json"

    def __repr__(self) -> str:
        return f"FileCache({str(self.directory)!r})"


def _written(directory: Path, data: bytes) -> Path:
    """Return a new file with this in it, which only its owner can read."""
    descriptor, name = tempfile.mkstemp(dir=directory, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except BaseException:  # no room on the disk, or Ctrl-C
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    return Path(name)
