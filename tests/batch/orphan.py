"""A batch whose work is done by processes, as a program that is to be killed.

Its arguments are the server's address and the kind of processes.
"""

from __future__ import annotations

import sys
from functools import partial

from chanstream import Client
from tests.batch.elsewhere import asked, pool


def main() -> None:
    """Ask what is never answered."""
    client = Client("test-key", base_url=sys.argv[1], dialect="openai")
    list(client.batch(asked("stay", 100), concurrency=4, executor=partial(pool, sys.argv[2])))


if __name__ == "__main__":
    main()
