"""A real HTTP server that answers from a script, faults included: for testing code that streams completions.

```python
from chanstream.testing import FakeClient, Reply, StreamServer

with StreamServer("Hello world", Reply.error(429, headers={"Retry-After": "1"})) as server:
    ...  # point a client at server.url
    assert server.requests[0].json["stream"] is True
    assert server.wait_for(lambda s: s.open_connections == 0)

with FakeClient("Hello world") as client:
    ...  # give it to code that takes a Client
```

`StreamServer` serves, `Reply` says what and how (text, chunks or raw bytes; framing, pace, stalls, cuts, resets),
`RecordedRequest` is what the server was asked. It serves every client of the OpenAI-like protocol, not only this
library's, and needs nothing but the standard library and attrs. `FakeClient` is a client with a server of its own.
For pytest there is the fixture `chanstream_server`.

Names are loaded when they are first used: pytest loads this package at its start, in every project that has it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fake import FakeClient
    from .reply import Reply
    from .request import RecordedRequest
    from .server import StreamServer

__all__ = ["FakeClient", "RecordedRequest", "Reply", "StreamServer"]

_HOME_OF = {"FakeClient": "fake", "RecordedRequest": "request", "Reply": "reply", "StreamServer": "server"}


if not TYPE_CHECKING:  # a type checker shall know the names above, and complain about others

    def __getattr__(name: str) -> Any:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
