"""Programs of others that the tests talk to, from Debian's packages: unpacked into a folder and not installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_INSTALL_TIME = 40  # seconds for one step; less than a test may take in all: the first one brings it


class NotThereError(Exception):
    """A program is not here, and it cannot be brought here; the text says why."""


def programs_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder where programs are kept from one run of the tests to the next."""
    cache = getattr(request.config, "cache", None)  # absent with `-p no:cacheprovider`
    named = os.environ.get("CHANSTREAM_TEST_SERVERS") or (cache and cache.mkdir("servers"))
    return Path(named or tmp_path_factory.mktemp("servers"))


def unpacked(home: Path, *packages: str, needs: bool = False) -> Path:
    """Return ``home`` with the packages in it, unpacked if they are not.

    Args:
        home: A folder; packages are under it as they would be under the root.
        *packages: Their names.
        needs: Whether to bring what they need too, and this machine lacks.

    Raises:
        NotThereError: It is no Debian, or has no network.
    """
    if home.exists():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as aside:
        try:
            _unpack(Path(aside), packages, needs=needs)
        except NotThereError:
            if not hasattr(os, "geteuid") or os.geteuid():
                raise
            _run("apt-get", "update", cwd=Path(aside))  # lists that are old, or not there at all
            _unpack(Path(aside), packages, needs=needs)
        with contextlib.suppress(OSError):  # another test run was faster; as good
            Path(aside, "root").rename(home)
    return home


def _unpack(aside: Path, packages: tuple[str, ...], *, needs: bool) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise NotThereError(f"no {packages[0]} on the PATH, and no apt-get and dpkg to bring it")
    _run("apt-get", "download", *(_missing(packages, aside) if needs else packages), cwd=aside)
    for package in aside.glob("*.deb"):
        _run("dpkg", "-x", str(package), "root", cwd=aside)


def _missing(packages: tuple[str, ...], aside: Path) -> list[str]:
    """Return what would be installed."""
    plan = _run("apt-get", "--simulate", "--no-install-recommends", "install", *packages, cwd=aside)
    return [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]


def _run(*command: str, cwd: Path) -> str:
    what = f"{command[0]} {next(word for word in command[1:] if not word.startswith('--'))}"
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_INSTALL_TIME, check=False)
    except subprocess.TimeoutExpired:
        raise NotThereError(f"{what} took too long") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        raise NotThereError(f"{what} failed: {last}")
    return done.stdout
