"""Rate limits: the ready ones, on their own and through a client, in threads, in processes and in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pyrate_limiter as pyrate
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from chanstream import (
    APIConnectionError,
    APITimeoutError,
    Client,
    Context,
    EmbeddingRequest,
    InternalServerError,
    Retry,
    StreamCancelledError,
)
from chanstream.limits import BucketLimit, RateLimit
from chanstream.testing import RecordedRequest, Reply
from tests.concurrency import spawn
from tests.conftest import PROMPT, REQUEST, SCALE, Link, within
from tests.contract.test_13_threads import forked, forking
from tests.redis_server import RedisServer, redis_server
from tests.transport.test_limits import NONSENSE, Says

__all__ = ["redis_server"]  # the fixture

pytestmark = pytest.mark.usefixtures("nothing_left")

HASTY = Retry(min_delay=0.001, max_delay=0.002)
FAR = 1000
"""Seconds: a pause that no test sees the end of."""

Grant = tuple[int, int]
"""When an ask that was granted began and when it was over, in nanoseconds on a clock that processes share."""


def most_in(window: float, grants: list[Grant]) -> int:
    """Return how many grants were surely within some so many seconds.

    The moment that a limiter counts lies somewhere in an ask. So only those count that lie in the window as a whole:
    a machine that is slow makes this milder, and never wrong. The buckets' clocks tell milliseconds, hence the one.
    """
    length = int((window - 0.001) * 1e9)
    return max(sum(first <= begun and ended <= first + length for begun, ended in grants) for first, _ in grants)


def granted_by(limit: BucketLimit, grants: int) -> list[Grant]:
    """Ask as fast as the limit lets, until it has granted so many."""
    granted: list[Grant] = []
    while len(granted) < grants:
        begun = time.monotonic_ns()
        pause = limit.ask()
        if pause == 0:
            granted.append((begun, time.monotonic_ns()))
        time.sleep(pause)
    return granted


class Clocked(pyrate.InMemoryBucket):
    """A bucket whose clock the test turns; in milliseconds."""

    time = 0

    def now(self) -> int:
        """Return what the clock shows."""
        return self.time


def clocked(*rates: tuple[int, int]) -> tuple[Clocked, BucketLimit]:
    """Return a bucket of so many in so many milliseconds each, and its limit."""
    bucket = Clocked([pyrate.Rate(*rate) for rate in rates])
    return bucket, BucketLimit(bucket)


class Turned(pyrate.MonotonicClock):
    """A clock that the test turns; in milliseconds."""

    time = 0

    def now(self) -> int:
        """Return what the clock shows."""
        return self.time


class TestAnyWindow:
    @given(st.integers(1, 5), st.integers(1, 60), st.lists(st.integers(0, 40), max_size=60))
    def test_exactly_the_limit(self, requests: int, interval: int, steps: list[int]) -> None:
        """Whenever it is asked, a limit grants if and only if that keeps every window of its length within it."""
        bucket, limit = clocked((requests, interval))
        granted: list[int] = []
        for step in steps:
            bucket.time += step
            room = sum(bucket.time - at <= interval for at in granted) < requests
            assert (limit.ask() == 0) is room
            if room:
                granted.append(bucket.time)

    @given(st.integers(1, 5), st.integers(1, 60), st.lists(st.integers(0, 40), max_size=60))
    def test_the_pause_is_exact(self, requests: int, interval: int, steps: list[int]) -> None:
        """Who asks again after the pause is granted, and not a millisecond before."""
        bucket, limit = clocked((requests, interval))
        for step in steps:
            bucket.time += step
            pause = round(1000 * limit.ask())
            if pause:
                bucket.time += pause - 1
                assert limit.ask() == 0.001
                bucket.time += 1
                assert limit.ask() == 0

    @given(st.lists(st.integers(0, 40), max_size=80))
    def test_several_rates(self, steps: list[int]) -> None:
        """A bucket of several rates keeps each of them."""
        rates = [(2, 10), (5, 50), (8, 200)]
        bucket, limit = clocked(*rates)
        granted: list[int] = []
        for step in steps:
            bucket.time += step
            room = all(sum(bucket.time - at <= length for at in granted) < most for most, length in rates)
            assert (limit.ask() == 0) is room
            if room:
                granted.append(bucket.time)

    def test_a_bucket_does_not_grow(self) -> None:
        """What is out of date is forgotten: a bucket holds two windows' requests at most."""
        bucket, limit = clocked((10, 100))
        for _ in range(1000):
            bucket.time += 10
            limit.ask()
        assert bucket.count() <= 21

    def test_a_refusal_costs_one_question(self) -> None:
        """While a bucket is full it is not asked again, so that a hundred threads that wait cost it nothing."""
        bucket, limit = clocked((1, 100))
        assert limit.ask() == 0
        puts = 0
        put = bucket.put_decision

        def counted(item: pyrate.RateItem) -> Any:
            nonlocal puts
            puts += 1
            return put(item)

        bucket.put_decision = counted  # type: ignore[method-assign]
        for _ in range(100):
            assert limit.ask() > 0
            bucket.time += 1
        assert puts == 1

    def test_threads(self) -> None:
        """Threads that share a limit stay under it together, over any window, and all get their turns."""
        limit = RateLimit(20, per=0.1)
        callers = [spawn(granted_by, limit, 10) for _ in range(8)]
        granted = [grant for caller in callers for grant in caller.result(30)]
        assert len(granted) == 80
        assert most_in(0.1, granted) <= 20

    def test_parts_of_a_millisecond(self) -> None:
        """A window that is no whole number of milliseconds is rounded to the strict side."""
        assert "limit=3/2" in repr(RateLimit(3, per=0.0012))
        assert "limit=3/1500" in repr(RateLimit(3, per=1.5))


class TestGoClient:
    """What the Go client's own tests of its limiter check, with a clock that the test turns."""

    def test_the_first_request(self) -> None:
        """The first request is let through at once."""
        assert RateLimit(10).ask() == 0

    def test_the_rate_is_reached(self) -> None:
        """With one request per second the second is sent after a second, and the third after two."""
        bucket, limit = clocked((1, 1000))
        sent: list[int] = []
        for _ in range(3):
            while pause := limit.ask():
                bucket.time += round(1000 * pause)
            sent.append(bucket.time)
        assert sent == [0, 1001, 2002]

    def test_many_requests(self) -> None:
        """A token bucket of 10, with 5 more per second, lets 10 through at once, and then 5 within each second."""
        clock = Turned()
        limit = BucketLimit(pyrate.StateBucket([pyrate.Rate(5, 1000, burst=10)], clock=clock))
        assert [limit.ask() for _ in range(10)] == [0] * 10
        for _ in range(3):
            assert limit.ask() == 0.2
            clock.time += 1000
            assert [limit.ask() for _ in range(5)] == [0] * 5
        assert limit.ask() > 0

    def test_no_limiter(self, plain: Link) -> None:
        """Without a limiter requests go out one after the other, without a wait."""
        server = plain.serve("ok")
        client = plain.client(server)
        begun = time.monotonic()
        for _ in range(100):
            client.chat_completion(REQUEST)
        assert time.monotonic() - begun < 5 * SCALE
        assert len(server.requests) == 100


class TestBadInput:
    @pytest.mark.parametrize("requests", [None, True, 1.0, "1", [1]])
    def test_requests_of_another_type(self, requests: Any) -> None:
        """How many is a whole number, or the error names it."""
        with pytest.raises(TypeError, match=r"^requests: expected a whole number, got "):
            RateLimit(requests)

    @pytest.mark.parametrize("requests", [0, -1])
    def test_too_few_requests(self, requests: int) -> None:
        """A limit that nothing passes is refused."""
        with pytest.raises(ValueError, match=rf"^requests: expected 1 or more, got {requests}$"):
            RateLimit(requests)

    @pytest.mark.parametrize("per", [None, True, "1", [1]])
    def test_a_window_of_another_type(self, per: Any) -> None:
        """The window is a number of seconds, or the error names it."""
        with pytest.raises(TypeError, match=r"^per: expected a number of seconds, got "):
            RateLimit(1, per=per)

    @pytest.mark.parametrize("per", [0, -1, 0.0009, float("inf"), float("nan")])
    def test_a_window_that_cannot_be(self, per: float) -> None:
        """A window shorter than a bucket's clock can tell, or endless, is refused."""
        with pytest.raises(ValueError, match=r"^per: expected seconds, a thousandth or more, got "):
            RateLimit(1, per=per)

    @pytest.mark.parametrize("bucket", [None, 5, pyrate.Rate(1, 1), pyrate.InMemoryBucket], ids=repr)
    def test_no_bucket(self, bucket: Any) -> None:
        """What is no bucket is refused at once, and named."""
        with pytest.raises(
            TypeError, match=r"^bucket: expected a bucket of pyrate-limiter, as InMemoryBucket\(\[Rate\(...\)\]\), got "
        ):
            BucketLimit(bucket)

    def test_a_bucket_for_asyncio(self) -> None:
        """A bucket whose answers have to be awaited is refused at once."""
        wrapped = pyrate.BucketAsyncWrapper(pyrate.InMemoryBucket([pyrate.Rate(1, 1)]))
        with pytest.raises(TypeError, match=r"^bucket: expected one that is not for asyncio, got "):
            BucketLimit(wrapped)

    def test_a_redis_bucket_for_asyncio(self) -> None:
        """A bucket in Redis is refused if its client is one for asyncio."""

        async def make() -> None:
            client = redis.asyncio.Redis(port=1)
            bucket = pyrate.RedisBucket([pyrate.Rate(1, 1)], client, "key", "hash")
            with pytest.raises(TypeError, match=r"^bucket: expected one that is not for asyncio, got "):
                BucketLimit(bucket)
            await client.aclose()

        asyncio.run(make())

    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where pyrate-limiter is missing, the error says how to install it."""
        monkeypatch.setitem(sys.modules, "pyrate_limiter", None)
        for make in (lambda: RateLimit(1), lambda: BucketLimit(None)):  # type: ignore[arg-type]
            with pytest.raises(ImportError, match=r"pip install 'chanstream\[limits\]'$"):
                make()

    @pytest.mark.parametrize("limiter", [5, "50/s", object(), pyrate.InMemoryBucket([pyrate.Rate(1, 1)])], ids=repr)
    def test_no_limiter(self, limiter: Any) -> None:
        """A client refuses at once what is no limiter, and names the argument."""
        with pytest.raises(TypeError, match=r"^rate_limiter: expected "):
            Client("test-key", rate_limiter=limiter)

    def test_another_process(self) -> None:
        """A limit cannot be pickled, nor can a client with one: the copy would count by itself."""
        limit = RateLimit(1)
        for value in (limit, Client("test-key", rate_limiter=limit)):
            with pytest.raises(TypeError, match=r"^RateLimit cannot be sent to another process: make one there"):
                pickle.dumps(value)


EMBED = EmbeddingRequest("an-embedder", ["text"])
VECTORS = {"object": "list", "data": [{"object": "embedding", "embedding": [0.5], "index": 0}], "model": "an-embedder"}

CALLS: dict[str, tuple[Callable[..., Any], Reply]] = {
    "stream": (lambda client, **more: client.chat_completion_stream(REQUEST, **more).collect().text, Reply("ok")),
    "whole": (lambda client, **more: client.chat_completion(REQUEST, **more).text, Reply("ok")),
    "embeddings": (lambda client, **more: client.embeddings(EMBED, **more).vectors(), Reply.json(VECTORS)),
}
EACH_CALL = pytest.mark.parametrize(("call", "ok"), CALLS.values(), ids=CALLS)


class Seen:
    """A limiter with nothing but an `ask`; it notes how many requests the server had had at each."""

    def __init__(self) -> None:
        self.requests: Callable[[], int] = int
        self.asks: list[int] = []

    def ask(self) -> float:
        """Let everything through."""
        self.asks.append(self.requests())
        return 0.0


class TestThroughAClient:
    @EACH_CALL
    def test_once_per_attempt(self, plain: Link, call: Callable[..., Any], ok: Reply) -> None:
        """A limiter of the user's own is asked once before each attempt of every call, retries among them."""
        limiter = Seen()
        server = plain.serve(ok, Reply.error(503), Reply.error(429), ok)
        limiter.requests = lambda: len(server.requests)
        client = plain.client(server, rate_limiter=limiter, retry=HASTY)
        assert call(client)
        assert limiter.asks == [0]
        assert call(client)
        assert limiter.asks == [0, 1, 2, 3]

    def test_models(self, plain: Link) -> None:
        """Questions about models are requests like others."""
        limiter = Seen()
        server = plain.serve(models=["m"])
        limiter.requests = lambda: len(server.requests)
        client = plain.client(server, rate_limiter=limiter)
        assert client.list_models() == [client.get_model("m")]
        assert limiter.asks == [0, 1]

    @EACH_CALL
    def test_the_pauses_are_kept(self, plain: Link, call: Callable[..., Any], ok: Reply) -> None:
        """Nothing is sent before the limiter says 0, and no sooner than it said."""
        sent: list[float] = []

        def answer(request: RecordedRequest) -> Reply:
            sent.append(time.monotonic())
            return ok

        limiter = Says(0.02, 0.03, 0)
        assert call(plain.client(plain.serve(reply_with=answer), rate_limiter=limiter))
        assert len(limiter.asks) == 3
        assert limiter.asks[0] + 0.05 <= limiter.asks[2] <= sent[0]
        assert len(sent) == 1

    def test_a_refused_attempt_counts(self, plain: Link) -> None:
        """Attempts that the server refuses use up the limit as others do."""
        server = plain.serve(Reply.error(500), Reply.error(500), "ok")
        limit = RateLimit(3, per=FAR)
        assert plain.client(server, rate_limiter=limit, retry=HASTY).chat_completion(REQUEST).text == "ok"
        assert limit.ask() > 0

    def test_the_wait_is_part_of_the_latency(self, plain: Link) -> None:
        """The first chunk's latency holds the wait, as it holds those between retries."""
        stream = plain.client(plain.serve("ok"), rate_limiter=Says(0.05, 0)).chat_completion_stream(REQUEST)
        assert next(stream).chunk_latency >= 0.05

    @EACH_CALL
    @pytest.mark.parametrize("error", [ValueError("broken"), APIConnectionError("gone"), InternalServerError("no")])
    def test_a_limiter_that_raises(self, plain: Link, call: Callable[..., Any], ok: Reply, error: Exception) -> None:
        """What a limiter raises is raised to the caller, is not tried again, and nothing is sent."""
        limiter = Says(error, 0)
        server = plain.serve(ok)
        client = plain.client(server, rate_limiter=limiter, retry=HASTY)
        with pytest.raises(type(error)) as caught:
            call(client)
        assert caught.value is error
        assert (len(limiter.asks), server.connections) == (1, 0)
        assert call(client)  # it works on

    def test_a_limiter_that_raises_between_two_attempts(self, plain: Link) -> None:
        """What a limiter raises before a retry is raised, and the refusal's connection is given back."""
        server = plain.serve(Reply.error(503), "ok")
        client = plain.client(server, rate_limiter=Says(0, ValueError("broken"), 0), retry=HASTY)
        with pytest.raises(ValueError, match=r"^broken$"):
            client.chat_completion_stream(REQUEST)
        assert client.chat_completion_stream(REQUEST).collect().text == "ok"
        assert len(server.requests) == 2

    @NONSENSE
    def test_nonsense(self, plain: Link, answer: Any) -> None:
        """A limiter that answers with no number of seconds is named in a TypeError, and nothing is sent."""
        server = plain.serve("ok")
        client = plain.client(server, rate_limiter=Says(answer))
        for call, _ in CALLS.values():
            with pytest.raises(TypeError, match=r"^rate_limiter: expected"):
                call(client)
        assert server.connections == 0

    def test_threads(self, plain: Link) -> None:
        """Threads with clients of their own, and one limit, are answered as fast as the limit lets them."""
        server = plain.serve("ok")
        limit = RateLimit(4, per=0.1)
        begun = time.monotonic()
        clients = [plain.client(server, rate_limiter=limit) for _ in range(4)]
        calls = [spawn(client.chat_completion, REQUEST) for client in clients for _ in range(4)]
        assert {call.result(30).text for call in calls} == {"ok"}
        assert time.monotonic() - begun > 0.3
        assert len(server.requests) == 16


class TestTheWaitEnds:
    @EACH_CALL
    @pytest.mark.parametrize("pause", [FAR, float("inf")])
    def test_cancel(self, plain: Link, call: Callable[..., Any], ok: Reply, pause: float) -> None:
        """context.cancel() in another thread ends the wait at once; nothing was sent."""
        server, limiter, context = plain.serve(ok), Says(pause), Context()
        waiting = spawn(lambda: call(plain.client(server, rate_limiter=limiter), context=context))
        assert limiter.asked.wait(5)
        begun = time.monotonic()
        context.cancel()
        assert isinstance(waiting.exception(5), StreamCancelledError)
        assert time.monotonic() - begun < PROMPT
        assert server.connections == 0

    @EACH_CALL
    @pytest.mark.parametrize("clock", ["total", "context"])
    def test_a_deadline(self, plain: Link, call: Callable[..., Any], ok: Reply, clock: str) -> None:
        """The total clock and a context's deadline cover the wait, and the error names them."""
        server = plain.serve(ok)
        client = plain.client(server, rate_limiter=Says(FAR))
        begun = time.monotonic()
        with pytest.raises(APITimeoutError) as caught:
            call(client, **({"timeout": 0.05} if clock == "total" else {"context": Context(0.05)}))
        assert 0.05 <= time.monotonic() - begun < 0.05 + PROMPT * SCALE
        assert (caught.value.clock, caught.value.seconds) == (clock, 0.05)
        assert server.connections == 0

    def test_a_wait_before_a_retry(self, plain: Link) -> None:
        """The wait between two attempts ends as the first one does."""
        server, limiter, context = plain.serve(Reply.error(503), "ok"), Says(0, FAR), Context()
        client = plain.client(server, rate_limiter=limiter, retry=HASTY)
        waiting = spawn(lambda: client.chat_completion_stream(REQUEST, context=context))
        assert within(5, lambda: len(limiter.asks) == 2)
        context.cancel()
        assert isinstance(waiting.exception(5), StreamCancelledError)
        assert len(server.requests) == 1
        assert server.wait_for(lambda s: s.open_connections <= 1, PROMPT)

    @EACH_CALL
    def test_ctrl_c(self, plain: Link, call: Callable[..., Any], ok: Reply) -> None:
        """Ctrl-C ends the wait in the main thread soon, and the client can be used again."""
        limiter = Says(FAR, 0)
        client = plain.client(plain.serve(ok), rate_limiter=limiter)
        pressed: list[float] = []

        def press() -> None:
            limiter.asked.wait(5)
            pressed.append(time.monotonic())
            signal.pthread_kill(main, signal.SIGINT)

        main = threading.get_ident()
        presser = threading.Thread(target=press)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come before the call has begun to wait
            presser.start()
            call(client)
        assert time.monotonic() - pressed[0] < 0.1 + PROMPT
        presser.join()
        assert call(client)

    def test_a_bucket_that_hangs(self, plain: Link) -> None:
        """Where a bucket hangs in one thread's ask, the calls of other threads can still be cancelled."""
        hangs, goes_on = threading.Event(), threading.Event()

        class Hanging(pyrate.InMemoryBucket):
            def put(self, item: pyrate.RateItem) -> bool:
                hangs.set()
                return goes_on.wait(30) and super().put(item)

        client = plain.client(plain.serve("ok"), rate_limiter=BucketLimit(Hanging([pyrate.Rate(10, 1000)])))
        stuck = spawn(client.chat_completion, REQUEST)
        assert hangs.wait(5)
        context = Context()
        other = spawn(lambda: client.chat_completion(REQUEST, context=context))
        context.cancel()
        assert isinstance(other.exception(PROMPT + 1), StreamCancelledError)
        goes_on.set()
        assert stuck.result(5).text == "ok"

    def test_a_bucket_that_fails(self, plain: Link) -> None:
        """What a bucket raises reaches the caller, and leaves the limit free for the next."""
        fails = [ConnectionError("no route to the bucket")]

        class Failing(pyrate.InMemoryBucket):
            def put(self, item: pyrate.RateItem) -> bool:
                if fails:
                    raise fails.pop()
                return super().put(item)

        client = plain.client(plain.serve("ok"), rate_limiter=BucketLimit(Failing([pyrate.Rate(10, 1000)])))
        with pytest.raises(ConnectionError, match="no route to the bucket"):
            client.chat_completion(REQUEST)
        assert client.chat_completion(REQUEST).text == "ok"


class TestFork:
    pytestmark = forking

    def test_amid_an_ask(self) -> None:
        """A child forked while another thread is in the middle of an ask asks without waiting for that thread."""
        hangs, goes_on = threading.Event(), threading.Event()

        class Slow(pyrate.InMemoryBucket):
            def put(self, item: pyrate.RateItem) -> bool:
                with self._lock:
                    if not hangs.is_set():
                        hangs.set()
                        goes_on.wait(30)
                    return super().put(item)

        limit = BucketLimit(Slow([pyrate.Rate(1, 1000 * FAR)]))
        asking = spawn(limit.ask)
        assert hangs.wait(5)

        def child() -> None:
            assert limit.ask() == 0
            assert limit.ask() > 1

        assert forked(child) == 0
        goes_on.set()
        assert asking.result(5) == 0


# -- shared with other processes ---------------------------------------------------------------------------------------

LIMIT, WINDOW = 20, 0.1

ASKER = """
import json, sys, threading, time
from chanstream.limits import BucketLimit
from pyrate_limiter import Rate, RedisBucket, SQLiteBucket

kind, where, most, window, grants = sys.argv[1:]
rates = [Rate(int(most), round(1000 * float(window)))]
if kind == "sqlite":
    bucket = SQLiteBucket.init_from_file(rates, db_path=where, use_file_lock=True)
else:
    import redis
    bucket = RedisBucket.init(rates, redis.Redis.from_url(where), "shared")
with bucket:
    limit = BucketLimit(bucket)
    print("ready", flush=True)
    sys.stdin.readline()
    stopped = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stopped.set()), daemon=True).start()
    granted = []
    while not stopped.is_set():
        begun = time.monotonic_ns()
        pause = limit.ask()
        if pause == 0:
            granted.append((begun, time.monotonic_ns()))
            if len(granted) == int(grants):
                print("enough", flush=True)
        time.sleep(pause)
    print(json.dumps(granted))
"""


def shared_by_processes(kind: str, where: str, processes: int = 3, grants: int = 30) -> list[list[Grant]]:
    """Return what each of several processes was granted, that ask as fast as they may until all have had so many."""
    command = [sys.executable, "-W", "error", "-c", ASKER, kind, where, str(LIMIT), str(WINDOW), str(grants)]
    with contextlib.ExitStack() as exits:
        askers = []
        for _ in range(processes):
            asker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            askers.append(exits.enter_context(asker))
            exits.callback(asker.kill)
        for said, told in [("ready\n", "go\n"), ("enough\n", "stop\n")]:
            for asker in askers:
                assert asker.stdout is not None
                assert asker.stdout.readline() == said
            for asker in askers:
                assert asker.stdin is not None
                asker.stdin.write(told)
                asker.stdin.flush()
        answers = [asker.communicate()[0] for asker in askers]
        assert [asker.returncode for asker in askers] == [0] * processes
        return [[(begun, ended) for begun, ended in json.loads(answer)] for answer in answers]


def assert_shared(granted: list[list[Grant]]) -> None:
    """Check that each of the processes had its turns among the others', and all together no more than the limit."""
    assert min(map(len, granted)) >= 30
    assert most_in(WINDOW, [grant for grants in granted for grant in grants]) <= LIMIT


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[pyrate.SQLiteBucket]:
    """A bucket in a file."""
    with pyrate.SQLiteBucket.init_from_file(
        [pyrate.Rate(3, 1000 * FAR)], db_path=str(tmp_path / "limit.sqlite"), use_file_lock=True
    ) as bucket:
        yield bucket


class TestSQLite:
    def test_processes(self, tmp_path: Path) -> None:
        """Processes that share a file stay under one limit together, over any window, and all get their turns."""
        assert_shared(shared_by_processes("sqlite", str(tmp_path / "limit.sqlite")))

    def test_threads(self, tmp_path: Path) -> None:
        """Threads share the file's bucket as processes do."""
        path = str(tmp_path / "limit.sqlite")
        rates = [pyrate.Rate(20, 100)]
        with pyrate.SQLiteBucket.init_from_file(rates, db_path=path, use_file_lock=True) as bucket:
            limit = BucketLimit(bucket)
            callers = [spawn(granted_by, limit, 10) for _ in range(6)]
            granted = [grant for caller in callers for grant in caller.result(30)]
        assert most_in(0.1, granted) <= 20

    def test_what_others_did_counts(self, sqlite: pyrate.SQLiteBucket, tmp_path: Path) -> None:
        """A bucket that is opened later knows what was granted before: a restart begins no new window."""
        limit = BucketLimit(sqlite)
        assert [limit.ask() for _ in range(3)] == [0, 0, 0]
        path = str(tmp_path / "limit.sqlite")
        with pyrate.SQLiteBucket.init_from_file(sqlite.rates, db_path=path, use_file_lock=True) as later:
            assert BucketLimit(later).ask() > 1

    def test_another_process_has_the_file(self, sqlite: pyrate.SQLiteBucket, tmp_path: Path) -> None:
        """While another process has the file's lock, an ask does not wait for it and says to ask again soon."""
        limit = BucketLimit(sqlite)
        with filelock.FileLock(str(tmp_path / "limit.sqlite.lock")):
            begun = time.monotonic()
            assert 0 < limit.ask() <= 0.01
            assert time.monotonic() - begun < PROMPT
        assert limit.ask() == 0

    def test_through_a_client(self, plain: Link, sqlite: pyrate.SQLiteBucket) -> None:
        """A client with a bucket in a file sends what the bucket lets through, and waits with the rest."""
        server = plain.serve("ok")
        client = plain.client(server, rate_limiter=BucketLimit(sqlite))
        assert [client.chat_completion(REQUEST).text for _ in range(3)] == ["ok"] * 3
        with pytest.raises(APITimeoutError, match="total"):
            client.chat_completion(REQUEST, timeout=0.05)
        assert len(server.requests) == 3


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A client of an empty Redis."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


class Behind(pyrate.RedisBucket):
    """A bucket in Redis whose process read the clock a while ago."""

    def now(self) -> int:
        """Return the time of then."""
        return super().now() - 50


class TestRedis:
    @pytest.mark.usefixtures("redis_client")
    def test_processes(self, redis_server: RedisServer) -> None:
        """Processes that share a Redis stay under one limit together, over any window, and all get their turns."""
        assert_shared(shared_by_processes("redis", redis_server.url))

    def test_grants_of_later_times_count(self, redis_client: redis.Redis) -> None:
        """What others were granted since a process read the clock counts against it."""
        rates = [pyrate.Rate(3, 1000 * FAR)]
        ahead = BucketLimit(pyrate.RedisBucket.init(rates, redis_client, "key"))
        behind = BucketLimit(Behind.init(rates, redis_client, "key"))
        assert [ahead.ask(), behind.ask(), ahead.ask()] == [0, 0, 0]
        assert behind.ask() > 1
        assert ahead.ask() > 1

    def test_the_pause(self, redis_client: redis.Redis) -> None:
        """A refusal says when the oldest of the grants that fill the window leaves it."""
        limit = BucketLimit(pyrate.RedisBucket.init([pyrate.Rate(2, 60_000)], redis_client, "key"))
        assert [limit.ask(), limit.ask()] == [0, 0]
        assert 60 - 5 * SCALE < limit.ask() <= 60.001

    def test_several_rates(self, redis_client: redis.Redis) -> None:
        """A bucket of several rates keeps each of them."""
        rates = [pyrate.Rate(3, 50), pyrate.Rate(5, 1000 * FAR)]
        limit = BucketLimit(pyrate.RedisBucket.init(rates, redis_client, "key"))
        granted = granted_by(limit, 5)
        assert most_in(0.05, granted) <= 3
        if 0 < (pause := limit.ask()) <= 0.051:  # the shorter rate's
            time.sleep(pause)
            pause = limit.ask()
        assert pause > 1

    def test_another_algorithm(self, redis_client: redis.Redis) -> None:
        """Windows that begin on the hour, as some servers have them, work too."""
        bucket = pyrate.RedisBucket.init(
            [pyrate.Rate(2, 1000 * 3600)], redis_client, "key", algorithm=pyrate.FixedWindow()
        )
        limit = BucketLimit(bucket)
        answers = [limit.ask() for _ in range(4)]  # of which one may be in another hour
        assert max(answers) > 0.001

    def test_a_token_bucket(self, redis_client: redis.Redis) -> None:
        """A token bucket in Redis works too."""
        store = pyrate.RedisStateStore(redis_client, "key")
        limit = BucketLimit(pyrate.StateBucket([pyrate.Rate(1, 1000 * FAR, burst=2)], store=store))
        assert [limit.ask(), limit.ask()] == [0, 0]
        assert limit.ask() > 1

    def test_a_server_that_lost_its_scripts(self, redis_client: redis.Redis) -> None:
        """A Redis that was started anew, and so has lost our script, is given it again."""
        limit = BucketLimit(pyrate.RedisBucket.init([pyrate.Rate(10, 1000)], redis_client, "key"))
        assert limit.ask() == 0
        redis_client.script_flush()
        assert limit.ask() == 0

    def test_what_is_out_of_date(self, redis_client: redis.Redis) -> None:
        """What is out of date is cleared from Redis."""
        limit = BucketLimit(pyrate.RedisBucket.init([pyrate.Rate(5, 20)], redis_client, "key"))
        granted_by(limit, 60)
        assert redis_client.zcard("key") <= 11

    def test_the_callers_bucket_is_left_alone(self, redis_client: redis.Redis) -> None:
        """The bucket that the caller made stays as it is."""
        bucket = pyrate.RedisBucket.init([pyrate.Rate(5, 1000)], redis_client, "key")
        assert BucketLimit(bucket).ask() == 0
        assert bucket.redis is redis_client
        assert bucket.count() == 1

    def test_no_redis(self) -> None:
        """A Redis that is not there is told when the limit is made, in redis' own words."""
        with (
            redis.Redis(port=1, retry=None) as client,
            pytest.raises(redis.ConnectionError, match="refused"),
        ):
            BucketLimit(pyrate.RedisBucket([pyrate.Rate(1, 1)], client, "key", "hash"))
