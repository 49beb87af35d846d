"""Awaiting a channel: ``async for`` without a thread and without blocking the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from chanstream import Channel, StreamError
from tests.concurrency import spawn


def run(coroutine: Any) -> Any:
    """Run a coroutine to its end, at most ten seconds."""
    return asyncio.run(asyncio.wait_for(coroutine, 10))


async def everything(channel: Channel[Any]) -> list[Any]:
    """Take all items by ``async for``."""
    return [item async for item in channel]


class TestTaking:
    def test_what_is_there(self) -> None:
        """Items that are there are taken in order, and the loop ends when the channel is closed and empty."""
        channel: Channel[int] = Channel()
        channel.put_many(range(5))
        channel.close()
        assert run(everything(channel)) == [0, 1, 2, 3, 4]

    def test_what_comes_from_a_thread(self) -> None:
        """Items that a thread puts wake the loop, each of them, also through a channel for one."""
        channel: Channel[int] = Channel(1)

        def produce() -> None:
            for item in range(500):
                channel.put(item)
            channel.close()

        producing = spawn(produce)
        assert run(everything(channel)) == list(range(500))
        producing.result(5)

    def test_several_at_once(self) -> None:
        """Several tasks share one channel: each item goes to one, and all loops end."""

        async def scenario() -> list[list[int]]:
            tasks = [asyncio.create_task(everything(channel)) for _ in range(4)]
            await asyncio.to_thread(channel.put_many, range(200))
            channel.close()
            return await asyncio.gather(*tasks)

        channel: Channel[int] = Channel(2)
        assert sorted(item for part in run(scenario()) for item in part) == list(range(200))

    def test_tasks_and_threads(self) -> None:
        """A task and a thread may share a channel."""
        channel: Channel[int] = Channel(2)
        thread = spawn(list, channel)

        async def scenario() -> list[int]:
            task = asyncio.create_task(everything(channel))
            await asyncio.to_thread(channel.put_many, range(200))
            channel.close()
            return await task

        assert sorted(run(scenario()) + thread.result(5)) == list(range(200))

    def test_an_error(self) -> None:
        """The error that the channel was closed with ends the loop, after the items."""
        channel: Channel[int] = Channel()
        channel.put(1)
        error, got = StreamError("it broke"), []

        async def scenario() -> None:
            async for item in channel:
                got.append(item)
                channel.close(error)

        with pytest.raises(StreamError) as caught:
            run(scenario())
        assert (got, caught.value) == ([1], error)

    def test_a_break(self) -> None:
        """Leaving the loop leaves the channel open, and a later loop goes on."""
        channel: Channel[int] = Channel()
        channel.put_many([1, 2, 3])
        channel.close()

        async def scenario() -> list[int]:
            async for item in channel:
                assert item == 1
                break
            return await everything(channel)

        assert run(scenario()) == [2, 3]


class TestWaiting:
    def test_the_event_loop_goes_on(self) -> None:
        """While one task waits for an item the others run, and no thread waits."""
        channel: Channel[str] = Channel()

        async def scenario() -> str:
            threads = threading.active_count()
            waiting = asyncio.create_task(anext(aiter(channel)))
            for _ in range(100):
                await asyncio.sleep(0)
            assert threading.active_count() == threads
            assert channel.statistics().waiting_getters == 0
            channel.put("at last")
            return await waiting

        assert run(scenario()) == "at last"

    def test_close_wakes_it(self) -> None:
        """A close from another thread ends a loop that waits."""
        channel: Channel[int] = Channel()

        async def scenario() -> list[int]:
            task = asyncio.create_task(everything(channel))
            await asyncio.sleep(0)
            closing = spawn(channel.close)
            taken = await task
            closing.result(5)
            return taken

        assert run(scenario()) == []

    def test_a_cancelled_task(self) -> None:
        """A task that is cancelled while it waits takes nothing with it, and leaves no waiter behind."""
        channel: Channel[int] = Channel()

        async def scenario() -> None:
            task = asyncio.create_task(everything(channel))
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(channel._pipe.waiters) == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert channel._pipe.waiters == {}
            channel.put(1)
            assert await anext(aiter(channel)) == 1

        run(scenario())

    def test_a_timeout(self) -> None:
        """A wait for the next item may be given a time limit, and be tried again."""
        channel: Channel[int] = Channel()

        async def scenario() -> int:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(aiter(channel)), 0.01)
            channel.put(1)
            return await asyncio.wait_for(anext(aiter(channel)), 5)

        assert run(scenario()) == 1

    def test_a_loop_that_is_gone(self) -> None:
        """A put after the event loop was closed, while a task still waited, does no harm."""
        channel: Channel[int] = Channel()
        loop = asyncio.new_event_loop()
        waiting = loop.create_task(anext(aiter(channel)))  # type: ignore[arg-type]
        for _ in range(3):
            loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        waiting.cancel()
        loop.close()
        channel.put(1)
        assert channel.get() == 1

    def test_two_event_loops(self) -> None:
        """Tasks of several event loops, in several threads, may share a channel."""
        channel: Channel[int] = Channel(2)
        loops = [spawn(run, everything(channel)) for _ in range(3)]
        channel.put_many(range(300))
        channel.close()
        assert sorted(item for loop in loops for item in loop.result(10)) == list(range(300))
