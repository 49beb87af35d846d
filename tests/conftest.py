"""What all tests share: real servers, plain and with TLS, clients of them, and the count of what is left over."""

from __future__ import annotations

import contextlib
import gc
import os
import ssl
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import hypothesis
import pytest
import trustme

from chanstream import ChatCompletionRequest, Client, Retry, UserMessage, stream, timers
from chanstream.calls import Engine
from chanstream.engines import collecting, flow
from chanstream.testing import Reply, StreamServer

# Whatever the machine's proxy is for: the servers of the tests are on loopback, under whichever name.
_HERE = "127.0.0.1,localhost,::1,.mistral.ai,.groq.com,.openai.com"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), _HERE]))

SCALE = float(os.environ.get("CHANSTREAM_TEST_SCALE", "1"))
"""Multiplies all clocks and time limits of the tests: for machines slower than what the promises are made for."""

PATIENCE = float(os.environ.get("CHANSTREAM_TEST_PATIENCE", "1"))
"""Multiplies what may be late once more: for runs with company, in which only a hang is to be told from a delay."""

# And the clocks that no argument sets: whether a connection is kept hangs on them.
flow.DRAIN_SECONDS *= SCALE
for _module in stream, collecting:
    _module._DRAIN_GRACE *= SCALE * PATIENCE

# A machine that does something else for a moment is no finding, whichever example that befalls.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

USUALLY = 0.050 * SCALE
"""Seconds, for the median of several, or the best: company does not make all of them late."""

PROMPT = USUALLY * PATIENCE
"""Seconds within which a cancel must have freed everything."""

REQUEST = ChatCompletionRequest("test-model", [UserMessage("Say it.")])


_STRIDE = 5
"""Of the variants of a test, most of which are products (each engine, with TLS and without, ...), a run that names no
tests takes every fifth. With which it begins hangs on the test's name, so that all values of a factor have their turn
somewhere, and on the Python, so that others have it there."""


def _takes_all(config: pytest.Config) -> bool:
    """Return whether tests were named, or chosen."""
    named = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    return bool(named or config.option.keyword or config.option.markexpr)


def pytest_report_header(config: pytest.Config) -> str:
    """Say what is run."""
    return "all tests" if _takes_all(config) else "some variants of each, and nothing slow; all: pytest tests"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take some variants of each test, where no tests were named: a look at everything, in a few minutes."""
    if _takes_all(config):
        return
    variants: dict[str, list[pytest.Item]] = {}
    for item in items:
        if not item.get_closest_marker("slow"):
            variants.setdefault(item.nodeid.partition("[")[0], []).append(item)
    taken = {item for name, each in variants.items() for item in _some(name, each)}
    config.hook.pytest_deselected(items=[item for item in items if item not in taken])
    items[:] = [item for item in items if item in taken]


def _some(name: str, variants: list[pytest.Item]) -> list[pytest.Item]:
    first = (zlib.crc32(name.encode()) + sys.version_info.minor) % min(_STRIDE, len(variants))
    return variants[first::_STRIDE]


def pytest_collection_finish() -> None:
    """Hide what the tests themselves are made of from the garbage collector, now that all are there.

    To go through thousands of them takes it a tenth of a second, in the middle of tests about milliseconds.
    """
    gc.collect()
    gc.freeze()


def at_most(seconds: float, begun: float, late: float = PROMPT) -> float:
    """Return how long a clock for the server's silence may have taken: it begins anew if the process was held up.

    Args:
        seconds: What it is set to.
        begun: When what it is part of began, on `time.monotonic`.
        late: How late it may be.
    """
    return seconds * (1 + timers.held_up_after(begun)) + late


def within(seconds: float, holds: Callable[[], object]) -> bool:
    """Return whether ``holds`` becomes true in time. For what no event tells: counts of threads and of descriptors.

    Time in which this thread was ready and the machine did not let it run does not count: the promises are about the
    library, and other programs run beside the tests.
    """
    spent = 0.0
    while not holds():
        if spent > seconds:
            _say_what_is_done()
            return False
        asleep = time.monotonic()
        time.sleep(_STEP)
        spent += min(time.monotonic() - asleep, 2 * _STEP)
    return True


_STEP = 0.001


def _say_what_is_done() -> None:
    """Tell where the library's threads are: of a test that fails once in a while nothing else is left."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        if thread.name.startswith("chanstream") and thread.ident in frames:
            where = traceback.format_stack(frames[thread.ident], limit=4)
            sys.stderr.write(f"{thread.name} is at\n{''.join(where)}")


def producers() -> int:
    """Return how many threads of the library there are (the server's thread is not one)."""
    return sum(thread.name.startswith("chanstream") for thread in threading.enumerate())


def descriptors() -> int:
    """Return how many file descriptors this process has open."""
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - only counted


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssl.SSLContext]:
    """A server's TLS context whose certificate every client of this process trusts."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    bundle: Path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
        yield context


@attrs.frozen
class Link:
    """Servers and clients over one kind of connection; all end with the test."""

    tls: ssl.SSLContext | None
    exits: contextlib.ExitStack
    engine: Engine = "auto"

    def serve(self, *replies: Reply | str, **settings: Any) -> StreamServer:
        """Return a running server."""
        return self.exits.enter_context(StreamServer(*replies, tls=self.tls, **settings))

    def client(self, server: StreamServer | str, **settings: Any) -> Client:
        """Return a client of a server; without retries, unless the settings say otherwise."""
        url = server if isinstance(server, str) else server.url
        defaults = {"api_key": "test-key", "dialect": "openai", "engine": self.engine, "retry": Retry(max_retries=0)}
        return self.exits.enter_context(Client(base_url=url, **{**defaults, **settings}))

    def stream(self, *replies: Reply | str, **settings: Any) -> Any:
        """Return the stream of an answer to a plain request, from a server and with a client of its own."""
        return self.client(self.serve(*replies), **settings).chat_completion_stream(REQUEST)


@pytest.fixture
def engine() -> Engine:
    """The engine of the clients; tests of what an engine does run with each, see tests/contract/conftest.py."""
    return "auto"


@pytest.fixture
def plain(engine: Engine) -> Iterator[Link]:
    """Connections without TLS, for what does not differ."""
    with contextlib.ExitStack() as exits:
        yield Link(None, exits, engine)


@pytest.fixture(params=["plain", "tls"])
def link(request: pytest.FixtureRequest, tls: ssl.SSLContext, engine: Engine) -> Iterator[Link]:
    """Connections without TLS, then with it."""
    with contextlib.ExitStack() as exits:
        yield Link(tls if request.param == "tls" else None, exits, engine)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all threads that are started from now on."""
    names: list[str] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        names.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    return names


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Keep the garbage collector away: in a finalizer that it runs Ctrl-C is lost, whatever the library does."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fail the test that leaves a thread of the library, or a file descriptor, behind.

    To be named before ``link`` or ``plain``, so that it looks after they have closed everything.
    """
    threads, files = producers(), descriptors()
    yield
    assert within(SCALE, lambda: producers() <= threads), threading.enumerate()
    assert within(SCALE, lambda: descriptors() <= files), f"{descriptors() - files} descriptors are left open"
