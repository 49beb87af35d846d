"""The clients that are measured, by name, each imported only where it is used."""

from __future__ import annotations

from importlib import import_module

from .base import Client

_WHERE = {
    "raw": "raw.RawSocket",
    "asyncio": "raw.RawAsyncio",
    "bare-requests": "plain.BareRequests",
    "pool": "plain.Pool",
    "iter-lines": "plain.IterLines",
    "sseclient": "plain.Sseclient",
    "naive": "plain.Naive",
    "httpx-sse": "plain.HttpxSse",
    "openai": "sdks.Openai",
    "groq": "sdks.Groq",
    "mistralai": "sdks.Mistralai",
    "litellm": "sdks.Litellm",
    "threaded": "ours.Threaded",
    "threaded-json": "ours.ThreadedJson",
    "poller": "ours.Poller",
    "poller-json": "ours.PollerJson",
}

NAMES = tuple(_WHERE)


def client_class(name: str) -> type[Client]:
    """Return the class of a client. Its packages are imported only when it is made."""
    module, _, attribute = _WHERE[name].partition(".")
    return getattr(import_module(f".{module}", __name__), attribute)
