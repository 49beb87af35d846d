"""Promise 3: the last chunk is complete.

It holds the finish reason and the usage, wherever the server put it, and always a choice to look at. It waits for its
usage until the wire ends, the usage is there, or one second has passed.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import attrs
import pytest

from chanstream import ChannelClosedError, CompletionChunk, CompletionStream, StreamAPIError, StreamInterruptedError
from chanstream.engines import flow
from chanstream.testing import Reply, StreamServer
from chanstream.wire import machine
from tests.conftest import PROMPT, REQUEST, SCALE, Link, at_most

COUNTS = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
DONE = "[DONE]"
TWO_CHOICES = attrs.evolve(REQUEST, n=2)

HELD = 0.4 * SCALE
"""Seconds for which a finish chunk is held back for its usage here; everywhere else it is one, as one test sees."""


@pytest.fixture(autouse=True)
def brief_hold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have finish chunks held back for less than a second, but for the test of just that."""
    if request.node.originalname != "test_for_a_second":
        monkeypatch.setattr(machine, "HOLD_SECONDS", HELD)
        monkeypatch.setattr(flow, "HOLD_SECONDS", HELD)


def choice(text: str | None = None, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    """Return the JSON object of a choice."""
    return {"index": index, "delta": {} if text is None else {"content": text}, "finish_reason": finish}


def said(text: str | None = None, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """Return the JSON object of a chunk with one choice."""
    return {"id": "c-1", "model": "m", "choices": [choice(text, finish, index)], **more}


def counted(total: int) -> dict[str, int]:
    """Return usage with another total: what came at another time."""
    return {**COUNTS, "total_tokens": total}


def trailing(total: int = 5) -> dict[str, Any]:
    """Return the JSON object of a chunk that holds usage alone."""
    return {"id": "c-1", "model": "m", "choices": [], "usage": counted(total)}


def answered(link: Link, *chunks: Any, n: int = 1, **settings: Any) -> list[CompletionChunk]:
    """Return the chunks that a client gets of an answer made of these events."""
    client = link.client(link.serve(Reply(chunks=chunks, **settings)))
    return list(client.chat_completion_stream(attrs.evolve(REQUEST, n=n)))


def text(chunks: list[CompletionChunk], index: int = 0) -> str:
    """Return the text of one choice."""
    return "".join(one.delta.text for evt in chunks for one in evt.choices if one.index == index)


# -- where usage may be ----------------------------------------------------------------------------------------------

STOP = said(finish="stop")
PLACES: dict[str, tuple[Any, ...]] = {
    "finish chunk (Mistral)": (said("a"), said("b"), said(finish="stop", usage=COUNTS), DONE),
    "finish chunk with text": (said("a"), said("b", "stop", usage=COUNTS), DONE),
    "finish chunk with timings (llama.cpp)": (said("ab"), said(finish="stop", usage=COUNTS, timings={"n": 2}), DONE),
    "trailing (OpenAI)": (
        said("a", usage=None),
        said("b", usage=None),
        said(finish="stop", usage=None),
        trailing(),
        DONE,
    ),
    "trailing, no [DONE]": (said("a"), said("b"), STOP, trailing()),
    "trailing, unterminated": (said("ab"), STOP, b'data: {"choices":[],"usage":{"total_tokens":5}}'),
    "trailing, after comments": (said("ab"), STOP, b": ping\n\n", b": ping\n\n", trailing(), DONE),
    "trailing, null choices": (said("ab"), STOP, {"choices": None, "usage": COUNTS}, DONE),
    "trailing, no choices": (said("ab"), STOP, {"usage": COUNTS}, DONE),
    "dummy choice (LiteLLM)": (said("ab"), STOP, said(usage=COUNTS), DONE),
    "dummy choice with a role": (
        said("ab"),
        STOP,
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "usage": COUNTS},
        DONE,
    ),
    "dummy choice with the reason": (said("ab"), STOP, said("", "stop", usage=COUNTS), DONE),
    "x_groq on the finish chunk": (said("ab"), said(finish="stop", x_groq={"id": "r", "usage": COUNTS}), DONE),
    "x_groq, trailing": (said("ab"), STOP, {"choices": [], "x_groq": {"id": "r", "usage": COUNTS}}, DONE),
    "x_groq id first": (said("a", x_groq={"id": "r"}), said("b"), said(finish="stop", usage=COUNTS), DONE),
    "every chunk (vLLM)": (
        said("a", usage=counted(3)),
        said("b", usage=counted(4)),
        said(finish="stop", usage=COUNTS),
        DONE,
    ),
    "every chunk and trailing": (said("a", usage=counted(3)), said("b", usage=counted(4)), STOP, trailing(), DONE),
    "every chunk, all the same": (said("a", usage=counted(3)), said("b", "stop", usage=COUNTS), trailing(), DONE),
    "before the finish": (said("a"), trailing(), said("b"), STOP, DONE),
    "first of all": (trailing(), said("a"), said("b"), STOP, DONE),
    "on text, not on finish": (said("a"), said("b", usage=COUNTS), STOP, DONE),
    "running count, then the last": (said("ab", usage=counted(2)), STOP, trailing(5), DONE),
}


class TestUsage:
    @pytest.mark.parametrize("chunks", PLACES.values(), ids=PLACES.keys())
    def test_wherever_it_is(self, link: Link, chunks: tuple[Any, ...]) -> None:
        """The last chunk holds the final usage and the finish reason, wherever the server put the usage."""
        found = answered(link, *chunks)
        last = found[-1]
        assert [evt.is_last_chunk for evt in found] == [False] * (len(found) - 1) + [True]
        assert text(found) == "ab"
        assert last.usage is not None
        assert last.usage.total_tokens == 5
        assert last.choices[0].finish_reason == "stop"

    @pytest.mark.parametrize(
        "chunks",
        [(said("ab"), trailing(), DONE), (said("a", usage=counted(2)), said("b", usage=COUNTS), DONE)],
        ids=["trailing", "every chunk"],
    )
    def test_without_a_finish_reason(self, link: Link, chunks: tuple[Any, ...]) -> None:
        """A last chunk that is made up, for want of a finish reason, holds the usage too."""
        found = answered(link, *chunks)
        last = found[-1]
        assert (text(found), last.is_last_chunk, last.choices[0].finish_reason) == ("ab", True, None)
        assert last.usage is not None
        assert last.usage.total_tokens == 5

    @pytest.mark.parametrize("usage", [{}, {"usage": None}, {"usage": {}}], ids=["missing", "null", "empty"])
    def test_none(self, link: Link, usage: dict[str, Any]) -> None:
        """Where the server sent no usage the last chunk has None."""
        last = answered(link, said("ab", **usage), said(finish="stop", **usage), DONE)[-1]
        assert (last.is_last_chunk, last.usage, last.choices[0].finish_reason) == (True, None, "stop")

    def test_it_is_no_chunk_of_its_own(self, link: Link) -> None:
        """A trailing event of usage is folded into the finish chunk: nothing comes between text and end."""
        found = answered(link, said("a"), STOP, trailing(), DONE)
        assert [evt.text for evt in found] == ["a", ""]
        assert found[-1].raw == STOP
        assert found[-1].to_dict()["usage"] == COUNTS

    def test_running_counts_are_told(self, link: Link) -> None:
        """A count that comes with a piece of text is there on that chunk too."""
        found = answered(link, said("a", usage=counted(3)), said("b", usage=counted(4)), STOP, trailing(), DONE)
        assert [evt.usage and evt.usage.total_tokens for evt in found] == [3, 4, 5]

    @pytest.mark.parametrize("usage_chunk", [False, True], ids=["finish chunk", "trailing"])
    @pytest.mark.parametrize("framing", ["chunked", "content-length", "close"])
    def test_collect(self, link: Link, framing: Any, usage_chunk: bool) -> None:
        """`collect` returns finish reason and usage as well, on every framing."""
        answer = link.stream(Reply("a b", usage=COUNTS, usage_chunk=usage_chunk, framing=framing)).collect()
        assert answer.usage is not None
        assert (answer.text, answer.choices[0].finish_reason, answer.usage.total_tokens) == ("a b", "stop", 5)

    @pytest.mark.parametrize("error", [True, False], ids=["error", "cut"])
    def test_an_error_chunk_tells_what_was_counted(self, link: Link, error: bool) -> None:
        """A stream that breaks after it told usage has it on its error chunk."""
        last = answered(link, said("a", usage=COUNTS), *([{"error": "x"}] if error else []), end="cut")[-1]
        assert isinstance(last.error, StreamAPIError if error else StreamInterruptedError)
        assert last.usage is not None
        assert last.usage.total_tokens == 5


# -- how long it is held back ----------------------------------------------------------------------------------------


def timed(stream: CompletionStream) -> list[tuple[float, CompletionChunk]]:
    """Return each chunk with the seconds for which the consumer waited for it."""
    found = []
    before = time.monotonic()
    with contextlib.suppress(ChannelClosedError):
        while True:
            evt = stream.get(timeout=5 * SCALE)  # a stream that does not end is told at once
            now = time.monotonic()
            found.append((now - before, evt))
            before = now
    return found


def held_open(link: Link, *chunks: Any, **settings: Any) -> tuple[StreamServer, CompletionStream]:
    """Return the stream of a server that sends these events and then holds the body open."""
    server = link.serve(Reply(chunks=chunks, end="hold", **settings))
    return server, link.client(server).chat_completion_stream(REQUEST)


def all_gone(server: StreamServer) -> bool:
    """Return whether every connection was left."""
    return server.open_connections == 0


EVERY_FRAMING = pytest.mark.parametrize("framing", ["chunked", "content-length", "close"])


@pytest.mark.usefixtures("nothing_left")
class TestHeldBack:
    def test_for_a_second(self, plain: Link) -> None:
        """A finish chunk without usage, from a server that goes on, is the last chunk after one second."""
        begun = time.monotonic()
        _, stream = held_open(plain, said("a"), STOP)
        (_, _), (wait, last) = timed(stream)
        assert wait < at_most(1, begun)
        assert time.monotonic() - begun >= 1
        assert last.is_last_chunk

    @EVERY_FRAMING
    def test_without_usage(self, link: Link, framing: Any) -> None:
        """A finish chunk whose usage never comes, from a server that goes on, is the last chunk after a while."""
        begun = time.monotonic()
        server, stream = held_open(link, said("a"), said("b", "stop"), framing=framing)
        (first, _), (wait, last) = timed(stream)
        assert first < PROMPT
        assert wait < at_most(HELD, begun)
        assert time.monotonic() - begun >= HELD
        assert (last.text, last.is_last_chunk, last.usage) == ("b", True, None)
        assert server.wait_for(all_gone, SCALE)

    def test_though_comments_come(self, link: Link) -> None:
        """Keep-alive comments do not make the wait for usage longer."""
        begun = time.monotonic()
        _, stream = held_open(link, said("a"), STOP, pings=0.05)
        (_, _), (wait, last) = timed(stream)
        assert wait < at_most(HELD, begun)
        assert time.monotonic() - begun >= HELD
        assert last.is_last_chunk

    @EVERY_FRAMING
    def test_not_at_all_with_usage(self, link: Link, framing: Any) -> None:
        """A finish chunk with its usage is the last chunk at once, though the server holds the body open."""
        server, stream = held_open(link, said("a"), said("b", "stop", usage=COUNTS), framing=framing)
        (_, _), (wait, last) = timed(stream)
        assert wait < PROMPT
        assert last.is_last_chunk
        assert server.wait_for(all_gone, SCALE)

    def test_until_the_usage_comes(self, link: Link) -> None:
        """The last chunk comes as soon as its usage does, though the server holds the body open then."""
        begun = time.monotonic()
        _, stream = held_open(link, said("a"), STOP, trailing(), pace=0.2)
        (_, _), (wait, last) = timed(stream)
        assert wait < 0.4 + PROMPT
        assert time.monotonic() - begun >= 0.4
        assert last.usage is not None
        assert last.usage.total_tokens == 5

    @pytest.mark.parametrize("end", ["clean", "hold"])
    def test_until_done_comes(self, link: Link, end: Any) -> None:
        """The last chunk comes as soon as [DONE] does, whether the server ends the body then or holds it open."""
        begun = time.monotonic()
        stream = link.stream(Reply(chunks=[said("a"), STOP, DONE], pace=0.2, end=end))
        (_, _), (wait, last) = timed(stream)
        assert wait < 0.4 + PROMPT
        assert time.monotonic() - begun >= 0.4
        assert last.is_last_chunk

    @EVERY_FRAMING
    def test_until_the_body_ends(self, link: Link, framing: Any) -> None:
        """The last chunk comes as soon as the body ends, on every framing."""
        (_, _), (wait, last) = timed(link.stream(Reply(chunks=[said("a"), STOP], framing=framing)))
        assert wait < PROMPT
        assert (last.is_last_chunk, last.error) == (True, None)

    def test_not_the_chunks_before(self, link: Link) -> None:
        """Text that comes before the finish chunk is not held back."""
        stream = link.stream(Reply(chunks=[said("a"), said("b"), STOP], end="hold"))
        begun = time.monotonic()
        assert [stream.get(timeout=5).text, stream.get(timeout=5).text] == ["a", "b"]
        assert time.monotonic() - begun < PROMPT

    def test_not_when_more_text_comes(self, plain: Link) -> None:
        """A finish chunk after which more text comes is let go with it, and the text waits in its place."""
        begun = time.monotonic()
        _, stream = held_open(plain, said("a"), STOP, said("b"), pace=0.2)
        found = timed(stream)
        assert [evt.text for _, evt in found] == ["a", "", "b"]
        assert [evt.is_last_chunk for _, evt in found] == [False, False, True]
        assert found[1][0] < 0.4 + PROMPT
        assert found[2][0] < at_most(HELD, begun)
        assert time.monotonic() - begun >= 0.4 + HELD

    def test_usage_that_comes_too_late(self, plain: Link) -> None:
        """After the last chunk went without usage, usage that still comes makes no second end."""
        _, stream = held_open(plain, said("a"), STOP, trailing(), pace=2 * HELD + 2 * PROMPT)
        found = [evt for _, evt in timed(stream)]
        assert [(evt.is_last_chunk, evt.usage) for evt in found] == [(False, None), (True, None)]

    def test_latency_is_that_of_its_arrival(self, plain: Link) -> None:
        """The time for which the last chunk is held back is none of its latency."""
        _, stream = held_open(plain, said("a"), STOP)
        last = timed(stream)[-1][1]
        assert last.chunk_latency < PROMPT
        assert last.total_latency < HELD / 2

    @EVERY_FRAMING
    def test_a_close_meanwhile(self, link: Link, framing: Any) -> None:
        """Leaving while the last chunk is held back frees the connection at once."""
        server, stream = held_open(link, said("a"), STOP, framing=framing)
        assert stream.get(timeout=5).text == "a"
        stream.close()
        assert server.wait_for(all_gone, PROMPT)


# -- several choices -------------------------------------------------------------------------------------------------


class TestSeveralChoices:
    def test_the_last_chunk_is_that_of_the_last_choice(self, link: Link) -> None:
        """With n = 2 the last chunk is the one after which both choices are finished, index 1 first or not."""
        for first, second in ((0, 1), (1, 0)):
            found = answered(
                link,
                said("x", index=first),
                said("y", index=second),
                said("x", "stop", index=first),
                said("y", index=second),
                said("", "length", index=second),
                DONE,
                n=2,
            )
            assert (text(found, first), text(found, second)) == ("xx", "yy")
            assert [evt.is_last_chunk for evt in found] == [False] * 4 + [True]
            assert found[-1].choices[0].finish_reason == "length"

    def test_both_in_one_chunk(self, link: Link) -> None:
        """Two choices in one chunk finish together, and the usage comes with them."""
        found = answered(
            link,
            {"choices": [choice("y", index=1), choice("x")]},
            {"choices": [choice("y", "stop", index=1), choice("x", "length")]},
            trailing(),
            DONE,
            n=2,
        )
        assert (text(found), text(found, 1)) == ("xx", "yy")
        assert [(one.index, one.finish_reason) for one in found[-1].choices] == [(1, "stop"), (0, "length")]
        assert found[-1].usage is not None

    @pytest.mark.parametrize("end", [(DONE,), ()], ids=["[DONE]", "end of body"])
    @pytest.mark.parametrize("n", [2, 5])
    def test_fewer_choices_than_asked_for(self, link: Link, n: int, end: tuple[str, ...]) -> None:
        """A server may answer with fewer choices than n: the last chunk is the last of those that came."""
        found = answered(link, said("x"), said(finish="stop"), trailing(), *end, n=n)
        assert [evt.is_last_chunk for evt in found] == [False, True]
        assert found[-1].choices[0].finish_reason == "stop"
        assert found[-1].usage is not None

    def test_a_choice_that_begins_late(self, plain: Link) -> None:
        """A choice that begins long after another one finished is not lost."""
        chunks: list[Any] = [said("x"), said("", "stop"), said("y", index=1), said("", "stop", index=1), DONE]
        client = plain.client(plain.serve(Reply(chunks=chunks, pace=HELD + 0.1)))
        stream = client.chat_completion_stream(TWO_CHOICES)
        found = [stream.get(timeout=5) for _ in range(3)]
        stream.close()
        assert [evt.is_last_chunk for evt in found] == [False] * 3
        assert (text(found), text(found, 1)) == ("x", "y")

    def test_a_choice_without_finish_reason(self, link: Link) -> None:
        """[DONE] ends a stream in which a choice never got its finish reason; the last chunk says None for it."""
        found = answered(link, said("x"), said("y", index=1), said(finish="stop"), trailing(), DONE, n=2)
        last = found[-1]
        assert (text(found), text(found, 1)) == ("x", "y")
        assert [evt.is_last_chunk for evt in found] == [False] * 3 + [True]
        assert [(one.index, one.finish_reason) for one in last.choices] == [(1, None)]
        assert last.usage is not None

    def test_text_after_the_finish_reason(self, link: Link) -> None:
        """Text after the finish reason of the same choice is delivered, and the last chunk knows the reason."""
        found = answered(
            link, said("y", index=1), said("x"), said(finish="length"), said("x"), said("y", "stop", index=1), DONE, n=2
        )
        assert (text(found), text(found, 1)) == ("xx", "yy")
        assert [evt.is_last_chunk for evt in found] == [False] * 4 + [True]
        found = answered(link, said("x"), said(finish="length"), said("x"), said(usage=COUNTS), DONE)
        assert text(found) == "xx"
        assert found[-1].choices[0].finish_reason == "length"
        assert found[-1].usage is not None

    def test_usage_for_each_choice(self, link: Link) -> None:
        """One usage event for each choice, the first while the other one streams, ends nothing: the last counts."""
        found = answered(
            link,
            said("y", index=1),
            said("x"),
            said("", "stop", index=1),
            trailing(1),
            said("x"),
            said("", "length"),
            trailing(2),
            DONE,
            n=2,
        )
        assert (text(found), text(found, 1)) == ("xx", "y")
        assert [evt.is_last_chunk for evt in found] == [False] * 4 + [True]
        assert found[-1].usage is not None
        assert found[-1].usage.total_tokens == 2

    def test_held_back(self, link: Link) -> None:
        """With n = 2 both finish reasons start the wait for the usage; the first alone does not."""
        reply = Reply(chunks=[said("x", "stop"), said("y", "stop", index=1)], end="hold")
        begun = time.monotonic()
        stream = link.client(link.serve(reply)).chat_completion_stream(TWO_CHOICES)
        (first, _), (wait, last) = timed(stream)
        assert first < PROMPT
        assert wait < at_most(HELD, begun)
        assert time.monotonic() - begun >= HELD
        assert (last.text, last.is_last_chunk) == ("y", True)

    def test_collect(self, link: Link) -> None:
        """`collect` returns every choice with its own reason."""
        reply = Reply(chunks=[said("y", "stop", index=1), said("x"), said("x", "length"), trailing(), DONE])
        answer = link.client(link.serve(reply)).chat_completion_stream(TWO_CHOICES).collect()
        assert [(one.index, one.message.text, one.finish_reason) for one in answer.choices] == [
            (0, "xx", "length"),
            (1, "y", "stop"),
        ]


# -- a choice to look at ---------------------------------------------------------------------------------------------

NO_REASON: dict[str, tuple[Any, ...]] = {
    "[DONE] alone": (DONE,),
    "text": (said("a"), DONE),
    "empty reason": (said("a", ""), DONE),
    "reason left out": ({"choices": [{"index": 0, "delta": {"content": "a"}}]}, DONE),
    "tool call (mocks)": (
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]}}]},
        DONE,
    ),
    "no choices": ({"choices": []}, DONE),
    "usage alone": (trailing(), DONE),
    "unterminated": (said("a"), b"data: [DONE]"),
    "one line end": (said("a"), b"data: [DONE]\n"),
}

AFTER_THE_FINISH: dict[str, Any] = {
    "no choices": {"id": "c-1", "choices": []},
    "null choices": {"id": "c-1", "choices": None, "usage": None},
    "padding": {"p": "abcdef"},
    "timings": {"id": "c-1", "choices": [], "timings": {"n": 2}},
    "empty": {},
}


class TestAChoiceToLookAt:
    @pytest.mark.parametrize("chunks", NO_REASON.values(), ids=NO_REASON.keys())
    def test_without_a_finish_reason(self, link: Link, chunks: tuple[Any, ...]) -> None:
        """Where the server gave no finish reason the last chunk is made up: a choice with an empty delta and None."""
        last = answered(link, *chunks)[-1]
        assert (last.is_last_chunk, last.error) == (True, None)
        assert last.choices[0].finish_reason is None
        assert (last.text, last.reasoning, list(last.tool_calls)) == ("", "", [])
        assert last.delta_message().raw == {}

    def test_it_looks_like_the_others(self, link: Link) -> None:
        """A last chunk that is made up has the id and the model of the chunks before it."""
        last = answered(link, said("a"), DONE)[-1]
        assert (last.id, last.model, last.raw) == ("c-1", "m", {})

    @pytest.mark.parametrize("usage", [(), (trailing(),)], ids=["no usage", "usage"])
    @pytest.mark.parametrize("more", AFTER_THE_FINISH.values(), ids=AFTER_THE_FINISH.keys())
    def test_when_an_event_without_choices_follows(self, link: Link, more: Any, usage: tuple[Any, ...]) -> None:
        """An event without choices after the finish chunk takes neither choice nor reason from the last chunk."""
        found = answered(link, said("a"), STOP, more, *usage, DONE)
        assert [evt.is_last_chunk for evt in found] == [False] * (len(found) - 1) + [True]
        assert found[-1].choices[0].finish_reason == "stop"
        assert (found[-1].usage is not None) == bool(usage)

    def test_a_whole_answer_as_json(self, link: Link) -> None:
        """A whole completion in the place of a stream is a last chunk with all of that."""
        body = {"choices": [{"index": 0, "message": {"content": "ab"}, "finish_reason": "stop"}], "usage": COUNTS}
        [last] = link.stream(Reply.json(body))
        assert (last.text, last.is_last_chunk, last.choices[0].finish_reason) == ("ab", True, "stop")
        assert last.usage is not None

    @pytest.mark.parametrize("end", ["clean", "hold"])
    def test_a_plain_loop(self, link: Link, end: Any) -> None:
        """A plain loop gets through without asking whether the last chunk has a choice."""
        seen = ""
        for evt in link.stream(Reply(chunks=[said("a"), said("b"), DONE], end=end)):
            seen += evt.text
            if evt.is_last_chunk:
                seen += f" ({evt.choices[0].finish_reason})"
        assert seen == "ab (None)"
