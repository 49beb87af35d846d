"""A run: every measurement of every client, in rounds, each in a process of its own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from .clients import client_class

Sample = dict[str, Any]

MEASURES = ("fast", "paced", "requests", "first_chunk", "memory", "import", "growth", "batch")

_LIMITS = {"paced": 90, "growth": 240, "batch": 240}
"""Seconds for one measurement, 60 if nothing else is said. A client that needs more is shown as such, and not asked
again."""

_PACKAGES = ("chanstream", "requests", "urllib3", "sseclient-py", "attrs", "orjson", "httpx", "httpx-sse", "openai")
_PACKAGES += ("groq", "mistralai", "litellm")


class Case(NamedTuple):
    """One line-up of the clients: a measure with its options. The name says all that a reader has to know."""

    name: str
    measure: str
    options: dict[str, Any]


def cases(measures: tuple[str, ...], streams: tuple[int, ...] = (), *, quick: bool = False) -> list[Case]:
    """Return what is to be measured.

    Args:
        measures: Some of `MEASURES`.
        streams: How many paced streams side by side; by default 1, 50, 200 and 1 000.
        quick: Whether it is to be over soon; the figures are worth little then.
    """
    seconds = 0.2 if quick else 1.0
    simple = {
        "fast": {"count": 2000, "size": 190, "seconds": seconds},
        "requests": {"seconds": seconds},
        "first_chunk": {"times": 5 if quick else 50},
        "memory": {"streams": 50 if quick else 500},
        "import": {},
        "batch": {"streams": 200 if quick else 2000, "count": 50, "concurrency": 16},
        "growth": {"big": (1 << 17) if quick else (1 << 22), "seconds": seconds},
    }
    found = [Case(measure, measure, options) for measure, options in simple.items() if measure in measures]
    if "paced" in measures:
        found += _paced(streams or ((1, 50) if quick else (1, 50, 200, 1000)), 1.0 if quick else 4.0)
    return found


def _paced(streams: tuple[int, ...], seconds: float) -> list[Case]:
    """Return the cases of paced streams: each with ticks of 1 ms as servers have them, and 200 without any."""
    found = []
    for mode in ("threads", "one"):
        for number in streams:
            options = {"mode": mode, "streams": number, "rate": 10 if number >= 1000 else 20, "seconds": seconds}
            found.append(Case(f"paced-{mode}-{number}", "paced", {**options, "tick_ms": 1}))
            if number == 200:
                found.append(Case(f"paced-{mode}-{number}-even", "paced", {**options, "tick_ms": 0}))
    return found


def fits(case: Case, name: str) -> bool:
    """Return whether a client can be measured so at all."""
    kind = client_class(name)
    if kind.only:
        return kind.only == case.measure
    if case.measure == "paced":
        return kind.threads if case.options["mode"] == "threads" else kind.can_merge()
    return kind.threads or case.measure != "batch"


def run(port: int, wanted: list[Case], clients: list[str], rounds: int, tell: Callable[[Sample], None]) -> None:
    """Measure every client in every case, so many times; round by round, so that a slow minute hits all alike."""
    for case in wanted:
        line_up = [name for name in clients if fits(case, name)]
        for number in range(rounds):
            for name in tuple(line_up):
                figures = measure(port, case, name)
                tell({"case": case.name, "client": name, "round": number, **figures})
                if figures.get("timed_out"):
                    line_up.remove(name)


def measure(port: int, case: Case, name: str) -> Sample:
    """Return one measurement of one client; what goes wrong is in it too."""
    spec = json.dumps({"measure": case.measure, "client": name, "port": port, "options": case.options})
    command = [sys.executable, "-m", "tests.benchmarks.worker", spec]
    limit = _LIMITS.get(case.measure, 60)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=_environment(), check=False)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit} s", "timed_out": True}
    except (IndexError, ValueError):
        return {"error": " ".join(done.stderr.split()[-20:]) or f"ended with {done.returncode}"}


def _environment() -> dict[str, str]:
    """Return an environment in which nobody asks the network: no proxy, and no price list for litellm."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return kept | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def machine() -> dict[str, Any]:
    """Return what a reader must know of the machine to compare."""
    return {
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
