"""A real Redis for the tests: the system's own, or else Debian's packages, unpacked and not installed.

Import the fixture ``redis_server`` where it is needed; one server runs for all tests of a session.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.conftest import SCALE, within
from tests.debian import NotThereError, programs_folder, unpacked

PACKAGES = ("redis-server", "redis-tools", "libatomic1", "libjemalloc2", "liblzf1")
"""What Redis is made of, beside libraries that every Debian has."""

_START_TIME = 20 * SCALE

# The server ends with the tests, however they end: the launcher's standard input is a pipe that nobody else holds.
_LAUNCH = """
import subprocess, sys
server = subprocess.Popen(sys.argv[1:])
sys.stdin.read()
server.kill()
server.wait()
"""


@attrs.frozen
class Program:
    """Redis's program.

    Attributes:
        path: Where it is.
        libraries: A folder with libraries of its own; "" for none.
    """

    path: str
    libraries: str = ""


@attrs.frozen
class RedisServer:
    """A running Redis, which keeps nothing on disk.

    Attributes:
        url: For `redis.Redis.from_url`.
    """

    url: str


def find(place: Path) -> Program:
    """Return Redis's program: the one on the PATH, or the one in ``place``, unpacked there if need be."""
    installed = shutil.which("redis-server")
    if installed:
        return Program(installed)
    home = unpacked(place / "redis", *PACKAGES)
    library = next(home.glob("usr/lib/*/libjemalloc.so.*"), None)
    return Program(str(home / "usr/bin/redis-server"), str(library.parent) if library else "")


def _listens(path: Path) -> bool:
    """Return whether somebody takes connections there; the file alone may be there a moment before."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextlib.contextmanager
def running(program: Program) -> Iterator[RedisServer]:
    """Run a server for the length of the block, on a socket in a folder that only we can read."""
    with tempfile.TemporaryDirectory(prefix="redis-", dir="/tmp") as folder:  # a socket's path must be short
        path, log = Path(folder, "socket"), Path(folder, "log")
        settings = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", folder]
        environment = {**os.environ, "LD_LIBRARY_PATH": program.libraries} if program.libraries else None
        with log.open("wb") as output, subprocess.Popen(
            [sys.executable, "-I", "-c", _LAUNCH, program.path, *settings],
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=environment,
        ) as process:  # fmt: skip
            within(_START_TIME, lambda: _listens(path) or b"error" in log.read_bytes())
            if not _listens(path):
                process.communicate()  # closes the pipe, and waits for the end; as leaving the block does
                raise NotThereError(f"redis-server does not start: {log.read_text(errors='replace')[-500:]}")
            yield RedisServer(f"unix://{path}")


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running Redis, empty at first. The tests are skipped where there is none, with the reason."""
    with contextlib.ExitStack() as exits:
        try:
            program = find(programs_folder(request, tmp_path_factory))
            server = exits.enter_context(running(program))
        except NotThereError as error:
            pytest.skip(str(error))
        yield server
