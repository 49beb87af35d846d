"""The pytest plugin, in test runs of its own: whether it is installed here or not, it is loaded from this checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FROM_HERE = ("-p", "no:chanstream", "-p", "chanstream.testing.plugin")
"""Not the installed entry point, if there is one: a plugin cannot be registered twice."""

USES = """
    import requests
    from chanstream.testing import StreamServer

    seen = []

    def ask(server):
        answer = requests.post(server.url + "/v1/chat/completions", json={})
        return answer.json()["choices"][0]["message"]["content"]

    def test_first(chanstream_server):
        assert isinstance(chanstream_server, StreamServer)
        chanstream_server.reply("First.", "Second.")
        assert [ask(chanstream_server), ask(chanstream_server)] == ["First.", "Second."]
        assert len(chanstream_server.requests) == 2
        seen.append(chanstream_server)

    def test_second(chanstream_server):
        assert chanstream_server not in seen
        assert "test server" in ask(chanstream_server)
        assert chanstream_server.requests[0].json == {}
        seen.append(chanstream_server)

    def test_afterwards():
        assert len(seen) == 2
        for server in seen:
            try:
                server.start()
            except RuntimeError as error:
                assert "closed" in str(error)
            else:
                raise AssertionError("it was left running")
"""

LAZY = """
    import sys

    def test_what_the_plugin_loaded():
        assert "chanstream.testing.plugin" in sys.modules
        ours = {name for name in sys.modules if name.startswith("chanstream")}
        assert ours == {"chanstream", "chanstream.testing", "chanstream.testing.plugin"}
"""


def pytest_of(folder: Path, code: str, *options: str, path: str = str(ROOT)) -> str:
    """Run pytest, as a user who has nothing set, on a file with this code; return what it prints."""
    (folder / "test_it.py").write_text(re.sub("^    ", "", code, flags=re.MULTILINE), "utf-8")
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options, "--rootdir", folder],
        cwd=folder, env={**keep, "PYTHONPATH": path, "NO_PROXY": "*", "no_proxy": "*"}, capture_output=True, text=True,
        timeout=50, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_the_fixture(tmp_path: Path) -> None:
    """chanstream_server is a running server for each test, takes replies, and is closed when the test is over."""
    assert "3 passed" in pytest_of(tmp_path, USES, *FROM_HERE)


def test_what_it_loads(tmp_path: Path) -> None:
    """A test run that does not use the fixture has nothing of chanstream loaded but the plugin itself."""
    assert "1 passed" in pytest_of(tmp_path, LAZY, *FROM_HERE)


@pytest.mark.parametrize(
    ("option", "told"), [((), "1 passed"), (("-p", "no:chanstream"), "fixture 'chanstream_server'")]
)
def test_it_is_found(tmp_path: Path, option: tuple[str, ...], told: str) -> None:
    """The plugin is found by what pyproject.toml says of it, and not if it is told ``-p no:chanstream``."""
    table = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.entry-points.pytest11]\n")[2]
    metadata = tmp_path / "site" / "installed_for_this_test-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-for-this-test\nVersion: 1.0\n")
    entry = table.splitlines()[0].replace('"', "")
    (metadata / "entry_points.txt").write_text(f"[pytest11]\n{entry}\n")
    code = """
    def test_it(chanstream_server):
        assert chanstream_server.port
    """
    path = os.pathsep.join([str(metadata.parent), str(ROOT)])
    assert told in pytest_of(tmp_path, code, *option, path=path)


def test_the_library_does_without_pytest() -> None:
    """Neither the package nor its testing part, with all its names loaded, imports pytest."""
    program = """
import sys
import chanstream, chanstream.testing
assert not {"chanstream.testing.server", "asyncio"} & set(sys.modules)
for package in (chanstream, chanstream.testing):
    for name in package.__all__:
        getattr(package, name)
assert not {"pytest", "_pytest"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
