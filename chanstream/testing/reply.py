"""What the server answers: one frozen value per scripted reply, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import attrs

from . import checks
from .wording import encode_json, reason_phrase

Framing: TypeAlias = Literal["chunked", "content-length", "close"]
End: TypeAlias = Literal["clean", "cut", "reset", "hold"]
Compression: TypeAlias = Literal["gzip", "deflate"]


def _usual_finish_reason(reply: Reply) -> str:
    return "tool_calls" if reply.tool_calls else "stop"


@attrs.frozen
class Reply:
    r"""One scripted answer: what is said, how it is framed and timed, and where it goes wrong.

    `Reply("Hello world")` is a complete, well-behaved answer. Everything else is a keyword, and
    `attrs.evolve(reply, pace=0.1)` makes a changed copy. Times are in seconds. A field that makes no sense is refused
    at once, with a `TypeError` or `ValueError` that names it.

    What is said. `chunks`, `body` and `raw` exclude each other and take the place of `text`, which is the only one that
    looks at what the request asked for: an event stream, or the JSON object that says the same.

    When it is said. Events are counted, `[DONE]` among them. A `body`, or what follows the head of a `raw` response,
    has no events of its own: its pieces (see `split`) count instead.

    Args:
        text: The answer. A str is parted into word-like tokens, a sequence is taken as the tokens; one chunk each.
        reasoning: Sent before the text as `reasoning_content`, parted likewise.
        tool_calls: Sent after the text, each call whole, in one delta. In a stream, a missing `index` is added.
        chunks: The events, with nothing added, no finish chunk and no `[DONE]`: a mapping is sent as `data:` and its
            JSON, a str as `data:` and each line of it, bytes as they are.
        body: The bytes of the body.
        raw: The bytes of the whole HTTP response: head, framing and all; `status`, `headers`, `content_type` and
            `framing` have no say in it. The connection is closed after it if its head says `Connection: close` or tells
            neither a length nor chunks.
        model: The model's name in every chunk.
        finish_reason: In the finish chunk; left out, it is `"stop"`, or `"tool_calls"` if there are any. None sends no
            finish chunk.
        usage: On the finish chunk: True counts tokens (words of the messages, chunks of the answer), a mapping is sent
            as it is, False sends none.
        usage_chunk: Sends the usage in a chunk of its own, with `choices: []`, after the finish chunk.
        done: Sends `[DONE]` at the end.
        status: The status code.
        headers: More header fields. They replace the server's own of the same name, be it to lie about the framing.
        content_type: None sends what fits: `application/json` for what looks like JSON, else `text/event-stream`.
        framing: How the client learns the end of the body: `"chunked"` (for a client of HTTP/1.0, which knows no
            chunks: `"close"`), `"content-length"` or `"close"`. Each event is an HTTP chunk, a huge one several.
        newline: What ends the lines of events: `"\n"`, `"\r\n"` or `"\r"`.
        compress: The content coding, flushed after each event so that it can be decoded when it arrives.
        split: Sends the body in pieces of so many bytes, each a write (and an HTTP chunk) of its own. Pieces run across
            events, but not across a wait. A `raw` response is split from its head on.
        head_delay: Seconds before the head; `math.inf` never answers.
        first_delay: Seconds between the head and the first event.
        pace: Seconds between one event and the next.
        pings: Sends a comment, `: ping`, after so many seconds of each wait after the head. Not to be had with `raw` or
            the framing `"content-length"`; and a JSON object has none.
        stall_after: After so many events says nothing more and keeps the connection open until the client leaves; 0
            stalls after the head. A reply with fewer events does not stall.
        cut_at: Stops after so many bytes of the body and goes on with `end`. Bytes are counted as sent, compressed but
            without HTTP chunk framing and pings; in a `raw` response all bytes after the head count.
        end: What follows the content. `"clean"`: the end of the framing, and the connection lives on. `"cut"`: the
            connection is closed with the framing unfinished. `"reset"`: it is reset (TCP RST), and what the client's
            kernel had no room for is lost. `"hold"`: silence with the framing unfinished. In the last three, the
            framing `"content-length"` promises at least one byte that never comes.
    """

    text: checks.Text = attrs.field(default="", converter=checks.copied_text, validator=checks.text)
    reasoning: checks.Text = attrs.field(default="", converter=checks.copied_text, validator=checks.text, kw_only=True)
    tool_calls: checks.Calls = attrs.field(
        default=(), converter=checks.copied_calls, validator=checks.calls, kw_only=True
    )
    chunks: checks.Chunks | None = attrs.field(
        default=None, converter=checks.copied_chunks, validator=checks.chunks, kw_only=True
    )
    body: bytes | None = attrs.field(default=None, validator=checks.data, kw_only=True)
    raw: bytes | None = attrs.field(default=None, validator=checks.data, kw_only=True)
    model: str = attrs.field(default="test-model", validator=checks.word, kw_only=True)
    finish_reason: str | None = attrs.field(
        default=attrs.Factory(_usual_finish_reason, takes_self=True), validator=checks.optional_word, kw_only=True
    )
    usage: Mapping[str, Any] | bool = attrs.field(default=True, validator=checks.usage, kw_only=True)
    usage_chunk: bool = attrs.field(default=False, validator=checks.flag, kw_only=True)
    done: bool = attrs.field(default=True, validator=checks.flag, kw_only=True)

    status: int = attrs.field(default=200, validator=checks.status, kw_only=True)
    headers: Mapping[str, str] = attrs.field(
        factory=dict, converter=checks.copied_headers, validator=checks.headers, kw_only=True
    )
    content_type: str | None = attrs.field(default=None, validator=checks.content_type, kw_only=True)
    framing: Framing = attrs.field(default="chunked", validator=checks.OneOf(get_args(Framing)), kw_only=True)
    newline: str = attrs.field(default="\n", validator=checks.OneOf(("\n", "\r\n", "\r")), kw_only=True)
    compress: Compression | None = attrs.field(
        default=None, validator=checks.OneOf((None, *get_args(Compression))), kw_only=True
    )
    split: int | None = attrs.field(default=None, validator=checks.size, kw_only=True)

    head_delay: float = attrs.field(default=0.0, validator=checks.seconds, kw_only=True)
    first_delay: float = attrs.field(default=0.0, validator=checks.seconds, kw_only=True)
    pace: float = attrs.field(default=0.0, validator=checks.seconds, kw_only=True)
    pings: float | None = attrs.field(default=None, validator=checks.interval, kw_only=True)

    stall_after: int | None = attrs.field(default=None, validator=checks.count, kw_only=True)
    cut_at: int | None = attrs.field(default=None, validator=checks.count, kw_only=True)
    end: End = attrs.field(default="clean", validator=checks.OneOf(get_args(End)), kw_only=True)

    def __attrs_post_init__(self) -> None:
        """Refuses fields that contradict each other."""
        kinds = [name for name in ("chunks", "body", "raw") if getattr(self, name) is not None]
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(kinds)} exclude each other: give one of them")
        if self.raw is not None and self.compress is not None:
            raise ValueError("compress does not go with raw: the response is sent as it is")
        if self.pings is not None and self.raw is not None:
            raise ValueError("pings do not go with raw: the response is sent as it is")
        if self.pings is not None and self.framing == "content-length":
            raise ValueError("pings do not go with framing='content-length': nobody knows how many there will be")

    @classmethod
    def error(
        cls,
        status: int,
        message: str | None = None,
        *,
        type: str = "api_error",
        code: str | int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Returns a refusal with the JSON body that OpenAI-like servers send: `{"error": {"message": …}}`.

        Args:
            status: The status code, such as 429.
            message: What went wrong, in words; the status code's own words unless given.
            type: The class of the error, such as `"invalid_request_error"`.
            code: A more precise name or number, such as `"rate_limit_exceeded"`.
            headers: More header fields, such as `{"Retry-After": "1"}`.
        """
        words = message or reason_phrase(status) or f"status {status}"
        error = {"message": words, "type": type, "param": None, "code": code}
        return attrs.evolve(cls.json({"error": error}, status), headers=headers or {})

    @classmethod
    def json(cls, obj: object, status: int = 200) -> Reply:
        """Returns a reply that is `obj` as JSON, even to a client that asked for a stream."""
        return cls(body=encode_json(obj), status=status, content_type="application/json", framing="content-length")

    @classmethod
    def embeddings(cls, *vectors: Sequence[float] | str, model: str = "test-model") -> Reply:
        """Returns the answer to a request for embeddings.

        Args:
            *vectors: One for each input: numbers, or base64 of them.
            model: The model's name.

        Raises:
            TypeError: One is neither.
        """
        kept = enumerate(map(checks.vector, vectors))
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in kept]
        return cls.json({"object": "list", "model": model, "data": data})

    @classmethod
    def html(cls, text: str, status: int = 200) -> Reply:
        """Returns a web page, such as a proxy puts in the place of the answer."""
        return cls(body=text.encode(), status=status, content_type="text/html; charset=utf-8", framing="content-length")

    @classmethod
    def garbage(cls) -> Reply:
        """Returns a reply that calls itself an event stream but holds neither UTF-8 nor JSON."""
        return cls(body=b"\x00\x9f\x92\x96\xfe\n\ndata: \xff{]\x80\n\n", content_type="text/event-stream")

    @classmethod
    def pings_only(cls, interval: float = 0.05) -> Reply:
        """Returns a stream that sends keep-alive comments and never an event, until the client leaves.

        Args:
            interval: Seconds between two comments.
        """
        return cls(stall_after=0, pings=interval)
