"""How an answer is written: plain into pipes, dimmed and defused on terminals, or as lines of JSON."""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from .. import ChanstreamError, CompletionChunk

# A model's or a server's text must not move the cursor, retitle the window or answer the terminal's questions:
# control characters become their pictures, all but tab and line feed. C1 controls have none, and CR is not missed.
_PICTURES: dict[int, int | None] = {code: 0x2400 + code for code in range(0x20)}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0)) | {0x7F: 0x2421, 0x0D: None, 0x09: 0x09, 0x0A: 0x0A}


def on_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal; one that the process was started without is None."""
    return stream is not None and stream.isatty()


def defused(text: str) -> str:
    """Return ``text`` with its control characters made visible, fit for a terminal."""
    return text.translate(_PICTURES)


def note(text: str) -> None:
    """Write a remark to standard error: not part of the answer."""
    _tell(text, "dim")


def complain(text: str) -> None:
    """Write what went wrong to standard error, in one line."""
    _tell(f"chanstream: {' '.join(text.split())}", "red")


def _tell(text: str, style: str) -> None:
    if on_terminal(sys.stderr):
        _console(sys.stderr).out(defused(text), style=style, highlight=False)
    else:
        print(defused(text), file=sys.stderr, flush=True)


@cache
def _console(stream: TextIO) -> Console:
    """Return rich's view of a terminal. Imported late: plain output has no need to wait for it."""
    from rich.console import Console

    return Console(file=stream)


class Printer(Protocol):
    """Writes an answer, chunk by chunk."""

    def show(self, chunk: CompletionChunk) -> None:
        """Write a chunk at once."""
        ...

    def end(self) -> None:
        """Leave the output in good order; called after every answer, also one that broke off."""
        ...


def printer(*, as_json: bool) -> Printer:
    """Return the printer that suits what is asked for and what standard output is."""
    if as_json:
        return JSONPrinter()
    return TerminalPrinter() if on_terminal(sys.stdout) else PlainPrinter()


class PlainPrinter:
    """Writes the text as it came, and nothing else."""

    def __init__(self) -> None:
        self._line_open = False

    def show(self, chunk: CompletionChunk) -> None:
        """Write the chunk's text."""
        self._write(chunk.text)

    def end(self) -> None:
        """End the last line."""
        if self._line_open:
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._line_open = not text.endswith("\n")
            print(text, end="", flush=True)


class TerminalPrinter(PlainPrinter):
    """Writes text for somebody to read, the model's thoughts dimmed before it."""

    def __init__(self) -> None:
        super().__init__()
        self._thinking = False

    def show(self, chunk: CompletionChunk) -> None:
        """Write the chunk's thoughts and its text."""
        if chunk.reasoning:
            self._think(chunk.reasoning)
        if chunk.text:
            self._stop_thinking()
            self._write(defused(chunk.text))

    def end(self) -> None:
        """End the last line, be it a thought's."""
        self._thinking = False
        super().end()

    def _think(self, text: str) -> None:
        if not self._thinking:
            self.end()
        self._thinking = self._line_open = True
        _console(sys.stdout).out(defused(text), style="dim", end="", highlight=False)

    def _stop_thinking(self) -> None:
        if self._thinking:
            self.end()
            print()


class JSONPrinter:
    """Writes each chunk as one line of JSON, in ASCII: it reads the same whatever the encoding of the pipe."""

    def show(self, chunk: CompletionChunk) -> None:
        """Write the chunk's line."""
        print(json.dumps(line_of(chunk)), flush=True)

    def end(self) -> None:
        """Do nothing: every line is ended."""


def line_of(chunk: CompletionChunk) -> dict[str, Any]:
    """Return the JSON object for a chunk: what the server sent (or the error), and what the library makes of it."""
    return {
        **(chunk.to_dict() if chunk.error is None else {"error": _facts(chunk.error)}),
        "text": chunk.text,
        "is_last_chunk": chunk.is_last_chunk,
        "chunk_latency": chunk.chunk_latency,
        "total_latency": chunk.total_latency,
    }


def _facts(error: ChanstreamError) -> dict[str, Any]:
    """Return the JSON object for an error: its class, its words, and what programs like to know about it."""
    facts = {name: getattr(error, name, None) for name in ("status_code", "code", "clock", "retry_after")}
    known = {name: value for name, value in facts.items() if value is not None}
    return {"type": type(error).__name__, "message": str(error), **known}
