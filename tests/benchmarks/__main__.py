"""``python -m tests.benchmarks``: measures, and says what it found."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from . import docs, report, runner
from .clients import NAMES, client_class
from .server import running


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says; return the exit status, which with ``--check`` tells whether all limits hold."""
    given = _parser().parse_args(arguments)
    if given.list:
        return _list()
    result = _merged(given.source) if given.source else _measured(given)
    found = report.medians(result["samples"])
    for case, clients in found.items():
        _say(report.as_text(report.table(case, clients)))
    if given.docs:
        docs.write(given.docs, found, result["machine"], given.check or "poller")
    if not given.check:
        return 0
    checked = report.check(found, given.check)
    _say(report.as_text(checked))
    return int(any(row[-1] == "not held" for row in checked.rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--measure", nargs="+", choices=runner.MEASURES, default=runner.MEASURES)
    parser.add_argument("--client", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--streams", nargs="+", type=int, default=(), help="how many paced streams side by side")
    parser.add_argument("--rounds", type=int, help="5, unless it is quick")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that all of it works")
    parser.add_argument("--json", type=Path, help="where every sample goes, after each as it comes")
    parser.add_argument("--from", type=Path, nargs="+", dest="source", help="such files, instead of measuring")
    parser.add_argument("--docs", type=Path, help="the folder whose benchmarks.md and plots are to be made")
    parser.add_argument(
        "--check", nargs="?", const="poller", choices=("poller", "threaded"), help="are the limits held?"
    )
    parser.add_argument("--list", action="store_true", help="show the clients and the cases")
    return parser


def _list() -> int:
    for name in NAMES:
        missing = client_class(name).missing()
        _say(f"{name:15} {client_class(name).label}" + (f" (not installed: {', '.join(missing)})" if missing else ""))
    _say()
    for case in runner.cases(runner.MEASURES):
        _say(f"{case.name:22} {report.title(case.name)}")
    return 0


def _measured(given: argparse.Namespace) -> dict[str, Any]:
    """Return the result of a new run. What has been measured so far is in the file even if the run is broken off."""
    samples: list[runner.Sample] = []
    result = {"machine": runner.machine(), "samples": samples}
    wanted = runner.cases(tuple(given.measure), tuple(given.streams), quick=given.quick)
    started = time.monotonic()

    def tell(sample: runner.Sample) -> None:
        samples.append(sample)
        what = f"{sample['case']} {sample['client']} #{sample['round'] + 1}"
        sys.stderr.write(f"\r\033[K{time.monotonic() - started:5.0f} s  {what}")
        if given.json:
            given.json.write_text(json.dumps(result, indent=1))

    with running() as port:
        runner.run(port, wanted, list(given.client), given.rounds or (1 if given.quick else 5), tell)
    sys.stderr.write("\n")
    return result


def _merged(files: list[Path]) -> dict[str, Any]:
    """Return the results of several runs as one; each case is taken from the last run that has it."""
    results = [json.loads(file.read_text()) for file in files]
    last = {sample["case"]: number for number, result in enumerate(results) for sample in result["samples"]}
    samples = [
        sample
        for number, result in enumerate(results)
        for sample in result["samples"]
        if last[sample["case"]] == number
    ]
    return {"machine": results[-1]["machine"], "samples": samples}


def _say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
