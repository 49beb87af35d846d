from __future__ import annotations

import json
import re
import time
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chanstream.wire.framing import ServerSentEvent, decode_events

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CORPUS = Path(__file__).parents[1] / "data" / "sse"

WPT = """
    bom bom-2 comments data-before-final-empty-line field-data field-event field-event-empty field-id field-id-2
    field-id-3 field-id-null field-parsing field-retry field-retry-bogus field-retry-empty field-unknown leading-space
    mime-bogus mime-trailing-semicolon mime-valid-bogus newlines null-character utf-8
"""
"""The names of the web-platform tests ``eventsource/format-*``."""


class Event(NamedTuple):
    event: str
    data: str
    id: str
    retry: int | None


class Case(NamedTuple):
    name: str
    stream: bytes
    events: list[Event]


# --- the corpus ---


def load_corpus() -> list[Case]:
    """Return the cases of all files, in a fixed order."""
    return [read_case(case) for file in sorted(CORPUS.glob("*.json")) for case in json.loads(file.read_bytes())]


def read_case(case: dict[str, Any]) -> Case:
    """Return a case from its JSON form, which the README beside the corpus describes."""
    stream = expand(case["input"]).encode("utf-8", "surrogateescape")
    events = [Event(expand(event), expand(data), expand(id_), retry) for event, data, id_, retry in case["events"]]
    return Case(case["name"], stream, events)


def expand(value: str | list[Any]) -> str:
    """Return a text that may be written in parts, of which ``["x", 3]`` is three times x."""
    if isinstance(value, str):
        return value
    return "".join(part if isinstance(part, str) else part[0] * part[1] for part in value)


CASES = load_corpus()


def each(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Return the mark that runs a test once for each case, under its name."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in cases])


def decode(chunks: Iterable[bytes]) -> list[Event]:
    """Return the events of the decoder under test."""
    return [as_tuple(event) for event in decode_events(chunks)]


def as_tuple(event: ServerSentEvent) -> Event:
    """Return an event in the form that the corpus has."""
    return Event(event.event, event.data, event.id, event.retry)


def cut(stream: bytes, positions: Iterable[int]) -> list[bytes]:
    """Return the stream in pieces, cut at ascending positions."""
    edges = [0, *positions, len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


# --- the reference: the text of the standard, step by step, with no thought of speed ---


def reference(stream: bytes) -> list[Event]:
    """Return the events of a whole stream, as section 9.2.6 has it."""
    # "Lines must be separated by either a CRLF pair, a single LF, or a single CR": what follows the last is no line.
    *lines, _ = re.split("\r\n|\r|\n", decode_utf8(stream).removeprefix("\ufeff"))
    interpreter = Interpreter()
    for line in lines:
        interpreter.process(line)
    return interpreter.dispatched


class Interpreter:
    """What the standard calls the buffers, and its steps for each line."""

    def __init__(self) -> None:
        self.dispatched: list[Event] = []
        self.last_event_id = ""
        self.clear()

    def clear(self) -> None:
        """Forget all but the last event id, "the buffer does not get reset"."""
        self.data = self.event_type = ""
        self.retry: int | None = None

    def process(self, line: str) -> None:
        """Take one line, without its end."""
        if line == "":
            self.dispatch()
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            self.process_field(field, value.removeprefix(" "))

    def process_field(self, field: str, value: str) -> None:
        """Take one field; what is none of the four is ignored."""
        if field == "event":
            self.event_type = value
        elif field == "data":
            self.data += value + "\n"
        elif field == "id" and "\0" not in value:
            self.last_event_id = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            self.retry = int(value)

    def dispatch(self) -> None:
        """End an event, which is dropped if it has no data line."""
        if self.data != "":
            event_type = self.event_type or "message"
            self.dispatched.append(Event(event_type, self.data.removesuffix("\n"), self.last_event_id, self.retry))
        self.clear()


def decode_utf8(stream: bytes) -> str:
    """Return the text of a whole stream, as https://encoding.spec.whatwg.org/#utf-8-decoder has it."""
    text = []
    position = 0
    while position < len(stream):
        character, size = decode_character(stream[position : position + 4])
        text.append(character)
        position += size
    return "".join(text)


def decode_character(window: bytes) -> tuple[str, int]:
    """Return the first character and its size; U+FFFD and the size of what it stands for where there is none."""
    needed, point, lower, upper = read_lead(window[0])
    if needed < 0:
        return "\ufffd", 1
    for seen in range(1, needed + 1):
        # "If byte is not in the range [...] restore byte": it is then looked at again, as the first of a character.
        if seen == len(window) or not lower <= window[seen] <= upper:
            return "\ufffd", seen
        point = point << 6 | window[seen] & 0x3F
        lower, upper = 0x80, 0xBF
    return chr(point), needed + 1


def read_lead(byte: int) -> tuple[int, int, int, int]:
    """Return how many bytes follow (-1: this is no lead), the first bits, and the bounds of the next byte."""
    if byte <= 0x7F:
        return 0, byte, 0, 0
    if 0xC2 <= byte <= 0xDF:
        return 1, byte & 0x1F, 0x80, 0xBF
    if 0xE0 <= byte <= 0xEF:
        return 2, byte & 0x0F, 0xA0 if byte == 0xE0 else 0x80, 0x9F if byte == 0xED else 0xBF
    if 0xF0 <= byte <= 0xF4:
        return 3, byte & 0x07, 0x90 if byte == 0xF0 else 0x80, 0x8F if byte == 0xF4 else 0xBF
    return -1, 0, 0, 0


# --- exactness ---


def test_the_corpus_holds_every_wpt_format_case() -> None:
    """Each web-platform test of the format has a case that is named after it."""
    held = {match[1] for case in CASES if (match := re.match(r"wpt format-([\w-]+)", case.name))}
    assert held == set(WPT.split())


def test_the_corpus_is_large_and_repeats_nothing() -> None:
    """There are hundreds of cases, no two of one name, no two of one stream."""
    assert len(CASES) >= 365
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({case.stream for case in CASES}) == len(CASES)


def test_the_reference_agrees_with_the_corpus() -> None:
    """What was reasoned out for a case is what the standard's algorithm gives, carried out step by step."""
    wrong = [case.name for case in CASES if reference(case.stream) != case.events]
    assert wrong == []


@each(CASES)
def test_whole(case: Case) -> None:
    """A stream in one piece gives the events that the standard dispatches."""
    assert decode([case.stream]) == case.events


@each(CASES)
def test_byte_by_byte(case: Case) -> None:
    """A stream in pieces of one byte gives the same events."""
    assert decode(cut(case.stream, range(1, len(case.stream)))) == case.events


def test_empty_pieces() -> None:
    """Pieces without a byte change nothing, be they first, last, or inside a CRLF, a BOM or a character."""
    wrong = [case.name for case in CASES if decode(with_empty_pieces(case.stream)) != case.events]
    assert wrong == []


def with_empty_pieces(stream: bytes) -> Iterator[bytes]:
    """Yield the bytes one by one, and nothing around each."""
    yield b""
    for byte in stream:
        yield from (bytes([byte]), b"", b"")


@each(CASES)
def test_in_two_pieces(case: Case) -> None:
    """A stream cut in two, at every position, gives the same events."""
    wrong = [at for at in range(len(case.stream) + 1) if decode(cut(case.stream, [at])) != case.events]
    assert wrong == []


@each(case for case in CASES if len(case.stream) <= 24)
def test_in_three_pieces(case: Case) -> None:
    """A short stream cut in three, at every pair of positions, gives the same events."""
    pairs = combinations(range(len(case.stream) + 1), 2)
    wrong = [pair for pair in pairs if decode(cut(case.stream, pair)) != case.events]
    assert wrong == []


# Whatever the standard gives a meaning to, and its neighbours: parts of a BOM, of characters and of field names too.
SIGNIFICANT = [
    *(b"\r", b"\n", b"\r\n", b"\n\n", b":", b": ", b" ", b"\t", b"\0", b"\x0b", b"\xc2\x85", b"\xe2\x80\xa8"),
    *(b"data", b"data:", b"data: ", b"id", b"id: ", b"event:", b"retry:", b"da", b"ta", b"Data", b"x", b"7", b"-"),
    *(b"\xef\xbb\xbf", b"\xef", b"\xbb", b"\xbf", b"\xc3\xa9", b"\xc3", b"\xf0\x9f", b"\x98\x80", b"\xed\xa0", b"\xff"),
]

streams = st.lists(st.sampled_from(SIGNIFICANT), max_size=40).map(b"".join) | st.binary(max_size=60)


@given(stream=streams, data=st.data())
def test_any_bytes_in_any_pieces(stream: bytes, data: st.DataObject) -> None:
    """Whatever the bytes and wherever they are cut, the events are those of the standard's algorithm."""
    positions = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted), label="positions")
    assert decode(cut(stream, positions)) == reference(stream)


def test_a_retry_too_long_for_an_integer_keeps_its_event() -> None:
    """A number of more digits than Python agrees to read spoils neither its event nor the next."""
    stream = b"id: 1\nretry: " + b"9" * 100_000 + b"\ndata: a\n\ndata: b\n\n"
    assert [(event.data, event.id) for event in decode_events([stream])] == [("a", "1"), ("b", "1")]


# --- promptness ---


def arrivals(stream: bytes) -> list[int]:
    """Return, for each event, how many bytes the decoder had asked for, one by one, when it yielded it."""
    asked = 0

    def one_by_one() -> Iterator[bytes]:
        nonlocal asked
        for byte in stream:
            asked += 1
            yield bytes([byte])

    return [asked for _ in decode_events(one_by_one())]


def dispatches(stream: bytes) -> list[int]:
    """Return, for each event, how many bytes it takes, of which the last ends its blank line."""
    ends = [match.end() for match in re.finditer(b"[\r\n]", stream)]
    sizes: list[int] = []
    for end in ends:
        sizes += [end] * (len(reference(stream[:end])) - len(sizes))
    return sizes


def test_an_event_is_there_with_its_last_byte() -> None:
    """An event is yielded before the byte after its blank line is asked for, be that line's end CR, LF or CRLF."""
    short = [case for case in CASES if len(case.stream) <= 1000]
    late = [case.name for case in short if arrivals(case.stream) != dispatches(case.stream)]
    assert late == []


def test_the_last_byte_of_an_event_by_hand() -> None:
    """A blank line ends with its CR: neither the LF that may follow nor the next event is waited for."""
    stream = b"data: a\n\n" + b"data: b\r\r" + b"data: c\r\n\r\n" + b"data: d\r\n\r\n"
    assert arrivals(stream) == [9, 18, 28, 39]


def test_all_events_of_a_piece_come_before_the_next_piece() -> None:
    """A piece with three events and a half gives the three before another piece is asked for."""
    asked = []

    def pieces() -> Iterator[bytes]:
        for piece in (b"data: 1\n\ndata: 2\n\ndata: 3\n\nda", b"ta: 4\n\n"):
            asked.append(piece)
            yield piece

    assert [(event.data, len(asked)) for event in decode_events(pieces())] == [("1", 1), ("2", 1), ("3", 1), ("4", 2)]


def test_nothing_is_asked_for_before_an_event_is() -> None:
    """Decoding is lazy: the first piece is asked for with the first event, the second piece with the second."""
    pieces = iter([b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"])
    events = decode_events(pieces)
    first = next(events)
    assert (first.data, next(pieces), next(events).data) == ("1", b"data: 2\n\n", "3")


def test_an_error_of_the_source_comes_after_its_events() -> None:
    """An exception of the source passes through as it is, after the events that were whole before it."""

    def broken() -> Iterator[bytes]:
        yield b"data: 1\n\ndata: 2"
        raise ConnectionResetError

    events = decode_events(broken())
    assert next(events).data == "1"
    with pytest.raises(ConnectionResetError):
        next(events)


def test_decoders_share_nothing() -> None:
    """Two streams read in turns keep their own ids and their own unfinished lines."""
    one = decode_events([b"id: 1\ndata: a\n\nda", b"ta: b\n\n"])
    two = decode_events([b"data: c\n\nid: 2\nda", b"ta: d\n\n"])
    assert [as_tuple(next(events)) for events in (one, two, one, two)] == [
        ("message", "a", "1", None),
        ("message", "c", "", None),
        ("message", "b", "1", None),
        ("message", "d", "2", None),
    ]


# --- linearity ---

SIZE = 1 << 16
FACTOR = 16
MOST = 64  # halfway, in powers, between linear work (16 times as much) and quadratic work (256 times)


def cost(stream: bytes, events: int) -> float:
    """Return the seconds of this thread's processor that a stream takes, and check that it gave its events."""
    pieces = cut(stream, range(1024, len(stream), 1024))
    spent = []
    for _ in range(3):  # others' work may be in one
        start = time.thread_time()
        count = sum(1 for _ in decode_events(pieces))
        spent.append(time.thread_time() - start)
        assert count == events
    return max(min(spent), 0.001)  # below that, some clocks have no answer


@pytest.mark.parametrize(
    ("unit", "end"),
    [
        pytest.param(b"x", b"\n\n", id="one line"),
        pytest.param(b"\xff", b"\n\n", id="one line of bad bytes"),
        pytest.param(b"\ndata: 12345678", b"\n\n", id="data lines"),
        pytest.param(b"\r\ndata: 12345678", b"\r\n\r\n", id="data lines with CRLF"),
        pytest.param(b"\n: 1234567890123", b"\n\n", id="comments"),
        pytest.param(b"\nid: 12345678901", b"\n\n", id="ids"),
        pytest.param(b"\nretry: 12345678", b"\n\n", id="retries"),
        pytest.param(b"\nretry: 1234567x", b"\n\n", id="bad retries"),
        pytest.param(b"\nunknown: 1234567", b"\n\n", id="unknown fields"),
    ],
)
def test_the_work_for_one_event_is_linear(unit: bytes, end: bytes) -> None:
    """Sixteen times as large an event, in pieces of 1 KiB, costs sixteen times the work and not its square."""
    small, large = (b"data: " + unit * (size // len(unit)) + end for size in (SIZE, SIZE * FACTOR))
    assert cost(large, 1) < MOST * cost(small, 1)


@pytest.mark.parametrize(
    ("unit", "events"),
    [
        pytest.param(b"data: 12345678\n\n", 1, id="events"),
        pytest.param(b"data: 12345678\r\n\r\n", 1, id="events with CRLF"),
        pytest.param(b"data: 12345678\r\r", 1, id="events with CR"),
        pytest.param(b"\n", 0, id="blank lines"),
        pytest.param(b"\r", 0, id="blank lines with CR"),
        pytest.param(b"\r\n", 0, id="blank lines with CRLF"),
        pytest.param(b": 1234567890123\n\n", 0, id="comments alone"),
    ],
)
def test_the_work_for_a_stream_is_linear(unit: bytes, events: int) -> None:
    """Sixteen times as long a stream, in pieces of 1 KiB, costs sixteen times the work and not its square."""
    few, many = (size // len(unit) for size in (SIZE, SIZE * FACTOR))
    assert cost(unit * many, events * many) < MOST * cost(unit * few, events * few)
