"""The server: a listening socket, and a thread with an event loop that serves it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from .connection import Connection
from .desk import Desk, ReplyWith
from .reply import Reply
from .request import RecordedRequest

_BACKLOG = 1024  # several hundred streams may begin at once
_MAIN_THREAD_WATCH = 0.5


class StreamServer:
    """A scripted HTTP/1.1 server on loopback, for any client of the OpenAI-like protocol.

    ```python
    with StreamServer("Hello world", Reply.error(503)) as server:
        requests.post(server.url + "/v1/chat/completions", json={"stream": True})
    ```

    Each GET or POST, whatever its path, takes the next reply of the script, in the order in which the requests arrive;
    the last reply answers all further requests too, and an empty script answers with a friendly default. Only
    `GET …/models` and `GET …/models/ID` are answered from `models` and take nothing from the script.

    One thread serves any number of connections. It ends with `close()` or the `with` block; and, so that a server
    nobody closed does not keep the interpreter alive, half a second after the main thread.

    A client counts as gone as soon as it ends its sending side, even if it goes on reading.

    Thread safety: everything may be called from any thread.
    """

    def __init__(
        self,
        *replies: Reply | str,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        reply_with: ReplyWith | None = None,
        models: Sequence[str | Mapping[str, Any]] = ("test-model",),
        keep: int | None = None,
    ) -> None:
        """Makes a server that is yet to be started.

        Args:
            *replies: The script; a str stands for `Reply(text)`.
            tls: Serves https with the certificate in this context.
            host: The address to listen on.
            port: The port to listen on; 0 takes a free one.
            reply_with: Computes the reply from the request, in place of the script. It runs in the server's thread and
                so must not block. What it raises is answered with status 500.
            models: The model list: names, or whole model cards.
            keep: How many requests to remember, for a server that runs for long; None for all.

        Raises:
            TypeError: A reply is neither a `Reply` nor a str, or `tls` is no context.
        """
        if tls is not None and not isinstance(tls, ssl.SSLContext):
            raise TypeError(f"tls must be an ssl.SSLContext, not {tls!r}")
        self._desk = Desk(replies, reply_with, models, keep)
        self._tls = tls
        self._address = host, port
        self._life = threading.Lock()  # guards `_running`, and that nothing starts after a close
        self._running: tuple[threading.Thread, asyncio.AbstractEventLoop] | None = None
        self._stop = asyncio.Event()
        self._ended = threading.Event()

    def start(self) -> StreamServer:
        """Begins to listen and to serve, and returns this server; does nothing if it runs already.

        Raises:
            OSError: The address cannot be listened on.
            RuntimeError: The server has been closed.
        """
        with self._life:
            if self._ended.is_set():
                raise RuntimeError("this server has been closed: make a new one")
            if self._running is None:
                self._launch()
        return self

    def close(self) -> None:
        """Ends the thread and every connection, stalled ones too, and returns when they are gone; idempotent."""
        with self._life:
            if self._running is None:
                self._ended.set()
                return
            thread, loop = self._running
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(self._stop.set)
        if thread is not threading.current_thread():
            thread.join()

    def serve_forever(self) -> None:
        """Serves until `close()` is called elsewhere, or until KeyboardInterrupt, which is passed on after closing."""
        try:
            self.start()
            while not self._ended.wait(0.1):  # in steps: a signal just before a wait does not end it
                pass
        finally:
            self.close()

    def __enter__(self) -> StreamServer:
        """Starts the server."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the server."""
        self.close()

    @property
    def host(self) -> str:
        """The address that the server listens on."""
        return self._address[0]

    @property
    def port(self) -> int:
        """The port that the server listens on; 0 until it is started, unless one was asked for."""
        return self._address[1]

    @property
    def url(self) -> str:
        """Where the server is: `http://127.0.0.1:PORT`, or `https` with a certificate. No path.

        Raises:
            RuntimeError: The server has not been started, so there is no port yet.
        """
        if not self.port:
            raise RuntimeError("start the server first: it has no port yet")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self._tls is None else 'https'}://{host}:{self.port}"

    def reply(self, *replies: Reply | str) -> None:
        """Adds replies to the end of the script.

        Raises:
            TypeError: One is neither a `Reply` nor a str.
        """
        self._desk.extend(replies)

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        """All requests so far (the newest, with `keep`), in the order in which they were complete."""
        return self._desk.requests

    @property
    def connections(self) -> int:
        """How many TCP connections have been accepted, ever."""
        return self._desk.connections

    @property
    def open_connections(self) -> int:
        """How many TCP connections are open now."""
        return len(self._desk.open)

    def wait_for(self, condition: Callable[[StreamServer], bool], timeout: float = 5.0) -> bool:
        """Waits until `condition(server)` holds and returns True, or False if it does not within the timeout.

        Looks again after every request and every connection that comes or goes; it does not poll.

        Args:
            condition: Is called with this server, perhaps often; it must not block.
            timeout: Seconds.
        """
        return self._desk.wait_for(lambda: condition(self), timeout)

    # The thread.

    def _launch(self) -> None:
        listener = _listen(*self._address)
        self._address = self.host, listener.getsockname()[1]
        loop = asyncio.SelectorEventLoop()  # whatever the policy says: the one kind that works alike everywhere
        thread = threading.Thread(target=self._run, args=(loop, listener), name=f"StreamServer:{self.port}")
        thread.start()
        self._running = thread, loop

    def _run(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        try:
            loop.run_until_complete(self._serve(listener))
        finally:
            loop.close()
            self._ended.set()

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_ignore_lost_peers)
        server = await loop.create_server(lambda: Connection(self._desk, self._tls), sock=listener, backlog=_BACKLOG)
        await self._told_to_stop()
        loop.remove_reader(listener)  # accept no more, but close later: connections just accepted still need `server`
        await self._drop_all()
        server.close()

    async def _told_to_stop(self) -> None:
        """Waits for `close`, or for the end of the main thread: nobody is left to call it then."""
        while threading.main_thread().is_alive() and not self._stop.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _MAIN_THREAD_WATCH)

    async def _drop_all(self) -> None:
        """Ends all connections and their replies, those that were just being accepted too; a few turns of the loop."""
        while self._desk.open or len(asyncio.all_tasks()) > 1:
            for connection in self._desk.open:
                connection.abort()
            await asyncio.sleep(0)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def _ignore_lost_peers(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Keeps asyncio from reporting peers that vanish, which is daily work here; anything else is a fault."""
    if not isinstance(context.get("exception"), OSError):
        loop.default_exception_handler(context)
