"""The page about the command line: its commands print what it says, and no option is missing."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from chanstream.cli.commands import cli
from chanstream.cli.presets import PRESETS
from tests.docs.blocks import ROOT, Block, blocks

PAGE = ROOT / "docs" / "cli.md"
CONSOLE = [block for block in blocks(PAGE) if block.language == "console"]
OPTIONS = [
    (name, option)
    for name, command in cli.commands.items()
    for parameter in command.params
    if isinstance(parameter, click.Option)
    for option in parameter.opts
]


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment for a shell that finds this checkout's command, and no key."""
    command = tmp_path / "chanstream"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m chanstream "$@"\n')
    command.chmod(0o755)
    keyless = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    return {**keyless, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("block", CONSOLE, ids=lambda block: f"line {block.line}")
def test_a_command(block: Block, shell: dict[str, str], tmp_path: Path) -> None:
    """A command, given to a shell as it stands, writes what stands below it."""
    command, _, expected = block.code.removeprefix("$ ").partition("\n")
    done = subprocess.run(
        command, shell=True, env=shell, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert doctest.OutputChecker().check_output(expected, done.stdout, doctest.ELLIPSIS), done.stdout


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=[f"{name} {option}" for name, option in OPTIONS])
def test_an_option(command: str, option: str) -> None:
    """Every option of a command stands in the command's section of the page."""
    section = PAGE.read_text("utf-8").partition(f"\n## chanstream {command}\n")[2].partition("\n## ")[0]
    assert f"| `{option}" in section or f", `{option}" in section


def test_the_presets() -> None:
    """The page's table of default models and keys is that of the command."""
    rows = [f"| `{name}` | `{preset.model}` | `{preset.key_variable}` |" for name, preset in PRESETS.items()]
    assert "\n".join(["| dialect | default model | key |", "|---|---|---|", *rows, ""]) in PAGE.read_text("utf-8")
