"""Everything that can go wrong with a stream, and how it shows.

Run it with ``python examples/03_errors.py``. It needs no key: a scripted server on this machine commits the faults.
"""

from __future__ import annotations

import logging

from chanstream import (
    AuthenticationError,
    ChatCompletionRequest,
    Client,
    Retry,
    StreamAPIError,
    StreamError,
    UserMessage,
)
from chanstream.testing import Reply, StreamServer

REQUEST = ChatCompletionRequest("any-model", [UserMessage("Count to six.")])
COUNT = "one two three four five six"

WRONG_KEY = Reply.error(401, "This key is not known.", type="invalid_request_error")
BUSY = Reply.error(503, "Too many people count.", headers={"Retry-After": "0.2"})
CUT = Reply(COUNT, cut_at=600, end="cut")
BROKEN = Reply(chunks=[{"choices": [{"delta": {"content": "one"}}]}, {"error": {"message": "the GPU is on fire"}}])


def refused(client: Client) -> None:
    """Before the head of the answer, errors are raised."""
    try:
        client.chat_completion_stream(REQUEST)
    except AuthenticationError as error:
        print(f"raised: {error}")


def tried_again(client: Client) -> None:
    """What may pass is tried again, before the head only; the logger "chanstream" tells."""
    print(f"after retries: {client.chat_completion_stream(REQUEST).collect().text}")


def in_band(client: Client) -> None:
    """After the head, an error is the last thing in the stream: nothing that had come is lost."""
    for evt in client.chat_completion_stream(REQUEST):
        if evt.error:
            print(f" | {type(evt.error).__name__}")
        else:
            print(evt.text, end="")


def raised(client: Client) -> None:
    """The same, for those who like exceptions better."""
    try:
        for evt in client.chat_completion_stream(REQUEST, errors="raise"):
            print(evt.text, end="")
    except StreamError as error:
        print(f" | raised {type(error).__name__}")


def partial(client: Client) -> None:
    """collect() raises, and the error holds what had arrived."""
    try:
        client.chat_completion_stream(REQUEST).collect()
    except StreamError as error:
        print(f"partial: {error.partial.text if error.partial else ''!r}")


def told_by_the_server(client: Client) -> None:
    """What the server reports in the middle of a stream comes in its own words."""
    *_, last = client.chat_completion_stream(REQUEST)
    if isinstance(last.error, StreamAPIError):
        print(f"the server says: {last.error}")


def main() -> None:
    """Let the server fail in each way."""
    logging.basicConfig(format="log: %(message)s")
    logging.getLogger("chanstream").setLevel(logging.INFO)
    server = StreamServer(WRONG_KEY, BUSY, COUNT, CUT, CUT, CUT, BROKEN)
    with server, Client("no key", base_url=server.url, retry=Retry(max_retries=2)) as client:
        refused(client)
        tried_again(client)
        in_band(client)
        raised(client)
        partial(client)
        told_by_the_server(client)


if __name__ == "__main__":
    main()
