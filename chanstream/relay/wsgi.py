"""A proxy in front of a model's server, as a WSGI application: callers speak OpenAI's API, and the key stays here."""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from contextlib import ExitStack
from http import HTTPStatus
from itertools import chain
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import attrs

from ..arguments import at_least_1, one_of, seconds
from ..context import Context
from ..errors import ChanstreamError
from ..models.catalog import ModelCard
from ..models.chat import ChatCompletionRequest, ChatCompletionResponse
from ..models.codec import best_loads
from ..stream import CompletionStream
from .body import sse
from .caller import Body, Refusal, caller_context
from .public import ShowErrors, checked, public_error
from .wording import encoded, whole

__all__ = ["Proxy", "caller_context", "proxy"]

Environ: TypeAlias = Mapping[str, Any]
Caller: TypeAlias = Callable[[Environ], "Hashable | None"]
Answer: TypeAlias = "tuple[int, list[tuple[str, str]], Iterable[bytes]]"
TokensField: TypeAlias = Literal["max_tokens", "max_completion_tokens"]

_TOO_MANY = {"Retry-After": "1"}

_TOKENS = (*get_args(TokensField), "max_new_tokens", "max_output_tokens", "n_predict")
"""All names by which servers take a limit of tokens; llama.cpp prefers the last one to the others."""

_CHOICES = ("n", "best_of")

_ROUTES = ("api_base", "api_key", "base_url", "fallbacks", "model_list", "models")
"""Fields with which gateways (LiteLLM, OpenRouter) are told where to send a request, past every list of models."""


@runtime_checkable
class Asks(Protocol):
    """What a proxy needs of a client."""

    def chat_completion_stream(
        self, request: ChatCompletionRequest, *, context: Context | None = None
    ) -> CompletionStream:
        """Return a stream of the answer's chunks."""
        ...

    def chat_completion(
        self, request: ChatCompletionRequest, *, context: Context | None = None
    ) -> ChatCompletionResponse:
        """Return the whole answer."""
        ...


def address(environ: Environ) -> str:
    """Return the address that a request came from: how callers are told apart by default."""
    return str(environ.get("REMOTE_ADDR", ""))


class _Places:
    """How many requests of each caller may be done at the same time.

    A place is given back by one atomic step, as it may be by a finalizer. Callers nobody is busy for are forgotten.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._free: weakref.WeakValueDictionary[Hashable, deque[None]] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()  # guards that there is one deque for each caller

    def take(self, caller: Hashable) -> Callable[[], None]:
        """Return what gives the place back.

        Raises:
            Refusal: There is none left.
        """
        if self._most is None:
            return lambda: None
        with self._lock:
            free = self._free.get(caller)
            if free is None:
                free = self._free[caller] = deque([None] * self._most)
        try:
            free.pop()
        except IndexError:
            message = f"too many requests at the same time: {self._most} are allowed"
            raise Refusal(429, message, type="rate_limit_error", headers=_TOO_MANY) from None
        return lambda: free.append(None)


@attrs.frozen(eq=False, repr=False)
class Proxy:
    """The application that `proxy` returns."""

    _client: Asks
    _models: tuple[str, ...] | None
    _max_tokens: int | None
    _max_tokens_field: TokensField
    _places: _Places
    _caller: Caller
    _max_body_bytes: int
    _body_timeout: float
    _heartbeat: float
    _show_errors: ShowErrors

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request, as WSGI has it."""
        body = Body(environ, self._max_body_bytes, self._body_timeout)
        try:
            status, headers, parts = self._answer(environ, body)
        except Refusal as refusal:
            status, headers, parts = _json(refusal.error.to_dict(), refusal.error.status, refusal.headers)
            parts = chain(parts, body.dropped())
        start_response(f"{status} {_phrase(status)}", headers)
        return parts

    def _answer(self, environ: Environ, body: Body) -> Answer:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "").removeprefix("/v1")
        if path == "/chat/completions":
            _only("POST", method)
            return self._completed(environ, body)
        if path == "/models" or path.startswith("/models/"):
            _only("GET", method)
            return self._listed(environ, path.removeprefix("/models").removeprefix("/"))
        raise Refusal(404, f"nothing is here: {method} {environ.get('PATH_INFO', '')}", type="not_found_error")

    # -- models -------------------------------------------------------------------------------------------------------

    def _listed(self, environ: Environ, wanted: str) -> Answer:
        self._called_by(environ)
        models = self._cards()
        if not wanted:
            return _json({"object": "list", "data": models})
        for model in models:
            if model["id"] == wanted:
                return _json(model)
        raise Refusal(404, f"there is no model {wanted!r} here", type="not_found_error", code="model_not_found")

    def _cards(self) -> list[dict[str, Any]]:
        """Return what may be asked: the list that was given, without asking the server, or else the server's."""
        if self._models is not None:
            return [{"id": name, "object": "model", "created": 0, "owned_by": "proxy"} for name in self._models]
        try:
            cards: list[ModelCard] = self._client.list_models()  # type: ignore[attr-defined]  # see proxy
            return [card.to_dict() for card in cards]
        except ChanstreamError as error:
            raise self._failed(error) from error

    # -- completions --------------------------------------------------------------------------------------------------

    def _completed(self, environ: Environ, body: Body) -> Answer:
        with ExitStack() as place:
            place.callback(self._places.take(self._called_by(environ)))
            data = _object_in(environ, body)
            is_stream, usage = _streamed(data)
            request = self._request(data)
            with caller_context(environ, self._heartbeat) as context:
                try:
                    if not is_stream:
                        return _json(whole(self._client.chat_completion(request, context=context)))
                    stream = self._client.chat_completion_stream(request, context=context)
                except ChanstreamError as error:
                    raise self._failed(error) from error
                except (TypeError, ValueError) as error:  # an option that the server's dialect does not have
                    raise _wrong(error) from None
            events = sse(
                stream,
                heartbeat=self._heartbeat,
                show_errors=self._show_errors,
                usage=usage,
                on_close=place.pop_all().close,
            )
            return 200, events.headers, events

    def _called_by(self, environ: Environ) -> Hashable:
        caller = self._caller(environ)
        if caller is None:
            headers = {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, "you are not known here", type="authentication_error", headers=headers)
        return caller

    def _request(self, data: dict[str, Any]) -> ChatCompletionRequest:
        """Return the request for a caller's JSON object, within the limits; what is unknown goes on as it is."""
        model = data.get("model")
        if not isinstance(model, str) or not model:
            raise Refusal(400, "model: expected the name of a model", param="model")
        if self._models is not None and model not in self._models:
            message = f"the model {model!r} is not allowed here; allowed: {', '.join(self._models)}"
            raise Refusal(403, message, type="permission_error", param="model", code="model_not_allowed")
        for name in _ROUTES:
            if name in data:
                raise Refusal(400, f"{name}: where a request goes is not said in it here", param=name)
        if self._max_tokens is not None:
            data = self._limited(data, self._max_tokens)
        if "seed" in data:
            data.setdefault("random_seed", data.pop("seed"))  # which a dialect words
        try:
            return ChatCompletionRequest.from_dict(data)
        except (TypeError, ValueError) as error:
            raise _wrong(error) from None

    def _limited(self, data: dict[str, Any], most: int) -> dict[str, Any]:
        """Return a request that says its limit of tokens, under the name that the server is known to keep to."""
        choices = max(_counts(data, _CHOICES), default=1)
        wanted = _counts(data, _TOKENS)
        if choices > most or max(wanted, default=0) * choices > most:
            message = f"at most {most} tokens can be had here, in all choices together"
            raise Refusal(400, message, param="max_tokens", code="too_many_tokens")
        rest = {name: value for name, value in data.items() if name not in _TOKENS}
        return {**rest, self._max_tokens_field: min(wanted, default=most // choices)}

    def _failed(self, error: ChanstreamError) -> Refusal:
        shown = public_error(error, self._show_errors)
        after = shown.retry_after
        headers = {} if after is None else {"Retry-After": str(math.ceil(after))}
        more = {"type": shown.type, "code": shown.code, "param": shown.param}
        return Refusal(shown.status, shown.message, headers=headers, **more)

    def __repr__(self) -> str:
        return f"<Proxy of {self._client!r}>"


def proxy(
    client: Asks,
    *,
    models: Collection[str] | None = None,
    max_tokens: int | None = None,
    max_tokens_field: TokensField = "max_tokens",
    concurrency: int | None = None,
    caller: Caller = address,
    max_body_bytes: int = 4 * 1024 * 1024,
    body_timeout: float = 30.0,
    heartbeat: float = 15.0,
    show_errors: ShowErrors = True,
) -> Proxy:
    """Return a WSGI application with ``POST /v1/chat/completions`` and ``GET /v1/models``, answered by a client.

    Callers speak OpenAI's API, with its official packages or others. Nothing of a caller's head goes to the server and
    nothing of the server's head to the caller, so that the key stays here, and a caller's own goes nowhere. Fields of
    a request that are not known go on as they are. What goes wrong is answered in the form of that API.

    Args:
        client: Who asks: a `Client`, a `CachedClient` or a `Failover`.
        models: The models that may be asked; by default all. A `Failover` has no list of its own, and needs this one.
        max_tokens: The most tokens that an answer may have, all its choices together. It is said in each request that
            does not ask for less; one that asks for more is refused.
        max_tokens_field: The field in which the server is told that. OpenAI's own newer models want
            ``"max_completion_tokens"``, which other servers may not know.
        concurrency: How many requests of one caller are done at the same time, by this process; by default any number.
        caller: Returns who sent a request, as anything hashable, or None for somebody who may send none. By default
            the address, which behind another proxy is that proxy's. To tell who somebody is (a session, a key of
            your own) is for this function, or for what stands around the application.
        max_body_bytes: The largest body that is taken.
        body_timeout: Seconds in which it has to come.
        heartbeat: As for `sse`; also how soon it is noticed that a caller has left while no answer has come.
        show_errors: What is shown of errors; see `public_error`.

    Raises:
        TypeError, ValueError: An argument is wrong; the text names it.

    Thread safety: it serves any number of threads, and works on in a forked child.
    """
    if isinstance(client, type) or not isinstance(client, Asks):
        raise TypeError(f"client: expected a Client, got {client!r}")
    if models is None and not hasattr(client, "list_models"):
        raise ValueError(f"models: needed, as {type(client).__name__} has no list of them")
    if not callable(caller):
        raise TypeError(f"caller: expected a function, got {caller!r}")
    return Proxy(
        client=client,
        models=None if models is None else _names(models),
        max_tokens=None if max_tokens is None else at_least_1("max_tokens", max_tokens),
        max_tokens_field=one_of("max_tokens_field", max_tokens_field, get_args(TokensField)),
        places=_Places(None if concurrency is None else at_least_1("concurrency", concurrency)),
        caller=caller,
        max_body_bytes=at_least_1("max_body_bytes", max_body_bytes),
        body_timeout=seconds("body_timeout", body_timeout),
        heartbeat=seconds("heartbeat", heartbeat),
        show_errors=checked(show_errors),
    )


def _names(models: Collection[str]) -> tuple[str, ...]:
    if isinstance(models, (str, bytes)):
        raise TypeError(f"models: expected several names, got {models!r}")
    for name in models:
        if not isinstance(name, str):
            raise TypeError(f"models: expected names, got {name!r}")
    return tuple(models)


# -- requests ---------------------------------------------------------------------------------------------------------


def _only(method: str, got: str) -> None:
    if got != method:
        raise Refusal(405, f"{got} is not done here, {method} is", headers={"Allow": method})


def _object_in(environ: Environ, body: Body) -> dict[str, Any]:
    """Return the JSON object that a request's body is.

    No other media type is taken for JSON, as a browser sends forms and plain text for pages of any origin.
    """
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "the Content-Type must be application/json")
    try:
        data = best_loads()(body.read())
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is no JSON") from None
    if not isinstance(data, dict):
        raise Refusal(400, "the body is no JSON object")
    return data


def _streamed(data: dict[str, Any]) -> tuple[bool, Any]:
    """Take out of a request how it wants to be answered: whether as a stream, and where the usage goes."""
    is_stream, options = data.pop("stream", None), data.pop("stream_options", None)
    if not isinstance(is_stream, (bool, type(None))):
        raise Refusal(400, "stream: expected true or false", param="stream")
    if not isinstance(options, (dict, type(None))):
        raise Refusal(400, "stream_options: expected an object", param="stream_options")
    others = {name: value for name, value in (options or {}).items() if name != "include_usage"}
    if others and is_stream:  # without any, the client asks for the usage where it has to be asked for
        data["stream_options"] = {**others, "include_usage": True}
    return bool(is_stream), "own_chunk" if (options or {}).get("include_usage") else "last_chunk"


def _counts(data: Mapping[str, Any], names: Iterable[str]) -> list[int]:
    """Return the whole numbers that are said under some names."""
    said = {name: data[name] for name in names if data.get(name) is not None}
    for name, value in said.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Refusal(400, f"{name}: expected a whole number from 1 on", param=name)
    return list(said.values())


def _wrong(error: Exception) -> Refusal:
    text = str(error)
    return Refusal(400, text if len(text) <= 500 else f"{text[:500]}...", param=text.partition(":")[0] or None)


# -- answers ----------------------------------------------------------------------------------------------------------


def _json(data: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    body = encoded(data)
    own = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Cache-Control": "no-store"}
    return status, [*{**own, **(headers or {})}.items()], [body]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # such as 529
        return "Error"
