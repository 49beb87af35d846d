"""A cluster of Dask's on this machine, as a program: tells its address, and ends with its standard input."""

from __future__ import annotations

import sys


def main() -> None:
    """Run until nobody is there any more."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, flush=True)  # noqa: T201 - whoever began it reads it
        sys.stdin.read()


if __name__ == "__main__":
    main()
