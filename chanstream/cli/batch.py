"""``chanstream batch``: a file of requests, answered into a file of results."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from .. import Batch, BatchResult, ChanstreamError
from .connection import Connection
from .endings import INTERRUPTED
from .lines import JSONReader, Reader, Requests, TextReader, count_of, shortened
from .render import complain, note, on_terminal

if TYPE_CHECKING:
    from ..limits import RateLimit

_STDIN = 0

_PATIENCE = 10
"""Seconds after which a scheduler that does not answer is not there."""

_RATE = re.compile(r"([1-9][0-9]{0,8})(?:/([1-9][0-9]{0,5})?(s|m|h))?")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


@attrs.frozen(kw_only=True)
class Settings(Connection):
    """The options of the command."""

    output: str
    text: bool
    prompt: str | None
    system: str | None
    concurrency: int
    rate: str | None
    adaptive: bool
    retry_failed: bool
    dask: str | None


def batch(source: str, settings: Settings) -> int:
    """Answer the requests of a file, or of standard input for ``-``, and return the exit status.

    Raises:
        click.UsageError: An option has a value that cannot be.
        ChanstreamError: There is no key, the output is no journal, or an extra is missing.
        OSError: The file cannot be read, or Dask's scheduler not be reached.
    """
    with ExitStack() as exits, _extras_told():
        reader = _reader(source, settings)
        has_bar = on_terminal(sys.stderr) and find_spec("tqdm") is not None
        requests = _requests(source, reader, exits, has_bar=has_bar)
        client = settings.client(exits, pace=0.0, rate_limiter=_rate_limiter(settings))
        results = client.batch(
            requests,
            concurrency=settings.concurrency,
            progress=has_bar,
            journal=settings.output,
            retry_failed=settings.retry_failed,
            adaptive=settings.adaptive,
            executor=_executor(settings.dask, exits),
        )
        settings.introduce()
        return Report(requests, settings).status_of(exits.enter_context(results))


class Report:
    """What the user is told at the end."""

    def __init__(self, requests: Requests, settings: Settings) -> None:
        self._requests = requests
        self._output = settings.output
        self._answered = 0
        self._failures: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def status_of(self, results: Batch) -> int:
        """Take all results, tell what became of them, and return the exit status."""
        status = 0
        try:
            self._take(results)
        except KeyboardInterrupt:
            self._take(results)  # what was ready then: it is in the output
            status = INTERRUPTED
        finally:
            self._tell()
        if status:
            note("interrupted: run the same command again to go on")
        return status or int(bool(self._failures or self._requests.bad))

    def _take(self, results: Batch) -> None:
        for result in results:
            if result.error is None:
                self._answered += 1
            else:
                self._note(result, result.error)

    def _note(self, result: BatchResult, error: Exception) -> None:
        kind = type(error).__name__
        self._failures[kind] += 1
        self._examples.setdefault(kind, f"line {self._requests.numbers[result.id]}: {shortened(str(error))}")

    def _tell(self) -> None:
        for kind, count in self._failures.most_common():
            complain(f"{count} failed with {kind}, the first of them {self._examples[kind]}")
        bad = self._requests.bad
        counts = [f"{self._answered} answered", f"{self._failures.total()} failed"]
        counts += [f"{bad} bad line{'s' if bad > 1 else ''} left out"] if bad else []
        note(f"{', '.join(counts)}: {self._output}")


def _reader(source: str, settings: Settings) -> Reader:
    if settings.text or source.endswith(".txt"):
        template = "{}" if settings.prompt is None else settings.prompt
        if "{}" not in template:
            raise click.UsageError("--prompt has no {} in it, where each line is to stand.")
        return TextReader(settings.chosen_model, settings.system, template)
    if settings.prompt is not None or settings.system is not None:
        raise click.UsageError("--prompt and --system are for plain text (--text): requests in JSON have their own.")
    return JSONReader(settings.chosen_model)


def _requests(source: str, reader: Reader, exits: ExitStack, *, has_bar: bool) -> Requests:
    """Return the requests of a file; they are counted beforehand if the bar is to tell what is left."""
    path = Path(source)
    if source == "-" or not path.is_file():
        # What may be silent is never closed: that would wait for the thread that waits for its next line. Nor is
        # sys.stdin used, for which the interpreter would wait at its end.
        descriptor = _STDIN if source == "-" else os.open(path, os.O_RDONLY)
        return Requests(os.fdopen(descriptor, "rb", closefd=False), reader, _teller(has_bar))
    count = 0
    if has_bar:
        with path.open("rb") as lines:
            count = count_of(lines)
    return Requests(exits.enter_context(path.open("rb")), reader, _teller(has_bar), count)


def _teller(has_bar: bool) -> Any:
    if not has_bar:
        return complain
    from ..batch.progress import without_bars

    def tell(text: str) -> None:
        with without_bars():
            complain(text)

    return tell


def _rate_limiter(settings: Settings) -> RateLimit | None:
    if settings.rate is None:
        return None
    if settings.dask is not None:
        raise click.UsageError("--rate and --dask exclude each other: a rate is kept by one process.")
    requests, per = rate_of(settings.rate)
    from ..limits import RateLimit

    return RateLimit(requests, per=per)


def rate_of(text: str) -> tuple[int, float]:
    """Return the requests and the seconds of a rate such as ``50``, ``50/s``, ``300/m`` or ``50/10s``.

    Raises:
        click.UsageError: The text says none.
    """
    said = _RATE.fullmatch(text)
    if said is None:
        raise click.UsageError(f"--rate: expected requests per time, as 50/s, 300/m or 50/10s, got {text!r}.")
    requests, times, unit = said.groups()
    return int(requests), int(times or 1) * _SECONDS[unit or "s"]


def _executor(address: str | None, exits: ExitStack) -> Any:
    """Return the executor of a Dask cluster; None for none."""
    if address is None:
        return None
    try:
        from distributed import Client as Cluster
    except ImportError:
        raise ImportError("--dask needs Dask: pip install 'chanstream[dask]'") from None
    try:
        return exits.enter_context(Cluster(address, timeout=_PATIENCE)).get_executor()
    except ValueError as error:  # an address that is none
        raise click.UsageError(f"--dask: {error}.") from None


@contextlib.contextmanager
def _extras_told() -> Iterator[None]:
    """Tell of a missing extra as of other things that keep a command from its work."""
    try:
        yield
    except ImportError as error:
        raise ChanstreamError(str(error)) from None
