"""A real Chromium for the tests: the one that is named or installed, or else Debian's, unpacked and not installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import attrs

from tests.debian import NotThereError, unpacked

PACKAGES = ("chromium-headless-shell", "fonts-inter", "fonts-dejavu-core")
"""Chromium without a window, 60 MB; and letters, for a machine that has none."""

_NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")

_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <include ignore_missing="yes">/etc/fonts/fonts.conf</include>
  <dir>{home}/usr/share/fonts</dir>
  <cachedir>{home}/fonts</cachedir>
</fontconfig>
"""


@attrs.frozen
class Chromium:
    """The browser's program.

    Attributes:
        path: Where it is.
        environment: The variables that it needs beside those that are set.
    """

    path: str
    environment: dict[str, str] = attrs.field(factory=dict)


def find(place: Path) -> Chromium:
    """Return Chromium: that of CHANSTREAM_TEST_CHROMIUM, or the PATH's, or one in ``place``, unpacked if need be.

    Raises:
        NotThereError: There is none, and none can be had.
    """
    named = os.environ.get("CHANSTREAM_TEST_CHROMIUM")
    if named and not Path(named).exists():
        raise NotThereError(f"CHANSTREAM_TEST_CHROMIUM is no file: {named}")
    installed = named or next(filter(None, map(shutil.which, _NAMES)), None)
    return Chromium(installed) if installed else _brought(unpacked(place.resolve() / "chromium", *PACKAGES, needs=True))


def _brought(home: Path) -> Chromium:
    fonts = home / "fonts.conf"
    fonts.write_text(_FONTS.format(home=home))
    libraries = {str(library.parent) for library in home.glob("usr/lib/*-linux-gnu/**/*.so*")}
    environment = {"LD_LIBRARY_PATH": os.pathsep.join(sorted(libraries)), "FONTCONFIG_FILE": str(fonts)}
    return Chromium(str(home / "usr/lib/chromium/chromium-headless-shell"), environment)
