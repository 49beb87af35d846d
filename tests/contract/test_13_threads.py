"""Promise 13: one client, many threads.

Client, channel and stream may be shared; a client works after ``fork()`` and under gevent's monkey patching; importing
starts no thread and costs little; no key ever appears where it can be read.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import select
import signal
import statistics
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest
import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import HTTPResponse

from chanstream import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    ChannelClosedError,
    ChatCompletionRequest,
    Client,
    CompletionChunk,
    CompletionStream,
    Context,
    Retry,
    Timeout,
    UserMessage,
)
from chanstream.testing import RecordedRequest, Reply
from tests.conftest import PROMPT, REQUEST, SCALE, Link, producers, within

pytestmark = pytest.mark.usefixtures("nothing_left")

KEY = "sk-proj-4tr0ub4dor-and-3"


def asking(text: str) -> ChatCompletionRequest:
    """Return a request that says ``text``."""
    return ChatCompletionRequest("m", [UserMessage(text)])


def echo(request: RecordedRequest) -> Reply:
    """Return an answer that says what the request does, word by word."""
    return Reply(request.json["messages"][0]["content"], pace=0.002)


def run(program: str, *arguments: str, **environment: str) -> str:
    """Return what a Python program prints; it must end well and warn of nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments],
        capture_output=True, text=True, timeout=30 * SCALE, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class TestThreads:
    def test_one_client_for_50(self, link: Link) -> None:
        """50 threads that stream, ask and collect with one client get each their own answers."""
        client = link.client(link.serve(reply_with=echo))
        together = threading.Barrier(50)

        def converse(number: int) -> list[str]:
            together.wait(20)
            said = [f"thread {number} says {word} out of three" for word in range(3)]
            return [
                "".join(chunk.text for chunk in client.chat_completion_stream(asking(said[0]))),
                client.chat_completion(asking(said[1])).text,
                client.chat_completion_stream(asking(said[2])).collect().text,
                *said,
            ]

        with ThreadPoolExecutor(50) as pool:
            for heard in pool.map(converse, range(50)):
                assert heard[:3] == heard[3:]

    @pytest.mark.parametrize("buffer", [1, 1024])
    @pytest.mark.parametrize("how", ["iterate", "next", "get", "get_many"])
    def test_consumers_share_a_stream(self, link: Link, how: str, buffer: int) -> None:
        """Several consumers of one stream get each chunk exactly once, in order for each, and all of them end."""
        words = [f"{number} " for number in range(1000)]
        stream = link.stream(Reply(words), buffer=buffer)

        def consume() -> list[str]:
            return [chunk.text for chunk in takers(stream, how)]

        with ThreadPoolExecutor(4) as pool:
            shares = [taken.result() for taken in [pool.submit(consume) for _ in range(4)]]
        assert sorted((text for share in shares for text in share), key=order) == [*words, ""]
        assert all(share == sorted(share, key=order) for share in shares)

    def test_close_in_the_middle_of_consumers(self, link: Link) -> None:
        """A stream that one thread closes while others take from it ends for all of them, with nothing doubled."""
        stream = link.stream(Reply([f"{number} " for number in range(100_000)], done=False))
        with ThreadPoolExecutor(3) as pool:
            shares = [pool.submit(lambda: [chunk.text for chunk in takers(stream, "next")]) for _ in range(3)]
            assert within(5, lambda: stream.statistics().taken > 100)
            stream.close()
            texts = [text for share in shares for text in share.result(5)]
        assert len(texts) == len(set(texts)) > 100

    def test_streams_closed_by_many(self, link: Link) -> None:
        """Ten threads may close one stream at the same moment."""
        stream = link.stream(Reply("one two", stall_after=1))
        together = threading.Barrier(10)
        with ThreadPoolExecutor(10) as pool:
            for _ in range(10):
                pool.submit(lambda: (together.wait(5), stream.close()))
        assert stream.state == "cancelled"

    def test_first_use_by_many(self, link: Link) -> None:
        """A new client that many threads use first at the same moment serves all of them."""
        client = link.client(link.serve(reply_with=echo))
        together = threading.Barrier(20)

        def ask(number: int) -> str:
            together.wait(20)
            return client.chat_completion_stream(asking(str(number))).collect().text

        with ThreadPoolExecutor(20) as pool:
            assert list(pool.map(ask, range(20))) == [str(number) for number in range(20)]

    @pytest.mark.parametrize("thing", ["Client", "Channel", "CompletionStream"])
    def test_says_so(self, thing: str) -> None:
        """What is safe to share says so in its documentation."""
        import chanstream

        assert "Thread safety:" in (getattr(chanstream, thing).__doc__ or "")


def takers(stream: CompletionStream, how: str) -> Iterator[CompletionChunk]:
    """Take chunks to the end in one of the ways in which that can be done."""
    if how == "iterate":
        yield from stream
        return
    if how == "next":
        with contextlib.suppress(StopIteration):
            while True:
                yield next(stream)
    while True:
        try:
            chunks = stream.get_many(most=7) if how == "get_many" else [stream.get()]
        except ChannelClosedError:
            return
        yield from chunks


def order(text: str) -> float:
    """Return where a chunk of the numbers stands; the last has no number."""
    return float(text or "inf")


forking = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # Python warns of it where there are threads
]


def forked(child: Callable[[], object], tries: int = 3) -> int:
    """Run ``child`` in a forked process and return its exit status: 0 if it returned, -14 if it hung.

    Where coverage is measured another thread may hold coverage's own lock at the moment of the fork. Such a child hangs
    before it has begun, and says nothing about the library: another one is forked.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        with open(reader, "rb", buffering=0) as sign:  # noqa: PTH123 - a descriptor
            begun = select.select([sign], [], [], 10 * SCALE)[0]
        if not begun:
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if begun or tries == 1 or "coverage" not in sys.modules:
            return status
        return forked(child, tries - 1)
    status = 1
    try:
        os.close(reader)
        os.write(writer, b"!")
        os.close(writer)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(6 * SCALE))
        child()
        status = 0
    except BaseException:  # noqa: BLE001 - the child must not run the parent's tests
        traceback.print_exc()
    finally:
        os._exit(status)


class TestFork:
    pytestmark = forking

    def test_a_child_uses_the_client(self, link: Link) -> None:
        """A forked child streams and asks with its parent's client, and disturbs no stream of the parent."""
        server = link.serve(reply_with=echo)
        client = link.client(server)
        words = " ".join(map(str, range(100)))
        stream = client.chat_completion_stream(asking(words))
        texts = [next(stream).text]

        def child() -> None:
            for text in ("from the child", "and again"):
                assert client.chat_completion_stream(asking(text)).collect().text == text
                assert client.chat_completion(asking(text)).text == text

        assert forked(child) == 0
        texts += [chunk.text for chunk in stream]
        assert "".join(texts) == words
        assert stream.state == "complete"
        children = {request.connection for request in server.requests if "child" in str(request.json)}
        assert children.isdisjoint({server.requests[0].connection})

    @pytest.mark.parametrize("how", ["close", "drop", "break", "client"])
    def test_a_child_lets_go_of_what_it_inherited(self, link: Link, how: str) -> None:
        """What a child does to its copies of stream and client does not reach the parent's connection."""
        whole = Reply("one two three four")
        client = link.client(link.serve(whole, attrs.evolve(whole, pace=0.04), whole))
        assert client.chat_completion_stream(REQUEST).collect().text == "one two three four"
        streams = [client.chat_completion_stream(REQUEST)]
        assert streams[0].get().text == "one"

        def child() -> None:
            if how == "close":
                streams[0].close()
            elif how == "drop":
                streams.clear()
            elif how == "break":
                with contextlib.suppress(Exception):
                    for _ in streams[0]:
                        break
            else:
                client.close()

        assert forked(child) == 0
        assert "".join(chunk.text for chunk in streams[0]) == " two three four"
        assert client.chat_completion_stream(REQUEST).collect().text == "one two three four"

    def test_a_child_does_not_wait_for_the_parents_stream(self, link: Link) -> None:
        """A stream of the parent has no producer in the child: taking from it there fails, and does not hang."""
        stream = link.stream(Reply("one two", stall_after=1))
        assert within(5, lambda: stream.qsize() == 1)

        def child() -> None:
            for take in (stream.get, stream.collect, lambda: next(stream), stream.get_many, lambda: list(stream)):
                with pytest.raises(Exception, match="belongs to the process"):
                    take()

        assert forked(child) == 0
        assert stream.get().text == "one"
        stream.close()

    def test_amid_busy_threads(self, link: Link) -> None:
        """Children forked at any moment of the work of other threads can use the client at once."""
        # Four answers that do not end before they are taken, so that there are four connections before the first fork:
        # OpenSSL itself does not bear a fork amid a handshake.
        client = link.client(link.serve(*[Reply(["x" * 30_000] * 6)] * 4, "one two"), buffer=1)
        at_work = threading.Barrier(5)
        stop = threading.Event()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                stream = client.chat_completion_stream(REQUEST)
                at_work.wait(10)
                assert len(stream.collect().text) == 180_000
                while not stop.is_set():
                    assert client.chat_completion_stream(REQUEST).collect().text == "one two"
            except BaseException as error:  # noqa: BLE001 - is looked at below
                failures.append(error)

        def child() -> None:
            assert client.chat_completion_stream(REQUEST, timeout=5 * SCALE).collect().text == "one two"

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        at_work.wait(10)
        statuses = [forked(child) for _ in range(15)]
        stop.set()
        for worker in workers:
            worker.join()
        assert statuses == [0] * 15
        assert failures == []

    def test_amid_a_locked_pool(self, plain: Link) -> None:
        """A child forked while another thread has the lock of the idle connections does not wait for it."""
        client = plain.client(plain.serve("one two"))
        client.chat_completion_stream(REQUEST).collect()
        session = client.caller.transport._own
        assert session is not None
        pools = session.get_adapter("http://").poolmanager.pools  # type: ignore[attr-defined]
        (mutex,) = [pools.get(key).pool.mutex for key in pools.keys()]  # noqa: SIM118 - it is no dict
        locked, done = threading.Event(), threading.Event()

        def hold() -> None:
            with mutex:
                locked.set()
                done.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        locked.wait()
        del pools, session
        try:
            assert forked(lambda: client.chat_completion_stream(REQUEST).collect()) == 0
        finally:
            done.set()
            holder.join()

    def test_a_child_that_ends_in_order(self, plain: Link) -> None:
        """A child that runs to its end in the ordinary way leaves the parent's stream alone, too."""
        server = plain.serve(Reply("one two three", pace=0.1))
        program = """
            import os, sys
            from chanstream import ChatCompletionRequest, Client, UserMessage
            client = Client(api_key="k", base_url=sys.argv[1], dialect="openai")
            request = ChatCompletionRequest("m", [UserMessage("hi")])
            stream = client.chat_completion_stream(request)
            text = stream.get().text
            import warnings
            warnings.simplefilter("ignore")  # of forking with threads
            pid = os.fork()
            if pid == 0:
                sys.exit(0 if client.chat_completion_stream(request).collect().text == "one two three" else 1)
            assert os.waitpid(pid, 0)[1] == 0
            print(text + stream.collect().text)
        """
        assert run(program, server.url) == "one two three\n"


class TestGevent:
    PROGRAM = """
        from gevent import monkey
        monkey.patch_all()
        import warnings
        import sys, time
        import gevent
        from chanstream import ChatCompletionRequest, Client, Context, StreamCancelledError, Timeout, UserMessage

        client = Client(api_key="k", base_url=sys.argv[1], dialect="openai")

        def ask(text, **more):
            return client.chat_completion_stream(ChatCompletionRequest("m", [UserMessage(text)]), **more)
    """

    def test_20_greenlets(self, link: Link) -> None:
        """20 greenlets stream at the same time, not one after the other, and get each their own answer."""
        text = "one two three four five"
        server = link.serve(reply_with=lambda request: Reply(request.json["messages"][0]["content"], pace=0.2))
        program = f"""
            begun = time.monotonic()
            greenlets = [gevent.spawn(lambda text: ask(text).collect().text, f"{{n}} {text}") for n in range(20)]
            gevent.joinall(greenlets, raise_error=True)
            print([greenlet.value for greenlet in greenlets] == [f"{{n}} {text}" for n in range(20)])
            print(time.monotonic() - begun)
        """
        right, seconds = self.run(program, server.url).split()
        assert right == "True"
        assert float(seconds) < 20 * 1.2 / 4 * SCALE  # one stream takes 1.2 s
        assert server.connections == 20

    def test_ways_out(self, plain: Link) -> None:
        """Cancel, clocks, a full channel and dropping work among greenlets, too."""
        server = plain.serve(Reply("one two three", stall_after=2))
        moment, clock = 2 * PROMPT, 0.5 * SCALE
        program = f"""
            stream = ask("close")
            reader = gevent.spawn(lambda: [chunk.text for chunk in stream])
            gevent.sleep({moment})
            stream.close()
            print(reader.get(timeout={10 * moment}))

            context = Context()
            stream = ask("cancel", context=context, buffer=1)
            gevent.spawn_later({moment}, context.cancel)
            gevent.sleep({2 * moment})
            print([type(chunk.error).__name__ for chunk in stream])

            print([str(chunk.error) for chunk in ask("idle", timeout=Timeout(idle={clock}))][-1])
            print([str(chunk.error) for chunk in ask("total", timeout={clock})][-1])
            ask("drop")
        """
        assert self.run(program, server.url).splitlines() == [
            "['one', ' two']",
            "['NoneType', 'NoneType', 'StreamCancelledError']",
            f"no further chunk within {clock:g} s (clock: idle)",
            f"not finished within {clock:g} s (clock: total)",
        ]
        assert server.wait_for(lambda s: s.open_connections == 0)

    def test_patched_late(self, plain: Link) -> None:
        """A process that is patched after its client was made, as gunicorn's with ``--preload``, streams as ever."""
        server = plain.serve(reply_with=lambda request: Reply(request.json["messages"][0]["content"], pace=0.06))
        begun = textwrap.dedent(self.PROGRAM).replace("monkey.patch_all()", "")
        program = """
            monkey.patch_all(ssl=False)  # which would warn: it has been imported
            greenlets = [gevent.spawn(lambda text: ask(text).collect().text, f"{n} two three") for n in range(20)]
            gevent.joinall(greenlets, raise_error=True)
            print([greenlet.value for greenlet in greenlets] == [f"{n} two three" for n in range(20)])
        """
        assert self.run(program, server.url, begun) == "True\n"

    def run(self, program: str, url: str, begun: str = PROGRAM) -> str:
        """Return what a program prints that begins as all of them do."""
        pytest.importorskip("gevent")
        # gevent's own import may warn of what newer Pythons deprecate.
        program = textwrap.dedent(begun) + textwrap.dedent(program)
        done = subprocess.run(
            [sys.executable, "-c", program, url], capture_output=True, text=True, timeout=30 * SCALE, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


class TestPickling:
    def test_a_client(self, link: Link) -> None:
        """A client travels with its settings, and the copy works with connections of its own."""
        server = link.serve(Reply("one two", stall_after=1), "one two")
        client = link.client(server, buffer=7, errors="raise", timeout=Timeout(idle=3.0), retry=Retry(max_retries=1))
        stream = client.chat_completion_stream(REQUEST)
        copy = pickle.loads(pickle.dumps(client))
        with contextlib.closing(copy):
            assert repr(copy) == repr(client)
            other = copy.chat_completion_stream(REQUEST)
            assert other.maxsize == 7
            assert other.collect().text == "one two"
        assert server.requests[1].headers["Authorization"] == "Bearer test-key"
        assert stream.get().text == "one"
        stream.close()

    def test_a_client_with_a_key_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A key that comes from the environment is not in the pickle: the copy looks it up where it is."""
        monkeypatch.setenv("MISTRAL_API_KEY", KEY)
        pickled = pickle.dumps(Client())
        assert KEY.encode() not in pickled
        monkeypatch.setenv("MISTRAL_API_KEY", "another")
        assert isinstance(pickle.loads(pickled), Client)

    def test_a_stream(self, link: Link) -> None:
        """A stream cannot travel, and says so."""
        stream = link.stream(Reply("one", stall_after=1))
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(stream)
        stream.close()


class TestTheImport:
    EXTRAS = ("click", "rich", "orjson", "asyncio", "gevent", "chanstream.testing", "pytest")
    CLIENT = "from chanstream import Client, ChatCompletionRequest, UserMessage"

    @pytest.mark.parametrize("statement", ["import chanstream", CLIENT, "from chanstream import *"])
    def test_takes_no_extra(self, statement: str) -> None:
        """Importing the library, by whatever name, imports nothing that is optional or large."""
        program = f"import sys; {statement}; print([name for name in {self.EXTRAS} if name in sys.modules])"
        assert run(program) == "[]\n"

    @pytest.mark.parametrize("statement", ["import chanstream", CLIENT, "from chanstream import *"])
    def test_starts_no_thread(self, statement: str) -> None:
        """Importing starts no thread, and neither does a client before its first request."""
        program = f"""
            import threading
            {statement}
            print(threading.active_count())
            from chanstream import Client
            with Client("key"):
                print(threading.active_count())
        """
        assert run(program) == "1\n1\n"

    def test_costs_little_more_than_requests(self) -> None:
        """The import takes at most 1.3 times as long as that of requests."""

        def seconds(statement: str) -> float:
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            return time.perf_counter() - begun

        # In turns, so that a busy machine is busy for both.
        pairs = [(seconds("import chanstream"), seconds("import requests")) for _ in range(5)]
        ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
        assert ours <= 1.3 * theirs


class TestTheKey:
    @pytest.fixture
    def secret(self, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[object], None]]:
        """A check that nothing readable of an object has the key in it; and none of what was logged has, at the end."""
        caplog.set_level(logging.DEBUG)
        yield keeps_secret
        records = caplog.get_records("call")
        for record in records:
            assert KEY not in record.getMessage()
            assert KEY not in repr(record.args)
            assert KEY not in caplog.handler.format(record)
        assert len(records) > 0

    def test_of_client_and_stream(self, link: Link, secret: Callable[[object], None]) -> None:
        """No representation of a client, a stream, its head or what came shows the key; nor does any log."""
        client = link.client(link.serve("one two"), api_key=KEY)
        stream = client.chat_completion_stream(REQUEST)
        secret([client, stream, stream.response, stream.response.headers, stream.statistics(), vars(stream)])
        secret([*stream, client.chat_completion(REQUEST), client.caller, client.caller.transport])

    @pytest.mark.parametrize("status", [401, 503])
    @pytest.mark.parametrize(
        "body",
        [
            '{"error": {"message": "Incorrect API key provided: %s", "code": "%s", "param": ["%s"]}}',
            '{"object": "error", "message": {"detail": [{"loc": ["header"], "msg": "no %s", "input": "%s"}]}}',
            '{"detail": "Unauthorized: %s"}',
            "<html>Bearer %s</html>",
            '["%s", {"%s": 1}]',
        ],
        ids=["OpenAI", "Mistral", "FastAPI", "HTML", "a list"],
    )
    def test_in_a_refusal(self, plain: Link, secret: Callable[[object], None], body: str, status: int) -> None:
        """A server that repeats the key in its refusal does not get it into the error, nor into its traceback."""
        reply = Reply(body=body.replace("%s", KEY).encode(), status=status, content_type="application/json")
        client = plain.client(plain.serve(reply), api_key=KEY, retry=Retry(max_retries=1, min_delay=0.0))
        for ask in (client.chat_completion_stream, client.chat_completion):
            with pytest.raises(Exception, match=rf"\[{status}\]") as caught:
                ask(REQUEST)
            secret(caught.value)
            assert "***" in str(caught.value)

    @pytest.mark.parametrize(
        "event",
        [
            {"error": {"message": f"no such key: {KEY}", "type": KEY, "code": KEY, "param": KEY}},
            {"error": f"no such key: {KEY}"},
            {"object": "error", "message": f"no such key: {KEY}"},
            {"x_groq": {"error": f"no such key: {KEY}"}, "choices": []},
            f"no such key: {KEY}".encode() + b"\n\n",
            f"no such key: {KEY}",
            f"<p>{KEY}",
            {"choices": KEY},
        ],
        ids=["OpenAI", "text", "Mistral", "Groq", "no field", "no JSON", "HTML", "no chunk"],
    )
    def test_in_a_stream(self, plain: Link, secret: Callable[[object], None], event: Any) -> None:
        """A server that repeats the key in a stream does not get it into the error either."""
        stream = plain.stream(Reply(chunks=[event]), api_key=KEY)
        *_, last = stream
        assert last.error is not None
        secret(last.error)
        secret(last)
        secret(stream)

    @pytest.mark.parametrize(
        "reply",
        [Reply.html(f"<p>{KEY}"), Reply.json({"error": {"message": KEY}}), Reply.json({"choices": KEY})],
        ids=["HTML", "error", "no completion"],
    )
    def test_in_a_whole_answer(self, plain: Link, secret: Callable[[object], None], reply: Reply) -> None:
        """Nor in an answer of status 200 that is none, with streaming or without."""
        client = plain.client(plain.serve(reply), api_key=KEY)
        with pytest.raises(Exception, match=r"\*\*\*") as caught:
            client.chat_completion(REQUEST)
        secret(caught.value)
        *_, last = client.chat_completion_stream(REQUEST)
        secret(last.error)

    @pytest.mark.parametrize("header", ["x-request-id", "x-api-key"])
    def test_in_a_header(self, plain: Link, secret: Callable[[object], None], header: str) -> None:
        """A server that repeats the key in a header of its refusal does not get it into what the error shows."""
        server = plain.serve(Reply.error(401, headers={header: KEY}))
        with pytest.raises(AuthenticationError) as caught:
            plain.client(server, api_key=KEY).chat_completion_stream(REQUEST)
        secret(caught.value)

    def test_in_errors_of_our_own(self, plain: Link, secret: Callable[[object], None]) -> None:
        """Errors of the connection, of clocks and of a cancel do not show it."""
        server = plain.serve(Reply("one", head_delay=1e9))
        client = plain.client(server, api_key=KEY)
        with pytest.raises(APITimeoutError) as late:
            client.chat_completion_stream(REQUEST, timeout=0.05)
        server.close()
        with pytest.raises(APIConnectionError) as refused:
            client.chat_completion_stream(REQUEST)
        secret(late.value)
        secret(refused.value)

    def test_in_a_retry_that_is_logged(self, plain: Link, secret: Callable[[object], None]) -> None:
        """What is logged of a retry has the server's words without the key."""
        server = plain.serve(Reply.error(503, f"{KEY} is busy"), "one")
        client = plain.client(server, api_key=KEY, retry=Retry(min_delay=0.0))
        assert client.chat_completion_stream(REQUEST).collect().text == "one"

    @pytest.mark.parametrize("key", [f"{KEY}\nX: y", f"{KEY}é", f"{KEY}\x00"])
    def test_that_cannot_be_sent(self, key: str) -> None:
        """A key that no header can hold is refused without being shown."""
        with pytest.raises(ValueError, match="api_key") as caught:
            Client(key)
        keeps_secret(caught.value)

    @pytest.mark.parametrize("key", ["c", "t", "connect", "o"])
    def test_that_is_none(self, plain: Link, key: str) -> None:
        """A made-up key for a server that wants none, be it a word or a letter, changes no word of an error."""
        client = plain.client(plain.serve(Reply.error(400, "no connection to it")), api_key=key)
        with pytest.raises(Exception, match="no connection to it"):
            client.chat_completion_stream(REQUEST)
        with pytest.raises(APITimeoutError) as caught:
            plain.client(plain.serve(Reply("x", head_delay=1e9)), api_key=key, timeout=0.05).chat_completion(REQUEST)
        assert (caught.value.clock, str(caught.value)) == ("total", "not finished within 0.05 s (clock: total)")

    def test_of_an_empty_one(self, link: Link) -> None:
        """An empty key sends none."""
        server = link.serve("one")
        link.client(server, api_key="").chat_completion(REQUEST)
        assert "Authorization" not in server.requests[0].headers


def keeps_secret(thing: object) -> None:
    """Fail if the key can be read in an object, an error's traceback and causes among it."""
    assert KEY not in repr(thing)
    assert KEY not in str(thing)
    if isinstance(thing, BaseException):
        assert KEY not in "".join(traceback.format_exception(thing))
        assert KEY not in repr(vars(thing))
        assert KEY not in repr(dict(getattr(thing, "headers", {})))


class TestWhereTheKeyGoes:
    def test_not_to_another_host(self, link: Link) -> None:
        """A redirect to another host does not take the key along."""
        other = link.serve("from the other")
        target = other.url.replace("127.0.0.1", "localhost") + "/elsewhere"
        server = link.serve(Reply(status=307, headers={"Location": target}))
        client = link.client(server, api_key=KEY)
        assert client.chat_completion_stream(REQUEST).collect().text == "from the other"
        assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"
        assert other.requests[0].path == "/elsewhere"
        assert KEY not in repr(dict(other.requests[0].headers))

    def test_on_the_same_host(self, link: Link) -> None:
        """A redirect on the same host does."""
        server = link.serve(Reply(status=307, headers={"Location": "/elsewhere"}), "one")
        link.client(server, api_key=KEY).chat_completion_stream(REQUEST).collect()
        assert [request.headers["Authorization"] for request in server.requests] == [f"Bearer {KEY}"] * 2

    @pytest.fixture
    def netrc(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A netrc with a password for every server of the tests."""
        file = tmp_path / "netrc"
        file.write_text("".join(f"machine {host} login me password it\n" for host in ("127.0.0.1", "localhost")))
        file.chmod(0o600)
        monkeypatch.setenv("NETRC", str(file))

    @pytest.mark.usefixtures("netrc")
    def test_a_netrc_does_not_replace_it(self, link: Link) -> None:
        """A netrc with a password for the host does not replace the key, nor give one where there is none."""
        server = link.serve("one")
        link.client(server, api_key=KEY).chat_completion_stream(REQUEST).collect()
        link.client(server, api_key="").chat_completion_stream(REQUEST).collect()
        assert [request.headers.get("Authorization") for request in server.requests] == [f"Bearer {KEY}", None]

    @pytest.mark.usefixtures("netrc")
    def test_a_netrc_does_not_replace_it_on_a_redirect(self, link: Link) -> None:
        """Neither does it where the server redirects."""
        server = link.serve(Reply(status=307, headers={"Location": "/elsewhere"}), "one")
        link.client(server, api_key=KEY).chat_completion_stream(REQUEST).collect()
        assert server.requests[1].headers["Authorization"] == f"Bearer {KEY}"

    @pytest.mark.usefixtures("netrc")
    def test_a_netrc_does_not_replace_it_in_a_session(self, link: Link) -> None:
        """Neither does it with the caller's own session."""
        server = link.serve("one")
        with requests.Session() as session:
            link.client(server, api_key=KEY, session=session).chat_completion_stream(REQUEST).collect()
        assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"


class CountingAdapter(HTTPAdapter):
    """An adapter that notes what it is used for."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[requests.PreparedRequest] = []
        self.closed = 0

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Note the request and send it."""
        self.sent.append(request)
        return super().send(request, *args, **kwargs)

    def close(self) -> None:
        """Note it and close."""
        self.closed += 1
        super().close()


EVENTS = b'data: {"choices":[{"delta":{"content":"mocked"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


class MockAdapter(BaseAdapter):
    """An adapter without a network, as users' tests have them."""

    def __init__(self, make_raw: Callable[[], object], status: int = 200) -> None:
        super().__init__()
        self._make_raw = make_raw
        self._status = status

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Return the response, whatever the request."""
        response = requests.Response()
        response.status_code = self._status
        response.headers["Content-Type"] = "text/event-stream"
        response.url, response.request, response.raw = request.url or "", request, self._make_raw()
        return response

    def close(self) -> None:
        """Do nothing: there is no connection."""


class OnlyRead:
    """The least that a body can be."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        return self._file.read(size)


RAWS: dict[str, Callable[[], object]] = {
    "urllib3": lambda: HTTPResponse(io.BytesIO(EVENTS), status=200, preload_content=False),
    "a file": lambda: io.BytesIO(EVENTS),
    "read() alone": lambda: OnlyRead(EVENTS),
}


class TestASessionOfTheCaller:
    def test_is_used_and_not_closed(self, link: Link) -> None:
        """Requests go through the session's adapter, with its headers, and the session stays open."""
        server = link.serve("one two")
        adapter = CountingAdapter()
        with requests.Session() as session:
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            session.headers["X-Tenant"] = "7"
            with link.client(server, session=session) as client:
                assert client.chat_completion_stream(REQUEST).collect().text == "one two"
                assert client.chat_completion(REQUEST).text == "one two"
            assert adapter.closed == 0
            assert client.chat_completion_stream(REQUEST).collect().text == "one two"
            assert len(adapter.sent) == len(server.requests) == 3
            assert server.connections == 1
        headers = server.requests[0].headers
        assert headers["X-Tenant"] == "7"
        assert headers["Authorization"] == "Bearer test-key"
        assert headers["Accept-Encoding"] == "identity"
        assert session.headers["Accept-Encoding"] != "identity"  # only our requests are different

    @pytest.mark.parametrize("how", ["close", "cancel", "idle", "drop"])
    def test_its_streams_can_be_cancelled(self, link: Link, how: str) -> None:
        """A stream of such a session is cut as fast as any other."""
        server = link.serve(Reply("one two", stall_after=1))
        context = Context()
        with requests.Session() as session:
            client = link.client(server, session=session, timeout=Timeout(idle=0.1 if how == "idle" else None))
            stream = client.chat_completion_stream(REQUEST, context=context)
            assert stream.get().text == "one"
            if how == "close":
                stream.close()
            elif how == "cancel":
                context.cancel()
            elif how == "drop":
                del stream
            else:
                assert within(0.1 + PROMPT, lambda: stream.state == "failed")
            assert within(PROMPT, lambda: producers() == 0)
            assert server.wait_for(lambda s: s.open_connections == 0, PROMPT)

    @pytest.mark.parametrize("raw", RAWS.values(), ids=RAWS)
    def test_may_be_mocked(self, raw: Callable[[], object]) -> None:
        """A session whose adapter makes responses up, as users' tests do, works with whatever they are read from."""
        with requests.Session() as session:
            session.mount("http://", MockAdapter(raw))
            client = Client("key", base_url="http://model.test", session=session)
            *_, last = client.chat_completion_stream(REQUEST)
            assert last.error is None
            assert (last.text, last.is_last_chunk) == ("mocked", True)
            assert client.chat_completion_stream(REQUEST).collect().text == "mocked"

    @pytest.mark.parametrize("raw", RAWS.values(), ids=RAWS)
    def test_may_be_mocked_to_refuse(self, raw: Callable[[], object]) -> None:
        """So does one whose adapter makes refusals up."""
        with requests.Session() as session:
            session.mount("http://", MockAdapter(raw, status=401))
            client = Client("key", base_url="http://model.test", session=session)
            with pytest.raises(AuthenticationError, match="mocked"):
                client.chat_completion_stream(REQUEST)

    def test_its_errors_are_ours(self) -> None:
        """What the adapter raises becomes an error of this library."""

        class Broken(MockAdapter):
            def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
                raise requests.exceptions.ProxyError("no way through")

        with requests.Session() as session:
            session.mount("http://", Broken(io.BytesIO))
            client = Client("key", base_url="http://model.test", session=session, retry=Retry(max_retries=0))
            with pytest.raises(APIConnectionError, match="no way through"):
                client.chat_completion_stream(REQUEST)
