"""The model: a server that says what the test tells it, when the test tells it."""

from __future__ import annotations

import json
import math
from typing import Any

from chanstream.testing import RecordedRequest, Reply, StreamServer

_SILENT = Reply(stall_after=0, framing="close")

REPLIES = {
    "import": Reply("I am here."),
    "think": Reply(head_delay=math.inf, framing="close"),
    "error": Reply(
        chunks=[
            {"id": "a", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "Half"}}]},
            {"error": {"message": "The model fell over.", "type": "server_error", "code": "fallen"}},
        ],
        framing="close",
    ),
}


class Upstream(StreamServer):
    """Answers a question of `REPLIES` by itself, repeats any other, and is then silent until `say` and `end`.

    It keeps no connection for a next answer, but those of "import", so `open_connections` counts answers.
    """

    def __init__(self) -> None:
        super().__init__(reply_with=self._reply)
        self._told: set[int] = set()  # the numbers of connections whose answers say what they are told

    def _reply(self, request: RecordedRequest) -> Reply:
        question = request.json["messages"][0]["content"]
        if question in REPLIES:
            return REPLIES[question]
        self._told.add(request.connection)
        return Reply(chunks=[_event(_piece(question))], stall_after=1, framing="close") if question else _SILENT

    def say(self, *pieces: str) -> None:
        """Say pieces of text in all answers that are under way, one event each."""
        self._send(b"".join(_event(_piece(piece)) for piece in pieces))

    def end(self) -> None:
        """End all answers that are under way."""
        self._send(_event({"delta": {}, "finish_reason": "stop"}) + b"data: [DONE]\n\n", last=True)

    def _send(self, data: bytes, *, last: bool = False) -> None:
        assert self._running
        for connection in self._desk.open:
            if connection._reader._connection in self._told:
                self._running[1].call_soon_threadsafe(connection._transport.write, data)
                if last:
                    self._running[1].call_soon_threadsafe(connection._transport.close)

    def busy(self, count: int, timeout: float) -> bool:
        """Return whether that many answers are under way in time."""
        return self.wait_for(lambda server: server.open_connections == count, timeout)


def _piece(text: str) -> dict[str, Any]:
    return {"delta": {"content": text}, "finish_reason": None}


def _event(choice: dict[str, Any]) -> bytes:
    chunk = {"id": "a", "object": "chat.completion.chunk", "model": "test-model", "choices": [{"index": 0, **choice}]}
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()
