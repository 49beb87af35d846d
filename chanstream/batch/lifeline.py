"""How workers on a batch's own machine hear that it is over: a connection that ends with it.

Nothing of `concurrent.futures` ends a task that runs. So each worker process holds a connection to the process of the
batch, over which nothing is ever said; the system ends it when the batch is closed, and when its process is killed.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from ..context import Context

_BACKLOG = 4096
"""How many workers may hold on to a lifeline: they wait for ever to be let in. The system may allow fewer."""


class Lifeline:
    """The batch's end of the connections that end with it; workers on other machines, and outside Linux, have none.

    Its address is a name that Linux keeps beside the file system: nothing is left over whatever kills the process, and
    on another machine there is none of that name. Nobody is ever let in: that the listener goes is all that they hear.

    Attributes:
        name: What workers find it by; home: where they do.
    """

    def __init__(self) -> None:
        self.name = f"chanstream-batch-{uuid4().hex}"
        self.home = _home()
        self._listener: socket.socket | None = None
        if self.home:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(_address(self.name))
            self._listener.listen(_BACKLOG)
            _lifelines.add(self)

    def close(self) -> None:
        """Let all hear it. Idempotent."""
        if self._listener is not None:
            self._listener.close()


_lifelines: weakref.WeakSet[Lifeline] = weakref.WeakSet()
"""Those of this process."""


def _home() -> str:
    """Return what tells machines, and containers with a network of their own, apart; "" where there are no lifelines.

    The same kernel, since the same start of it, and the same network: there the names that it keeps are the same.
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text()}{Path('/proc/self/ns/net').readlink()}"
    except OSError:
        return ""


def watch(name: str, home: str, context: Context) -> None:
    """Cancel a context when this lifeline ends, or if it has ended already; do nothing where it does not reach."""
    if not home or home != _home():
        return
    line = socket.socket(socket.AF_UNIX)
    line.setblocking(False)
    try:
        line.connect(_address(name))
    except BlockingIOError:  # too many hold on to it already: go on without
        line.close()
    except OSError:
        line.close()
        context.cancel()
    else:
        line.setblocking(True)
        threading.Thread(target=_wait, args=(line, context), name="chanstream-lifeline", daemon=True).start()


def _wait(line: socket.socket, context: Context) -> None:
    with line, suppress(OSError):
        line.recv(1)
    context.cancel()


def _address(name: str) -> str:
    return f"\0{name}"


def _start_afresh() -> None:
    """Leave lifelines to the parent: one that a child holds too would not end with the batch."""
    for line in list(_lifelines):
        line.close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_afresh)
