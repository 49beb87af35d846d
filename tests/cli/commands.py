"""How the tests run the command line: as a process of its own, on pipes or on a terminal."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chanstream
from tests.conftest import SCALE

TIMEOUT = 20 * SCALE
"""Seconds after which a command counts as hanging."""

KEY = "sk-a-very-secret-key"

_ROOT = str(Path(chanstream.__file__).parents[1])
_MODULE = ("-m", "chanstream")

# What the command itself needs: where the package is, and whatever measures the coverage of processes.
BARE = {name: value for name, value in os.environ.items() if name.startswith(("COVERAGE", "COV_", "SYSTEMROOT"))}
BARE |= {"PYTHONPATH": _ROOT, "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"}

WITH_KEY = {**BARE, "OPENAI_API_KEY": KEY, "MISTRAL_API_KEY": KEY}


def asking(server: chanstream.testing.StreamServer, *arguments: str) -> list[str]:
    """Return the arguments that make ``chanstream chat`` ask a server of the tests."""
    return ["chat", "--dialect", "openai", "--base-url", server.url, *arguments]


def run(
    *arguments: str, python: tuple[str, ...] = _MODULE, env: Mapping[str, str] = WITH_KEY, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Return a command that has ended, with what it wrote; standard input is empty unless ``input`` is given."""
    settings: dict[str, Any] = {"input": "", "encoding": "utf-8", "capture_output": True, "timeout": TIMEOUT, **more}
    return subprocess.run([sys.executable, *python, *arguments], env=env, check=False, **settings)


@contextmanager
def started(*arguments: str, env: Mapping[str, str] = WITH_KEY, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Give a command that runs, with unbuffered pipes for what it writes; what still runs in the end is killed."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0, **more}
    with subprocess.Popen([sys.executable, *_MODULE, *arguments], env=env, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(descriptor: int, text: str, before: str = "") -> str:
    """Return what can be read until ``before`` and it hold ``text``; fails where that does not come in time."""
    end = time.monotonic() + TIMEOUT
    received = b""
    while text.encode() not in before.encode() + received:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        data = os.read(descriptor, 65536) if ready else b""
        assert data, f"{text!r} did not come after {before + received.decode()!r}"
        received += data
    return received.decode()


# A session leader that opens a terminal gets it as its own, and with it the signals of its keys.
_ON_TERMINAL = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
from chanstream.cli import main
sys.exit(main(sys.argv[1:]))
"""


def _resize(tty: int, lines: int, columns: int) -> None:
    """Give a terminal a size; a new one has none, and programs show less on it."""
    import fcntl
    import termios

    fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


class Terminal:
    """A command on a pseudo-terminal, and the person in front of it.

    Args:
        arguments: Those of the command.
        stdout: Where standard output goes, unless to the terminal too.
    """

    def __init__(self, *arguments: str, stdout: int | None = None) -> None:
        self._screen, tty = os.openpty()
        _resize(tty, 24, 80)
        self._unseen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL, *arguments],
            stdin=tty,
            stdout=tty if stdout is None else stdout,
            stderr=tty,
            env={**WITH_KEY, "TERM": "xterm", "INPUTRC": os.devnull},
            start_new_session=True,
        )
        os.close(tty)

    def type(self, keys: str) -> None:
        """Press keys. What reads them must be there already: a prompt for a line, an answer for Ctrl-C."""
        os.write(self._screen, keys.encode())

    def see(self, text: str) -> str:
        """Return what appears up to and including ``text``; fails where it does not appear."""
        if text not in self._unseen:
            self._unseen += read_until(self._screen, text, self._unseen)
        before, found, self._unseen = self._unseen.partition(text)
        return before + found

    def ends(self) -> int:
        """Return the status with which the command ends; fails where it does not end."""
        return self.process.wait(TIMEOUT)

    def insist(self, keys: str) -> int:
        """Press keys until the command ends, and return its status.

        A signal between the prompt and readline's wait for keys is noticed only with the next: Python's own race.
        """
        for _ in range(int(TIMEOUT)):
            self.type(keys)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(1)
        return self.ends()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        os.close(self._screen)
