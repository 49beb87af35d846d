"""The client: its arguments, bad input that is told at once, and what it sends."""

from __future__ import annotations

import logging
import math
import pickle
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import requests

from chanstream import (
    AuthenticationError,
    ChanstreamError,
    ChatCompletionRequest,
    Client,
    Context,
    Retry,
    StreamAPIError,
    StreamDecodeError,
    Timeout,
    UserMessage,
    __version__,
)
from chanstream.dialects import DIALECTS, OPENAI
from chanstream.testing import Reply
from tests.conftest import REQUEST, Link, within
from tests.test_context import EACH_BAD

KEY = "sk-0123456789-abcdef"
URL = "https://example.org"

Call = Callable[..., Any]
EACH_CALL = pytest.mark.parametrize(
    "call", [Client.chat_completion_stream, Client.chat_completion], ids=["stream", "whole"]
)


class TestBaseURL:
    @pytest.mark.parametrize(
        ("given", "used"),
        [
            ("http://host", "http://host/v1"),
            ("http://host/", "http://host/v1"),
            ("https://host:8443", "https://host:8443/v1"),
            ("https://host/v1", "https://host/v1"),
            ("https://host/v1/", "https://host/v1"),
            ("https://host/openai/v1", "https://host/openai/v1"),
            ("https://host/api//", "https://host/api"),
            ("HTTP://host/x", "http://host/x"),
            ("  https://host/v1\n", "https://host/v1"),
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
            ("http://[::1]:8000", "http://[::1]:8000/v1"),
            ("http://localhost:1", "http://localhost:1/v1"),
            ("http://host_name.internal", "http://host_name.internal/v1"),
            ("http://bücher.example", "http://bücher.example/v1"),
        ],
    )
    def test_how_it_is_used(self, given: str, used: str) -> None:
        """An address without a path gets /v1, one with a path is used as it is; slashes at the end do not matter."""
        assert repr(Client(KEY, base_url=given, dialect="openai")) == f"<Client openai {used}>"

    @pytest.mark.parametrize(
        "url",
        [
            "", " ", "/", "/v1", "//host", "host", "localhost", "localhost:8000", "127.0.0.1:8000", "example.org/v1",
            "http", "http:", "http:/", "http://", "https://", "http:///v1", "http://:8000", "http:host", "http:/host",
            "http//host", "://host", "ftp://host", "file:///tmp/x", "ws://host", "javascript:alert(1)",
            "http://host:port", "http://host:99999", "http://host:0", "http://host:-1", "http://host:+80",
            "http://[::1", "http://[host]", "http://ho st", "http://ho\nst", "http://ho\tst", "http://host\x00",
            "http://host/v1\r\nX-Header: 1", "http://host/a b", "http://*", "http://.", "http://.host", "http://ho%st",
        ],
    )  # fmt: skip
    def test_what_is_no_url(self, url: str) -> None:
        """A base URL that is no http or https URL is refused at once, named and shown."""
        with pytest.raises(ValueError, match=r"^base_url: expected an http or https URL, got ") as caught:
            Client(KEY, base_url=url)
        assert repr(url) in str(caught.value)

    @pytest.mark.parametrize("url", [5, b"http://host", ["http://host"], Path("/v1"), True])
    def test_what_is_no_text(self, url: Any) -> None:
        """A base URL that is no text is refused at once, and named."""
        with pytest.raises(TypeError, match=r"^base_url: expected str, got "):
            Client(KEY, base_url=url)

    @pytest.mark.parametrize(
        "url",
        [
            "https://user:hidden@host/v1",
            "https://hidden@host",
            "https://host/v1?key=hidden",
            "https://host/v1#hidden",
            "ftp://user:hidden@host",
            "https://user:hidden@host:port",
            "https://user:hidden@",
        ],
    )
    def test_a_secret_in_it(self, url: str) -> None:
        """User, query and fragment are refused, and not shown: there may be a secret in them."""
        with pytest.raises(ValueError, match=r"^base_url: expected") as caught:
            Client(KEY, base_url=url)
        assert "hidden" not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize(("path", "asked"), [("", "/v1"), ("/", "/v1"), ("/openai/v1/", "/openai/v1")])
    def test_what_is_asked_for(self, plain: Link, path: str, asked: str) -> None:
        """The path of the request follows the base URL."""
        server = plain.serve("ok")
        plain.client(server.url + path).chat_completion_stream(REQUEST).collect()
        assert [(request.method, request.path) for request in server.requests] == [
            ("POST", f"{asked}/chat/completions")
        ]


class TestKey:
    @pytest.fixture(autouse=True)
    def _no_key_about(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for dialect in DIALECTS.values():
            monkeypatch.delenv(dialect.key_variable, raising=False)

    @pytest.mark.parametrize("dialect", [*DIALECTS, attrs.evolve(OPENAI, name="own", key_variable="OWN_API_KEY")])
    def test_a_missing_one(self, dialect: Any) -> None:
        """A missing key is an error at once that names the variable to set."""
        variable = DIALECTS[dialect].key_variable if isinstance(dialect, str) else "OWN_API_KEY"
        with pytest.raises(ChanstreamError, match=variable):
            Client(dialect=dialect)

    @pytest.mark.parametrize("name", DIALECTS)
    def test_of_the_environment(self, plain: Link, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The key comes from the dialect's variable, and goes out as a bearer token."""
        monkeypatch.setenv(DIALECTS[name].key_variable, KEY)
        server = plain.serve("ok")
        plain.client(server, api_key=None, dialect=name).chat_completion_stream(REQUEST).collect()
        assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"

    def test_the_argument_wins(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """A key that is given is used, whatever the environment says; blanks around it are taken away."""
        monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")
        server = plain.serve("ok")
        plain.client(server, api_key=f" {KEY}\n").chat_completion_stream(REQUEST).collect()
        assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"

    def test_none_at_all(self, plain: Link, monkeypatch: pytest.MonkeyPatch) -> None:
        """An empty key sends none, whatever the environment says."""
        monkeypatch.setenv("OPENAI_API_KEY", "of-the-environment")
        server = plain.serve("ok")
        plain.client(server, api_key="").chat_completion_stream(REQUEST).collect()
        assert "Authorization" not in server.requests[0].headers

    @pytest.mark.parametrize("key", [KEY, ""])
    def test_a_netrc(self, plain: Link, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A password for the host in ~/.netrc does not take the key's place, nor that of no key."""
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login somebody password something\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        server = plain.serve("ok")
        plain.client(server, api_key=key).chat_completion_stream(REQUEST).collect()
        assert server.requests[0].headers.get("Authorization") == (f"Bearer {key}" if key else None)

    @pytest.mark.parametrize(
        "key",
        [
            "hidden\nhidden",
            "hidden\rX-Header: 1",
            "hidden\x00",
            "hidden\x7f",
            "hidden\t1",
            "hïdden-hidden",
            "hidden€",
            "“hidden”",
        ],
    )
    @pytest.mark.parametrize("how", ["argument", "variable"])
    def test_what_no_key_can_hold(self, key: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A key with a line end, a control character or a letter beyond ASCII is refused, and never shown."""
        if how == "variable":
            if "\x00" in key:
                pytest.skip("no variable can hold that")
            monkeypatch.setenv("MISTRAL_API_KEY", key)
        with pytest.raises(ValueError, match=r"^api_key: expected printable ASCII") as caught:
            Client(key if how == "argument" else None)
        assert "idden" not in "".join(traceback.format_exception(caught.value)).replace("hidden_by", "")

    @pytest.mark.parametrize("key", [b"hidden", 5, ["hidden"], True])
    def test_what_is_no_text(self, key: Any) -> None:
        """A key that is no text is refused, named and not shown."""
        with pytest.raises(TypeError, match=f"^api_key: expected a text, got {type(key).__name__}$"):
            Client(key)

    def test_it_is_never_shown(self, plain: Link, caplog: pytest.LogCaptureFixture) -> None:
        """Neither the repr, nor a log at any level, nor an error in which the server repeats it shows the key."""
        caplog.set_level(logging.DEBUG)
        told = {"error": {"message": f"bad key {KEY}", "code": KEY}, KEY: [KEY]}
        server = plain.serve(
            "ok",
            Reply.json(told, 401),
            Reply(body=f"<html>{KEY}</html>".encode(), status=500),
            Reply(["a", "b"]),
            Reply(chunks=[told]),
            Reply(chunks=[f"no JSON {KEY}"]),
        )
        client = plain.client(server, api_key=KEY)
        shown = [repr(client), str(client)]
        client.chat_completion_stream(REQUEST).collect()
        for _ in range(5):
            try:
                for evt in client.chat_completion_stream(REQUEST):
                    shown += [repr(evt), repr(evt.error and vars(evt.error)), str(evt.error)]
            except ChanstreamError as error:
                shown += [str(error), repr(vars(error)), *traceback.format_exception(error)]
        assert len(server.requests) == 6
        assert KEY not in "\n".join([*shown, caplog.text])

    @pytest.mark.parametrize("key", ["x", "a", "EMPTY", "none", "ollama"])
    def test_a_placeholder(self, plain: Link, key: str) -> None:
        """A few letters that stand for a key, as local servers have it, are left alone in the server's words."""
        words = f"the {key} model is exhausted: none are left, EMPTY"
        server = plain.serve(Reply.error(401, words))
        with pytest.raises(AuthenticationError) as caught:
            plain.client(server, api_key=key).chat_completion_stream(REQUEST)
        assert caught.value.message == words


BAD_ARGUMENTS: list[tuple[str, Any, type[Exception], str]] = [
    ("dialect", "mystral", ValueError, "dialect: expected 'mistral', 'groq', 'openai', got 'mystral'"),
    ("dialect", "", ValueError, "dialect: expected "),
    ("dialect", None, ValueError, "dialect: expected "),
    ("dialect", 5, ValueError, "dialect: expected "),
    ("dialect", ["mistral"], ValueError, "dialect: expected "),
    ("retry", 3, TypeError, "retry: expected Retry, got 3"),
    ("retry", "no", TypeError, "retry: expected Retry, got 'no'"),
    ("retry", Retry, TypeError, "retry: expected Retry, got <class"),
    ("timeout", Timeout, TypeError, "timeout: expected a number of seconds, got <class"),
    ("timeout", {"total": 5}, TypeError, "timeout: expected a number of seconds, got {"),
    ("timeout", (3, 5), TypeError, "timeout: expected a number of seconds, got ("),
    ("engine", "turbo", ValueError, "engine: expected 'auto', 'threaded', 'poller', got 'turbo'"),
    ("engine", None, ValueError, "engine: expected "),
    ("engine", True, ValueError, "engine: expected "),
    ("require_finish_reason", 1, TypeError, "require_finish_reason: expected bool, got 1"),
    ("require_finish_reason", None, TypeError, "require_finish_reason: expected bool, got None"),
    ("buffer", None, TypeError, "buffer: expected a whole number, got None"),
    ("errors", None, ValueError, "errors: expected 'inband', 'raise', got None"),
    ("max_event_bytes", 0, ValueError, "max_event_bytes: expected 1 or more, got 0"),
    ("max_event_bytes", -5, ValueError, "max_event_bytes: expected 1 or more, got -5"),
    ("max_event_bytes", True, TypeError, "max_event_bytes: expected a whole number, got True"),
    ("max_event_bytes", 1e6, TypeError, "max_event_bytes: expected a whole number, got 1000000.0"),
    ("session", "session", TypeError, "session: expected "),
    ("session", requests, TypeError, "session: expected "),
]
BAD_OF_BOTH: list[tuple[str, Any, type[Exception], str]] = [
    ("buffer", 0, ValueError, "buffer: expected 1 or more, got 0"),
    ("buffer", -1, ValueError, "buffer: expected 1 or more, got -1"),
    ("buffer", True, TypeError, "buffer: expected a whole number, got True"),
    ("buffer", 1.0, TypeError, "buffer: expected a whole number, got 1.0"),
    ("buffer", math.inf, TypeError, "buffer: expected a whole number, got inf"),
    ("buffer", "16", TypeError, "buffer: expected a whole number, got '16'"),
    ("errors", "ignore", ValueError, "errors: expected 'inband', 'raise', got 'ignore'"),
    ("errors", "RAISE", ValueError, "errors: expected "),
    ("errors", True, ValueError, "errors: expected "),
    ("errors", ["raise"], ValueError, "errors: expected "),
]


class TestArguments:
    @pytest.mark.parametrize(("name", "value", "kind", "text"), [*BAD_ARGUMENTS, *BAD_OF_BOTH])
    def test_a_bad_one(self, name: str, value: Any, kind: type[Exception], text: str) -> None:
        """An argument that cannot be is refused when the client is made, and named."""
        with pytest.raises(kind) as caught:
            Client(KEY, **{"base_url": URL, name: value})
        assert str(caught.value).startswith(text)

    @EACH_BAD
    def test_a_bad_timeout(self, value: Any, kind: type[Exception]) -> None:
        """A time limit that cannot be is refused when the client is made, and named."""
        with pytest.raises(kind, match=r"^timeout: expected"):
            Client(KEY, timeout=value)

    def test_only_the_key_by_position(self) -> None:
        """All but the key are keywords."""
        with pytest.raises(TypeError, match="positional"):
            Client(KEY, URL)  # type: ignore[call-arg]

    def test_one_that_there_is_not(self) -> None:
        """An argument that there is not is refused."""
        with pytest.raises(TypeError, match="max_retries"):
            Client(KEY, max_retries=5)  # type: ignore[call-arg]


class TestCallArguments:
    @pytest.mark.parametrize(("name", "value", "kind", "text"), BAD_OF_BOTH)
    def test_a_bad_one(self, plain: Link, name: str, value: Any, kind: type[Exception], text: str) -> None:
        """An argument of the call that cannot be is refused and named; nothing is sent."""
        server = plain.serve("never")
        with pytest.raises(kind) as caught:
            plain.client(server).chat_completion_stream(REQUEST, **{name: value})
        assert str(caught.value).startswith(text)
        assert server.connections == 0

    @EACH_CALL
    @EACH_BAD
    def test_a_bad_timeout(self, plain: Link, call: Call, value: Any, kind: type[Exception]) -> None:
        """A time limit of the call that cannot be is refused and named; nothing is sent."""
        server = plain.serve("never")
        with pytest.raises(kind, match=r"^timeout: expected"):
            call(plain.client(server), REQUEST, timeout=value)
        assert server.connections == 0

    @EACH_CALL
    @pytest.mark.parametrize("context", ["context", 5, Context, threading.Event()], ids=repr)
    def test_a_bad_context(self, plain: Link, call: Call, context: Any) -> None:
        """A context that is none is refused and named; nothing is sent."""
        server = plain.serve("never")
        with pytest.raises(TypeError, match=r"^context: expected Context, got "):
            call(plain.client(server), REQUEST, context=context)
        assert server.connections == 0

    @EACH_CALL
    @pytest.mark.parametrize(
        "request_",
        [None, "hi", REQUEST.to_dict(), [UserMessage("hi")], UserMessage("hi"), ChatCompletionRequest, object()],
        ids=lambda value: type(value).__name__,
    )
    def test_what_is_no_request(self, plain: Link, call: Call, request_: Any) -> None:
        """Anything but a request is refused and named, the dict of one too; nothing is sent."""
        server = plain.serve("never")
        with pytest.raises(TypeError, match=r"^request: expected ChatCompletionRequest, got "):
            call(plain.client(server), request_)
        assert server.connections == 0

    @EACH_CALL
    @pytest.mark.parametrize(
        ("messages", "text"),
        [
            ([None], r"^messages\[0\]: expected a message as a mapping, got None"),
            ([{"role": "alien", "content": "x"}], r"^messages\[0\].role: unknown role 'alien'"),
            ([{"content": "x"}], r"^messages\[0\].role: missing"),
            (None, "^messages: expected a list of messages, got None"),
            ([], "^messages: expected at least one message"),
        ],
    )
    def test_a_bad_message(self, plain: Link, call: Call, messages: Any, text: str) -> None:
        """A conversation that cannot be is refused as soon as the request is made; nothing is sent."""
        server = plain.serve("never")
        with pytest.raises((TypeError, ValueError), match=text):
            call(plain.client(server), ChatCompletionRequest("m", messages))
        assert server.connections == 0

    @EACH_CALL
    @pytest.mark.parametrize("value", [object(), {1, 2}, b"x", math.nan, -math.inf, [math.inf]], ids=repr)
    def test_what_json_does_not_have(self, plain: Link, call: Call, value: Any) -> None:
        """A value that JSON does not have is refused; nothing is sent."""
        server = plain.serve("never")
        request = ChatCompletionRequest("m", [UserMessage("hi")], extra={"option": value})
        with pytest.raises((TypeError, ValueError)):
            call(plain.client(server), request)
        assert server.connections == 0

    def test_nothing_is_left_of_a_bad_call(self, nothing_left: None, plain: Link) -> None:
        """A call that was refused leaves nothing in its context."""
        context, client = Context(), plain.client("http://127.0.0.1:9")
        for bad in ({"timeout": -1}, {"buffer": 0}, {"errors": "no"}):
            with pytest.raises(ValueError, match="expected"):
                client.chat_completion_stream(REQUEST, context=context, **bad)
        assert context._callbacks == {}

    def test_they_win(self, plain: Link) -> None:
        """What the call says counts for the call, what the client says for all others."""
        client = plain.client(plain.serve("ok"), buffer=5, errors="raise")
        with client.chat_completion_stream(REQUEST, buffer=7) as own, client.chat_completion_stream(REQUEST) as other:
            assert (own.maxsize, other.maxsize) == (7, 5)

    @EACH_CALL
    def test_the_longest_limits(self, plain: Link, call: Call) -> None:
        """Time limits of many years are as good as any."""
        seconds = min(1e9, threading.TIMEOUT_MAX)
        timeout = Timeout(connect=seconds, first_chunk=seconds, idle=seconds, total=seconds)
        client = plain.client(plain.serve("ok"), timeout=timeout)
        with Context(seconds) as context:
            answer = call(client, REQUEST, context=context)
            assert (answer.collect() if hasattr(answer, "collect") else answer).text == "ok"

    def test_no_limits(self, plain: Link) -> None:
        """All clocks can be switched off."""
        timeout = Timeout(connect=None, first_chunk=None, idle=None, total=None)
        assert plain.stream("ok", timeout=timeout).collect().text == "ok"


class TestWhatIsSent:
    def test_the_headers_of_a_stream(self, plain: Link) -> None:
        """A stream is asked for as one, uncompressed, and the library says its name."""
        server = plain.serve("ok")
        plain.client(server).chat_completion_stream(REQUEST).collect()
        headers = server.requests[0].headers
        assert headers["Accept"] == "text/event-stream"
        assert headers["Accept-Encoding"] == "identity"
        assert headers["Content-Type"] == "application/json"
        assert headers["User-Agent"] == f"chanstream/{__version__}"

    def test_the_headers_of_a_whole_answer(self, plain: Link) -> None:
        """A whole answer is asked for as JSON, and without ``stream``."""
        server = plain.serve("ok")
        plain.client(server).chat_completion(REQUEST)
        assert server.requests[0].headers["Accept"] == "application/json"
        assert server.requests[0].json == REQUEST.to_dict()

    def test_a_session_of_ones_own(self, plain: Link) -> None:
        """A session that is given is used with its headers, and stays open when the client is closed."""
        server = plain.serve("ok")
        with requests.Session() as session:
            session.headers["X-Team"] = "blue"
            with plain.client(server, session=session) as client:
                assert client.chat_completion_stream(REQUEST).collect().text == "ok"
            assert client.chat_completion(REQUEST).text == "ok"
        assert [request.headers["X-Team"] for request in server.requests] == ["blue", "blue"]


class TestWholeAnswers:
    def test_an_answer(self, plain: Link) -> None:
        """A whole answer has its text, usage, latency and the object as it came."""
        answer = plain.client(plain.serve("all of it")).chat_completion(REQUEST)
        assert answer.text == "all of it"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
        assert 0 < answer.latency < 60
        assert answer.raw["choices"][0]["message"]["content"] == "all of it"
        assert answer.to_dict() == answer.raw

    @pytest.mark.parametrize(
        "told", [{"error": {"message": "no"}}, {"object": "error", "message": "no"}, {"error": "no"}]
    )
    def test_an_error_with_status_200(self, plain: Link, told: dict[str, Any]) -> None:
        """An error in an answer that calls itself good is raised as one, in the server's words."""
        with pytest.raises(StreamAPIError, match=r"^no$") as caught:
            plain.client(plain.serve(Reply.json(told))).chat_completion(REQUEST)
        assert caught.value.body == told

    @pytest.mark.parametrize(
        "reply",
        [
            Reply.html("<h1>Welcome</h1>"),
            Reply.json([]),
            Reply.json("text"),
            Reply.json({"choices": 5}),
            Reply.json({"choices": [{"message": {"content": 5}}]}),
            Reply(body=b"", content_type="application/json"),
            Reply.garbage(),
        ],
        ids=["page", "list", "text", "no choices", "no content", "empty", "garbage"],
    )
    def test_what_is_no_completion(self, plain: Link, reply: Reply) -> None:
        """An answer that is no chat completion is told with its type and its beginning."""
        with pytest.raises(StreamDecodeError, match=r"^expected a chat completion, got "):
            plain.client(plain.serve(reply)).chat_completion(REQUEST)


class TestItsLife:
    def test_with_block(self, plain: Link) -> None:
        """The end of a with block closes the connections that no stream uses."""
        server = plain.serve("ok")
        with Client(KEY, base_url=server.url) as client:
            client.chat_completion_stream(REQUEST).collect()
            assert server.open_connections == 1
        assert server.wait_for(lambda s: s.open_connections == 0, 5)

    def test_use_after_close(self, plain: Link) -> None:
        """A client that was closed makes new connections when it is used again."""
        server = plain.serve("ok")
        client = plain.client(server)
        for number in (1, 2):
            assert client.chat_completion_stream(REQUEST).collect().text == "ok"
            client.close()
            client.close()
            assert server.connections == number

    def test_close_beside_a_stream(self, plain: Link) -> None:
        """Closing a client leaves its open streams alone."""
        server = plain.serve(Reply("one two three", pace=0.02))
        client = plain.client(server)
        stream = client.chat_completion_stream(REQUEST)
        first = stream.get().text
        client.close()
        assert first + stream.collect().text == "one two three"

    def test_pickle(self, plain: Link) -> None:
        """A client travels with all its settings, and works where it arrives."""
        server = plain.serve("ok")
        dialect = attrs.evolve(OPENAI, name="own", usage_on_request=False)
        client = Client(
            KEY, base_url=server.url, dialect=dialect, timeout=5, retry=Retry(max_retries=0), buffer=3, errors="raise"
        )
        client.chat_completion(REQUEST)
        with pickle.loads(pickle.dumps(client)) as again:
            assert repr(again) == repr(client)
            stream = again.chat_completion_stream(REQUEST)
            assert (stream.maxsize, stream.collect().text) == (3, "ok")
        client.close()
        assert server.requests[1].headers["Authorization"] == f"Bearer {KEY}"
        assert "stream_options" not in server.requests[1].json
        assert server.wait_for(lambda s: s.open_connections == 0, 5)

    def test_many_threads(self, nothing_left: None, plain: Link) -> None:
        """One client serves many threads at the same time, each with its own answer."""
        server = plain.serve(reply_with=lambda request: Reply(request.json["messages"][0]["content"]))
        client = plain.client(server)
        answers: dict[str, str] = {}

        def ask(name: str) -> None:
            for turn in range(5):
                text = f"{name} {turn} and some more"
                request = ChatCompletionRequest("m", [UserMessage(text)])
                answers[text] = client.chat_completion_stream(request).collect().text

        threads = [threading.Thread(target=ask, args=(f"thread {number}",)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 80
        assert list(answers) == list(answers.values())
        assert within(5, lambda: server.connections <= 16)
