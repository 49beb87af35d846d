"""Four ways to stop a stream whose server has fallen silent.

Run it with ``python examples/02_cancel.py``. It needs no key: a scripted server on this machine says four words and
then nothing more, with the connection open.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from chanstream import ChanstreamError, ChatCompletionRequest, Client, Context, Timeout, UserMessage
from chanstream.testing import Reply, StreamServer

SILENT = Reply("Let me think about that for an hour.", stall_after=4)
REQUEST = ChatCompletionRequest("any-model", [UserMessage("What is the meaning of life?")])


def end_of_stream(client: Client, **settings: Any) -> str:
    """Take a stream to its end, and tell what the end was.

    With ``errors="raise"`` one ``except`` catches what happens before the head of the answer and after it.
    """
    try:
        for _ in client.chat_completion_stream(REQUEST, errors="raise", **settings):
            pass
    except ChanstreamError as error:
        return f"{type(error).__name__}: {error}"
    return "the answer is complete"


def close_from_another_thread(client: Client) -> None:
    """What a stop button does: the loop just ends."""
    stream = client.chat_completion_stream(REQUEST)
    threading.Timer(0.3, stream.close).start()
    text = "".join(evt.text for evt in stream)
    print(f"closed: {text!r}, and the stream is {stream.state}")


def cancel_a_context(client: Client) -> None:
    """One cancel for everything that hangs on the context."""
    context = Context()
    with ThreadPoolExecutor(3) as pool:
        ends = [pool.submit(end_of_stream, client, context=context) for _ in range(3)]
        threading.Timer(0.3, context.cancel).start()
        for end in ends:
            print(f"cancelled: {end.result()}")


def set_a_deadline(client: Client) -> None:
    """A deadline covers everything: connecting, retries, waiting, reading."""
    print(f"deadline: {end_of_stream(client, timeout=Timeout(total=0.3))}")


def limit_the_silence(client: Client) -> None:
    """The idle clock starts anew with every event: it stops a server that hangs, and lets a long answer be long."""
    print(f"idle: {end_of_stream(client, timeout=Timeout(idle=0.3))}")


def main() -> None:
    """Stop streams, and look at what is left of them."""
    with StreamServer(SILENT) as server, Client("no key", base_url=server.url) as client:
        close_from_another_thread(client)
        cancel_a_context(client)
        set_a_deadline(client)
        limit_the_silence(client)
        gone = server.wait_for(lambda s: s.open_connections == 0)
        print(f"all {server.connections} connections are closed: {gone}")


if __name__ == "__main__":
    main()
