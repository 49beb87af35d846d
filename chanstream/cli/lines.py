"""The lines of a batch's input as requests: of the files that batch APIs take, or of plain text.

Those files have one JSON object per line, with a ``custom_id`` and the ``body`` of a request. OpenAI's have a
``method`` and a ``url`` beside (https://platform.openai.com/docs/guides/batch), Mistral's do not, and may leave out the
model (https://docs.mistral.ai/capabilities/batch).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import attrs

from .. import ChatCompletionRequest, SystemMessage, UserMessage

_PATH = "/chat/completions"

_NOT_OURS = ("stream", "stream_options")
"""Members of a body that say how the answer is brought, which is this command's own business."""

_LONGEST = 300
"""How many characters of a complaint are shown: it may quote the line."""


class Reader(Protocol):
    """Says what a line asks for."""

    def __call__(self, number: int, line: str) -> tuple[str, ChatCompletionRequest]:
        """Return the id and the request of the line with this number.

        Raises:
            TypeError, ValueError: It asks for nothing that could be sent; the text says why.
        """
        ...


@attrs.frozen
class TextReader:
    """Reads plain text: each line is a prompt, whose id is the line's number.

    Attributes:
        model: The model to ask.
        system: Instructions that stand above each prompt, or None.
        template: What is asked, with ``{}`` where the line is to stand.
    """

    model: str
    system: str | None = None
    template: str = "{}"

    def __call__(self, number: int, line: str) -> tuple[str, ChatCompletionRequest]:
        """Return the id and the request of a line."""
        above = [] if self.system is None else [SystemMessage(self.system)]
        prompt = self.template.replace("{}", line)
        return str(number), ChatCompletionRequest(self.model, [*above, UserMessage(prompt)])


@attrs.frozen
class JSONReader:
    """Reads the files that batch APIs take.

    Attributes:
        model: The model of requests that name none.
    """

    model: str

    def __call__(self, number: int, line: str) -> tuple[str, ChatCompletionRequest]:  # noqa: ARG002 - of the protocol
        """Return the id and the request of a line."""
        data = _object("the line", _decoded(line))
        known, body = data.get("custom_id"), _object("body", data.get("body"))
        if not isinstance(known, str) or not known:
            raise ValueError(f"custom_id: expected a text, got {known!r}")
        _check(data)
        members = {name: value for name, value in body.items() if name not in _NOT_OURS}
        return known, ChatCompletionRequest.from_dict({"model": self.model, **members})


def _decoded(line: str) -> Any:
    try:
        return json.loads(line, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from None


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise ValueError(f"{name}: expected a JSON object, got {value!r}")


def _check(data: Mapping[str, Any]) -> None:
    """Raise unless a line is for this endpoint, if it says for which one it is."""
    if data.get("method", "POST") != "POST":
        raise ValueError(f"method: expected 'POST', got {data['method']!r}")
    if not str(data.get("url", _PATH)).endswith(_PATH):
        raise ValueError(f"url: expected '/v1{_PATH}', got {data['url']!r}")


class Requests:
    """The requests of a batch, read line by line as they are asked for. Lines of blanks are none.

    A line that is wrong is told and left out. It shifts no others, whose ids are their own, or their line's number.

    Args:
        lines: The lines, from the first.
        reader: What says what they ask for.
        tell: Called with what is wrong about a line.
        count: How many requests there are about; 0 where that is not known.

    Attributes:
        bad: How many lines were wrong so far.
        numbers: The line of each id so far.
    """

    def __init__(self, lines: Iterable[bytes], reader: Reader, tell: Callable[[str], object], count: int = 0) -> None:
        self.bad = 0
        self.numbers: dict[str, int] = {}
        self._lines = lines
        self._reader = reader
        self._tell = tell
        self._count = count

    def __iter__(self) -> Iterator[tuple[str, ChatCompletionRequest]]:
        for number, line in enumerate(self._lines, 1):
            try:
                text = _text(number, line)
                if text.strip():
                    known, request = self._reader(number, text)
                    self._note(known, number)
                    yield known, request
            except (TypeError, ValueError) as error:
                self.bad += 1
                self._tell(f"line {number}: {shortened(str(error))}")

    def __length_hint__(self) -> int:
        return self._count

    def _note(self, known: str, number: int) -> None:
        first = self.numbers.setdefault(known, number)
        if first != number:
            raise ValueError(f"custom_id: {known!r} is that of line {first} already")


def count_of(lines: Iterable[bytes]) -> int:
    """Return how many lines there are that are not blank."""
    return sum(not line.isspace() for line in lines)


def shortened(text: str) -> str:
    """Return a text of a length that fits a terminal."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _text(number: int, line: bytes) -> str:
    """Return what a line says, without its end; some programs begin a file with a mark that it is UTF-8."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8: {error.reason}") from None
