"""One measurement of one client, in a process of its own: ``python -m tests.benchmarks.worker JSON`` prints JSON.

Every measurement is preceded by one short stream, so that nothing lazy is measured.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from . import scenario
from .clients import Client, client_class
from .server import control

Figures = dict[str, Any]

_WARM_UP = scenario.fast(20, 190)


def main(spec: dict[str, Any]) -> Figures:
    """Return the figures of one measurement, or why there are none, under ``missing`` or ``error``."""
    kind = client_class(spec["client"])
    if missing := kind.missing():
        return {"missing": ", ".join(missing)}
    try:
        before = cpu()
        client = kind(spec["port"])
        client.count(_WARM_UP)
        if spec["measure"] == "import":
            return {"ready_ms": (cpu() - before) * 1e3} | import_time(kind)
        return MEASURES[spec["measure"]](client, spec["port"], **spec["options"])
    except Exception as error:  # noqa: BLE001 - a client that cannot do it is a row of the table
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def cpu() -> float:
    """Return the CPU time of this process, all its threads and the kernel's work for it, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def switches() -> int:
    """Return how often a thread of this process has given up a processor, or lost it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_nvcsw + usage.ru_nivcsw


def resident_kib() -> float:
    """Return the memory of this process that is in RAM, in KiB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024


def thread_count() -> int:
    """Return the number of threads of this process, those included that Python does not know."""
    return len(list(Path("/proc/self/task").iterdir()))


def whole(client: Client, count: int, size: int) -> float:
    """Return the CPU seconds of one stream without pauses, its request included."""
    model, before = scenario.fast(count, size), cpu()
    if client.count(model) != count * scenario.characters(size):
        raise AssertionError("text was lost")
    return cpu() - before


def repeated(client: Client, count: int, size: int, *, times: int, seconds: float) -> float:
    """Return the mean CPU seconds of a stream: over so many streams in a row, or fewer when ``seconds`` are over."""
    until, costs = time.monotonic() + seconds, []
    while len(costs) < times and (not costs or time.monotonic() < until):
        costs.append(whole(client, count, size))
    return statistics.fmean(costs)


def fast(client: Client, _: int, count: int, size: int, seconds: float) -> Figures:
    """CPU per chunk of streams without pauses, their requests included."""
    return {"cpu_us": repeated(client, count, size, times=40, seconds=seconds) / count * 1e6}


def requests(client: Client, _: int, seconds: float) -> Figures:
    """CPU per request that is answered with one chunk, over one connection where the client keeps it."""
    return {"cpu_us": repeated(client, 1, 190, times=1000, seconds=seconds) * 1e6}


def batch(client: Client, _: int, streams: int, count: int, concurrency: int) -> Figures:
    """Time and CPU per stream of many that are read so many at a time; the connections are made within it."""
    models = [scenario.fast(count, 190)] * streams
    before, started = cpu(), time.perf_counter()
    if client.batch(models, concurrency) != streams * count * scenario.characters(190):
        raise AssertionError("text was lost")
    return {"wall_us": (time.perf_counter() - started) / streams * 1e6, "cpu_us": (cpu() - before) / streams * 1e6}


def growth(client: Client, _: int, big: int, seconds: float) -> Figures:
    """CPU per KiB of one big event, and of as many bytes in events of 4 KiB."""
    small = repeated(client, big // 4096, 4096, times=10, seconds=seconds)
    whole(client, 1, big // 4)
    large = repeated(client, 1, big, times=10, seconds=seconds)
    kib = big / 1024
    return {"small_us": small / kib * 1e6, "big_us": large / kib * 1e6, "growth": large / small}


def first_chunk(client: Client, _: int, times: int) -> Figures:
    """Median time from the call to the first chunk, over a connection that is kept where the client keeps it."""
    waits = [client.first(scenario.paced("", 0, 1, count=2, rate=200, tick_ms=0)) for _ in range(times)]
    return {"wait_us": statistics.median(waits) * 1e6}


def memory(client: Client, port: int, streams: int) -> Figures:
    """Memory of an open stream that has given its first chunk, without a consumer thread of its own."""
    before = resident_kib()
    held = client.hold(group("memory", streams, 1, 1, 0))
    figures = {"kib": (resident_kib() - before) / streams}
    control(port, "go:" + group_name("memory"))
    del held
    return figures


def import_time(kind: type[Client]) -> Figures:
    """CPU and time of the import in a fresh interpreter, the byte code being there."""
    code = (
        f"import time; c, t = time.process_time(), time.perf_counter()\n{kind.statement}\n"
        "print(time.process_time() - c, time.perf_counter() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    cpu_s, wall_s = map(float, done.stdout.split()[-2:])
    return {"cpu_ms": cpu_s * 1e3, "wall_ms": wall_s * 1e3}


def group_name(name: str) -> str:
    """Return a name for a group of streams that no other worker uses."""
    return f"{name}{os.getpid()}"


def group(name: str, streams: int, count: int, rate: float, tick_ms: float) -> list[str]:
    """Return the models of a group of paced streams."""
    own = group_name(name)
    return [scenario.paced(own, index, streams, count=count, rate=rate, tick_ms=tick_ms) for index in range(streams)]


class _Ledger:
    """When each chunk of a group of streams was stamped by the server, and when the consumer had it."""

    def __init__(self, streams: int) -> None:
        self.times: list[list[tuple[int, int]]] = [[] for _ in range(streams)]
        self.all_first = threading.Event()
        self.all_done = threading.Event()
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._silent = streams

    def seen(self, key: int, text: str) -> None:
        """Write down a text; called by the consumers, as the last step of the way that is measured."""
        if text:
            times = self.times[key]
            times.append((time.monotonic_ns(), int(text[: scenario.STAMP_DIGITS])))
            if len(times) == 1:
                with self._lock:
                    self._silent -= 1
                    if not self._silent:
                        self.all_first.set()

    def fail(self, error: BaseException) -> None:
        """End the measurement, with the error that a consumer ran into."""
        self.error = self.error or error
        self.all_first.set()
        self.all_done.set()

    def delays_ms(self) -> list[float]:
        """Return all delays in order, without those of the first chunks, which come before the group goes."""
        return sorted((seen - stamp) / 1e6 for times in self.times for seen, stamp in times[1:])


def paced(
    client: Client, port: int, *, mode: str, streams: int, rate: float, tick_ms: float, seconds: float
) -> Figures:
    """CPU, switches, delay and more of streams that go on side by side.

    All streams are opened first, and the first chunk of each taken. Then the server is told to go. What is measured
    begins there, and lasts until the consumers have seen the ends of all streams.
    """
    count = max(2, int(rate * seconds))
    models, ledger = group("paced", streams, count, rate, tick_ms), _Ledger(streams)
    fresh = resident_kib()
    consumers = _consume(client, models, ledger) if mode == "threads" else _consume_merged(client, models, ledger)
    if not ledger.all_first.wait(30 + streams * 0.05):
        return {"error": "the streams could not be opened"}
    opened = resident_kib()
    before, switched, started = cpu(), switches(), time.monotonic_ns()
    control(port, "go:" + group_name("paced"))
    threads = thread_count()
    ledger.all_done.wait(seconds / 2)
    threads = max(threads, thread_count())
    done = ledger.all_done.wait(seconds * 3.5 + 5)
    used, switched = cpu() - before, switches() - switched
    if ledger.error:
        raise ledger.error
    figures = _paced_figures(ledger, used, switched, streams * count)
    figures |= _stretches(ledger, started, streams, rate, count) if done else {}
    figures |= {"extra_threads": threads - 1 - consumers, "open_kib": (opened - fresh) / streams}
    return figures | control(port, "report:" + group_name("paced"))


def _consume(client: Client, models: list[str], ledger: _Ledger) -> int:
    """Open all streams, start a thread that drains each, and return the number of threads."""
    left = threading.Semaphore(0)

    def drain(key: int, stream: Any) -> None:
        seen, text = ledger.seen, client.text
        try:
            for item in stream:
                seen(key, text(item))
        except Exception as error:  # noqa: BLE001 - it is the outcome of the measurement
            ledger.fail(error)
        left.release()

    def wait_for_all() -> None:
        for _ in models:
            left.acquire()
        ledger.all_done.set()

    for key, model in enumerate(models):
        threading.Thread(target=drain, args=(key, client.stream(model)), daemon=True).start()
    threading.Thread(target=wait_for_all, daemon=True).start()
    return len(models) + 1


def _consume_merged(client: Client, models: list[str], ledger: _Ledger) -> int:
    """Start the one thread that opens and drains all streams, and return the number of threads."""

    def drain() -> None:
        try:
            client.merged(models, ledger.seen)
        except Exception as error:  # noqa: BLE001 - it is the outcome of the measurement
            ledger.fail(error)
        ledger.all_done.set()

    threading.Thread(target=drain, daemon=True).start()
    return 1


def _paced_figures(ledger: _Ledger, used: float, switched: int, expected: int) -> Figures:
    delays = ledger.delays_ms()
    if not delays:
        return {"error": "no chunk came in time"}
    figures: Figures = {
        "cpu_us": used / len(delays) * 1e6,
        "switches": switched / len(delays),
        "p50_ms": delays[len(delays) // 2],
        "p99_ms": delays[len(delays) * 99 // 100],
    }
    if len(delays) < expected:
        figures["unfinished"] = len(delays) / expected
    return figures


def _stretches(ledger: _Ledger, started: int, streams: int, rate: float, count: int) -> Figures:
    """Return how much longer than its ideal time a stream took: the longest, and the 99th percentile."""
    ideal = [scenario.phase(index, streams, rate) + (count - 1) / rate for index in range(streams)]
    took = [(times[-1][0] - started) / 1e9 for times in ledger.times]
    stretches = sorted(real / best for real, best in zip(took, ideal, strict=True))
    return {"stretch_max": stretches[-1], "stretch_p99": stretches[len(stretches) * 99 // 100]}


MEASURES = {
    "fast": fast,
    "paced": paced,
    "requests": requests,
    "first_chunk": first_chunk,
    "memory": memory,
    "growth": growth,
    "batch": batch,
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))) + "\n")
    sys.stdout.flush()
    os._exit(0)  # whatever a client still has open does not matter any more
