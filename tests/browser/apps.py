"""The Flask example in this process, in front of a scripted model; and a line to it that can be cut."""

from __future__ import annotations

import contextlib
import importlib
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from chanstream import Client

HOME = Path(__file__).parents[2] / "examples" / "flask_chat"


@contextlib.contextmanager
def modules() -> Iterator[ModuleType]:
    """Import the example's app for the length of the block, as the program that it is."""
    names = ("app", "chat", "demo")
    sys.path.insert(0, str(HOME))
    try:
        yield importlib.import_module("app")
    finally:
        sys.path.remove(str(HOME))
        for name in names:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def serving(client: Client) -> Iterator[int]:
    """Serve the page on a free port for the length of the block."""
    from werkzeug.serving import make_server

    with modules() as example:
        server = make_server("127.0.0.1", 0, example.create_app(client), threaded=True)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class Line:
    """A way to a server, byte for byte, that can be cut and mended."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._ends: set[socket.socket] = set()
        self._is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break all connections, and every new one."""
        self._is_cut = True
        for end in list(self._ends):
            _shut(end)

    def mend(self) -> None:
        """Let new connections through again."""
        self._is_cut = False

    def close(self) -> None:
        """Be gone."""
        _shut(self._listener)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._is_cut:
                    near.close()
                else:
                    threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._to) as far:
            self._ends |= {near, far}
            back = threading.Thread(target=_pump, args=(far, near), daemon=True)
            back.start()
            _pump(near, far)
            back.join()
            self._ends -= {near, far}


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _shut(source)
    _shut(target)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
