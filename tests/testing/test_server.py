"""The server: its script, its records, its connections, and its life from start to close."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import requests

from chanstream.testing import RecordedRequest, Reply, StreamServer
from tests.conftest import PROMPT, SCALE, USUALLY, within

from .conftest import STREAM, Peers
from .wire import post, read_all, read_until

STALLED = Reply("a b c", stall_after=1)


def said(peers: Peers, server: StreamServer, request: object = None) -> str:
    """Returns the text of the next reply, to a client that wants no stream."""
    content: str = json.loads(peers.ask(server, request or {}).read())["choices"][0]["message"]["content"]
    return content


def drain(peer: socket.socket) -> bytes:
    """Returns what still arrives until the connection ends, in whatever way."""
    received = b""
    try:
        while data := peer.recv(65536):
            received += data
    except (ConnectionError, ssl.SSLError):
        pass
    return received


class TestScript:
    """Which request gets which reply."""

    def test_order(self, plain: Peers) -> None:
        """Replies are taken in order, and the last one stays; what is added later comes next."""
        server = plain.serve("one", Reply("two"))
        assert [said(plain, server) for _ in range(3)] == ["one", "two", "two"]
        server.reply("three", "four")
        assert [said(plain, server) for _ in range(3)] == ["three", "four", "four"]

    def test_empty(self, plain: Peers) -> None:
        """A server without a script says something friendly, until it is given one."""
        server = plain.serve()
        assert said(plain, server).startswith("Hello!")
        server.reply("one")
        assert said(plain, server) == "one"

    def test_any_path(self, plain: Peers) -> None:
        """Any GET and POST takes a reply, whatever its path."""
        server = plain.serve("one", "two", "three")
        connection = plain.http(server)
        for method, path in [("GET", "/"), ("POST", "/v1/embeddings"), ("GET", "/v1/nothing?x")]:
            connection.request(method, path)
            connection.getresponse().read()
        assert [(request.path, request.query) for request in server.requests][2] == ("/v1/nothing", "x")
        assert said(plain, server) == "three"

    @pytest.mark.parametrize("reply", [None, 5, b"text", {"text": "a"}])
    def test_no_reply(self, reply: Any) -> None:
        """What is no reply is refused at once, in the script and afterwards."""
        with pytest.raises(TypeError, match="a Reply or a str"):
            StreamServer(reply)
        with pytest.raises(TypeError, match="a Reply or a str"):
            StreamServer().reply(reply)

    def test_other_methods(self, plain: Peers) -> None:
        """Other methods are refused without taking a reply, and the connection lives on."""
        server = plain.serve("one")
        connection = plain.http(server)
        for method in ("PUT", "HEAD", "DELETE"):
            connection.request(method, "/v1/chat/completions")
            response = connection.getresponse()
            assert (response.status, response.headers["Allow"]) == (405, "GET, POST")
            assert (response.read() == b"") is (method == "HEAD")
        assert (said(plain, server), server.connections) == ("one", 2)

    def test_parallel(self, plain: Peers) -> None:
        """Many threads asking at once get each reply once."""
        server = plain.serve(*map(str, range(20)))
        answers: list[str] = []
        threads = [threading.Thread(target=lambda: answers.append(said(plain, server))) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers, key=int) == [str(number) for number in range(20)]
        assert len({request.connection for request in server.requests}) == 20


class TestModels:
    """The model list."""

    def test_list(self, peers: Peers) -> None:
        """The list is there without a script, and takes nothing from one."""
        server = peers.serve("one", "two", models=["small", {"id": "org/big", "capabilities": {"vision": True}}])
        connection = peers.http(server)
        connection.request("GET", "/v1/models")
        cards = json.loads(connection.getresponse().read())
        assert cards["object"] == "list"
        assert [card["id"] for card in cards["data"]] == ["small", "org/big"]
        assert cards["data"][1]["capabilities"] == {"vision": True}
        assert said(peers, server) == "one"

    def test_one(self, plain: Peers) -> None:
        """One model can be asked for, and an unknown one is told to be unknown."""
        server = plain.serve(models=["org/big"])
        connection = plain.http(server)
        connection.request("GET", "/v1/models/org%2Fbig")
        assert json.loads(connection.getresponse().read())["id"] == "org/big"
        connection.request("GET", "/v1/models/none")
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["error"]["code"]) == (404, "model_not_found")

    def test_default(self, plain: Peers) -> None:
        """By default there is the model that replies come from."""
        connection = plain.http(plain.serve())
        connection.request("GET", "/models")
        assert json.loads(connection.getresponse().read())["data"][0]["id"] == Reply().model


class TestReplyWith:
    """Replies that are computed."""

    def test_echo(self, peers: Peers) -> None:
        """The function sees the request and wins over the script."""

        def echo(request: RecordedRequest) -> str:
            return str(request.json["messages"][0]["content"])

        response = peers.ask(peers.serve("script", reply_with=echo))
        assert b'"content":" it."' in response.read()

    def test_reply(self, plain: Peers) -> None:
        """The function may return a whole reply."""
        response = plain.ask(plain.serve(reply_with=lambda _: Reply.error(418)))
        assert (response.status, response.reason) == (418, "I'm a Teapot")

    @pytest.mark.parametrize("result", [None, 5])
    def test_wrong_result(self, plain: Peers, result: Any) -> None:
        """A function that returns no reply is answered for by a 500."""
        response = plain.ask(plain.serve(reply_with=lambda _: result))
        assert response.status == 500
        assert "a Reply or a str" in json.loads(response.read())["error"]["message"]

    def test_exception(self, plain: Peers) -> None:
        """A function that fails is answered for by a 500, and the server lives on."""
        server = plain.serve(reply_with=lambda request: str(request.json["text"]))
        response = plain.ask(server, {})
        assert response.status == 500
        assert "KeyError('text')" in json.loads(response.read())["error"]["message"]
        assert said(plain, server, {"text": "fine"}) == "fine"


class TestRecords:
    """What the server remembers."""

    def test_request(self, peers: Peers) -> None:
        """A request is kept as it came."""
        server = peers.serve("a")
        connection = peers.http(server)
        connection.request("POST", "/v1/chat/completions", b'{"a": 1}', {"X-Key": "k"})
        connection.getresponse().read()
        (request,) = server.requests
        assert (request.method, request.path) == ("POST", "/v1/chat/completions")
        assert (request.headers["x-key"], request.body, request.json) == ("k", b'{"a": 1}', {"a": 1})

    def test_connections(self, peers: Peers) -> None:
        """Connections are counted and numbered, and a kept one counts once."""
        server = peers.serve("a")
        kept = peers.http(server)
        for _ in range(3):
            kept.request("POST", "/", json.dumps(STREAM))
            kept.getresponse().read()
        peers.ask(server).read()
        assert [request.connection for request in server.requests] == [1, 1, 1, 2]
        assert (server.connections, server.open_connections) == (2, 2)
        kept.close()
        assert server.wait_for(lambda s: s.open_connections == 1)
        assert server.connections == 2

    def test_wait_for(self, plain: Peers) -> None:
        """Waiting ends with True once the condition holds, which is looked at after changes only."""
        server = plain.serve(STALLED)
        looks: list[int] = []

        def asked_twice(watched: StreamServer) -> bool:
            looks.append(len(watched.requests))
            return looks[-1] == 2

        results: list[bool] = []
        waiter = threading.Thread(target=lambda: results.append(server.wait_for(asked_twice)))
        waiter.start()
        plain.ask(server)
        plain.ask(server)
        waiter.join(5)
        assert (results, looks[-1]) == ([True], 2)
        assert len(looks) <= 5  # once at first, and after two connections and two requests

    def test_wait_for_nothing(self, plain: Peers) -> None:
        """Waiting ends with False when the time is over."""
        assert plain.serve().wait_for(lambda s: s.connections == 1, timeout=0.01) is False


class TestProtocol:
    """HTTP as clients speak it."""

    @pytest.mark.parametrize("stream", [False, True])
    def test_requests(self, plain: Peers, stream: bool) -> None:
        """The requests library finds nothing wrong, and reuses its connection."""
        server = plain.serve("Hello world")
        with requests.Session() as session:
            for _ in range(3):
                with session.post(server.url + "/v1/chat/completions", json={"stream": stream}, timeout=5) as response:
                    response.raise_for_status()
                    assert "Hello" in response.text
        assert server.connections == 1

    @pytest.mark.parametrize(("version", "headers"), [("1.0", {}), ("1.1", {"Connection": "close"})])
    @pytest.mark.parametrize("framing", ["chunked", "content-length", "close"])
    def test_last_request(self, plain: Peers, version: str, headers: dict[str, str], framing: Any) -> None:
        """A client that will not ask again gets its answer and a close, and HTTP/1.0 gets no chunks."""
        peer = plain.dial(plain.serve(Reply("Hello", framing=framing)))
        peer.sendall(post(STREAM, version, **headers))
        head, _, body = read_all(peer).partition(b"\r\n\r\n")
        assert b"Connection: close" in head
        assert b"[DONE]" in body
        assert (b"chunked" in head) is (framing == "chunked" and version == "1.1")

    def test_reply_says_close(self, plain: Peers) -> None:
        """A script whose headers say so closes the connection."""
        peer = plain.dial(plain.serve(Reply("Hello", headers={"connection": "Close"})))
        peer.sendall(post(STREAM))
        assert read_all(peer).endswith(b"0\r\n\r\n")

    def test_continue(self, peers: Peers) -> None:
        """A client that waits for permission to send the body gets it."""
        peer = peers.dial(peers.serve("Hello"))
        head, body = post(STREAM, Expect="100-continue").split(b"\r\n\r\n")
        peer.sendall(head + b"\r\n\r\n")
        assert read_until(peer, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(body)
        assert b"HTTP/1.1 200 OK" in read_until(peer, b"[DONE]")

    def test_pipelining(self, plain: Peers) -> None:
        """Requests that come before the reply are answered one after the other."""
        peer = plain.dial(plain.serve("one", "two"))
        peer.sendall(post({}) * 2)
        assert b'"two"' in read_until(peer, b'"two"')

    def test_slow_request(self, peers: Peers) -> None:
        """A request may come byte by byte."""
        server = peers.serve("Hello")
        peer = peers.dial(server)
        for byte in post(STREAM):
            peer.sendall(bytes([byte]))
        read_until(peer, b"[DONE]")
        assert server.requests[0].json == STREAM

    def test_malformed(self, peers: Peers) -> None:
        """A request that is none is answered with 400 and a close, and is not recorded."""
        server = peers.serve("Hello")
        peer = peers.dial(server)
        peer.sendall(b"what is this?\r\n\r\n")
        answer = read_all(peer)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"] == "the request line is malformed"
        assert server.requests == ()
        assert said(peers, server) == "Hello"

    def test_large_body(self, peers: Peers) -> None:
        """Bodies of many megabytes arrive whole, in both directions."""
        server = peers.serve(Reply(body=bytes(range(256)) * 20_000))
        response = peers.ask(server, ["x" * 5_000_000])
        assert response.read() == bytes(range(256)) * 20_000
        assert len(server.requests[0].json[0]) == 5_000_000


class TestTLS:
    """What only a server with a certificate can do wrong."""

    @pytest.fixture
    def context(self, authority: Any) -> ssl.SSLContext:
        """A certificate for the loopback address."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        return context

    def test_url(self, context: ssl.SSLContext) -> None:
        """The address of a server with a certificate says so."""
        with StreamServer(tls=context) as server:
            assert server.url == f"https://127.0.0.1:{server.port}"

    def test_distrust(self, context: ssl.SSLContext, capfd: pytest.CaptureFixture[str]) -> None:
        """A client that does not trust the certificate is let go, without a word."""
        with StreamServer(tls=context) as server:
            with pytest.raises(requests.exceptions.SSLError):
                requests.get(server.url, timeout=5)
            assert server.wait_for(lambda s: s.connections == 1 and s.open_connections == 0)
        assert capfd.readouterr() == ("", "")

    def test_plain_client(self, context: ssl.SSLContext, capfd: pytest.CaptureFixture[str]) -> None:
        """A client that speaks plain HTTP is let go, without a word."""
        with StreamServer(tls=context) as server, socket.create_connection((server.host, server.port), 5) as peer:
            peer.sendall(post(STREAM))
            read_all(peer)
            assert server.wait_for(lambda s: s.open_connections == 0)
        assert capfd.readouterr() == ("", "")

    def test_tls_client_of_plain_server(self) -> None:
        """A client that speaks TLS to a plain port learns so at once."""
        with StreamServer() as server, socket.create_connection((server.host, server.port), 5) as peer:
            with pytest.raises(ssl.SSLError, match=r"(?i)wrong.version|record layer"):
                ssl.create_default_context().wrap_socket(peer, server_hostname="127.0.0.1")
            assert server.wait_for(lambda s: s.open_connections == 0)

    def test_no_context(self) -> None:
        """What is no TLS context is refused at once."""
        with pytest.raises(TypeError, match=r"tls must be an ssl\.SSLContext"):
            StreamServer(tls=True)  # type: ignore[arg-type]


def threads_and_descriptors() -> tuple[int, int]:
    """Returns how many threads and file descriptors this process has."""
    gc.collect()
    descriptors = Path("/proc/self/fd")
    return threading.active_count(), len(list(descriptors.iterdir())) if descriptors.exists() else 0


class TestLife:
    """Starting, closing, and what is left behind."""

    def test_start_and_close(self) -> None:
        """Starting and closing may be repeated; a closed server stays closed."""
        server = StreamServer("a")
        assert server.start() is server.start()
        server.close()
        server.close()
        with pytest.raises(RuntimeError, match="has been closed"):
            server.start()

    def test_never_started(self) -> None:
        """A server that never started has no address, and is closed all the same."""
        server = StreamServer("a")
        with pytest.raises(RuntimeError, match="start the server first"):
            _ = server.url
        server.close()
        assert StreamServer(port=4321).url == "http://127.0.0.1:4321"

    def test_taken_port(self, plain: Peers) -> None:
        """A port that is taken is told by whoever starts."""
        server = plain.serve()
        with pytest.raises(OSError, match="in use"):
            StreamServer(port=server.port).start()

    def test_same_port_again(self) -> None:
        """A port can be used again as soon as its server is closed, though clients were connected."""
        with StreamServer("a") as first, socket.create_connection((first.host, first.port), 5):
            assert first.wait_for(lambda s: s.open_connections == 1)
            first.close()
            with StreamServer("b", port=first.port) as second:
                assert second.url == first.url

    @pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
    def test_ipv6(self, plain: Peers) -> None:
        """The server listens on IPv6 too, and its URL is one."""
        try:
            server = plain.serve("Hello", host="::1")
        except OSError:
            pytest.skip("needs an IPv6 loopback address")
        assert server.url == f"http://[::1]:{server.port}"
        assert "Hello" in requests.post(server.url, json=STREAM, timeout=5).text

    @pytest.mark.parametrize(
        "reply",
        [
            pytest.param(STALLED, id="stalled"),
            pytest.param(Reply("a", head_delay=60), id="before the head"),
            pytest.param(Reply("a b", pace=60), id="pacing"),
            pytest.param(Reply.pings_only(0.001), id="pinging"),
            pytest.param(Reply(body=bytes(20_000_000)), id="full window"),
            pytest.param(Reply("word " * 1_000_000), id="talking"),
        ],
    )
    def test_close_is_prompt(self, peers: Peers, reply: Reply) -> None:
        """Closing ends everything within 50 ms, whatever the replies are doing, and the clients notice."""
        delays = []
        for _ in range(3):
            server = peers.serve(reply)
            clients = [peers.dial(server, SO_RCVBUF=4096) for _ in range(5)]
            for client in clients:
                client.sendall(post(STREAM))
            assert server.wait_for(lambda s: len(s.requests) == 5)
            start = time.monotonic()
            server.close()
            delays.append(time.monotonic() - start)
            assert server.open_connections == 0
            for client in clients:
                drain(client)
        assert min(delays) < USUALLY

    def test_nothing_left(self, peers: Peers, capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
        """Closing leaves no thread, no file descriptor, no warning and no word behind, whatever happened before."""
        peers.serve("warm up").close()
        before = threads_and_descriptors()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            server = peers.serve(STALLED, Reply(end="reset"), Reply("a", head_delay=60), Reply("a " * 100_000))
            clients = [peers.dial(server) for _ in range(40)]
            for client in clients[:20]:
                client.sendall(post(STREAM))
            assert server.wait_for(lambda s: len(s.requests) == 20)
            for client in clients[::2]:
                client.close()
            server.close()
            for client in clients:
                client.close()
            assert threads_and_descriptors() == before
        assert capfd.readouterr() == ("", "")
        assert caplog.records == []

    def test_close_while_accepting(self) -> None:
        """Closing in the middle of a rush of new connections leaves none behind."""
        before = threads_and_descriptors()
        for _ in range(20):
            with StreamServer(STALLED) as server:
                clients = [socket.create_connection((server.host, server.port), 5) for _ in range(10)]
                for client in clients:
                    client.sendall(post(STREAM))
            for client in clients:
                drain(client)
                client.close()
        assert threads_and_descriptors() == before

    def test_close_from_inside(self, plain: Peers) -> None:
        """The function that computes replies may close the server: its client is then cut off."""

        def close(_: RecordedRequest) -> str:
            server.close()
            return "never heard"

        server = StreamServer(reply_with=close).start()
        peer = plain.dial(server)
        peer.sendall(post(STREAM))
        assert b"[DONE]" not in drain(peer)
        server.close()

    def test_many_streams(self, plain: Peers) -> None:
        """Two hundred paced streams are served at once, none of them late."""
        tokens = [f"{number} " for number in range(20)]
        server = plain.serve(Reply(tokens, pace=0.05))
        clients = [plain.dial(server) for _ in range(200)]
        start = time.monotonic()
        for client in clients:
            client.sendall(post(STREAM, "1.0"))
        bodies = [read_all(client) for client in clients]
        assert time.monotonic() - start < 1.05 + 20 * PROMPT  # one after the other would take 210 s
        assert all(body.count(b"chat.completion.chunk") == 21 for body in bodies)
        assert server.connections == 200

    def test_five_hundred_open(self, plain: Peers) -> None:
        """Five hundred streams may be open at once, and all are let go at once."""
        server = plain.serve(STALLED)
        clients = [plain.dial(server) for _ in range(500)]
        for client in clients:
            client.sendall(post(STREAM))
        assert server.wait_for(lambda s: len(s.requests) == s.open_connections == 500)
        for client in clients:
            client.close()
        assert server.wait_for(lambda s: s.open_connections == 0)


class TestForeground:
    """Serving until told to stop."""

    def test_close_from_elsewhere(self) -> None:
        """Serving forever ends when another thread closes the server."""
        server = StreamServer("a")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert within(5, lambda: server._running)
        assert server.start() is server
        server.close()
        thread.join(5)
        assert not thread.is_alive()

    @pytest.mark.skipif(os.name == "nt", reason="needs signals")
    def test_interrupt(self) -> None:
        """Ctrl-C ends serving forever, streams and all, and is passed on."""
        program = """if True:
            from chanstream.testing import Reply, StreamServer

            class Announced(StreamServer):
                def start(self):
                    super().start()
                    print(self.port, flush=True)

            server = Announced(Reply("a", stall_after=1))
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print("interrupted", server.open_connections)
        """
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", port), 5) as peer:
                peer.sendall(post(STREAM))
                read_until(peer, b"data: ")
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=10 * SCALE)
        assert (output, errors, process.returncode) == ("interrupted 0\n", "", 0)

    def test_forgotten(self) -> None:
        """A server that nobody closes does not keep the interpreter alive."""
        program = "from chanstream.testing import StreamServer; StreamServer('a').start()"
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], capture_output=True, timeout=10 * SCALE, check=True
        )
        assert (result.stdout, result.stderr) == (b"", b"")

    def test_import(self) -> None:
        """Importing starts no thread."""
        program = "import chanstream.testing, threading; print(threading.active_count())"
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=10 * SCALE, check=True)
        assert result.stdout.strip() == b"1"


def test_a_server_that_keeps_the_newest_requests(plain: Peers) -> None:
    """With `keep`, a server remembers only its newest requests, and numbers its answers all the same."""
    server = plain.serve("same", keep=2)
    ids = {json.loads(plain.ask(server, {"messages": [], "number": number}).read())["id"] for number in range(5)}
    assert [request.json["number"] for request in server.requests] == [3, 4]
    assert len(ids) == 5
