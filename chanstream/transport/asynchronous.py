"""Opening in an event loop, which goes on meanwhile.

A thread does what blocks: it connects and sends. The loop waits: for the head of an answer, for a pause to be over.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from ..context import Context
from ..errors import APIConnectionError, APIStatusError
from .connection import Exchange, ParkedError
from .limits import RateLimiter, asked
from .openers import openers
from .session import Answer, Call, Transport, cuttable

_HEAD_BYTES = 64 * 1024
"""How much of an answer is read in search of its head's end; http.client refuses longer ones."""

_END_OF_HEAD = re.compile(rb"\n\r?\n")

R = TypeVar("R")


async def open_async(transport: Transport, call: Call) -> Answer:
    """Return as `Transport.open`."""
    retries = 0
    while True:
        call.context.raise_if_done()
        if call.limiter is not None:
            await _turn(call.limiter, call.context)
        if call.watch is not None:
            call.watch.sent()
        try:
            return await _attempt(transport, call)
        except (APIStatusError, APIConnectionError) as error:
            seconds = transport.pause_after(error, call, retries)
            if seconds is None:
                raise
        retries += 1
        await _pause(call.context, seconds)


async def _turn(limiter: RateLimiter, context: Context) -> None:
    """Wait until the limiter lets a request be sent; it is asked in a thread, as it may be on another machine."""
    while (seconds := await _in_a_thread(partial(asked, limiter), lambda _: None)) > 0:
        await _pause(context, seconds)


async def _attempt(transport: Transport, call: Call) -> Answer:
    def step() -> Answer | None:
        try:
            response = transport.exchanged(exchange, call)
        except ParkedError:
            return None
        return transport.accepted(call, response, exchange)

    def let_go(answer: Answer | None) -> None:
        if answer is not None:
            answer.source.close()
        exchange.abandon()

    answer: Answer | None = None
    try:
        with cuttable(call.context, call.timeout.first_chunk) as exchange:
            exchange.parks = True
            try:
                answer = await _in_a_thread(step, let_go, alone=not transport.parks())
                if answer is None:
                    waited = await _head(exchange)
                    answer = await _in_a_thread(step, let_go, alone=not waited)
            except asyncio.CancelledError:
                exchange.cut()
                raise
    except BaseException:
        if answer is not None:  # a clock ran out as the head came in
            answer.source.close()
        raise
    assert answer is not None  # parked once, it is not parked again
    return answer


async def _in_a_thread(job: Callable[[], R], late: Callable[[R | None], object], *, alone: bool = False) -> R:
    """Return what a job returns that may block.

    Args:
        job: The job.
        late: Called with what it returned, or with None, once it is over, where nobody waits for it any more.
        alone: Whether it may wait for the head, and is not to hold others up.
    """
    future = openers.submit(job, alone=alone)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        future.add_done_callback(lambda done: late(_result(done)))
        raise
    finally:
        del future  # an error's traceback holds this frame, and the future the error


def _result(future: Future[R]) -> R | None:
    return None if future.cancelled() or future.exception() else future.result()


async def _pause(context: Context, seconds: float) -> None:
    """Wait so many seconds.

    Raises:
        ChanstreamError: The context is done.
    """
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def tell(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(done.set)

    forget = context.on_done(tell)
    try:
        with contextlib.suppress(asyncio.TimeoutError):  # another than Python's own before 3.11
            await asyncio.wait_for(done.wait(), seconds)
    finally:
        forget()
    context.raise_if_done()


async def _head(exchange: Exchange) -> bool:
    """Wait for the head of a parked exchange's answer, or until it is clear that none will come; False if it cannot."""
    connection = exchange.parked
    sock = None if connection is None else connection.sock
    if not isinstance(sock, socket.socket):  # TLS within TLS: a thread will wait
        return False
    ahead = bytearray()
    sock.setblocking(False)
    try:
        await _head_on(sock, ahead)
    except NotImplementedError:  # an event loop that cannot watch sockets: likewise
        return False
    except BaseException:  # the task is cancelled
        exchange.cut()
        exchange.abandon()
        raise
    finally:
        exchange.ahead = bytes(ahead)  # what was read before the loop refused to watch too
        with contextlib.suppress(OSError):
            sock.setblocking(True)
    return True


async def _head_on(sock: socket.socket, ahead: bytearray) -> None:
    loop = asyncio.get_running_loop()
    while len(ahead) < _HEAD_BYTES and not _END_OF_HEAD.search(ahead):
        try:
            data = sock.recv(16 * 1024)
        except (BlockingIOError, ssl.SSLWantReadError):
            await _ready(sock, loop.add_reader, loop.remove_reader)
            continue
        except ssl.SSLWantWriteError:
            await _ready(sock, loop.add_writer, loop.remove_writer)
            continue
        except (OSError, ValueError):  # whoever reads on meets the same
            break
        if not data:
            break
        ahead += data


async def _ready(
    sock: socket.socket, watch: Callable[[int, Callable[[], object]], None], forget: Callable[[int], object]
) -> None:
    descriptor, ready = sock.fileno(), asyncio.Event()
    watch(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        forget(descriptor)
