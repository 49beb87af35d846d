"""A result as one line of JSON, in the format that batch APIs give their results in, and back.

The format is that of https://platform.openai.com/docs/api-reference/batch/request-output, so that programs that read
one read a journal too. What it has no place for stands beside, under ``chanstream``::

    {"id": "batch_req_...", "custom_id": "a", "response": {"status_code": 200, "request_id": "...", "body": {...}},
     "error": null, "chanstream": {"index": 0, "digest": "...", "attempts": 1, ...}}

Of the request there is nothing but a digest, and of an error's headers only what says nothing about the caller.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from .. import errors
from ..errors import APIStatusError, ChanstreamError
from ..models.chat import ChatCompletionRequest, ChatCompletionResponse
from ..models.codec import best_loads
from ..transport.head import head_of
from .result import BatchResult

BEGINNING = b'{"id":"batch_req_'
"""What every line begins with: so half a line of ours is told from the last line of somebody else's file."""


def digest_of(request: ChatCompletionRequest) -> str:
    """Return what tells a request from others: a digest of its JSON in one form of the many that say the same."""
    data = request.to_dict()
    try:
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=repr)
    except TypeError:  # names that are no texts: it will be refused, and the refusal has to be kept too
        text = repr(data)
    return hashlib.sha256(text.encode()).hexdigest()


def line_of(result: BatchResult) -> bytes:
    """Return the line for a result, its end included. It is ASCII: so it is one line to everybody who reads lines."""
    own = {
        "index": result.index,
        "digest": digest_of(result.request),
        "attempts": result.attempts,
        "time_to_first_chunk": result.time_to_first_chunk,
        "latency": result.latency,
    }
    data = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": result.id,
        "response": _answered(result),
        "error": None,
        "chanstream": own,
    }
    if result.error is not None:
        data["error"] = {"code": _code(result.error), "message": str(result.error)}
        own["error"] = _facts(result.error)
    return json.dumps(data, separators=(",", ":"), default=str).encode() + b"\n"


def _answered(result: BatchResult) -> dict[str, Any] | None:
    """Return what the server answered; None where it did not."""
    error, response = result.error, result.response
    if response is not None:
        return {"status_code": 200, "request_id": response.id, "body": response.to_dict()}
    if isinstance(error, APIStatusError):
        return {"status_code": error.status_code, "request_id": error.request_id or "", "body": error.body}
    return None


def _code(error: Exception) -> str:
    """Return an error's class as the words of such files are spelled: ``rate_limit_error``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(error).__name__).lower()


def is_torn(line: bytes) -> bool:
    """Return whether the last line of a file is one of ours that was cut off.

    Some file systems fill up with zeros what was not written yet when the power went.
    """
    half = line.rstrip(b"\0")
    if line.endswith(b"\n") or half[: len(BEGINNING)] != BEGINNING[: len(half)]:
        return False
    try:
        best_loads()(line)
    except ValueError:
        return True
    return False


@attrs.frozen
class Record:
    """A line that was read.

    Attributes:
        id: What the caller calls the request. digest: That of the request.
        failed: Whether it came to an error.
        data: The JSON object.
    """

    id: str
    digest: str
    failed: bool
    data: Mapping[str, Any] = attrs.field(repr=False)

    @classmethod
    def of(cls, line: bytes) -> Record:
        """Return what a line says.

        Raises:
            ValueError: It is no line of a journal; the text says why.
        """
        try:
            data = best_loads()(line)
        except ValueError:
            raise ValueError("it is no JSON") from None
        own = data.get("chanstream") if isinstance(data, Mapping) else None
        if not isinstance(own, Mapping):  # but by a batch API, say
            raise ValueError("it was not written by chanstream")  # noqa: TRY004 - a file's fault, and no argument's
        known, digest = data.get("custom_id"), own.get("digest")
        if isinstance(known, str) and isinstance(digest, str):
            return cls(known, digest, data.get("error") is not None, data)
        raise ValueError("it is damaged")

    def result(self, index: int, request: ChatCompletionRequest) -> BatchResult:
        """Return the result that the line keeps, as that of the request at a place.

        Raises:
            ValueError: The request is another one, or the line is damaged.
        """
        if self.digest != digest_of(request):
            raise ValueError(f"the id {self.id!r} is that of another request; give this batch a file of its own")
        own = self.data["chanstream"]
        try:
            return BatchResult(
                index=index,
                id=self.id,
                request=request,
                response=None if self.failed else _response(self.data["response"]["body"], own["latency"]),
                error=_error(own["error"]) if self.failed else None,
                attempts=own["attempts"],
                time_to_first_chunk=own["time_to_first_chunk"],
                latency=own["latency"],
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError("it is damaged") from None


def _response(body: Mapping[str, Any], latency: float) -> ChatCompletionResponse:
    response = ChatCompletionResponse.from_dict(body)
    object.__setattr__(response, "latency", latency)
    return response


# -- errors -----------------------------------------------------------------------------------------------------------


def _facts(error: BaseException) -> dict[str, Any]:
    """Return what an error is made of again: what pickle would take of ours; of others their words alone."""
    if vars(errors).get(type(error).__name__) is type(error):
        state = {name: _PLAIN.get(name, _as_it_is)(value) for name, value in vars(error).items()}
        return {"class": type(error).__name__, "args": error.args, "state": state}
    if vars(builtins).get(type(error).__name__) is type(error) and all(isinstance(arg, str) for arg in error.args):
        return {"class": type(error).__name__, "args": error.args, "state": {}}
    return {"class": _nearest(type(error)), "args": [f"{type(error).__name__}: {error}"], "state": {}}


def _nearest(cls: type[BaseException]) -> str:
    """Return the name of the class that stands for one that is not ours: the nearest that every program has."""
    return next(base.__name__ for base in cls.__mro__ if base.__module__ in ("builtins", errors.__name__))


def _error(facts: Mapping[str, Any]) -> Exception:
    name, args = facts["class"], facts["args"]
    cls = vars(errors).get(name) or vars(builtins).get(name)
    if not (isinstance(cls, type) and issubclass(cls, Exception)):
        cls, args = ChanstreamError, [f"{name}: {' '.join(map(str, args))}"]  # of a newer version's
    error = cls(*args)
    vars(error).update({key: _LOADED.get(key, _as_it_is)(value) for key, value in facts["state"].items()})
    return error


def _as_it_is(value: Any) -> Any:
    return value


_TOLD = re.compile(r"content-type|retry-after(-ms)?|x-ratelimit-.*|(x-|x-groq-)?request-id|mistral-correlation-id")
"""The headers of a refusal that are kept: no cookie, no account."""


def _told(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in headers.items() if _TOLD.fullmatch(name.lower())}


def _all(many: Iterable[BaseException]) -> list[dict[str, Any]]:
    return [_facts(error) for error in many]


_PLAIN: Mapping[str, Callable[[Any], Any]] = {
    "headers": _told,
    "partial": lambda answer: answer and answer.to_dict(),
    "earlier": _all,
}
"""How those attributes of an error are written that are no JSON."""

_LOADED: Mapping[str, Callable[[Any], Any]] = {
    "headers": lambda headers: head_of(0, headers).headers,
    "partial": lambda body: body and ChatCompletionResponse.from_dict(body),
    "earlier": lambda many: tuple(_error(facts) for facts in many),
}
