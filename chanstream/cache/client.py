"""The client that looks whether it has the answer already."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from ..calls import Options, Terms
from ..client import Client
from ..context import Context, Timeout
from ..models.catalog import ModelCapabilities, ModelCard
from ..models.chat import ChatCompletionRequest, ChatCompletionResponse
from ..models.codec import best_loads
from ..models.embeddings import EmbeddingRequest, EmbeddingResponse
from ..stream import CompletionStream, Errors
from ..transport.head import ResponseHead
from ..wire.thinking import parted
from .engine import CacheEngine
from .entry import Entry, Kind, json_line
from .flights import Flight, Flights
from .replay import Line
from .tapes import KeptTape, LiveTape

Rhythm: TypeAlias = Literal["fast", "recorded"]

R = TypeVar("R", ChatCompletionResponse, EmbeddingResponse)

_log = logging.getLogger("chanstream")


class CachedClient:
    """A client that asks the server only for what it has no answer to yet.

    ::

        client = CachedClient(Client(), FileCache("answers"))
        client.chat_completion(request)     # asks the server
        client.chat_completion(request)     # does not

    `chat_completion_stream`, `chat_completion` and `embeddings` do what they do in a `Client`, and come from the cache
    where it has them; a stream that does is a `CompletionStream` as any other. The methods for models ask the server.

    Two requests are the same if dialect, base URL, and everything that would be sent are, but the API key: clients with
    different keys find each other's answers. Only complete answers are stored: no errors, and no stream whose last
    chunk nobody took. Of several calls that ask the same at the same time one asks the server, and all get the answer,
    streams chunk by chunk as it comes; one that is cancelled, late or fails spoils it for no other.

    A cache that fails hurts no answer: that is logged, and the server is asked.

    Args:
        client: Who asks the server.
        engine: Where answers are kept: `FileCache`, `RedisCache`, or whatever has the methods of `CacheEngine`.
        replay: How a kept stream is given: ``"fast"``, as fast as it is taken, or ``"recorded"``, each chunk as long
            after the one before as it came at first. Latencies and the like are in both those that were recorded.

    Raises:
        TypeError, ValueError: An argument is wrong; the text names it.

    Thread safety: as a `Client`'s: one serves any number of threads, works on in a forked child, and can be pickled if
    the engine can.
    """

    def __init__(self, client: Client, engine: CacheEngine, *, replay: Rhythm = "fast") -> None:
        if not isinstance(client, Client):
            raise TypeError(f"client: expected Client, got {client!r}")
        if isinstance(engine, type) or not isinstance(engine, CacheEngine):
            raise TypeError(f"engine: expected an object with get(key) and set(key, data), got {engine!r}")
        if replay not in get_args(Rhythm):
            raise ValueError(f"replay: expected {', '.join(map(repr, get_args(Rhythm)))}, got {replay!r}")
        self._client = client
        self._engine = engine
        self._replay: Rhythm = replay
        self._wholes: Flights[bytes] = Flights()
        self._streams: Flights[KeptTape | LiveTape] = Flights()

    def chat_completion_stream(
        self,
        request: ChatCompletionRequest,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
        buffer: int | None = None,
        errors: Errors | None = None,
    ) -> CompletionStream:
        """Return a stream of the answer's chunks; arguments and errors as `Client.chat_completion_stream`.

        The head of a stream that was kept has its status, content type and request id. Where another call is asking the
        same, this one waits for the head, as long as its own ``first_chunk`` clock says; the clocks of a stream that is
        shared are alike for all, but for ``total`` and the context, which are each call's own.
        """
        key = _key(self._client.caller.identity(request, ChatCompletionRequest, stream=True))
        terms = self._client.caller.terms(Options(timeout, context, buffer=buffer, errors=errors))
        try:
            return self._stream(request, key, terms)
        except BaseException:
            terms.context.release()
            raise

    def chat_completion(
        self,
        request: ChatCompletionRequest,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
    ) -> ChatCompletionResponse:
        """Return the whole answer; arguments and errors as `Client.chat_completion`."""
        key = _key(self._client.caller.identity(request, ChatCompletionRequest))
        terms = self._client.caller.terms(Options(timeout, context))
        ask = partial(self._client.chat_completion, request, timeout=terms.clocks, context=terms.context)
        answer = _loaded(ChatCompletionResponse, self._whole(key, terms, ask, partial(_loaded, ChatCompletionResponse)))
        return parted(answer) if terms.think_tags else answer

    def embeddings(
        self,
        request: EmbeddingRequest,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
    ) -> EmbeddingResponse:
        """Return the vectors of texts; arguments and errors as `Client.embeddings`."""
        key = _key(self._client.caller.identity(request, EmbeddingRequest))
        terms = self._client.caller.terms(Options(timeout, context))
        ask = partial(self._client.embeddings, request, timeout=terms.clocks, context=terms.context)
        answer = _loaded(EmbeddingResponse, self._whole(key, terms, ask, partial(_loaded, EmbeddingResponse)))
        object.__setattr__(answer, "dtype", request.output_dtype or "float")
        return answer

    def list_models(self, *, timeout: Timeout | float | None = None, context: Context | None = None) -> list[ModelCard]:
        """Return the models that the server has now; see `Client.list_models`."""
        return self._client.list_models(timeout=timeout, context=context)

    def search_models(
        self,
        capabilities: ModelCapabilities,
        *,
        timeout: Timeout | float | None = None,
        context: Context | None = None,
    ) -> list[ModelCard]:
        """Return the models that have all these capabilities now; see `Client.search_models`."""
        return self._client.search_models(capabilities, timeout=timeout, context=context)

    def get_model(
        self, model_id: str, *, timeout: Timeout | float | None = None, context: Context | None = None
    ) -> ModelCard:
        """Return one model as it is now; see `Client.get_model`."""
        return self._client.get_model(model_id, timeout=timeout, context=context)

    def close(self) -> None:
        """Close the client. The engine, which others may use too, stays open."""
        self._client.close()

    # -- whole answers ------------------------------------------------------------------------------------------------

    def _whole(
        self,
        key: str,
        terms: Terms,
        ask: Callable[[], ChatCompletionResponse | EmbeddingResponse],
        load: Callable[[bytes], object],
    ) -> bytes:
        """Return the line of a whole answer."""
        what = key, terms.clocks
        try:
            while True:
                terms.context.raise_if_done()
                flight, is_pilot = self._wholes.join(what)
                if is_pilot:
                    with flight:
                        try:
                            return self._fly(flight, key, ask, load)
                        finally:
                            self._wholes.remove(what, flight)
                line = flight.wait(terms.context, terms.clocks.first_chunk)
                if line is not None:
                    return line
                if flight.refused:  # each for itself now: one after the other, the last would wait for all failures
                    return self._fly(Flight(), key, ask, load)
        finally:
            terms.context.release()

    def _fly(
        self,
        flight: Flight[bytes],
        key: str,
        ask: Callable[[], ChatCompletionResponse | EmbeddingResponse],
        load: Callable[[bytes], object],
    ) -> bytes:
        entry = self._kept(key, "whole", load)
        if entry is not None:
            flight.land(entry.lines[0])
            return entry.lines[0]
        answer = ask()
        line = json_line({"raw": answer.raw, "latency": answer.latency})
        flight.land(line)  # before it is stored: the others need not wait for that
        self._keep(key, "whole", Entry(None, [line]))
        return line

    # -- streams ------------------------------------------------------------------------------------------------------

    def _stream(self, request: ChatCompletionRequest, key: str, terms: Terms) -> CompletionStream:
        what = key, terms.clocks  # who has more patience than others shall not suffer from their clocks
        while True:
            terms.context.raise_if_done()
            flight, is_pilot = self._streams.join(what)
            tape: KeptTape | LiveTape | None
            if is_pilot:
                with flight:
                    try:
                        tape = self._tape(request, key, terms, partial(self._streams.remove, what, flight))
                        pipe = tape.follow(terms.buffer, terms.context)  # first: else the others might all leave before
                        flight.land(tape)
                    except BaseException:
                        self._streams.remove(what, flight)
                        raise
            else:
                tape = flight.wait(terms.context, terms.clocks.first_chunk)
                if tape is None and flight.refused:  # as in `_whole`
                    tape = self._tape(request, key, terms, lambda: None)
                pipe = None if tape is None else tape.follow(terms.buffer, terms.context)
            if pipe is not None and tape is not None:
                return CompletionStream(pipe, terms.context, tape.head, terms.errors)
            self._streams.remove(what, flight)

    def _tape(
        self, request: ChatCompletionRequest, key: str, terms: Terms, on_over: Callable[[], None]
    ) -> KeptTape | LiveTape:
        entry = self._kept(key, "stream")
        if entry is not None and entry.head is not None:
            on_over()  # the next one asks the engine again
            return KeptTape(entry.head, entry.lines, is_paced=self._replay == "recorded")
        context = Context()  # that of the stream, which is nobody's; until the head is in, ours ends it too
        forget = terms.context.on_done(context.cancel)
        try:
            stream = self._client.chat_completion_stream(
                request, timeout=terms.clocks, context=context, buffer=terms.buffer, errors="inband"
            )
        finally:
            forget()
        return LiveTape(stream, partial(self._keep_stream, key, stream.response), on_over)

    # -- the engine ---------------------------------------------------------------------------------------------------

    def _kept(self, key: str, kind: Kind, load: Callable[[bytes], object] = len) -> Entry | None:
        """Return what the engine has; None where that is nothing, or nothing that can be used."""
        try:
            data = self._engine.get(key)
            if data is None:
                return None
            entry = Entry.unpacked(data, key, kind)
            load(entry.lines[0])  # raises what is wrong with it
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a cache, the server has the answer
            _log.warning("cache: entry %s cannot be used: %s", key, error)
            return None
        return entry

    def _keep(self, key: str, kind: Kind, entry: Entry) -> None:
        try:
            self._engine.set(key, entry.packed(key, kind))
        except Exception as error:  # noqa: BLE001 - the answer is there all the same
            _log.warning("cache: entry %s cannot be stored: %s", key, error)

    def _keep_stream(self, key: str, head: ResponseHead, lines: list[Line]) -> None:
        self._keep(key, "stream", Entry(head, [line for line in lines if isinstance(line, bytes)]))

    def __enter__(self) -> CachedClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"client": self._client, "engine": self._engine, "replay": self._replay}

    def __setstate__(self, settings: dict[str, Any]) -> None:
        self.__init__(**settings)  # type: ignore[misc]  # a copy is made as the original was

    def __repr__(self) -> str:
        return f"<CachedClient {self._client!r} {self._engine!r}>"


def _key(identity: Mapping[str, Any]) -> str:
    """Return the key of a request: a digest of its JSON in one form of the many that say the same."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _loaded(kind: type[R], line: bytes) -> R:
    data = best_loads()(line)
    answer = kind.from_dict(data["raw"])
    object.__setattr__(answer, "raw", data["raw"])
    object.__setattr__(answer, "latency", data["latency"])
    return answer
