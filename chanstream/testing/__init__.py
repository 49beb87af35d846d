"""A real HTTP server that answers from a script, faults included: for testing code that streams completions.

```python
from chanstream.testing import Reply, StreamServer

with StreamServer("Hello world", Reply.error(429, headers={"Retry-After": "1"})) as server:
    ...  # point a client at server.url
    assert server.requests[0].json["stream"] is True
    assert server.wait_for(lambda s: s.open_connections == 0)
```

`StreamServer` serves, `Reply` says what and how (text, chunks or raw bytes; framing, pace, stalls, cuts, resets),
`RecordedRequest` is what the server was asked. It serves every client of the OpenAI-like protocol, not only this
library's, and needs nothing but the standard library and attrs.
"""

from __future__ import annotations

from .reply import Reply
from .request import RecordedRequest
from .server import StreamServer

__all__ = ["RecordedRequest", "Reply", "StreamServer"]
