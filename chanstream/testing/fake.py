"""A client with scripted answers: a real one, on a real server of its own.

The one module here that knows the rest of the library; the server and what it is made of do not.
"""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import attrs

from ..calls import Caller
from ..client import Client
from .desk import ReplyWith
from .reply import Reply
from .request import RecordedRequest
from .server import StreamServer

_NOT_YET = "http://not-yet-started.invalid"
"""The address until there is one; what else a client is given is checked with it."""


class FakeClient(Client):
    """Answers from a script: a `Client` for the tests of code that takes one.

    ```python
    client = FakeClient("Hello there", Reply.error(400))
    ```

    Nothing in it is mocked. The answers come over a socket from a `StreamServer` of its own, which starts with the
    first request, so streams, timeouts, retries and errors are those of any client. Replies are given as a
    `StreamServer` gives them: one for each request, the last one to all further requests too.

    Its server ends with `close()`, the ``with`` block, or the last reference to the client and its streams; nothing
    keeps the interpreter alive. Unlike other clients it cannot be used after `close()`, which cuts the streams that
    still run, and it cannot be pickled.

    Args:
        *replies: The script; a str stands for ``Reply(text)``.
        reply_with: Computes the reply from the `RecordedRequest`, in place of the script; it must not block.
        models: The model list: names, or whole model cards.
        api_key: The key that is sent; by default none.
        **settings: What else a `Client` takes, ``retry`` among it; a ``session`` too, but no ``base_url``. The
            environment's proxies are not asked, unless a session of yours does so.

    Attributes:
        server: The server behind it, for its `StreamServer.wait_for` and what it knows of connections.

    Raises:
        TypeError, ValueError: An argument is wrong; the text names it.

    Thread safety: as `Client`.
    """

    def __init__(
        self,
        *replies: Reply | str,
        reply_with: ReplyWith | None = None,
        models: Sequence[str | Mapping[str, Any]] = ("test-model",),
        api_key: str = "",
        **settings: Any,
    ) -> None:
        if "base_url" in settings:
            raise TypeError("base_url: a FakeClient asks a server of its own; for another take a Client")
        settings["api_key"] = api_key
        super().__init__(base_url=_NOT_YET, **settings)
        self.server = StreamServer(*replies, reply_with=reply_with, models=models)
        self._wanted = {**settings, "observers": self._caller.observers.all}
        self._origin = f"fake://{uuid.uuid4().hex}"  # no two give each other's answers
        self._serving = threading.Lock()  # guards that several first requests start it once, and `_state`
        self._state = "new"
        self._end = weakref.finalize(self, self.server.close)
        self._caller = attrs.evolve(self._caller, origin=self._origin)

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        """All requests so far, as the server received them."""
        return self.server.requests

    def reply(self, *replies: Reply | str) -> None:
        """Adds replies to the end of the script.

        Raises:
            TypeError: One is neither a `Reply` nor a str.
        """
        self.server.reply(*replies)

    def close(self) -> None:
        """Closes all connections, those of streams too, and ends the server; idempotent."""
        with self._serving:
            self._state = "closed"
        super().close()
        self._end()

    def with_options(self, **changes: Any) -> Client:
        """Returns a client of the same server with other settings, as `Client.with_options`."""
        self._serve()
        return self._sibling(super().with_options(**changes))

    def _sibling(self, other: Client) -> Client:
        other.__class__ = _Sibling
        other.__dict__["served_by"] = self
        return other

    def _ready(self) -> Caller:
        self._serve()
        return self._held_by_calls(self._caller)

    def _held_by_calls(self, caller: Caller) -> Caller:
        """Returns a caller each of whose calls holds this client; for one call, because kept it would be a circle."""
        return attrs.evolve(caller, on_call=lambda context: context.on_done(self._outlive))

    def _outlive(self, _: object) -> None:
        """Does nothing but be held by each stream: one whose client nobody else holds must not lose its server."""

    def _serve(self) -> None:
        """Starts the server with the first request, and makes this a client of it."""
        with self._serving:
            if self._state == "closed":
                raise RuntimeError("this FakeClient has been closed: make a new one")
            if self._state == "new":
                super().__init__(base_url=self.server.start().url, **self._wanted)
                self._caller = attrs.evolve(self._caller, origin=self._origin)
                if self._wanted.get("session") is None:
                    self._caller.transport.trust_env = False  # no proxy leads to our own loopback
                self._state = "serving"

    def __getstate__(self) -> NoReturn:
        raise TypeError("a FakeClient can be neither pickled nor copied: its server lives in this process")

    def __repr__(self) -> str:
        return f"<FakeClient {self._caller.dialect.name}, {len(self.requests)} requests>"


class _Sibling(Client):
    """A client of a `FakeClient`'s server, which must not end before it and its streams."""

    served_by: FakeClient

    def with_options(self, **changes: Any) -> Client:
        return self.served_by._sibling(super().with_options(**changes))  # noqa: SLF001 - of the same house

    def _ready(self) -> Caller:
        return self.served_by._held_by_calls(self._caller)  # noqa: SLF001 - of the same house

    def __getstate__(self) -> NoReturn:
        self.served_by.__getstate__()
