"""The server's front desk: which reply a request gets, and a record of all that happened.

Connections report here from the loop's thread, users ask from theirs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from .connection import Connection
from .reply import Reply
from .request import RecordedRequest

ReplyWith: TypeAlias = Callable[[RecordedRequest], "Reply | str"]

_DEFAULT = Reply("Hello! This is a test server. Give it replies of your own and it will send those instead.")


class Desk:
    """Answers requests and remembers them.

    Thread safety: one lock guards all state; everything may be called from any thread.
    """

    def __init__(
        self,
        replies: Iterable[Reply | str],
        reply_with: ReplyWith | None,
        models: Sequence[str | Mapping[str, Any]],
        keep: int | None,
    ) -> None:
        """Begins with a script and no past; see `StreamServer` for the arguments."""
        self._script = [as_reply(reply) for reply in replies]
        self._next = 0
        self._reply_with = reply_with
        self._cards = [_card(model) for model in models]
        self._requests: deque[RecordedRequest] = deque(maxlen=keep)
        self._count = 0
        self._connections = 0
        self._open: set[Connection] = set()
        self._changed = threading.Condition()  # guards all of the above that changes; notified of each change

    def extend(self, replies: Sequence[Reply | str]) -> None:
        """Adds replies to the end of the script."""
        more = [as_reply(reply) for reply in replies]
        with self._changed:
            self._script += more

    # What the connections report.

    def opened(self, connection: Connection) -> int:
        """Notes a new connection and returns its number."""
        with self._changed:
            self._connections += 1
            self._open.add(connection)
            self._changed.notify_all()
            return self._connections

    def lost(self, connection: Connection) -> None:
        """Notes that a connection is gone."""
        with self._changed:
            self._open.discard(connection)
            self._changed.notify_all()

    def answer(self, request: RecordedRequest) -> tuple[int, Reply]:
        """Notes a request, and returns its number and the reply to it."""
        with self._changed:
            self._requests.append(request)
            self._count += 1
            serial = self._count
            self._changed.notify_all()
        return serial, self._fixed(request) or self._computed(request) or self._scripted()

    # What users ask.

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        """All requests so far, or the newest of them."""
        with self._changed:
            return tuple(self._requests)

    @property
    def connections(self) -> int:
        """How many connections were ever accepted."""
        with self._changed:
            return self._connections

    @property
    def open(self) -> tuple[Connection, ...]:
        """The connections that are open now."""
        with self._changed:
            return tuple(self._open)

    def wait_for(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Waits until `condition()` holds, looking after every change; returns whether it does in time."""
        with self._changed:
            return bool(self._changed.wait_for(condition, timeout))

    # Where replies come from.

    def _fixed(self, request: RecordedRequest) -> Reply | None:
        """Returns the reply that no script has a say in, if this is such a request."""
        if request.method not in ("GET", "POST"):
            return Reply.error(405, headers={"Allow": "GET, POST"})
        if request.method == "GET" and request.path.endswith("/models"):
            return Reply.json({"object": "list", "data": self._cards})
        if request.method == "GET" and "/models/" in request.path:
            return self._model(request.path.partition("/models/")[2])
        return None

    def _model(self, name: str) -> Reply:
        cards = [card for card in self._cards if card.get("id") == name]
        if cards:
            return Reply.json(cards[0])
        return Reply.error(404, f"There is no model {name!r}.", type="invalid_request_error", code="model_not_found")

    def _computed(self, request: RecordedRequest) -> Reply | None:
        if self._reply_with is None:
            return None
        try:
            return as_reply(self._reply_with(request))
        except Exception as error:  # noqa: BLE001 - whatever the user's function does, the server lives and tells
            return Reply.error(500, f"reply_with raised {error!r}", type="server_error")

    def _scripted(self) -> Reply:
        with self._changed:
            if not self._script:
                return _DEFAULT
            reply = self._script[min(self._next, len(self._script) - 1)]
            self._next = min(self._next + 1, len(self._script))
            return reply


def as_reply(value: Reply | str) -> Reply:
    """Returns `value`, or `Reply(value)` for a str.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(value, Reply):
        return value
    if isinstance(value, str):
        return Reply(value)
    raise TypeError(f"a reply must be a Reply or a str, not {value!r}")


def _card(model: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"id": model, "object": "model", "owned_by": "test"} if isinstance(model, str) else dict(model)
