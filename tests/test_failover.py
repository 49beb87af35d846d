"""Failover: the next server is asked when one fails before its first chunk, and only then."""

from __future__ import annotations

import math
import pickle
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest

from chanstream import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ChanstreamError,
    ChatCompletionRequest,
    Client,
    Context,
    Failover,
    InternalServerError,
    NotFoundError,
    RateLimitError,
    Retry,
    StreamAPIError,
    StreamCancelledError,
    StreamDecodeError,
    StreamTruncatedError,
    Timeout,
    UnprocessableEntityError,
    UserMessage,
)
from chanstream.testing import Reply, StreamServer
from tests.conftest import PROMPT, REQUEST, SCALE, Link, producers, within

pytestmark = pytest.mark.usefixtures("nothing_left")

SILENT = Reply(stall_after=0)
EMPTY = Reply("", finish_reason=None, done=False, usage=False)
LOST = Reply("A", cut_at=3, end="reset")
FAILS = Reply(chunks=[{"error": {"message": "overloaded"}}])


def two(link: Link, first: Reply | str, second: Reply | str = "B") -> tuple[Failover, StreamServer, StreamServer]:
    """Return two servers that each have one answer, and what asks them in turn."""
    one, other = link.serve(first), link.serve(second)
    return Failover([link.client(one), link.client(other)], first_chunk=0.2 * SCALE), one, other


@pytest.fixture
def nowhere() -> str:
    """The address of no server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


class TestTheNext:
    @pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 409, 413, 429, 500, 503])
    def test_after_a_refusal(self, plain: Link, status: int) -> None:
        """A server that refuses for reasons of its own is left for the next one, streamed or whole."""
        servers, *_ = two(plain, Reply.error(status))
        assert servers.chat_completion_stream(REQUEST).collect().text == "B"
        assert servers.chat_completion(REQUEST).text == "B"

    @pytest.mark.parametrize(
        "reply",
        [
            SILENT,
            Reply(head_delay=math.inf),
            EMPTY,
            FAILS,
            Reply.html("<p>busy</p>"),
            Reply("A", cut_at=3, end="reset"),
        ],
        ids=["no chunk", "no head", "no event", "an error", "no stream", "lost"],
    )
    def test_after_a_failed_stream(self, link: Link, reply: Reply) -> None:
        """So is one whose stream fails before its first chunk, or does not come to it in time."""
        servers, one, other = two(link, reply)
        assert servers.chat_completion_stream(REQUEST).collect().text == "B"
        assert (len(one.requests), len(other.requests)) == (1, 1)

    def test_without_a_connection(self, plain: Link, nowhere: str) -> None:
        """So is one that cannot be reached."""
        servers = Failover([plain.client(nowhere), plain.client(plain.serve("B"))])
        assert servers.chat_completion_stream(REQUEST).collect().text == "B"
        assert servers.chat_completion(REQUEST).text == "B"

    def test_the_first_that_answers(self, plain: Link) -> None:
        """Nobody is asked who is not needed, and each client tries again first as its retry says."""
        busy, good, spare = plain.serve(Reply.error(503)), plain.serve("B"), plain.serve("C")
        retrying = plain.client(busy, retry=Retry(max_retries=2, min_delay=0))
        servers = Failover([retrying, plain.client(good), plain.client(spare)])
        assert servers.chat_completion_stream(REQUEST).collect().text == "B"
        assert [len(server.requests) for server in (busy, good, spare)] == [3, 1, 0]

    def test_what_the_loser_leaves(self, link: Link) -> None:
        """A server that was too slow is rid of its connection, and no thread stays."""
        servers, slow, _ = two(link, SILENT, Reply("B b", stall_after=1))
        with servers.chat_completion_stream(REQUEST):
            assert within(PROMPT, lambda: not slow.open_connections)
        assert within(PROMPT, lambda: not producers())

    def test_models(self, plain: Link) -> None:
        """A model's name beside a client takes the place of the request's, there alone."""
        one, other = plain.serve(Reply.error(404)), plain.serve("B")
        servers = Failover([plain.client(one), (plain.client(other), "openai/gpt-oss-20b")])
        servers.chat_completion_stream(REQUEST).collect()
        servers.chat_completion(REQUEST)
        assert [sent.json["model"] for sent in one.requests] == ["test-model"] * 2
        assert [sent.json["model"] for sent in other.requests] == ["openai/gpt-oss-20b"] * 2

    def test_dialects(self, plain: Link) -> None:
        """Each server is asked in its own words."""
        one, other = plain.serve(Reply.error(500)), plain.serve("B")
        servers = Failover([plain.client(one, dialect="mistral"), plain.client(other, dialect="groq")])
        servers.chat_completion_stream(attrs.evolve(REQUEST, random_seed=1)).collect()
        assert one.requests[0].json["random_seed"] == other.requests[0].json["seed"] == 1


class TestTheStream:
    def test_nothing_is_lost(self, plain: Link) -> None:
        """The chunk that was waited for comes first, with its latencies as they were measured."""
        servers, *_ = two(plain, Reply("A b c", first_delay=0.05))
        chunks = list(servers.chat_completion_stream(REQUEST))
        assert [chunk.text for chunk in chunks] == ["A", " b", " c", ""]
        assert chunks[0].chunk_latency >= 0.05
        assert chunks[-1].total_latency == sum(chunk.chunk_latency for chunk in chunks)

    def test_it_is_given_with_its_first_chunk(self, plain: Link) -> None:
        """The stream is given when its first chunk is there, and not only when it ends."""
        servers, *_ = two(plain, Reply("A b", stall_after=1))
        with servers.chat_completion_stream(REQUEST) as stream:
            assert stream.qsize() == 1
            assert stream.get(block=False).text == "A"

    def test_one_chunk(self, plain: Link) -> None:
        """An answer that is over with its first chunk is an answer."""
        servers, _, other = two(plain, Reply(chunks=["[DONE]"]))
        (last,) = servers.chat_completion_stream(REQUEST)
        assert last.is_last_chunk
        assert not other.requests

    @pytest.mark.parametrize("mode", ["inband", "raise"])
    def test_after_the_first_chunk(self, plain: Link, mode: Any) -> None:
        """What goes wrong after the first chunk comes with the stream, as was asked for, and nobody else is asked."""
        servers, _, other = two(plain, Reply("A b", finish_reason=None, done=False))
        stream = servers.chat_completion_stream(REQUEST, errors=mode)
        assert [stream.get().text, stream.get().text] == ["A", " b"]
        if mode == "raise":
            with pytest.raises(StreamTruncatedError):
                stream.get()
        else:
            assert isinstance(stream.get().error, StreamTruncatedError)
        assert not other.requests

    def test_arguments(self, plain: Link) -> None:
        """What a call says goes to whoever is asked."""
        servers, one, other = two(plain, Reply.error(500), "B " * 50)
        extras: dict[str, Any] = {"extra_body": {"a": 1}, "extra_headers": {"X-B": "2"}, "extra_query": {"c": "3"}}
        stream = servers.chat_completion_stream(REQUEST, buffer=3, **extras)
        assert stream.statistics().maxsize == 3
        assert stream.collect().text == "B " * 50
        servers.chat_completion(REQUEST, **extras)
        for sent in (*one.requests, *other.requests):
            assert (sent.json["a"], sent.headers["x-b"], sent.query) == (1, "2", "c=3")

    def test_resume(self, plain: Link) -> None:
        """A stream of a failover may go on after a cut, with the server that it has."""
        one = plain.serve(Reply.error(500))
        other = plain.serve(Reply("A b", finish_reason=None, done=False), " c")
        retry = Retry(max_retries=0, min_delay=0)
        servers = Failover([plain.client(server, dialect="mistral", retry=retry) for server in (one, other)])
        assert servers.chat_completion_stream(REQUEST, resume="prefix").collect().text == "A b c"
        assert (len(one.requests), len(other.requests)) == (1, 2)


class TestWhenAllFail:
    @pytest.mark.parametrize(
        ("reply", "kind"),
        [
            (Reply.error(429), RateLimitError),
            (EMPTY, StreamTruncatedError),
            (FAILS, StreamAPIError),
            (Reply.garbage(), StreamDecodeError),
            (SILENT, APITimeoutError),
        ],
        ids=["refusal", "no event", "an error", "no stream", "no chunk"],
    )
    def test_the_last_error(self, plain: Link, reply: Reply, kind: type[ChanstreamError]) -> None:
        """The last error is raised, whether it came before the head or after it, and has the others."""
        servers, *_ = two(plain, Reply.error(503, "down"), reply)
        with pytest.raises(kind) as caught:
            servers.chat_completion_stream(REQUEST)
        (earlier,) = caught.value.earlier
        assert isinstance(earlier, InternalServerError)
        assert [str(error) for error in pickle.loads(pickle.dumps(caught.value)).earlier] == [str(earlier)]

    def test_in_order(self, plain: Link, nowhere: str, caplog: pytest.LogCaptureFixture) -> None:
        """The errors of the others are in the order in which they came, and in the log."""
        broken = [plain.client(plain.serve(Reply.error(status))) for status in (401, 404)]
        with pytest.raises(APIConnectionError) as caught:
            Failover([*broken, plain.client(nowhere)]).chat_completion(REQUEST)
        assert [type(error) for error in caught.value.earlier] == [AuthenticationError, NotFoundError]
        assert caplog.text.count("the next one is asked") == 2
        assert "test-key" not in caplog.text

    def test_one_server(self, plain: Link) -> None:
        """One server alone is a failover too."""
        with pytest.raises(RateLimitError) as caught:
            Failover([plain.client(plain.serve(Reply.error(429)))]).chat_completion_stream(REQUEST)
        assert caught.value.earlier == ()


class TestWhatIsNotForTheNext:
    @pytest.mark.parametrize(("status", "kind"), [(400, BadRequestError), (422, UnprocessableEntityError)])
    def test_a_wrong_request(self, plain: Link, status: int, kind: type[ChanstreamError]) -> None:
        """A request that is wrong is told at once."""
        servers, _, other = two(plain, Reply.error(status))
        with pytest.raises(kind):
            servers.chat_completion_stream(REQUEST)
        with pytest.raises(kind):
            servers.chat_completion(REQUEST)
        assert not other.requests

    @pytest.mark.parametrize("reply", [Reply(head_delay=math.inf), SILENT], ids=["no head", "no chunk"])
    def test_cancel(self, plain: Link, reply: Reply) -> None:
        """A cancel ends it all, whatever is waited for, and frees everything."""
        one, other = plain.serve(reply), plain.serve("B")
        context = Context()
        servers = Failover([plain.client(one), plain.client(other)])
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(servers.chat_completion_stream, REQUEST, context=context)
            assert one.wait_for(lambda server: len(server.requests) == 1)
            context.cancel()
            with pytest.raises(StreamCancelledError):
                asked.result(5 * SCALE)
        assert within(PROMPT, lambda: not producers() and not one.open_connections)
        assert not other.requests
        assert not context._callbacks

    def test_a_total(self, plain: Link) -> None:
        """A total covers all servers together, and nobody is asked after it."""
        servers = [plain.serve(SILENT) for _ in range(3)]
        clients = [plain.client(server) for server in servers]
        with pytest.raises(APITimeoutError) as caught:
            Failover(clients, first_chunk=0.5 * SCALE).chat_completion_stream(REQUEST, timeout=0.75 * SCALE)
        assert caught.value.clock == "total"
        assert [len(server.requests) for server in servers] == [1, 1, 0]

    def test_a_total_goes_on(self, plain: Link) -> None:
        """It covers the stream too."""
        servers, *_ = two(plain, Reply.error(500), Reply("B b", stall_after=1))
        *_, last = servers.chat_completion_stream(REQUEST, timeout=0.3 * SCALE)
        assert isinstance(last.error, APITimeoutError)
        assert last.error.clock == "total"

    def test_a_deadline(self, plain: Link) -> None:
        """So does the deadline of a context."""
        servers, _, other = two(plain, SILENT)
        with pytest.raises(APITimeoutError) as caught:
            servers.chat_completion_stream(REQUEST, context=Context(0.1 * SCALE))
        assert caught.value.clock == "context"
        assert not other.requests

    def test_a_whole_answer_takes_its_time(self, plain: Link) -> None:
        """The clock for the first chunk is none for a whole answer; that of a call is."""
        servers, *_ = two(plain, Reply("A", head_delay=1 * SCALE))
        assert servers.chat_completion(REQUEST).text == "A"
        assert servers.chat_completion(REQUEST, timeout=Timeout(first_chunk=0.5 * SCALE)).text == "B"


class TestTheObject:
    def test_pickled(self, plain: Link) -> None:
        """A copy by pickle asks the same servers, and closes the connections that it has made."""
        servers, *_ = two(plain, Reply.error(500))
        with pickle.loads(pickle.dumps(servers)) as copy:
            assert copy.chat_completion_stream(REQUEST).collect().text == "B"

    def test_threads(self, plain: Link) -> None:
        """Many threads may ask at once."""
        servers, *_ = two(plain, Reply.error(500))
        barrier = threading.Barrier(8)

        def ask(_: int) -> str:
            barrier.wait(5 * SCALE)
            return servers.chat_completion_stream(REQUEST).collect().text

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(8))) == {"B"}

    def test_repr(self, plain: Link) -> None:
        """It shows the clients, and so no key."""
        shown = repr(Failover([plain.client("http://a"), plain.client("http://b")]))
        assert shown == "<Failover <Client openai http://a/v1>, <Client openai http://b/v1>>"

    @pytest.mark.parametrize(
        ("clients", "first_chunk", "error", "text"),
        [
            ([], None, ValueError, "^clients: expected one at least"),
            (None, None, TypeError, "^clients: expected a list"),
            ("mistral", None, TypeError, "^clients: expected a list"),
            (["mistral"], None, TypeError, r"^clients\[0\]: expected a Client"),
            ([(1, "m")], None, TypeError, r"^clients\[0\]: expected a Client"),
            ([(Client(""), 1)], None, TypeError, r"^clients\[0\]: expected a model's name"),
            ([(Client(""), None)], None, TypeError, r"^clients\[0\]: expected a model's name"),
            ([(Client(""), "")], None, ValueError, r"^clients\[0\]: the model's name is empty"),
            ([Client("")], 0, ValueError, "^first_chunk: expected seconds above 0"),
            ([Client("")], "2", TypeError, "^first_chunk: expected a number"),
            (Client(""), None, TypeError, "^clients: expected a list"),
        ],
    )
    def test_bad_settings(self, clients: Any, first_chunk: Any, error: type[Exception], text: str) -> None:
        """What cannot be is told when it is made."""
        with pytest.raises(error, match=text):
            Failover(clients, first_chunk=first_chunk)

    def test_a_bad_request(self, plain: Link) -> None:
        """What one of the dialects does not take is told before anybody is asked, whoever would have answered."""
        one, other = plain.serve(), plain.serve()
        servers = Failover([plain.client(one, dialect="mistral"), plain.client(other, dialect="groq")])
        request = ChatCompletionRequest("m", [UserMessage("Hi.")], safe_prompt=True)
        for ask in (servers.chat_completion_stream, servers.chat_completion):
            with pytest.raises(ValueError, match=r"^safe_prompt: the 'groq' dialect"):
                ask(request)
            with pytest.raises(TypeError, match=r"^request: expected ChatCompletionRequest"):
                ask("Hi.")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^resume: servers of the 'groq' dialect"):
            servers.chat_completion_stream(REQUEST, resume="prefix")
        assert one.requests == other.requests == ()
