"""``chanstream chat``: one answer, or a conversation."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from contextlib import ExitStack, closing
from typing import TextIO, TypeAlias

import attrs
import click

from .. import (
    AssistantMessage,
    AuthenticationError,
    ChanstreamError,
    ChatCompletionRequest,
    Client,
    CompletionChunk,
    SystemMessage,
    UserMessage,
)
from .connection import Connection, usage_errors
from .render import Printer, complain, note, on_terminal, printer
from .statistics import Statistics

_Message: TypeAlias = "SystemMessage | UserMessage | AssistantMessage"


@attrs.frozen(kw_only=True)
class Settings(Connection):
    """The options of the command."""

    system: str | None
    temperature: float | None
    as_json: bool
    stats: bool


def chat(argument: str | None, settings: Settings) -> int:
    """Answer one prompt or hold a conversation, and return the exit status.

    Raises:
        click.UsageError: An option or the prompt has a value that cannot be.
        ChanstreamError: There is no key.
    """
    prompt = _prompt(argument)
    with ExitStack() as exits:
        conversation = Conversation(settings.client(exits), settings, printer(as_json=settings.as_json))
        settings.introduce()
        return _converse(conversation) if prompt is None else conversation.answer(prompt)


class Conversation:
    """A client, and what was said so far.

    An answer that broke off stays as far as it came; a prompt that nothing was said to is forgotten, so that the
    history is always one that a server takes.
    """

    def __init__(self, client: Client, settings: Settings, printer: Printer) -> None:
        self._client = client
        self._settings = settings
        self._printer = printer
        self._messages: list[_Message] = [] if settings.system is None else [SystemMessage(settings.system)]

    def answer(self, prompt: str) -> int:
        """Print the answer to a prompt, or the error that came in its place; return the exit status."""
        statistics = Statistics()
        try:
            self._stream([*self._messages, UserMessage(prompt)], statistics)
        except ChanstreamError as error:
            complain(self._explained(error))
            return 1
        finally:
            if self._settings.stats and statistics.chunks:
                note(str(statistics))
        return 0

    def _stream(self, messages: list[_Message], statistics: Statistics) -> None:
        said: list[str] = []
        try:
            with closing(self._chunks(messages)) as chunks:
                for chunk in chunks:
                    said.append(chunk.text)
                    statistics.add(chunk)
                    self._printer.show(chunk)
                    chunk.raise_for_error()
        finally:
            if text := "".join(said):
                self._messages = [*messages, AssistantMessage(text)]
            self._printer.end()

    def _chunks(self, messages: list[_Message]) -> Generator[CompletionChunk, None, None]:
        """Yield the chunks of an answer; what goes wrong before the first is a chunk like what goes wrong later."""
        settings = self._settings
        try:
            with usage_errors():
                request = ChatCompletionRequest(settings.chosen_model, messages, temperature=settings.temperature)
                stream = self._client.chat_completion_stream(request)
        except ChanstreamError as error:
            yield CompletionChunk(error=error)
        else:
            yield from stream

    def _explained(self, error: ChanstreamError) -> str:
        """Return an error's text, and where the key came from if it is the key that the server objects to."""
        if not isinstance(error, AuthenticationError):
            return str(error)
        variable = self._settings.key_variable
        return f"{error} ({f'the key is that of {variable}' if os.environ.get(variable) else f'{variable} is not set'})"


def _converse(conversation: Conversation) -> int:
    """Answer what is typed, until /quit or Ctrl-D."""
    note("Ctrl-C stops an answer, /quit or Ctrl-D leaves.")
    while (line := _typed()) is not None and line != "/quit":
        if line:
            try:
                conversation.answer(line)
            except KeyboardInterrupt:
                note("(stopped)")
    return 0


def _typed() -> str | None:
    """Return the next line that is typed; None after Ctrl-D."""
    try:
        line = _input("> ")
    except EOFError:
        note("")  # the shell's prompt wants a line of its own
        return None
    return line.strip()


def _input(sign: str) -> str:
    if on_terminal(sys.stdout):
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401 - gives input() its line editing and its history
        return input(sign)
    print(sign, end="", file=sys.stderr, flush=True)  # input() would write it among the answers
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line


def _prompt(argument: str | None) -> str | None:
    """Return what to ask; None for a conversation."""
    if argument is None and on_terminal(sys.stdin):
        return None
    prompt = _read_all(sys.stdin).rstrip() if argument in (None, "-") else argument
    if not prompt:
        raise click.UsageError("The prompt is empty.")
    return prompt


def _read_all(stream: TextIO | None) -> str:
    return "" if stream is None else stream.read()
