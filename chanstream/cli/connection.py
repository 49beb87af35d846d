"""Whom a command asks: what its options say about that, and the client for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import attrs
import click

from .. import ChanstreamError, Client
from .presets import PRESETS
from .render import note
from .serve import DEMO_PACE, demo_server


@attrs.frozen(kw_only=True)
class Connection:
    """The options of a command that asks a server."""

    model: str | None
    base_url: str | None
    dialect: str
    demo: bool

    @property
    def chosen_model(self) -> str:
        """The model to ask: the dialect's, where none is named."""
        return PRESETS[self.dialect].model if self.model is None else self.model

    @property
    def key_variable(self) -> str:
        """The environment variable that holds the key."""
        return PRESETS[self.dialect].key_variable

    def client(self, exits: ExitStack, *, pace: float = DEMO_PACE, **settings: Any) -> Client:
        """Return a client; it and the server of a demo end with ``exits``.

        Args:
            exits: What they end with.
            pace: Seconds between two tokens of a demo.
            settings: Those of the client.

        Raises:
            click.UsageError: An option has a value that cannot be.
            ChanstreamError: There is no key.
        """
        base_url, key = self.base_url, os.environ.get(self.key_variable)
        if self.demo:
            if base_url is not None:
                raise click.UsageError("--demo and --base-url exclude each other: the demo brings its own server.")
            base_url, key = exits.enter_context(demo_server(pace)).url, ""
        elif key is None:
            if base_url is None:
                raise ChanstreamError(f"no API key: set {self.key_variable} in the environment (or try --demo)")
            key = ""  # a server of one's own seldom asks for one
        with usage_errors():
            return exits.enter_context(Client(key, base_url=base_url, dialect=self.dialect, **settings))

    def introduce(self) -> None:
        """Say so if it is a demo that answers."""
        if self.demo:
            note("demo: answers are made up by a server inside of this command, not by a model")


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Tell what the library says about a wrong argument as click tells it: its text names the option."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None
