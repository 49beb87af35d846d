"""What a run says: medians, tables with ratios, and whether the limits are held."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from .clients import client_class
from .runner import Sample

_PACED = (
    ("cpu_us", "CPU µs per chunk", 1),
    ("switches", "switches per chunk", 2),
    ("p50_ms", "delay p50 ms", 3),
    ("p99_ms", "delay p99 ms", 2),
    ("extra_threads", "threads of its own", 0),
    ("stretch_p99", "time / ideal p99", 3),
    ("stretch_max", "longest", 3),
    ("open_kib", "KiB per stream", 0),
)

COLUMNS: dict[str, tuple[tuple[str, str, int], ...]] = {
    "fast": (("cpu_us", "CPU µs per chunk", 2),),
    "paced": _PACED,
    "requests": (("cpu_us", "CPU µs per request", 0),),
    "first_chunk": (("wait_us", "µs to the first chunk", 0),),
    "memory": (("kib", "KiB per open stream", 1),),
    "import": (("cpu_ms", "import, CPU ms", 1), ("ready_ms", "import and first answer, CPU ms", 1)),
    "batch": (("wall_us", "µs per stream", 0), ("cpu_us", "CPU µs per stream", 0)),
    "growth": (
        ("small_us", "µs per KiB, events of 4 KiB", 1),
        ("big_us", "µs per KiB, one event", 1),
        ("growth", "ratio", 2),
    ),
}
"""For each measure its figures: key, heading, digits. The first one is compared with the baseline's."""

BASELINES = {
    "fast": ("raw", "x the floor"),
    "paced": ("naive", "x queue.Queue"),
    "requests": ("bare-requests", "x the body at once"),
    "first_chunk": ("raw", "x the floor"),
    "batch": ("pool", "x ThreadPoolExecutor"),
}


class Median(dict[str, float]):
    """The medians of one client's figures in one case, and in ``note`` why there are none, or fewer."""

    note = ""


Medians = dict[str, dict[str, Median]]
"""By case, then by client, both in the order of the run."""


class Table(NamedTuple):
    """A table, as text: the first column is to the left, the others are numbers."""

    title: str
    heads: list[str]
    rows: list[list[str]]


def medians(samples: Iterable[Sample]) -> Medians:
    """Return the medians over the rounds."""
    grouped: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        grouped[sample["case"]][sample["client"]].append(sample)
    return {case: {name: _median(rows) for name, rows in clients.items()} for case, clients in grouped.items()}


def _median(rows: list[Sample]) -> Median:
    keys = {key for row in rows for key, value in row.items() if isinstance(value, float | int)} - {
        "round",
        "timed_out",
    }
    found = Median({key: statistics.median([row[key] for row in rows if key in row]) for key in sorted(keys)})
    for row in rows:
        if "missing" in row:
            found.note = f"not installed: {row['missing']}"
        elif "error" in row:
            found.note = row["error"]
        elif "unfinished" in row:
            found.note = f"only {found['unfinished']:.0%} of the chunks came in time"
    return found


def title(case: str) -> str:
    """Return the heading of a case."""
    measure, *words = case.split("-")
    if measure != "paced":
        return measure.replace("_", " ")
    consumer = {"threads": "a consumer thread each", "one": "one consumer for all"}[words[0]]
    rate = 10 if int(words[1]) >= 1000 else 20
    return f"{words[1]} streams x {rate} chunks/s, {consumer}" + (", no two chunks at once" if words[2:] else "")


def table(case: str, found: dict[str, Median]) -> Table:
    """Return the table of a case."""
    measure = case.split("-", maxsplit=1)[0]
    columns = COLUMNS[measure]
    baseline, times = BASELINES.get(measure, ("", ""))
    heads = ["client", columns[0][1], *([times] if baseline else []), *(head for _, head, _ in columns[1:])]
    rows = []
    for name, median in found.items():
        cells = [f"{median[key]:.{digits}f}" if key in median else "-" for key, _, digits in columns]
        if baseline:
            cells.insert(1, _ratio(median, found.get(baseline, Median()), columns[0][0]))
        rows.append([client_class(name).label, *cells, median.note])
    if any(row[-1] for row in rows):
        return Table(title(case), [*heads, "note"], rows)
    return Table(title(case), heads, [row[:-1] for row in rows])


def _ratio(ours: Median, theirs: Median, key: str) -> str:
    return f"{ours[key] / theirs[key]:.2f}" if key in ours and theirs.get(key) else "-"


class Limit(NamedTuple):
    """A figure may be at most ``factor`` times another of the same run; or ``factor`` itself, where there is no other.

    A figure is named by case, client and key.
    """

    text: str
    ours: tuple[str, str, str]
    factor: float
    theirs: tuple[str, str, str] | None = None


def limits(ours: str) -> list[Limit]:
    """Return all that must hold for an engine of ours."""

    def compared(text: str, case: str, key: str, factors: dict[str, float]) -> list[Limit]:
        return [Limit(f"{text}, over {to}", (case, ours, key), by, (case, to, key)) for to, by in factors.items()]

    each, one = "200 streams, a thread each: ", "200 streams, one consumer: "
    peers = {"raw": 2.5, "openai": 1 / 20, "groq": 1 / 20, "mistralai": 1 / 100}
    found = compared("fast stream: CPU per chunk", "fast", "cpu_us", peers)
    found.append(Limit("the same without orjson", ("fast", f"{ours}-json", "cpu_us"), 2, ("fast", ours, "cpu_us")))
    found += compared(f"{each}CPU per chunk", "paced-threads-200", "cpu_us", {"naive": 0.6, "groq": 1 / 4})
    found += compared(f"{one}CPU per chunk", "paced-one-200", "cpu_us", {"naive": 0.3, "asyncio": 1.1})
    naive = ("paced-threads-200", "naive", "cpu_us")
    found.append(
        Limit(f"{one}CPU per chunk, over naive with a thread each", ("paced-one-200", ours, "cpu_us"), 0.3, naive)
    )
    found += compared(f"{each}delay p50", "paced-threads-200", "p50_ms", {"naive": 0.6, "groq": 1 / 15})
    found += compared(f"{each}delay p99", "paced-threads-200", "p99_ms", {"naive": 0.6, "groq": 1 / 15})
    for mode, words in (("threads", "a thread each"), ("one", "one consumer")):
        many, few = f"paced-{mode}-1000", f"paced-{mode}-50"
        found += [
            Limit(f"1000 streams, {words}: longest, over its ideal time", (many, ours, "stretch_max"), 1.2),
            Limit(f"1000 streams, {words}: threads of its own", (many, ours, "extra_threads"), 3),
            Limit(f"1000 streams, {words}: CPU, over 50", (many, ours, "cpu_us"), 1.3, (few, ours, "cpu_us")),
        ]
    found.append(Limit("memory of an open stream, in KiB", ("memory", ours, "kib"), 60))
    found += compared("request of one chunk: CPU", "requests", "cpu_us", {"bare-requests": 1.15})
    for key, words in (("wall_us", "time"), ("cpu_us", "CPU")):
        found += compared(f"a batch of 2000 streams: {words}", "batch", key, {"pool": 1.0, "openai": 1 / 3})
    found.append(Limit("one event of 4 MiB, per byte, over events of 4 KiB", ("growth", ours, "growth"), 2))
    return found


def check(found: Medians, ours: str) -> Table:
    """Return how each limit stands."""
    rows = []
    for limit in limits(ours):
        figure, other = _figure(found, limit.ours), _figure(found, limit.theirs) if limit.theirs else 1.0
        if figure is None or not other:
            rows.append([limit.text, "-", f"{limit.factor:.3g}", "not measured"])
        else:
            verdict = "held" if figure <= other * limit.factor else "not held"
            rows.append([limit.text, f"{figure / other:.3g}", f"{limit.factor:.3g}", verdict])
    return Table(f"limits, {client_class(ours).label}", ["what", "is", "at most", "verdict"], rows)


def _figure(found: Medians, name: tuple[str, str, str]) -> float | None:
    case, client, key = name
    return found.get(case, {}).get(client, {}).get(key)


def as_text(shown: Table) -> str:
    """Return a table for a terminal."""
    widths = [max(map(len, column)) for column in zip(shown.heads, *shown.rows, strict=True)]
    lines = []
    for first, *rest in (shown.heads, *shown.rows):
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([f"== {shown.title}", *lines, ""])


def as_markdown(shown: Table) -> str:
    """Return a table for the documentation."""
    rule = ["---", *["---:"] * (len(shown.heads) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (shown.heads, rule, *shown.rows))
