"""Ask several models at a time, and take their chunks in one loop.

Run it with ``python examples/04_merge.py``. It needs no key: a scripted server on this machine plays three models, of
which one is fast, one is slow, and one fails.
"""

from __future__ import annotations

from chanstream import ChatCompletionRequest, Client, CompletionStream, UserMessage, merge
from chanstream.testing import RecordedRequest, Reply, StreamServer

MODELS = {
    "broken": Reply("The capital of France is Paris.", cut_at=900, end="cut"),
    "fast": Reply("Paris, of course.", first_delay=0.1, pace=0.02),
    "slow": Reply("Let me see. It is Paris.", first_delay=0.4, pace=0.05),
}


def play(request: RecordedRequest) -> Reply:
    """Answer as the model that was asked would."""
    return MODELS[request.json["model"]]


def ask(client: Client, model: str) -> CompletionStream:
    """Return a model's stream."""
    return client.chat_completion_stream(ChatCompletionRequest(model, [UserMessage("What is the capital of France?")]))


def all_of_them(client: Client) -> None:
    """One loop for all streams: it ends when all have ended, and one that fails leaves the others alone."""
    said = dict.fromkeys(MODELS, "")
    for model, evt in merge({model: ask(client, model) for model in MODELS}):
        said[model] += evt.text
        if evt.is_last_chunk:
            print(f"{model}: {said[model]}")
        elif evt.error:
            print(f"{model}: {type(evt.error).__name__} after {said[model]!r}")


def until_somebody_knows(client: Client) -> None:
    """Leaving the loop cancels all streams that are still open."""
    said = dict.fromkeys(MODELS, "")
    streams = {model: ask(client, model) for model in ("slow", "fast")}
    for model, evt in merge(streams):
        said[model] += evt.text
        if "Paris" in said[model]:
            print(f"{model} knows, and the slow stream is {streams['slow'].state}")
            break
    print(f"after the loop it is {streams['slow'].state}")


def main() -> None:
    """Ask all, then any."""
    with StreamServer(reply_with=play) as server, Client("no key", base_url=server.url) as client:
        all_of_them(client)
        until_somebody_knows(client)


if __name__ == "__main__":
    main()
