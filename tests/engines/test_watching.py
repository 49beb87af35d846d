"""What watches many sockets for news: both kinds of it, by themselves and under real streams."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import pytest

from chanstream import ChannelClosedError, CompletionStream, Context, StreamCancelledError
from chanstream.calls import Engine
from chanstream.engines import poller
from chanstream.engines.watching import READ, WRITE, Epoll, Selected, new_watcher
from chanstream.testing import Reply
from tests.concurrency import spawn
from tests.conftest import PROMPT, REQUEST, SCALE, Link, descriptors, producers, within
from tests.engines.test_poller import FLOOD, SILENT, WORDS, full, ours

pytestmark = pytest.mark.usefixtures("nothing_left")

AnyWatcher: TypeAlias = "Epoll[str] | Selected[str]"
Pair: TypeAlias = tuple[socket.socket, socket.socket]

has_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")


@pytest.fixture
def engine() -> Engine:
    """The engine of the clients."""
    return "poller"


@pytest.fixture(params=[pytest.param(Epoll, marks=has_epoll), Selected])
def watcher(request: pytest.FixtureRequest) -> Iterator[AnyWatcher]:
    """One of each kind."""
    with contextlib.closing(request.param()) as watcher:
        yield watcher


@pytest.fixture
def epoll() -> Iterator[Epoll[str]]:
    """One that any thread may use."""
    with contextlib.closing(Epoll[str]()) as watcher:
        yield watcher


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Our end of a connection, and the other."""
    with contextlib.ExitStack() as exits:
        ours, theirs = socket.socketpair()
        yield exits.enter_context(ours), exits.enter_context(theirs)


class TestNews:
    def test_of_bytes(self, watcher: AnyWatcher, pair: Pair) -> None:
        """A socket that is watched for reading is told of when bytes are there, and as long as they are."""
        mine, other = pair
        watcher.watch(mine.fileno(), "mine", READ)
        assert watcher.wait(0) == []
        other.send(b"x")
        assert [watcher.wait(1), watcher.wait(1)] == [["mine"]] * 2
        mine.recv(1)
        assert watcher.wait(0) == []

    def test_of_room(self, watcher: AnyWatcher, pair: Pair) -> None:
        """A socket that is watched for writing is told of when there is room, whether there are bytes or not."""
        mine, other = pair
        mine.setblocking(False)
        other.send(b"x")
        with contextlib.suppress(BlockingIOError):
            while True:
                mine.send(bytes(65536))
        watcher.watch(mine.fileno(), "mine", WRITE)
        assert watcher.wait(0) == []
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.recv(65536)
        assert watcher.wait(1) == ["mine"]

    def test_of_the_end(self, watcher: AnyWatcher, pair: Pair) -> None:
        """So is one whose other end is closed, or that is shut down here by another thread."""
        mine, other = pair
        watcher.watch(mine.fileno(), "mine", READ)
        waiting = spawn(watcher.wait, 5)
        mine.shutdown(socket.SHUT_RDWR)
        assert waiting.result(5) == ["mine"]
        other.close()
        assert watcher.wait(1) == ["mine"]

    def test_of_many(self, watcher: AnyWatcher) -> None:
        """Of many sockets just those are told of that have news, each by its owner."""
        with contextlib.ExitStack() as exits:
            pairs = [[exits.enter_context(end) for end in socket.socketpair()] for _ in range(50)]
            for number, (mine, _) in enumerate(pairs):
                watcher.watch(mine.fileno(), f"{number}", READ)
            for _, other in pairs[::7]:
                other.send(b"x")
            assert sorted(watcher.wait(1)) == sorted(f"{number}" for number in range(0, 50, 7))

    def test_none_in_time(self, watcher: AnyWatcher, pair: Pair) -> None:
        """Without news it waits as long as it is told to, and then there is none."""
        watcher.watch(pair[0].fileno(), "mine", READ)
        begun = time.monotonic()
        assert watcher.wait(0.05) == []
        assert time.monotonic() - begun > 0.04


class TestChanges:
    def test_to_nothing_and_back(self, watcher: AnyWatcher, pair: Pair) -> None:
        """A socket that is watched for nothing is not told of, until it is watched for something again."""
        mine, other = pair
        watcher.watch(mine.fileno(), "mine", READ)
        other.send(b"x")
        for _ in range(3):
            watcher.watch(mine.fileno(), "mine", 0)
            assert watcher.wait(0) == []
            watcher.watch(mine.fileno(), "mine", READ)
            assert watcher.wait(1) == ["mine"]

    def test_to_something_else(self, watcher: AnyWatcher, pair: Pair) -> None:
        """What a socket is watched for can be changed, and said again without harm."""
        descriptor = pair[0].fileno()
        nothing: list[str] = []
        changes = [(READ, nothing), (WRITE, ["mine"]), (0, nothing), (READ, nothing)]
        for events, news in [change for change in changes for _ in range(2)]:
            watcher.watch(descriptor, "mine", events)
            assert watcher.wait(0) == news

    def test_nothing_from_the_start(self, watcher: AnyWatcher, pair: Pair) -> None:
        """A socket may be watched for nothing at first."""
        mine, other = pair
        other.send(b"x")
        watcher.watch(mine.fileno(), "mine", 0)
        assert watcher.wait(0) == []
        watcher.watch(mine.fileno(), "mine", READ)
        assert watcher.wait(1) == ["mine"]

    def test_forgotten(self, watcher: AnyWatcher, pair: Pair) -> None:
        """One that is forgotten is not told of; to forget it twice, or one that was never watched, does nothing."""
        mine, other = pair
        watcher.forget(mine.fileno())
        watcher.watch(mine.fileno(), "mine", READ)
        other.send(b"x")
        watcher.forget(mine.fileno())
        watcher.forget(mine.fileno())
        assert watcher.wait(0) == []

    def test_the_next_of_that_number(self, watcher: AnyWatcher) -> None:
        """A new socket with the number of one that was forgotten and closed is told of by its own owner."""
        for owner in ("first", "second", "third"):
            mine, other = socket.socketpair()
            with mine, other:
                watcher.watch(mine.fileno(), owner, READ)
                other.send(b"x")
                assert watcher.wait(1) == [owner]
                watcher.forget(mine.fileno())

    def test_nothing_is_left(self, pair: Pair) -> None:
        """When it is closed all that the system gave for it is free, whatever is being watched."""
        before = descriptors()
        for _ in range(10):
            watcher = new_watcher()
            watcher.watch(pair[0].fileno(), "mine", READ)
            watcher.close()
        assert descriptors() <= before


@has_epoll
class TestFromAnyThread:
    def test_the_kind_of_choice(self) -> None:
        """Where the system has it, the kind that any thread may use is used."""
        with contextlib.closing(new_watcher()) as watcher:
            assert isinstance(watcher, Epoll)
        assert Epoll.from_any_thread
        assert not Selected.from_any_thread

    def test_while_one_waits(self, epoll: Epoll[str], pair: Pair) -> None:
        """A thread that waits is told of a socket that another one has watched meanwhile."""
        mine, other = pair
        other.send(b"x")
        for _ in range(20):
            waiting = spawn(epoll.wait, 5)
            epoll.watch(mine.fileno(), "mine", READ)
            assert waiting.result(5) == ["mine"]
            epoll.watch(mine.fileno(), "mine", 0)

    def test_not_watched_while_one_waits(self, epoll: Epoll[str], pair: Pair) -> None:
        """A thread that waits is not told of a socket that another one has taken away meanwhile."""
        mine, other = pair
        epoll.watch(mine.fileno(), "mine", READ)
        waiting = spawn(epoll.wait, 0.1)
        epoll.watch(mine.fileno(), "mine", 0)
        other.send(b"x")
        assert waiting.result(5) == []

    def test_a_connection_that_broke_down(self, epoll: Epoll[str], pair: Pair) -> None:
        """That a connection broke down while it was watched for nothing is told once, and then no more."""
        mine, other = pair
        epoll.watch(mine.fileno(), "mine", READ)
        epoll.watch(mine.fileno(), "mine", 0)
        other.close()
        assert epoll.wait(1) == ["mine"]
        assert [epoll.wait(0) for _ in range(3)] == [[]] * 3
        epoll.watch(mine.fileno(), "mine", READ)
        assert epoll.wait(1) == ["mine"]

    def test_forgotten_amid_the_news(self, epoll: Epoll[str], pair: Pair) -> None:
        """A socket that another thread forgets after the system told of it, and before we look, is left out."""
        mine, other = pair
        system = epoll._epoll

        class Slow:
            """The system's own, and another thread that comes between its news and whoever waited for it."""

            def poll(self, seconds: float) -> Any:
                news = system.poll(seconds)
                epoll.forget(mine.fileno())
                return news

            def __getattr__(self, name: str) -> Any:
                return getattr(system, name)

        epoll.watch(mine.fileno(), "mine", READ)
        other.send(b"x")
        epoll._epoll = Slow()
        assert epoll.wait(1) == []

    def test_after_its_end(self, pair: Pair) -> None:
        """To watch and to forget sockets after it was closed is harmless: their streams are about to end, too."""
        mine, other = pair
        watcher = Epoll[str]()
        watcher.watch(mine.fileno(), "mine", READ)
        watcher.close()
        for end in (mine, other):
            watcher.watch(end.fileno(), "again", WRITE)
            watcher.forget(end.fileno())

    def test_closed_in_the_middle(self, pair: Pair) -> None:
        """Nor does it matter when another thread closes it in the middle of that; a fault of the system is told."""
        mine, _ = pair
        watcher = Epoll[str]()
        inner = watcher._epoll

        class Late:
            closed = False

            def register(self, descriptor: int, mask: int) -> None:
                inner.close()
                self.closed = inner.closed
                raise OSError(errno.EBADF, "Bad file descriptor")  # the system's word for the number of a closed file

        watcher._epoll = Late()
        watcher.watch(mine.fileno(), "mine", READ)
        assert watcher._epoll.closed
        with contextlib.closing(Epoll[str]()) as watcher, pytest.raises(OSError, match="Bad file descriptor"):
            watcher.watch(1_000_000, "of no file", READ)

    def test_a_closed_socket(self, epoll: Epoll[str], pair: Pair) -> None:
        """To forget a socket after it was closed does nothing."""
        mine, _ = pair
        descriptor = mine.fileno()
        epoll.watch(descriptor, "mine", READ)
        mine.close()
        epoll.forget(descriptor)
        assert epoll.wait(0) == []

    def test_by_many_threads(self, epoll: Epoll[str]) -> None:
        """What many threads watch, change and forget while one waits is told to it, and nothing else goes wrong."""
        seen: set[str] = set()
        done = threading.Event()

        def watching() -> None:
            while not done.is_set():
                seen.update(epoll.wait(0.01))

        def use(number: int) -> bool:
            for turn in range(10):
                mine, other = socket.socketpair()
                with mine, other:
                    owner = f"{number} {turn}"
                    epoll.watch(mine.fileno(), owner, 0)
                    other.send(b"x")
                    epoll.watch(mine.fileno(), owner, READ)
                    if not within(5, lambda owner=owner: owner in seen):
                        return False
                    epoll.forget(mine.fileno())
            return True

        waiting = spawn(watching)
        with ThreadPoolExecutor(10) as pool:
            assert all(pool.map(use, range(10)))
        done.set()
        waiting.result(5)


class TestStreamsWithoutEpoll:
    """Where the poller's thread alone can say what it watches, it reads all streams itself."""

    @pytest.fixture(autouse=True)
    def no_epoll(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Give the poller the kind for systems without epoll."""
        monkeypatch.setattr(poller, "new_watcher", Selected)
        yield
        assert within(SCALE, lambda: ours() == [])

    def test_paced(self, link: Link) -> None:
        """A stream of words that come now and then is whole, and comes as they do."""
        stream = link.stream(Reply("one two three four five", pace=0.1))
        assert isinstance(poller._the_poller._watcher, Selected)
        latencies = [chunk.chunk_latency for chunk in stream]
        assert stream.state == "complete"
        assert sum(latency > 0.05 for latency in latencies) >= 4

    def test_20_at_a_time(self, link: Link) -> None:
        """20 streams, each with a thread that waits for it, all come whole, some through a narrow channel."""
        words = WORDS[:20]
        server = link.serve(Reply(words, pace=0.003))
        client = link.client(server)

        def use(number: int) -> str:
            return client.chat_completion_stream(REQUEST, buffer=1 if number % 2 else 1024).collect().text

        with ThreadPoolExecutor(20) as pool:
            assert list(pool.map(use, range(20))) == ["".join(words)] * 20

    def test_a_full_channel(self, link: Link) -> None:
        """A channel for one chunk, full most of the time, loses nothing."""
        stream = link.client(link.serve(Reply(WORDS[:2000]))).chat_completion_stream(REQUEST, buffer=1)
        assert within(5, lambda: stream.statistics().waiting_putters == 1)
        assert "".join(chunk.text for chunk in stream) == "".join(WORDS[:2000])

    @pytest.mark.parametrize("way", ["close", "cancel"])
    @pytest.mark.parametrize("reply", [SILENT, FLOOD], ids=["silent", "full"])
    def test_a_cancel(self, link: Link, reply: Reply, way: str) -> None:
        """A cancel from another thread frees everything at once, the thread that waits too."""
        server = link.serve(reply)
        client = link.client(server)
        context = Context()
        if reply is FLOOD:
            stream = full(client, context=context)
        else:
            stream = client.chat_completion_stream(REQUEST, context=context)
        reading = spawn(_read_slowly if reply is FLOOD else list, stream)
        assert within(5, lambda: reply is FLOOD or stream.statistics().waiting_getters == 1)
        spawn(stream.close if way == "close" else context.cancel).result(5)
        assert within(PROMPT, lambda: server.open_connections == 0 and producers() == 0)
        chunks = reading.result(5)
        assert stream.state == "cancelled"
        if way == "cancel":
            assert isinstance(chunks[-1].error, StreamCancelledError)

    def test_many_ends(self, link: Link) -> None:
        """Streams in a row, a full one among them, share a connection and leave nothing."""
        server = link.serve(*["one two", Reply("one two", pace=0.003), Reply(WORDS[:50])] * 5)
        client = link.client(server, buffer=4)
        wanted = ["one two", "one two", "".join(WORDS[:50])] * 5
        assert [client.chat_completion_stream(REQUEST).collect().text for _ in range(15)] == wanted
        assert server.connections == 1


def _read_slowly(stream: CompletionStream) -> list[Any]:
    """Return a stream's chunks to its end, taking them only when it has ended."""
    assert within(5, lambda: stream.closed)
    chunks = []
    with contextlib.suppress(ChannelClosedError):
        while True:
            chunks.append(stream.get(timeout=5))
    return chunks
