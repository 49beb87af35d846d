"""What the tests of the Go client show of it, asked of this library: the same JSON on the wire, the same texts.

Where this library differs on purpose, a test's docstring says how, and docs/coming-from.md says why.
"""

from __future__ import annotations

from chanstream import Client, Retry
from chanstream.testing import StreamServer
from tests.conftest import Link

QUICK = Retry(min_delay=0.001, max_delay=0.005)
"""Three retries, as the Go client has, without its patience."""


def mistral(link: Link, server: StreamServer | str, retry: Retry = QUICK) -> Client:
    """Return a client of a server that speaks as Mistral's does."""
    return link.client(server, dialect="mistral", retry=retry)
