from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from chanstream import CacheEngine, CacheError, FileCache

KEY = "ab" * 32


def test_set_and_get(tmp_path: Path) -> None:
    """What was set under a key is got; it is in a file named after the key, and a second set takes its place."""
    engine: CacheEngine = FileCache(tmp_path)
    engine.set(KEY, b"data")
    assert engine.get(KEY) == b"data"
    engine.set(KEY, b"other")
    assert engine.get(KEY) == b"other"
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEY}.json"]


def test_a_miss(tmp_path: Path) -> None:
    """A key that was never set gives None."""
    assert FileCache(tmp_path).get(KEY) is None


def test_the_directory_is_made(tmp_path: Path) -> None:
    """A directory that is not there is made, with its parents; given as a text or as a path."""
    FileCache(str(tmp_path / "nested" / "cache")).set(KEY, b"x")
    assert FileCache(tmp_path / "nested" / "cache").get(KEY) == b"x"


@pytest.mark.skipif(os.name == "nt", reason="permissions are others there")
def test_private(tmp_path: Path) -> None:
    """Neither the directory nor an entry can be read by anybody else."""
    engine = FileCache(tmp_path / "cache")
    engine.set(KEY, b"x")
    (entry,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600


@pytest.mark.parametrize("key", ["", "../x", "a/b", "AB", "ab\n", "ab.json", "é", "a\x00"])
def test_a_key_is_no_path(tmp_path: Path, key: str) -> None:
    """A key that is not made of hexadecimal digits is refused by both, and touches no file."""
    engine = FileCache(tmp_path)
    with pytest.raises(ValueError, match=r"^key: expected hexadecimal digits"):
        engine.set(key, b"x")
    with pytest.raises(ValueError, match=r"^key: expected hexadecimal digits"):
        engine.get(key)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """A directory that cannot be had is told at once, with its name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"^directory: cannot write to .*file"):
        FileCache(tmp_path / "file")
    with pytest.raises(CacheError, match=r"^directory: cannot write to .*below"):
        FileCache(tmp_path / "file" / "below")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_directory_without_permission(tmp_path: Path) -> None:
    """A directory that we may only read is told at once."""
    tmp_path.chmod(0o500)
    with pytest.raises(CacheError, match=r"^directory: cannot write to .*: Permission denied"):
        FileCache(tmp_path)


def test_a_key_is_a_text(tmp_path: Path) -> None:
    """A key that is no text is refused."""
    with pytest.raises(TypeError, match=r"^key: expected str"):
        FileCache(tmp_path).get(b"ab")  # type: ignore[arg-type]


@pytest.mark.parametrize("directory", [None, 3, ["x"]])
def test_no_path(directory: Any) -> None:
    """What is no path is refused by name."""
    with pytest.raises(TypeError, match=r"^directory: expected a path"):
        FileCache(directory)


def test_what_cannot_be_read_or_written(tmp_path: Path) -> None:
    """What cannot be read is a CacheError and no miss, and what cannot be written leaves nothing behind."""
    engine = FileCache(tmp_path)
    (tmp_path / f"{KEY}.json").mkdir()
    with pytest.raises(CacheError, match=r"^cannot read "):
        engine.get(KEY)
    with pytest.raises(CacheError, match=r"^cannot write "):
        engine.set(KEY, b"x")
    with pytest.raises(TypeError):
        engine.set("cd", "a text")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEY}.json"]


def test_pickle(tmp_path: Path) -> None:
    """A copy in another process has the same directory."""
    FileCache(tmp_path).set(KEY, b"x")
    assert pickle.loads(pickle.dumps(FileCache(tmp_path))).get(KEY) == b"x"


WRITER = """
import sys
from chanstream import FileCache
engine, letter = FileCache(sys.argv[1]), sys.argv[2].encode()
print("ready", flush=True)
sys.stdin.readline()
for turn in range(60):
    engine.set("ab", letter * (1 + turn % 3 * 200_000))
"""


def test_many_processes_and_threads(tmp_path: Path) -> None:
    """While processes write one key again and again, threads that read it see whole entries only, and none is left."""
    engine = FileCache(tmp_path)
    engine.set("ab", b"x")
    over = threading.Event()
    seen: set[bytes] = set()
    torn: list[bytes] = []

    def read() -> None:
        while not over.is_set():
            data = engine.get("ab")
            assert data is not None
            seen.add(data[:1])
            if data.strip(data[:1]) or len(data) not in (1, 200_001, 400_001):
                torn.append(data)

    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, letter], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for letter in "pqr"
    ]
    readers = [threading.Thread(target=read) for _ in range(3)]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for reader in readers:
            reader.start()
        for writer in writers:
            writer.communicate("go\n", timeout=50)
            assert writer.returncode == 0
    finally:
        over.set()
        for reader in readers:
            reader.join()
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert not torn
    assert seen & {b"p", b"q", b"r"}
    assert [path.name for path in tmp_path.iterdir()] == ["ab.json"]


def test_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that begins with ``~`` is in the home directory, as in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FileCache("~/answers").directory == tmp_path / "answers"


def test_no_directory() -> None:
    """An empty path, as of a variable that is not set, is not the current directory."""
    with pytest.raises(ValueError, match="directory: expected a path, got nothing"):
        FileCache("")


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    """A directory that somebody has removed is made again."""
    store = FileCache(tmp_path / "answers")
    (tmp_path / "answers").rmdir()
    store.set("ab", b"x")
    assert store.get("ab") == b"x"
