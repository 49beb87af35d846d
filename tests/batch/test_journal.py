"""The journal's file: what is in it is safe, whatever happens to the process or the disk."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from chanstream import (
    APITimeoutError,
    AssistantMessage,
    ChatCompletionRequest,
    ChatCompletionResponse,
    Choice,
    JournalError,
    RateLimitError,
    StreamCancelledError,
    UserMessage,
)
from chanstream.batch.journal import Journal
from chanstream.batch.record import line_of
from chanstream.batch.result import BatchResult
from tests.conftest import SCALE

ROOT = str(Path(__file__).parents[2])
POSIX = pytest.mark.skipif(os.name == "nt", reason="needs POSIX")


def request(number: int) -> ChatCompletionRequest:
    """Return one request of many."""
    return ChatCompletionRequest("m", [UserMessage(f"What is {number} + 1?")])


def answer(number: int, text: str = "") -> BatchResult:
    """Return a result of one of many requests."""
    said = ChatCompletionResponse([Choice(0, AssistantMessage(text or f"It is {number + 1}."), "stop")], f"id-{number}")
    return BatchResult(index=number, id=f"r{number}", request=request(number), response=said, attempts=1, latency=0.2)


def failure(number: int, error: Exception | None = None) -> BatchResult:
    """Return a result that is an error."""
    error = RateLimitError("Slow down.", status_code=429) if error is None else error
    return BatchResult(index=number, id=f"r{number}", request=request(number), error=error, attempts=1)


def found(journal: Journal, number: int) -> str | None:
    """Return the text or the error that a journal has for a request; None where it has nothing."""
    result = journal.find(number, f"r{number}", request(number))
    if result is None:
        return None
    return type(result.error).__name__ if result.response is None else result.response.text


def written(path: Path, *results: BatchResult) -> bytes:
    """Return what a new journal with these results holds."""
    with Journal(path) as journal:
        for result in results:
            journal.append([result])
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal is to be."""
    return tmp_path / "batch.jsonl"


class TestKeeping:
    def test_what_was_written_is_found(self, path: Path) -> None:
        """A later run finds every result, in any order, and nothing for other requests."""
        with Journal(path) as journal:
            journal.append([answer(0), failure(1)])
            journal.append([answer(2)])
        with Journal(path) as journal:
            assert [found(journal, number) for number in (2, 0, 1, 0, 3)] == [
                "It is 3.", "It is 1.", "RateLimitError", "It is 1.", None
            ]  # fmt: skip

    def test_it_goes_on(self, path: Path) -> None:
        """What a later run writes comes behind what is there; nothing of that is written again."""
        first = written(path, answer(0))
        both = written(path, answer(1))
        assert both.startswith(first)
        assert len(both.splitlines()) == 2

    def test_it_is_on_the_disk_before_append_returns(self, path: Path) -> None:
        """Each group of results is one write of whole lines, and is synced before ``append`` returns."""
        program = f"""
import sys
sys.path.insert(0, {ROOT!r})
from tests.batch.test_journal import *
calls = []
sys.addaudithook(lambda event, args: None)
fsync = os.fsync
os.fsync = lambda fd: (calls.append(os.fstat(fd).st_size), fsync(fd))
with Journal({str(path)!r}) as journal:
    calls.clear()
    journal.append([answer(0), failure(1)])
    print(calls == [os.path.getsize({str(path)!r})] and calls[0] > 0)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr

    def test_an_empty_group(self, path: Path) -> None:
        """Nothing to write is nothing written."""
        with Journal(path) as journal:
            journal.append([])
        assert path.read_bytes() == b""

    def test_what_is_cancelled_is_not_finished(self, path: Path) -> None:
        """Requests that were cancelled, by hand or by the deadline of the caller, are left to the next run."""
        deadline = APITimeoutError(clock="context", seconds=1)
        assert written(path, failure(0, StreamCancelledError("enough")), failure(1, deadline)) == b""
        assert written(path, failure(2, APITimeoutError(clock="idle", seconds=1)))

    def test_long_lines_between_reads_and_writes(self, path: Path) -> None:
        """Lines longer than any buffer are read whole, also while others are written."""
        texts = [str(number) * (1 << number) for number in range(18)]
        written(path, *(answer(number, text) for number, text in enumerate(texts)))
        with Journal(path) as journal:
            for number, text in enumerate(texts):
                assert found(journal, number) == text
                journal.append([answer(100 + number, text)])
        with Journal(path) as journal:
            assert [found(journal, number) for number in range(18)] == texts
            assert [found(journal, 100 + number) for number in range(18)] == texts

    def test_many_threads(self, path: Path) -> None:
        """Threads that read and threads that write do not disturb each other."""
        written(path, *(answer(number) for number in range(50)))
        with Journal(path) as journal:
            wrong: list[object] = []

            def read() -> None:
                wrong.extend(n for n in range(50) if found(journal, n) != f"It is {n + 1}.")

            def write(first: int) -> None:
                for number in range(first, first + 20):
                    journal.append([answer(number)])

            threads = [threading.Thread(target=read) for _ in range(4)]
            threads += [threading.Thread(target=write, args=[100 * n]) for n in (1, 2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert wrong == []
        assert len(path.read_bytes().splitlines()) == 90

    def test_memory(self, path: Path) -> None:
        """Of a result no more is kept in memory than where its line is."""
        program = f"""
import sys, tracemalloc
sys.path.insert(0, {ROOT!r})
from tests.batch.test_journal import *
with Journal({str(path)!r}) as journal:
    for first in range(0, 2000, 100):
        journal.append([answer(number, 4096 * "x") for number in range(first, first + 100)])
tracemalloc.start()
with Journal({str(path)!r}) as journal:
    assert all(found(journal, number) for number in range(0, 2000, 50))
    print(tracemalloc.get_traced_memory()[1])
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < 1_500_000  # of 9 MB


class TestTheFile:
    @POSIX
    def test_its_mode(self, path: Path) -> None:
        """The file can be written by its owner alone, whatever the umask allows, and read as the umask says."""
        old = os.umask(0)
        try:
            Journal(path).close()
        finally:
            os.umask(old)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def test_a_home_directory(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A ``~`` is the home directory."""
        monkeypatch.setenv("HOME", str(path.parent))
        monkeypatch.setenv("USERPROFILE", str(path.parent))
        Journal("~/batch.jsonl").close()
        assert path.exists()

    @pytest.mark.parametrize(("wrong", "kind"), [(7, TypeError), (None, TypeError), ("", ValueError)])
    def test_what_is_no_path(self, wrong: Any, kind: type[Exception]) -> None:
        """What is no path is told at once."""
        with pytest.raises(kind, match=r"^journal: expected a path, got "):
            Journal(wrong)

    def test_where_no_file_can_be(self, tmp_path: Path) -> None:
        """A directory, and a file in a directory that is not there, are told by their name."""
        for wrong in (tmp_path, tmp_path / "nowhere" / "batch.jsonl"):
            with pytest.raises(JournalError, match=rf"^journal: cannot open {wrong}: ."):
                Journal(wrong)

    @POSIX
    def test_a_pipe(self, path: Path) -> None:
        """A pipe, which cannot be read again, is refused, and nobody waits for its other end."""
        os.mkfifo(path)
        with pytest.raises(JournalError, match=r"cannot open .*: it is no regular file$"):
            Journal(path)

    @POSIX
    def test_a_link(self, path: Path) -> None:
        """A link stays one; the file that it leads to is the journal."""
        real = path.with_name("real.jsonl")
        written(real, failure(0), answer(1))
        path.symlink_to(real)
        with Journal(path, retry_failed=True) as journal:
            assert [found(journal, 0), found(journal, 1)] == [None, "It is 2."]
        assert path.is_symlink()
        assert len(real.read_bytes().splitlines()) == 1


FOREIGN = {
    "a text": (b"My dear diary,\n", 1, "it is no JSON"),
    "half a line": (b"My dear", 1, "it is no JSON"),
    "one letter": (b"M", 1, "it is no JSON"),
    "a batch API's": (b'{"id":"batch_req_1","custom_id":"a","response":{},"error":null}\n', 1, "not written by"),
    "without its end": (b'{"id":"batch_req_1","custom_id":"a","response":{},"error":null}', 1, "not written by"),
    "requests": (b'{"custom_id":"a","body":{}}\n', 1, "it was not written by chanstream"),
    "an empty line": (b"\n", 1, "it is no JSON"),
}


class TestDamage:
    def test_a_cut_at_every_byte(self, path: Path) -> None:
        """Wherever the last write was cut off: whole lines are found, half of one is not, and one can go on."""
        whole = written(path, answer(0), answer(1))
        first = len(whole.splitlines(keepends=True)[0])
        for cut in range(len(whole) + 1):
            path.write_bytes(whole[:cut])
            with Journal(path) as journal:
                assert found(journal, 0) == ("It is 1." if cut >= first - 1 else None)
                assert found(journal, 1) == ("It is 2." if cut >= len(whole) - 1 else None)
                journal.append([answer(2)])
            with Journal(path) as journal:
                assert found(journal, 0) == ("It is 1." if cut >= first - 1 else None)
                assert found(journal, 1) == ("It is 2." if cut >= len(whole) - 1 else None)
                assert found(journal, 2) == "It is 3."
            assert all(json.loads(line) for line in path.read_bytes().splitlines())

    def test_zeros_behind_the_end(self, path: Path) -> None:
        """Zeros, with which some file systems fill up what was not written when the power went, are cut off."""
        whole = written(path, answer(0))
        for end in (b"\0" * 100, whole[:50] + b"\0" * 50):
            path.write_bytes(whole + end)
            with Journal(path) as journal:
                assert found(journal, 0) == "It is 1."
            assert path.read_bytes() == whole

    @pytest.mark.parametrize(("content", "line", "why"), FOREIGN.values(), ids=FOREIGN)
    @pytest.mark.parametrize("retry_failed", [False, True])
    def test_another_file(self, path: Path, content: bytes, line: int, why: str, retry_failed: bool) -> None:
        """A file with something else in it is told with the line, and stays as it is."""
        path.write_bytes(content)
        with pytest.raises(JournalError, match=rf"^{path}, line {line}: .*{why}.*; nothing was changed$"):
            Journal(path, retry_failed=retry_failed)
        assert path.read_bytes() == content

    def test_a_broken_line(self, path: Path) -> None:
        """A line in the middle that was broken is told with its number, and nothing is changed: not the end either."""
        lines = [line_of(answer(number)) for number in range(3)]
        content = lines[0] + lines[1].replace(b'"custom_id"', b'"custom_id') + lines[2][:40]
        path.write_bytes(content)
        with pytest.raises(JournalError, match=rf"^{path}, line 2: it is no JSON; nothing was changed$"):
            Journal(path)
        assert path.read_bytes() == content

    def test_the_same_id_twice(self, path: Path) -> None:
        """A file in which an id has two lines, such as two journals in one, is told."""
        path.write_bytes(line_of(answer(0)) + line_of(answer(1)) + line_of(answer(0)))
        with pytest.raises(JournalError, match=r"line 3: the id 'r0' is there for the second time"):
            Journal(path)

    def test_another_request_under_the_same_id(self, path: Path) -> None:
        """The answer to another request is not given for this one: it is an error that names file, line and id."""
        written(path, answer(0), answer(1))
        with (
            Journal(path) as journal,
            pytest.raises(JournalError, match=rf"^{path}, line 2: the id 'r1' is that of another request"),
        ):
            journal.find(1, "r1", request(2))

    def test_an_answer_that_was_broken(self, path: Path) -> None:
        """A line whose answer cannot be read is told with its number when its turn comes."""
        path.write_bytes(written(path, answer(0), answer(1)).replace(b'"It is 2."', b"[[1111111]]"))
        with Journal(path) as journal:
            assert found(journal, 0) == "It is 1."
            with pytest.raises(JournalError, match=rf"^{path}, line 2: it is damaged$"):
                found(journal, 1)


class TestRetryFailed:
    def test_failures_are_dropped(self, path: Path) -> None:
        """With ``retry_failed`` the failures are gone from the file, and all else is as it was, mode included."""
        lines = written(path, failure(0), answer(1), failure(2), answer(3)).splitlines(keepends=True)
        path.chmod(0o640)
        with Journal(path, retry_failed=True) as journal:
            assert path.read_bytes() == lines[1] + lines[3]
            assert [found(journal, n) for n in range(4)] == [None, "It is 2.", None, "It is 4."]
            journal.append([answer(0)])
        assert path.read_bytes().startswith(lines[1] + lines[3])
        if os.name != "nt":
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert [each.name for each in path.parent.iterdir()] == [path.name]

    def test_nothing_to_drop(self, path: Path) -> None:
        """Without failures the file is not written anew."""
        written(path, answer(0))
        before = path.stat().st_ino
        Journal(path, retry_failed=True).close()
        assert path.stat().st_ino == before

    def test_the_new_file_is_locked(self, path: Path) -> None:
        """The file that takes the place of the old is locked as that was."""
        written(path, failure(0))
        with Journal(path, retry_failed=True), pytest.raises(JournalError, match="in use"):
            Journal(path)

    @POSIX
    def test_no_room_for_the_new_file(self, path: Path) -> None:
        """Where there is no room for the file without failures it is told, and the old one is there as it was."""
        before = written(path, failure(0), *(answer(number) for number in range(1, 9)))
        program = _FULL_AT_FIRST.format(root=ROOT, path=str(path), size=len(before) // 2)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.stdout == f"cannot write {path}: {os.strerror(errno.EFBIG)}\n", done.stderr
        assert path.read_bytes() == before
        assert [each.name for each in path.parent.iterdir()] == [path.name]


# Tries to drop failures while files can become so long at most.
_FULL_AT_FIRST = """
import resource, signal, sys
sys.path.insert(0, {root!r})
from tests.batch.test_journal import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, hard))
try:
    Journal({path!r}, retry_failed=True)
except JournalError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
"""

# Holds a journal until it is told to end, or is killed.
_HOLDER = """
import sys
sys.path.insert(0, {root!r})
from tests.batch.test_journal import *
with Journal({path!r}) as journal:
    journal.append([answer(0)])
    print("mine", flush=True)
    sys.stdin.read()
"""


def _holder(path: Path) -> subprocess.Popen[str]:
    program = _HOLDER.format(root=ROOT, path=str(path))
    return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class TestOneAtATime:
    def test_a_second_one_here(self, path: Path) -> None:
        """A second journal on the same file is refused while the first is open, and not after."""
        with Journal(path), pytest.raises(JournalError, match=rf"^journal: {path} is in use by another batch$"):
            Journal(path)
        Journal(path).close()

    def test_whoever_reads_it_takes_no_lock_away(self, path: Path) -> None:
        """That somebody in this process reads the file and closes it makes no difference."""
        with Journal(path):
            path.read_bytes()
            with pytest.raises(JournalError, match="in use"):
                Journal(path)

    def test_another_process(self, path: Path) -> None:
        """Another process is refused as long as the first lives; killed, it leaves no lock behind."""
        with _holder(path) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "mine\n"
            with pytest.raises(JournalError, match="in use"):
                Journal(path)
            holder.kill()
            holder.wait(20 * SCALE)
            with Journal(path) as journal:
                assert found(journal, 0) == "It is 1."

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
    def test_a_forked_child_has_no_lock(self, path: Path) -> None:
        """A child that outlives the process that forked it, as workers of a pool may, keeps nobody out."""
        fork = multiprocessing.get_context("fork")
        end = fork.Event()
        with Journal(path) as journal:
            child = fork.Process(target=end.wait, args=[60])
            child.start()
            with pytest.raises(JournalError, match="in use"):
                Journal(path)
            journal.append([answer(0)])
        try:
            with Journal(path) as journal:
                assert found(journal, 0) == "It is 1."
        finally:
            end.set()
            child.join()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_child_that_was_forked_this_moment(self, path: Path) -> None:
        """Nor does one that has not closed its copy of the file yet, or is about to become another program."""
        with Journal(path) as journal:
            copy = os.dup(journal._writer.fileno())
        try:
            Journal(path).close()
        finally:
            os.close(copy)


# Writes results until the limit on the size of a file is reached, as a full disk would be; then goes on without it.
_FULL = """
import resource, signal, sys
sys.path.insert(0, {root!r})
from tests.batch.test_journal import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with Journal({path!r}) as journal:
    journal.append([answer(0)])
    resource.setrlimit(resource.RLIMIT_FSIZE, ({size} + 1000, hard))
    try:
        journal.append([answer(n) for n in range(1, 10)])
    except JournalError as error:
        print(error)
        assert os.path.getsize({path!r}) == {size} + 1000  # some of it could be written
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if {again}:
        journal.append([answer(n) for n in range(1, 3)])
"""


@POSIX
@pytest.mark.parametrize("again", [True, False])
def test_no_room(path: Path, again: bool) -> None:
    """A disk that is full is told; trying again when there is room loses nothing, and so does the next run."""
    size = len(line_of(answer(0)))
    program = _FULL.format(root=ROOT, path=str(path), size=size, again=again)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == f"cannot write {path}: {os.strerror(errno.EFBIG)}\n", done.stderr
    with Journal(path) as journal:
        assert found(journal, 0) == "It is 1."
        assert found(journal, 1) == "It is 2."
        assert found(journal, 9) is None
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


# Is interrupted by Ctrl-C as soon as what it writes is there.
@POSIX
def test_ctrl_c_in_a_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a write that Ctrl-C interrupted, the same results can be written again, and are there once."""
    sync = os.fsync

    def interrupted(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        signal.raise_signal(signal.SIGINT)

    with Journal(path) as journal:
        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append([answer(0), answer(1)])
        journal.append([answer(0), answer(1)])
    with Journal(path) as journal:
        assert [found(journal, 0), found(journal, 1)] == ["It is 1.", "It is 2."]


def test_after_it_was_closed(path: Path) -> None:
    """A journal that is closed takes nothing more, closes again without complaint, and shows its path."""
    journal = Journal(path)
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match="closed"):
        journal.append([answer(0)])
    assert repr(journal) == f"Journal({str(path)!r})"
