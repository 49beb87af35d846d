"""A producer thread per stream: works for every response, with public parts of requests and urllib3 only."""

from __future__ import annotations

import contextlib
import logging
import threading
import time

from ..channel import Pipe
from ..errors import ChannelClosedError, ChanstreamError, StreamError
from ..models.chunk import CompletionChunk
from ..transport.session import Answer, Call
from ..transport.source import Source
from ..wire.machine import StreamMachine
from .flow import Flow
from .watched import flow_of

_log = logging.getLogger("chanstream")


def start(call: Call, answer: Answer, machine: StreamMachine, pipe: Pipe[CompletionChunk]) -> None:
    """Start to move an answer into ``pipe``; return at once.

    Args:
        call: Whose context ends the stream when it is done, and is released when the stream has ended; and whose
            ``first_chunk`` and ``idle`` clocks are kept here.
        answer: The body to read, and when it was asked for.
        machine: Makes the chunks of it.
        pipe: Where the chunks go; it is closed after the chunk that ends the stream.
    """
    flow = flow_of(call, answer, answer.source, machine, pipe)
    thread = threading.Thread(target=run, args=(flow, answer.source, pipe), name="chanstream-producer", daemon=True)
    try:
        thread.start()
    except BaseException as error:  # no more threads, or Ctrl-C
        flow.fail(StreamError(f"the stream could not be started: {error!r}"))
        answer.source.close()
        call.context.release()
        raise


def run(flow: Flow, source: Source, pipe: Pipe[CompletionChunk]) -> None:
    """Read an answer to its end in the caller's thread."""
    try:
        flow.begin()
        _pump(flow, source, pipe)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the consumer must not wait for ever
        _log.exception("the producer of a stream failed")
        flow.cancel(StreamError(f"chanstream failed: {error!r}"))
    finally:
        flow.end()


def _pump(flow: Flow, source: Source, pipe: Pipe[CompletionChunk]) -> None:
    while not flow.over:
        flow.keep_time()
        try:
            data = source.read()
        except ChanstreamError as error:
            flow.fail(error)
            return
        # A cut connection still gives what the kernel holds, as much as a flooding server likes: look first.
        if flow.context.error is not None:
            flow.fail(flow.context.error)  # whose cancel it is may not have come so far
            return
        waiting = flow.feed(data, time.monotonic())
        if not data:
            return
        if waiting is not None:
            with contextlib.suppress(ChannelClosedError):  # the context is done too, or will be in a moment
                pipe.wait_for_room(waiting)
            flow.resume()
