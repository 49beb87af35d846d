"""The commands, their options and their help. What they do lies in modules that are imported when they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from .. import __version__
from .endings import INTERRUPTED, guarded
from .presets import PRESETS

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_MODELS = ", ".join(f"{preset.model} ({name})" for name, preset in PRESETS.items())
_KEYS = ", ".join(f"{preset.key_variable} ({name})" for name, preset in PRESETS.items())


def run(arguments: Sequence[str] | None) -> int:
    """Run a command and return its exit status: 2 for wrong usage, else what the command gives."""
    try:
        status = cli.main(arguments, prog_name="chanstream", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:  # Ctrl-C outside of a command
        return INTERRUPTED
    return int(status or 0)


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    r"""Stream chat completions from Mistral, Groq, or any server that speaks the OpenAI protocol.

    \b
    Examples:
      chanstream chat --demo "Tell me a joke."     no key, no network
      chanstream chat "Tell me a joke."            with MISTRAL_API_KEY set
      chanstream serve                             a server to try clients on
    """


@cli.command(
    # One text for the page and for its copy in the documentation; f-strings are no docstrings.
    help=f"""Stream the answer to PROMPT to standard output, token by token.

    PROMPT is "-", or left out with standard input not a terminal: the prompt is read from standard input. Left out on a
    terminal: a conversation, in which Ctrl-C stops an answer, and /quit or Ctrl-D leaves.

    The key is read from the environment, and there is no option for it, since other users of the machine can see the
    options of a process: {_KEYS}. With --base-url it may be missing; then none is sent.

    What the model thinks before it answers is shown dimmed on a terminal, and is left out otherwise.

    \b
    Examples:
      chanstream chat --demo "Tell me a joke."
      chanstream chat --dialect groq --stats "Why is the sky blue?"
      git diff | chanstream chat --system "Write a commit message for this diff."
      chanstream chat --json "List three colours." | jq -rj .text
      chanstream chat --dialect openai --base-url http://localhost:11434 --model llama3.2

    Ends with status 0 after a complete answer, 1 after an error, 2 when used wrongly, 130 after Ctrl-C.
    """
)
@click.argument("prompt", required=False)
@click.option("-m", "--model", metavar="NAME", help=f"The model to ask. By default: {_MODELS}.")
@click.option("-s", "--system", metavar="TEXT", help="Instructions that stand above the conversation.")
@click.option("--base-url", metavar="URL", help="The server, by default the dialect's. Without a path it gets /v1.")
@click.option(
    "--dialect",
    type=click.Choice(list(PRESETS)),
    default=next(iter(PRESETS)),
    show_default=True,
    help='The kind of server; "openai" for all that are compatible with it.',
)
@click.option("-t", "--temperature", type=float, metavar="NUMBER", help="How freely the model chooses; 0 is least.")
@click.option("--json", "as_json", is_flag=True, help="Write each chunk as one line of JSON; an error too.")
@click.option("--stats", is_flag=True, help="After the answer, write tokens, times and finish reason to stderr.")
@click.option("--demo", is_flag=True, help="Answer from a server inside of this command: no key, no network, no model.")
def chat(prompt: str | None, **options: Any) -> int:
    """Run the command; its help is above, and its options are the fields of `Settings`."""
    from .chat import Settings, chat

    return guarded(lambda: chat(prompt, Settings(**options)))


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free port.")
@click.option(
    "--pace",
    type=click.FloatRange(min=0),
    default=0.03,
    show_default=True,
    help="Seconds between one token and the next.",
)
@click.option("--reply", metavar="TEXT", help="What to answer; by default a friendly text that quotes the prompt.")
def serve(host: str, port: int, pace: float, reply: str | None) -> int:
    r"""Serve made-up answers to any client of the protocol, until Ctrl-C.

    It takes POST /v1/chat/completions, with and without streaming, whatever the model and the key.

    \b
    Examples:
      chanstream serve
      chanstream serve --port 8080 --pace 0.2 --reply "One word at a time."
      chanstream chat --base-url http://127.0.0.1:8000 "Hello"     in another terminal
    """
    from .serve import serve

    return guarded(lambda: serve(host, port, pace, reply))
