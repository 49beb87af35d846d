"""The program itself: version, help, what it imports, and what it says where a package is missing."""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points

import pytest

import chanstream
from chanstream.cli import main
from chanstream.cli.presets import PRESETS
from chanstream.dialects import DIALECTS
from tests.cli.commands import BARE, run

_BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from chanstream.cli import main
sys.exit(main(sys.argv[1:]))
"""

_IMPORTED = """
import sys
from chanstream.cli import main
status = main(sys.argv[1:])
print(*sorted({"asyncio", "requests", "rich"} & set(sys.modules)), file=sys.stderr)
sys.exit(status)
"""

_INTERRUPTED = """
import signal, sys

class Impatient:
    def find_spec(self, name, path=None, target=None):
        if name == "click.core":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Impatient())
from chanstream.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_version() -> None:
    """--version tells the version of the package."""
    ended = run("--version", env=BARE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"chanstream {chanstream.__version__}\n", "")


@pytest.mark.parametrize("command", [[], ["chat"], ["batch"], ["serve"]], ids=["all", "chat", "batch", "serve"])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """--help explains every command, with examples that keep their lines, for a terminal of 80 columns."""
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "\n    chanstream " in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("command", ["chat", "batch"])
def test_keys_are_no_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The help of what asks names the variables that hold the keys, and says why there is no option for them."""
    assert main([command, "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "There is no option for it" in out
    assert all(preset.key_variable in out and preset.model in out for preset in PRESETS.values())
    assert "--api-key" not in out


def test_presets_fit_the_library() -> None:
    """The command line knows each of the library's dialects, its key variable, and which is the default."""
    assert {name: preset.key_variable for name, preset in PRESETS.items()} == {
        name: dialect.key_variable for name, dialect in DIALECTS.items()
    }
    default = inspect.signature(chanstream.Client).parameters["dialect"].default
    assert next(iter(PRESETS)) == default


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that does not exist is wrong usage."""
    assert main(["sing"]) == 2
    assert "No such command 'sing'" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["click", "rich"])
def test_missing_packages(package: str) -> None:
    """Without click or rich the program says in one line what to install, and ends with 1."""
    ended = run("chat", "--demo", "Hello", python=("-c", _BLOCKED.format(package=package)), env=BARE)
    told = "chanstream: the command line needs click and rich: pip install 'chanstream[cli]'\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", told)


@pytest.mark.parametrize("command", ["chat", "batch"])
def test_help_is_quick(command: str) -> None:
    """Help comes without the HTTP library, the test server and rich."""
    ended = run(command, "--help", python=("-c", _IMPORTED), env=BARE)
    assert (ended.returncode, ended.stderr) == (0, "\n")


def test_plain_output_is_quick() -> None:
    """An answer into a pipe comes without rich."""
    ended = run("chat", "--demo", "Hello", python=("-c", _IMPORTED), env=BARE)
    assert ended.returncode == 0
    assert ended.stderr.splitlines()[-1] == "asyncio requests"


def test_the_script_is_the_same() -> None:
    """The installed script ``chanstream`` is this program, where the package is installed."""
    scripts = entry_points(group="console_scripts", name="chanstream")
    if not scripts:
        pytest.skip("chanstream is not installed here")
    assert all(script.value == "chanstream.cli:main" for script in scripts)


def test_ctrl_c_at_once() -> None:
    """Ctrl-C while the command is still being imported is no traceback either."""
    ended = run("--version", python=("-c", _INTERRUPTED), env=BARE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
