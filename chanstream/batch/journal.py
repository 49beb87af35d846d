"""The file in which the results of a batch are safe, and from which a later run goes on.

It is only ever appended to, whole lines at a time, and a group of them is on the disk before any of it is handed out.
So whatever kills the process leaves whole lines, and at most one torn one behind them, which the next run cuts off.
The one exception, to drop what failed, writes a second file aside and puts it in place whole.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from ..errors import APITimeoutError, JournalError, StreamCancelledError
from ..models.chat import ChatCompletionRequest
from .record import Record, is_torn, line_of
from .result import BatchResult


class Journal:
    """Keeps the results of a batch in a file, one line each; see `chanstream.batch.record` for the format.

    One process at a time has it: a lock, which ends with the process however that ends, keeps others out.

    Args:
        path: The file; it is made where it is not there yet. A ``~`` at its beginning is the home directory.
        retry_failed: Whether results of earlier runs that are errors are dropped, so that their requests are sent anew.

    Raises:
        TypeError, ValueError: ``path`` is no path.
        JournalError: The file cannot be read or written, another process has it, or something else is in it; the text
            names it, and the line. Then nothing in it was changed.

    Thread safety: every method may be called from any thread.
    """

    def __init__(self, path: str | os.PathLike[str], *, retry_failed: bool = False) -> None:
        self.path = _path(path)
        self._lock = threading.Lock()  # guards the file: where it is read, and what is written
        self._places: dict[str, int] = {}  # where the line of each id begins, of those that were there at first
        self._torn = False  # whether there may be something behind the end that is no whole line
        self._group: frozenset[str] = frozenset()  # the ids that were written last
        self._open()
        try:
            if retry_failed and self._failed:
                with self._telling("cannot write"):
                    self._drop_failed()
        except BaseException:
            self.close()
            raise
        _journals.add(self)

    def find(self, index: int, id: str, request: ChatCompletionRequest) -> BatchResult | None:
        """Return what an earlier run has for a request, as the result at ``index``; None where it has nothing.

        Raises:
            JournalError: The file has another request under this id, or cannot be read; the text names the line.
        """
        place = self._places.get(id)
        if place is None:
            return None
        with self._telling("cannot read"):
            line = self._line_at(place)
        try:
            return Record.of(line).result(index, request)
        except ValueError as error:
            raise JournalError(f"{self.path}, line {self._number_of(place)}: {error}") from None

    def append(self, results: Sequence[BatchResult]) -> None:
        """Write results, and return when they are on the disk. What was cancelled is left out: it is not finished.

        Raises:
            JournalError: They could not be written. Nothing of them is to be handed out; to try again is allowed.
        """
        with self._lock, self._telling("cannot write"):
            if self._torn:
                self._writer.truncate(self._end)
                self._group, self._torn = frozenset(), False
            # A group whose append was interrupted after it had become safe comes again.
            new = [result for result in results if result.id not in self._group and not _cancelled(result.error)]
            if new:
                self._torn = True  # should Ctrl-C or a full disk end this in the middle
                self._group = frozenset(result.id for result in new)
                self._write(b"".join(map(line_of, new)))

    def close(self) -> None:
        """Let go of the file. Closing again does nothing."""
        self._reader.close()
        _release(self._writer)

    def let_go(self) -> None:
        """Close the file without its lock being lifted, as a forked child has to.

        :meta private:
        """
        self._writer.close()  # the reader has a lock of Python's, which another thread may have held at the fork

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        with self._telling("journal: cannot open"):
            self._writer = _locked(self.path)
            try:
                # Of its own: what is written would move the place that a common one reads at.
                self._reader = self.path.open("rb")
            except BaseException:
                _release(self._writer)
                raise
        try:
            with self._telling("journal: cannot read"):
                self._scan()
        except BaseException:
            self.close()
            raise

    def _scan(self) -> None:
        """Find the lines that are there, and mend the last one."""
        self._places, self._failed, self._end = {}, 0, 0
        for number, line in enumerate(self._lines(), 1):
            try:
                self._note(line)
            except ValueError as error:
                if not is_torn(line):
                    raise JournalError(f"{self.path}, line {number}: {error}; nothing was changed") from None
                self._writer.truncate(self._end)
                return
            if not line.endswith(b"\n"):  # there is all of it but its end
                self._write(b"\n")
                return

    def _note(self, line: bytes) -> None:
        record = Record.of(line)
        if record.id in self._places:
            raise ValueError(f"the id {record.id!r} is there for the second time")
        self._places[record.id] = self._end
        self._failed += record.failed
        self._end += len(line)

    def _drop_failed(self) -> None:
        """Put a file without the results that are errors in the place of this one, and open that."""
        aside = self._written(line for line in self._lines() if not Record.of(line).failed)
        old = self._writer
        try:
            if sys.platform == "win32":  # where no file that anybody has open can be replaced, so there is no race
                self.close()
            aside.replace(self.path)
            _sync_directory(self.path)
            self._reader.close()
            self._open()
        finally:
            old.close()  # only now: until there is a lock on the new file, the old one's keeps others out
            aside.unlink(missing_ok=True)

    def _written(self, lines: Iterator[bytes]) -> Path:
        """Return a new file beside this one, of the same mode, with these lines on the disk."""
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".tmp")
        aside = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(descriptor)
            aside.chmod(stat.S_IMODE(os.fstat(self._writer.fileno()).st_mode))
        except BaseException:  # no room on the disk, or Ctrl-C
            with contextlib.suppress(OSError):
                aside.unlink()
            raise
        return aside

    # -- the file -----------------------------------------------------------------------------------------------------

    def _lines(self) -> Iterator[bytes]:
        self._reader.seek(0)
        return iter(self._reader)

    def _line_at(self, place: int) -> bytes:
        with self._lock:
            self._reader.seek(place)
            return self._reader.readline()

    def _number_of(self, place: int) -> int:
        with self._lock:
            return 1 + sum(1 for line in self._before(place))

    def _before(self, place: int) -> Iterator[bytes]:
        for line in self._lines():
            if place <= 0:
                return
            place -= len(line)
            yield line

    def _write(self, data: bytes) -> None:
        """Write at the end, in one go where the system lets it, and wait for the disk."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._writer.write(rest) :]
        os.fsync(self._writer.fileno())
        self._end += len(data)
        self._torn = False  # with nothing in between where Ctrl-C could come

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Tell what the system says as an error that names the file."""
        try:
            yield
        except BlockingIOError:
            raise JournalError(f"journal: {self.path} is in use by another batch") from None
        except OSError as error:
            raise JournalError(f"{what} {self.path}: {error.strerror or error}") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Journal({str(self.path)!r})"


def _path(path: str | os.PathLike[str]) -> Path:
    if path in ("", b""):  # a variable that is not set, say
        raise ValueError("journal: expected a path, got nothing")
    try:
        return Path(path).expanduser().resolve()  # what a link leads to is what is replaced
    except TypeError:
        raise TypeError(f"journal: expected a path, got {path!r}") from None


def _cancelled(error: Exception | None) -> bool:
    by_deadline = isinstance(error, APITimeoutError) and error.clock == "context"
    return by_deadline or isinstance(error, StreamCancelledError)


# -- one process at a time --------------------------------------------------------------------------------------------


def _locked(path: Path) -> io.FileIO:
    """Return the file at a path, open and locked.

    Raises:
        BlockingIOError: Another has the lock. OSError: It cannot be opened, or is no file.
    """
    while True:
        is_new = not path.exists()
        raw = io.FileIO(path, "a+", opener=_opener)
        try:
            _check(raw)
            _lock(raw.fileno())
            if is_new:
                _sync_directory(path)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(raw.fileno())):
                return raw
        except BaseException:
            raw.close()
            raise
        raw.close()  # another put a new file in its place before this one was locked


def _release(raw: io.FileIO) -> None:
    """Lift the lock and close the file.

    To close it lifts the lock only when a child that was forked this very moment has closed its copy, too.
    """
    if not raw.closed:
        _unlock(raw.fileno())
        raw.close()


def _check(raw: io.FileIO) -> None:
    if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        raise OSError("it is no regular file")


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o644)  # a pipe must not make us wait for its other end


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 40, os.SEEK_SET)  # far behind the end: what is locked there cannot be read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            raise BlockingIOError from None

    def _unlock(descriptor: int) -> None:
        """Do nothing: there is no fork, and a file that is closed is not locked."""

    def _sync_directory(path: Path) -> None:
        """Do nothing: there a directory cannot be opened."""

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        # flock() and not lockf(), whose lock is gone as soon as anybody in this process closes the file.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _sync_directory(path: Path) -> None:
        """Wait until the disk knows the name of a file."""
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _start_afresh() -> None:
    """Let a forked child go of the files: their locks are its parent's, and would outlive it here."""
    for journal in list(_journals):
        journal.let_go()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_afresh)
