"""Servers, each as its command line has it, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from tests.conftest import within

from .browser import PATIENCE, Browser

ROOT = Path(__file__).parents[2]
APPLICATION = "tests.servers.apps:application"


def _gunicorn(*options: str) -> list[str]:
    return [
        *_module("gunicorn"),
        "--bind=127.0.0.1:{port}",
        "--graceful-timeout=2",
        "--no-control-socket",
        *options,
        APPLICATION,
    ]


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


_WERKZEUG = """
from werkzeug.serving import run_simple
from tests.servers.apps import application
run_simple("127.0.0.1", {port}, application, threaded=True)
"""

COMMANDS: Mapping[str, list[str]] = {
    "gunicorn-sync": _gunicorn("--workers=2", "--timeout=0"),
    "gunicorn-gthread": _gunicorn("--worker-class=gthread", "--threads=100", "--preload"),
    "gunicorn-gevent": _gunicorn("--worker-class=gevent", "--preload", "--config=tests/servers/patched.py"),
    "waitress": [
        *_module("waitress"), "--listen=127.0.0.1:{port}", "--threads=8", "--channel-request-lookahead=1", APPLICATION
    ],
    "uwsgi": [
        str(Path(sys.executable).with_name("uwsgi")), "--http-socket=127.0.0.1:{port}", "--master", "--die-on-term",
        "--need-app", f"--binary-path={sys.executable}", "--threads=8", f"--module={APPLICATION}",
    ],
    "werkzeug": [sys.executable, "-c", _WERKZEUG],
    "runserver": [*_module("django"), "runserver", "--noreload", "127.0.0.1:{port}"],
}  # fmt: skip
"""How each is started; ``{port}`` is yet to be filled in."""


class Server:
    """A server in a process of its own, until the end of the ``with`` block.

    Args:
        command: Its command line.
        upstream: Where the model is.
        environment: More variables.
    """

    def __init__(self, command: list[str], upstream: str, **environment: str) -> None:
        self.address = ("127.0.0.1", _free_port())
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - it ends with the process
        self.process = subprocess.Popen(
            [part.replace("{port}", str(self.address[1])) for part in command],
            cwd=ROOT,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.servers.site",
                "PYTHONPATH": str(ROOT),
                "UPSTREAM": upstream,
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    @property
    def log(self) -> str:
        """What it has written."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def ask(self, framework: str, question: str = "") -> Browser:
        """Return a browser that asks one of the applications."""
        paths = {"proxy": "/proxy/v1/chat/completions", "text": "/wsgi/text"}
        return Browser(self.address, paths.get(framework, f"/{framework}/"), question)

    def pid(self) -> int:
        """Return which of its processes answers."""
        with self.ask("pid") as browser:
            browser.rest()
            return int(browser.body)

    def stop(self, sign: int = signal.SIGTERM) -> int:
        """Tell it to end, and return its exit status once it has."""
        self.process.send_signal(sign)
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Server:
        assert within(2 * PATIENCE, self._listens), self.log
        return self

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            socket.create_connection(self.address, PATIENCE).close()
        except ConnectionRefusedError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()


def _free_port() -> int:
    """Return a port that is free, and none of those that a system gives to whoever asks for any."""
    while True:
        port = random.randrange(15000, 32000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def missing(name: str) -> str:
    """Return why a server cannot be run here; "" if it can."""
    module = {"uwsgi": "pyuwsgi", "runserver": "django"}.get(name, name.partition("-")[0])
    if find_spec(module) is None:
        return f"{module} is not installed: pip install '.[servers]'"
    if name == "gunicorn-gevent" and find_spec("gevent") is None:
        return "gevent is not installed"
    return "" if hasattr(os, "fork") or name in ("waitress", "werkzeug", "runserver") else f"{module} needs fork()"
