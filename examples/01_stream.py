"""Stream an answer, chunk by chunk, and say how long it took.

Run it with ``python examples/01_stream.py "Tell me a joke."``. With a key in MISTRAL_API_KEY Mistral answers; without
one a scripted server on this machine does.
"""

from __future__ import annotations

import os
import sys

from chanstream import ChatCompletionRequest, Client, UserMessage
from chanstream.testing import Reply, StreamServer

CANNED = Reply("This answer is canned, because no key is set. It comes word by word all the same.", pace=0.03)


def answer(client: Client, prompt: str) -> None:
    """Print an answer as it comes."""
    request = ChatCompletionRequest("mistral-small-latest", [UserMessage(prompt)])
    first = None
    for evt in client.chat_completion_stream(request):
        evt.raise_for_error()
        if first is None:
            first = evt.chunk_latency
        print(evt.text, end="", flush=True)
        if evt.is_last_chunk:
            print(f"\n\nfirst chunk after {first:.2f} s, all after {evt.total_latency:.2f} s")
            print(f"finish reason: {evt.choices[0].finish_reason}")
            if evt.usage is not None:  # not every server sends it
                print(f"tokens: {evt.usage.total_tokens}")


def main() -> None:
    """Ask whoever is there."""
    prompt = " ".join(sys.argv[1:]) or "Tell me a joke."
    if os.environ.get("MISTRAL_API_KEY"):
        answer(Client(), prompt)
        return
    print("MISTRAL_API_KEY is not set: a scripted server on this machine answers.\n")
    with StreamServer(CANNED) as server:
        answer(Client("no key", base_url=server.url), prompt)


if __name__ == "__main__":
    main()
