"""The plots and tables of ``docs/benchmarks.md``, from the medians of a run.

The page has its prose from its author. Between ``<!-- table: NAME -->`` and ``<!-- end -->`` it has the table of that
name: a case, ``check`` or ``machine``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from . import report
from .clients import client_class

_STYLE = {
    "raw": "#555555",
    "asyncio": "#9467bd",
    "iter-lines": "#8c564b",
    "sseclient": "#bcbd22",
    "naive": "#ff7f0e",
    "httpx-sse": "#17becf",
    "openai": "#e377c2",
    "groq": "#2ca02c",
    "mistralai": "#d62728",
    "litellm": "#7f7f7f",
    "threaded": "#6baed6",
    "poller": "#08519c",
}
"""A colour for each client that is drawn; ours are the blue ones."""


def write(folder: Path, found: report.Medians, machine: dict[str, Any], ours: str) -> None:
    """Write the plots into ``folder/benchmarks`` and the tables into ``folder/benchmarks.md``, if that is there."""
    _draw(folder / "benchmarks", found)
    page = folder / "benchmarks.md"
    if not page.exists():
        return
    tables = {case: report.as_markdown(report.table(case, clients)) for case, clients in found.items()}
    tables["check"] = report.as_markdown(report.check(found, ours))
    tables["machine"] = _machine(machine)
    text = page.read_text("utf-8")
    page.write_text(_MARKED.sub(lambda mark: _filled(mark, tables), text), "utf-8")


_MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _filled(mark: re.Match[str], tables: dict[str, str]) -> str:
    """Return a marked place with its table; one that was not measured this time stays as it was."""
    return f"{mark[1]}\n{tables[mark[2]]}\n\n{mark[3]}" if mark[2] in tables else mark[0]


def _machine(machine: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return f"{machine['processors']} processors, {machine['system']}, {machine['python']}; {packages}."


def _draw(folder: Path, found: report.Medians) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "chanstream", "svg.fonttype": "path", "font.size": 9, "axes.grid": True})
    mpl.rcParams.update({"grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
    folder.mkdir(parents=True, exist_ok=True)
    if "fast" in found:
        _bars(folder / "fast.svg", found["fast"])
    if _streams(found, "threads"):
        panels = [("p50_ms", "threads", "p50, ms"), ("p99_ms", "threads", "p99, ms")]
        _lines(folder / "delay.svg", found, "Delivery delay, a consumer thread for each stream", panels)
        panels = [("cpu_us", "threads", "a consumer thread each"), ("cpu_us", "one", "one consumer for all")]
        _lines(folder / "cpu.svg", found, "CPU per chunk of paced streams, µs", panels)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def _bars(path: Path, clients: dict[str, report.Median]) -> None:
    """Draw the cost of a chunk for every client, the cheapest on top."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    costs = {name: median["cpu_us"] for name, median in clients.items() if name in _STYLE and "cpu_us" in median}
    names = sorted(costs, key=costs.__getitem__, reverse=True)
    figure = Figure(figsize=(7, 0.4 + 0.32 * len(names)))
    axes = figure.subplots()
    bars = axes.barh([_label(name) for name in names], [costs[name] for name in names], color=[*map(_STYLE.get, names)])
    axes.bar_label(bars, [f"{costs[name]:.3g}" for name in names], padding=3)
    axes.set(xscale="log", xlabel="CPU per chunk of one fast stream, µs (logarithmic)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    _save(figure, path)


def _lines(path: Path, found: report.Medians, heading: str, panels: list[tuple[str, str, str]]) -> None:
    """Draw figures over the number of streams, side by side, a line for each client; both axes are logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(8, 3.6))
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    drawn: dict[str, Any] = {}
    for axes, (key, mode, words) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        numbers = _streams(found, mode)
        for name, colour in _STYLE.items():
            points = [(number, found[f"paced-{mode}-{number}"].get(name, {}).get(key)) for number in numbers]
            if points := [(number, value) for number, value in points if value]:
                (drawn[name],) = axes.plot(*zip(*points, strict=True), "o-", color=colour, ms=3, lw=_width(name))
        axes.set(xscale="log", yscale="log", title=words, xlabel="streams", xticks=numbers)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(plain)
        axes.yaxis.set_major_formatter(plain)
    names = [name for name in _STYLE if name in drawn]
    figure.legend([drawn[name] for name in names], [*map(_label, names)], loc="center left", bbox_to_anchor=(0.92, 0.5))
    figure.suptitle(heading, y=1.02)
    _save(figure, path)


def _streams(found: report.Medians, mode: str) -> list[int]:
    return sorted(int(hit[1]) for case in found if (hit := re.fullmatch(rf"paced-{mode}-(\d+)", case)))


def _width(name: str) -> float:
    return 2.2 if name in ("threaded", "poller") else 1.1


def _label(name: str) -> str:
    return client_class(name).label
