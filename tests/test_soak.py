"""The soak: very many short streams of all kinds at the same time, after which all is as it was before."""

from __future__ import annotations

import itertools
import os
import random
import ssl
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import attrs
import pytest

import chanstream
from chanstream import (
    APITimeoutError,
    ChanstreamError,
    Client,
    CompletionChunk,
    CompletionStream,
    Context,
    InternalServerError,
    StreamAPIError,
    StreamCancelledError,
    StreamError,
    Timeout,
)
from chanstream.channel import Pipe
from chanstream.testing import RecordedRequest, Reply
from tests.concurrency import spawn
from tests.conftest import SCALE, Link, within
from tests.contract.test_13_threads import asking

COUNT = int(os.environ.get("CHANSTREAM_SOAK", "1000"))
"""How many streams there are; a short soak by default."""

CONSUMERS = 40
MEDDLERS = 8

STALLED = [Timeout(total=0.3), Timeout(first_chunk=0.3, idle=0.3)]

pytestmark = [pytest.mark.usefixtures("nothing_left"), pytest.mark.timeout((60 + COUNT / 20) * SCALE)]


def words(number: int) -> list[str]:
    """Return what stream ``number`` says, and no other: between 3 and 40 words."""
    return [f"{number}-{place} " for place in range(random.Random(f"words {number}").randrange(3, 40))]


def wholly(number: int) -> Reply:
    """Return an answer that ends well, in one of many forms."""
    chance = random.Random(f"reply {number}")
    return Reply(
        words(number),
        framing=chance.choice(["chunked", "chunked", "content-length", "close"]),
        compress=chance.choice([None] * 8 + ["gzip", "deflate"]),
        usage_chunk=chance.random() < 0.3,
        done=chance.random() < 0.8,
        newline=chance.choice(["\n", "\r\n"]),
        split=chance.choice([None, None, None, 1000, 200]),
    )


def cut(number: int) -> Reply:
    """Return an answer that ends anywhere, mostly too early, by an orderly end of the connection or a reset."""
    chance = random.Random(f"cut {number}")
    return attrs.evolve(
        wholly(number), cut_at=chance.randrange(200 * len(words(number))), end=chance.choice(["cut", "reset"])
    )


def stalled(number: int) -> Reply:
    """Return an answer that begins and never ends."""
    return attrs.evolve(wholly(number), split=None, stall_after=number % 3)


def failed(number: int) -> Reply:
    """Return an answer in whose middle the server tells of an error."""
    begun = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words(number)]
    return Reply(chunks=[*begun[: number % 7], {"error": {"message": f"no more of {number}"}}])


REPLIES: dict[str, Callable[[int], Reply]] = {
    "whole": wholly,
    "slow": lambda number: attrs.evolve(wholly(number), split=None, pace=0.002),
    "held": lambda number: attrs.evolve(wholly(number), done=True, end="hold"),
    "cut": cut,
    "stalled": stalled,
    "failed": failed,
    "refused": lambda number: Reply.error(500, f"not for {number}"),
}
KINDS = [*["whole"] * 6, *["slow"] * 3, "held", *["cut"] * 3, "stalled", "failed", "refused"]

GOOD = {"whole", "slow", "held"}
ERRORS: dict[str, type[ChanstreamError] | tuple[type[ChanstreamError], ...]] = {
    "cut": StreamError,
    "stalled": APITimeoutError,
    "failed": StreamAPIError,
    "refused": InternalServerError,
}


def reply_to(request: RecordedRequest) -> Reply:
    """Return the answer that a request asks for by kind and number."""
    kind, _, number = request.json["messages"][0]["content"].partition(" ")
    return REPLIES[kind](int(number))


@attrs.define
class Visit:
    """One stream: what it was asked for, what was seen of it, and what may have happened to it.

    Attributes:
        left: Whether its consumer may have left it, or somebody else closed it, before its end.
        cancelled: Whether its context may have been cancelled.
    """

    number: int
    kind: str
    left: bool = False
    cancelled: bool = False
    text: str = ""
    ends: list[CompletionChunk] = attrs.field(factory=list)
    pipe: Pipe[CompletionChunk] | None = None

    def take(self, chunks: Iterator[CompletionChunk] | list[CompletionChunk]) -> Visit:
        """Note what chunks say."""
        for chunk in chunks:
            self.text += chunk.text
            if chunk.is_last_chunk or chunk.error is not None:
                self.ends.append(chunk)
        return self

    def refused(self, error: ChanstreamError) -> Visit:
        """Note that the call itself failed."""
        self.ends.append(CompletionChunk(error=error))
        return self

    def fault(self) -> str | None:
        """Return what is wrong; None if all is as it may be."""
        whole = "".join(words(self.number))
        if not whole.startswith(self.text):
            return f"is not what stream {self.number} says"
        if len(self.ends) != 1 and not (self.left and not self.ends):
            return "has not one end"
        if self.pipe is not None and not (self.pipe.closed and self.pipe.ended):
            return "is not over"
        return self._fault_of_the_end(self.ends[0], whole) if self.ends else None

    def _fault_of_the_end(self, end: CompletionChunk, whole: str) -> str | None:
        if end.error is None:
            return None if self.text == whole and end.is_last_chunk else "is complete, and yet is not"
        if isinstance(end.error, StreamCancelledError):
            return None if self.cancelled or self.left else "was cancelled by nobody"
        if self.kind in GOOD or not isinstance(end.error, ERRORS[self.kind]):
            return f"ended with {end.error!r}"
        return None


class Soak:
    """Opens streams, and treats them in all the ways in which consumers do."""

    def __init__(self, clients: list[Client]) -> None:
        self._clients = clients
        self._numbers = iter(range(COUNT))
        self._acts: SimpleQueue[tuple[float, Callable[[], None]] | None] = SimpleQueue()

    def run(self) -> list[Visit]:
        """Have all streams, many at a time; return what was seen of each."""
        meddlers = [spawn(self._meddle) for _ in range(MEDDLERS)]
        consumers = [spawn(self._consume) for _ in range(CONSUMERS)]
        visits = [visit for consumer in consumers for visit in consumer.result()]
        for _ in meddlers:
            self._acts.put(None)
        for meddler in meddlers:
            meddler.result(30)
        return visits

    def _consume(self) -> list[Visit]:
        return [visit for number in self._numbers for visit in self.visit(number)]

    def _meddle(self) -> None:
        """Close and cancel, in a moment, what others read."""
        while (told := self._acts.get()) is not None:
            delay, act = told
            time.sleep(delay)
            act()

    def visit(self, number: int) -> list[Visit]:
        """Have a stream, or a few merged ones, from the opening to the end; return what was seen."""
        chance = random.Random(number)
        ways = [self.iterate, self.iterate, self.collect, self.leave, self.close, self.cancel, self.drop, self.dawdle]
        if hasattr(chanstream, "merge"):
            ways.append(self.merge)
        return chance.choice(ways)(number, chance)

    def ask(self, number: int, chance: random.Random, **settings: Any) -> tuple[Visit, list[CompletionStream]]:
        """Return a new visit and the only reference to its stream, in a list; no stream if the call was refused."""
        visit = Visit(number, chance.choice(KINDS))
        timeout = chance.choice(STALLED) if visit.kind == "stalled" else Timeout(total=50 * SCALE)
        settings = {"timeout": timeout, "buffer": chance.choice([1, 4, 1024]), **settings}
        try:
            stream = chance.choice(self._clients).chat_completion_stream(asking(f"{visit.kind} {number}"), **settings)
        except ChanstreamError as error:
            return visit.refused(error), []
        visit.pipe = stream._pipe
        return visit, [stream]

    def later(self, act: Callable[[], None], chance: random.Random) -> None:
        """Have something done by another thread, in a moment."""
        self._acts.put((chance.random() * 0.03, act))

    def iterate(self, number: int, chance: random.Random) -> list[Visit]:
        """Take all there is, in a loop or as it comes."""
        visit, streams = self.ask(number, chance)
        for stream in streams:
            if chance.random() < 0.3:
                visit.take(stream.get_many())
            visit.take(iter(stream))
        return [visit]

    def dawdle(self, number: int, chance: random.Random) -> list[Visit]:
        """Take all there is, slowly, with room for one."""
        visit, streams = self.ask(number, chance, buffer=1)
        for stream in streams:
            for chunk in stream:
                visit.take([chunk])
                time.sleep(0.001)
        return [visit]

    def collect(self, number: int, chance: random.Random) -> list[Visit]:
        """Take the answer as a whole."""
        visit, streams = self.ask(number, chance)
        for stream in streams:
            try:
                visit.text = stream.collect().text
                visit.ends.append(attrs.evolve(CompletionChunk(), is_last_chunk=True))
            except ChanstreamError as error:
                visit.text = error.partial.text  # type: ignore[attr-defined]  # all errors that end a stream have it
                visit.refused(error)
        return [visit]

    def leave(self, number: int, chance: random.Random) -> list[Visit]:
        """Break out of the loop, or leave a with block, at any chunk."""
        visit, streams = self.ask(number, chance)
        visit.left = True
        for stream in streams:
            with stream:
                for chunk in stream:
                    visit.take([chunk])
                    if chance.random() < 0.1:
                        break
        return [visit]

    def close(self, number: int, chance: random.Random) -> list[Visit]:
        """Read what another thread closes."""
        visit, streams = self.ask(number, chance)
        visit.left = True
        for stream in streams:
            self.later(stream.close, chance)
            visit.take(iter(stream))
        return [visit]

    def cancel(self, number: int, chance: random.Random) -> list[Visit]:
        """Read what is cancelled by its context, before the head or after."""
        context = Context()
        self.later(context.cancel, chance)
        visit, streams = self.ask(number, chance, context=context)
        visit.cancelled = True
        for stream in streams:
            visit.take(iter(stream))
        return [visit]

    def drop(self, number: int, chance: random.Random) -> list[Visit]:
        """Take some chunks, and forget the stream."""
        visit, streams = self.ask(number, chance)
        visit.left = True
        if streams:
            visit.take(list(itertools.islice(iter(streams[0].__next__, None), 0 if visit.kind == "failed" else 1)))
        streams.clear()
        return [visit]

    def merge(self, number: int, chance: random.Random) -> list[Visit]:
        """Read three streams as one, to the end or not."""
        asked = [self.ask(number + COUNT * place, chance) for place in range(3)]
        visits = {visit.number: visit for visit, _ in asked}
        stays = chance.random() < 0.7
        for visit in visits.values():
            visit.left = not stays
        for key, chunk in chanstream.merge({visit.number: streams[0] for visit, streams in asked if streams}):
            visits[key].take([chunk])
            if not stays and chance.random() < 0.03:
                break
        return list(visits.values())


@pytest.mark.slow
def test_soak(plain: Link, tls: ssl.SSLContext) -> None:
    """Streams of both engines, with TLS and without, end each exactly once, with their own text and nothing lost."""
    links = [plain, attrs.evolve(plain, tls=tls)]
    servers = [link.serve(reply_with=reply_to, keep=1) for link in links]
    clients = [
        link.client(server, engine=engine)
        for link, server in zip(links, servers, strict=True)
        for engine in ("poller", "threaded")
    ]
    visits = Soak(clients).run()
    assert within(5, lambda: all(visit.pipe.closed for visit in visits if visit.pipe is not None))
    faults = [f"{fault}: {visit!r}" for visit in visits if (fault := visit.fault())]
    assert faults[:5] == []
    assert {visit.kind for visit in visits} == set(REPLIES)
    for client in clients:
        client.close()
    assert all(server.wait_for(lambda s: s.open_connections == 0) for server in servers)
