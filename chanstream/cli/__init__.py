"""The command line: ``chanstream chat``, ``chanstream batch`` and ``chanstream serve``.

It stands on the public names of the library alone. It needs click and rich, the extra ``cli``; nothing outside of this
package imports them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

__all__ = ["main"]

_NEEDED = ("click", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status of the process.

    Args:
        arguments: What follows the program's name; those of the process by default.
    """
    if not all(map(_installed, _NEEDED)):
        print("chanstream: the command line needs click and rich: pip install 'chanstream[cli]'", file=sys.stderr)
        return 1
    try:
        from .commands import run

        return run(arguments)
    except KeyboardInterrupt:  # while modules were imported
        return 130


def _installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it: rich is used on terminals only, and late."""
    try:
        return find_spec(package) is not None
    except ImportError:
        return False
