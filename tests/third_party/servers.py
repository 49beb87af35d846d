"""How to get servers that others wrote, and how to run one.

They live in a virtual environment of their own: what they need must not be seen by the tests, nor by the library.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from tests.conftest import SCALE, within

MOCKS = ("llmock==0.2.2", "stubllm==0.1.5", "proxy.py==2.4.10")
"""Servers that play a part, and a forward proxy. They run on every CPython that we support."""

ENGINE = ("xllamacpp==2026.10.11549", "gguf==0.19.0")
"""llama.cpp's own server, compiled, and what writes a model for it. Some seconds to install."""

GATEWAY = ("litellm[proxy]==1.106.2",)
"""The proxy that stands before other servers. It brings 700 MB, and takes the better part of a minute."""

_ENVIRONMENT = dict(os.environ)
"""As it was before any test: in a test run the bundle of trusted certificates is the tests' own, which no package index
has its certificate from."""

_OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""What keeps servers from asking the internet for something at their start."""

_INSTALL_TIME = 240 * SCALE
_START_TIME = 30 * SCALE
_WAIT = 5
"""Seconds after which a package index that failed is asked again."""

# Runs a console script by its name: the script's file names the folder that the environment was made in, and it moves.
# Or a file of Python. The server ends with the tests, however they end, and so do its children, which are in its
# session: its standard input is a pipe that nobody else holds.
_LAUNCH = """
import os, runpy, signal, sys, threading
from importlib.metadata import entry_points
threading.Thread(target=lambda: (os.read(0, 1), os.killpg(0, signal.SIGKILL)), daemon=True).start()
del sys.argv[0]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    script, = entry_points(group="console_scripts", name=sys.argv[0])
    sys.exit(script.load()())
"""


class NotInstalledError(Exception):
    """The servers are not here and cannot be brought here; the text says why."""


def install(folder: Path, packages: Sequence[str]) -> Path:
    """Return the interpreter of an environment in ``folder`` that has the packages; made where it is not there yet.

    It is made aside and moved into place when it is complete: one that was broken off is never used, and of two test
    runs that make it at the same time one wins.
    """
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / "-".join(packages)  # whatever Python runs the servers: one environment does for all
    if not _interpreter(home).exists():  # a link whose Python has gone counts as absent
        shutil.rmtree(home, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as aside:
            made = Path(aside, "venv")
            _run([sys.executable, "-I", "-m", "venv", str(made)])
            pip = [str(_interpreter(made)), "-I", "-m", "pip", "install", "--quiet", "--no-input"]
            _run([*pip, "--disable-pip-version-check", *packages], tries=2)
            with contextlib.suppress(OSError):  # another run was faster; as good
                made.rename(home)
    return _interpreter(home)


def _interpreter(home: Path) -> Path:
    return home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _run(command: Sequence[str], tries: int = 1) -> None:
    """Run a step of the installation; one that a network can fail may have several tries.

    Raises:
        NotInstalledError: It failed or took too long; with the last line that it said.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_INSTALL_TIME, check=False, env=_ENVIRONMENT
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstalledError(f"{command[-1]}: not done in {_INSTALL_TIME:g} s") from error
    if done.returncode and tries > 1:
        time.sleep(_WAIT)
        _run(command, tries - 1)
    elif done.returncode:
        last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        raise NotInstalledError(f"{command[-1]}: {last}")


@attrs.frozen
class Server:
    """A running server.

    Attributes:
        url: Where it is.
        log: The file that it writes its log to.
        process: The number of its process, which leads a session of its own.
    """

    url: str
    log: Path
    process: int

    def connections(self, since: int = 0) -> int:
        """Return how many connections were used to ask for completions, as its log tells from so many bytes on."""
        return len(set(re.findall(rb":(\d+) - \"POST \S*/chat/completions ", self.log.read_bytes()[since:])))

    def kill(self) -> None:
        """End it at once, as a crash would, and its children."""
        os.killpg(self.process, signal.SIGKILL)


@contextlib.contextmanager
def running(interpreter: Path, log: Path, *command: str) -> Iterator[Server]:
    """Run a server on a free port for the length of the block; the block begins when it takes connections.

    Args:
        interpreter: The Python of the environment that has it.
        log: The file for what it says.
        command: The name of its console script, or a file of Python, and arguments; the port is added.
    """
    with log.open("wb") as output, subprocess.Popen(
        [interpreter, "-I", "-c", _LAUNCH, *command, "--port", "0"],
        stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent,
        start_new_session=True, env={**_ENVIRONMENT, **_OFFLINE},
    ) as process:  # fmt: skip
        try:
            within(_START_TIME, lambda: _announced(log) or process.poll() is not None)
            address = _announced(log)
            assert address, f"{command[0]} does not start:\n{log.read_text()}"
            host, _, port = address.partition(":")
            socket.create_connection((host, int(port)), _START_TIME).close()
            yield Server(f"http://{address}", log, process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):  # a test did it
                os.killpg(process.pid, signal.SIGKILL)  # it has nothing to save; leaving the block waits for its end


def _announced(log: Path) -> str | None:
    """Return the address that the server says it listens at: only it can have written this, whatever port it took."""
    found = re.search(r"(?i)(?:running|listening) on (?:http://)?([\d.]+:\d+)", log.read_text(errors="replace"))
    return found and found[1]
