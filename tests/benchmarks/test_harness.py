"""The harness, not the figures: nothing here looks at how long anything took."""

from __future__ import annotations

import concurrent.futures
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import report, runner, scenario, worker
from .__main__ import main
from .clients import NAMES, client_class
from .server import running

OF_THE_TEST_EXTRA = ("raw", "asyncio", "iter-lines", "sseclient", "naive", "threaded", "threaded-json")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a server that runs for all tests of this file."""
    if not sys.platform.startswith("linux"):
        pytest.skip("threads and memory are read from /proc")
    with running() as port:
        yield port


def sample(client: str, round_: int = 0, **figures: object) -> runner.Sample:
    """Return a sample of the fast stream, as a worker's answer becomes one."""
    return {"case": "fast", "client": client, "round": round_, **figures}


def test_an_event_has_the_size_that_was_asked_for() -> None:
    """A stream has so many events, each of the wanted size and in an HTTP chunk of its own, and then its end."""
    chunks = scenario.fast_body(3, 190).split(b"\r\n")[1::2]
    *events, last, done, end = chunks
    assert [len(event) for event in events] == [190, 190]
    assert json.loads(last[6:])["choices"][0]["finish_reason"] == "stop"
    assert (done, end) == (b"data: [DONE]\n\n", b"")
    text = json.loads(events[0][6:])["choices"][0]["delta"]["content"]
    assert len(text) == scenario.characters(190)


@pytest.mark.parametrize("last", [False, True])
def test_a_stamp_can_be_read_from_the_text(last: bool) -> None:
    """A paced event's text begins with its stamp, and its HTTP chunk has the size that it says."""
    size, _, rest = scenario.stamped(123_456_789, last=last).partition(b"\r\n")
    data = rest[: int(size, 16)]
    text = json.loads(data[6:])["choices"][0]["delta"]["content"]
    assert int(text[: scenario.STAMP_DIGITS]) == 123_456_789
    assert data.endswith(b"\n\n")
    assert rest[int(size, 16) :].startswith(b"\r\n")


@pytest.mark.slow
def test_every_client_of_ours_and_of_the_standard_kind_can_be_measured(port: int) -> None:
    """What the test extra installs can be measured in every way that fits, and gives all the figures of the tables."""
    wanted = [
        runner.Case("fast", "fast", {"count": 20, "size": 190, "seconds": 0}),
        runner.Case("paced-one-3", "paced", {"mode": "one", "streams": 3, "rate": 50, "tick_ms": 1, "seconds": 0.1}),
        runner.Case(
            "paced-threads-3", "paced", {"mode": "threads", "streams": 3, "rate": 50, "tick_ms": 0, "seconds": 0.1}
        ),
    ]
    pairs = [(wanted[0], name) for name in OF_THE_TEST_EXTRA]
    pairs += [(case, name) for case in wanted[1:] for name in ("raw", "naive", "asyncio") if runner.fits(case, name)]
    batch = runner.Case("batch", "batch", {"streams": 8, "count": 5, "concurrency": 3})
    pairs += [(batch, name) for name in ("pool", *OF_THE_TEST_EXTRA) if runner.fits(batch, name)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        figures = list(pool.map(lambda pair: runner.measure(port, *pair), pairs))
    for (case, name), got in zip(pairs, figures, strict=True):
        columns = {key for key, _, _ in report.COLUMNS[case.measure]}
        assert columns <= got.keys(), (case.name, name, got)
        assert "unfinished" not in got


def test_a_missing_package_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose package is not installed, or that fails, has a row that says so."""
    monkeypatch.setattr(client_class("groq"), "packages", ("no_such_package",))
    answer = worker.main({"measure": "fast", "client": "groq", "port": 1, "options": {}})
    found = report.medians([sample("groq", **answer), sample("raw", cpu_us=1.0), sample("naive", error="Ouch")])
    rows = {row[0]: row[1:] for row in report.table("fast", found["fast"]).rows}
    assert rows["groq"] == ["-", "-", "not installed: no_such_package"]
    assert rows[client_class("raw").label] == ["1.00", "1.00", ""]
    assert rows[client_class("naive").label][-1] == "Ouch"


def test_medians_and_limits() -> None:
    """A limit is held by the medians over the rounds, is not held above its factor, and may be not measured."""
    samples = [sample("raw", n, cpu_us=cost) for n, cost in enumerate((2.0, 1.0, 99.0))]
    samples += [sample("poller", cpu_us=5.0), sample("openai", cpu_us=99.0)]
    verdicts = {row[0]: row[-1] for row in report.check(report.medians(samples), "poller").rows}
    assert verdicts["fast stream: CPU per chunk, over raw"] == "held"
    assert verdicts["fast stream: CPU per chunk, over openai"] == "not held"
    assert verdicts["memory of an open stream, in KiB"] == "not measured"


def test_every_limit_names_what_a_run_measures() -> None:
    """Every figure that a limit looks at belongs to a case of the full run that fits its client."""
    cases = {case.name: case for case in runner.cases(runner.MEASURES)}
    for limit in report.limits("poller"):
        for case, client, key in filter(None, (limit.ours, limit.theirs)):
            assert runner.fits(cases[case], client)
            assert key in {column for column, _, _ in report.COLUMNS[cases[case].measure]}


def test_a_run_can_be_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of several files each case comes from the last that has it, and the exit status tells of limits not held."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    machine = runner.machine()
    old.write_text(json.dumps({"machine": machine, "samples": [sample("raw", cpu_us=7.0)]}))
    new.write_text(
        json.dumps({"machine": machine, "samples": [sample("raw", cpu_us=1.0), sample("poller", cpu_us=9.0)]})
    )
    assert main(["--from", str(old), str(new), "--check"]) == 1
    shown = capsys.readouterr().out
    assert "7.00" not in shown
    assert "not held" in shown


def test_everything_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """The list names every client, installed or not, and every case."""
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)
    assert "paced-one-1000" in shown
