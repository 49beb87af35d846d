"""The commands, their options and their help. What they do lies in modules that are imported when they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from .. import __version__
from .endings import INTERRUPTED, guarded
from .presets import PRESETS

# In these texts, click keeps the lines of a paragraph that begins with a backspace as they are.
_HELP = """Stream chat completions from Mistral, Groq, or any server that speaks the OpenAI protocol.

\b
Examples:
  chanstream chat --demo "Tell me a joke."     no key, no network
  chanstream chat "Tell me a joke."            with MISTRAL_API_KEY set
  chanstream batch in.jsonl -o out.jsonl       many requests at once
  chanstream serve                             a server to try clients on
"""

_DIALECTS = "\n".join(f"  {name:8} {preset.model:21} {preset.key_variable}" for name, preset in PRESETS.items())

_CHAT_HELP = f"""Stream the answer to PROMPT to standard output, token by token.

If PROMPT is "-", or left out while standard input is not a terminal, the prompt is read from standard input. Left out
on a terminal, a conversation begins: Ctrl-C stops an answer, and /quit or Ctrl-D leaves.

The key is read from the environment. There is no option for it, because every user of the machine can see the options
of a process. With --base-url the key may be missing; then none is sent.

\b
  dialect  default model         variable of the key
{_DIALECTS}

What the model thinks before it answers is shown dimmed on a terminal, and is left out otherwise.

\b
Examples:
  chanstream chat --demo "Tell me a joke."
  chanstream chat --dialect groq --stats "Why is the sky blue?"
  git diff | chanstream chat --system "Write a commit message."
  chanstream chat --json "List three colours." | jq -j .text
  chanstream chat --dialect openai --base-url http://localhost:11434 \\
    --model llama3.2 "Hello"

The exit status is 0 after a complete answer, 1 after an error, 2 after wrong usage, and 130 after Ctrl-C.
"""

_BATCH_HELP = f"""Answer the requests in INPUT, many at once, and write each result to a file at once.

INPUT has one request per line, as the batch files of OpenAI and Mistral have it: an object with a "custom_id" and the
"body" of the request. Or it is plain text, one prompt per line, if its name ends in .txt or with --text; then the id of
each is the number of its line. "-" is standard input.

OUTPUT gets a line for each request that was answered or failed, in the format of OpenAI's batch results, as they come.
Interrupted or killed, the same command goes on where it was: what is in OUTPUT already is not sent again.

A line that cannot be read is reported with its number, and left out.

The key is read from the environment. There is no option for it, because every user of the machine can see the options
of a process. With --base-url the key may be missing; then none is sent.

\b
  dialect  default model         variable of the key
{_DIALECTS}

\b
Examples:
  chanstream batch requests.jsonl -o results.jsonl
  chanstream batch requests.jsonl -o results.jsonl --retry-failed
  chanstream batch cities.txt -o facts.jsonl --prompt "What is {{}} known for?"
  chanstream batch --demo --text - -o out.jsonl < prompts
  chanstream batch in.jsonl -o out.jsonl --rate 300/m --adaptive

The exit status is 0 if every request was answered, 1 if one failed or a line was left out, 2 after wrong usage, and
130 after Ctrl-C.
"""

_SERVE_HELP = """Serve made-up answers to any client of the protocol, until Ctrl-C.

The server takes POST /v1/chat/completions, with and without streaming, whatever the model and the key.

\b
Examples:
  chanstream serve
  chanstream serve --port 8080 --pace 0.2 --reply "One word at a time."
  chanstream chat --base-url http://127.0.0.1:8000 "Hello"     from elsewhere
"""


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


@click.group(help=_HELP, context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Hold the commands together."""


def _asking(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options that say whom to ask; they are the fields of `Connection`."""
    for option in reversed(_ASKING):
        command = option(command)
    return command


_ASKING = (
    click.option("-m", "--model", metavar="NAME", help="The model to ask, by default the dialect's."),
    click.option("--base-url", metavar="URL", help="The server, by default the dialect's. Without a path it gets /v1."),
    click.option(
        "--dialect",
        type=click.Choice(list(PRESETS)),
        default=next(iter(PRESETS)),
        show_default=True,
        help='The kind of server; "openai" for all that are compatible with it.',
    ),
    click.option(
        "--demo", is_flag=True, help="Answer from a server inside of this command: no key, no network, no model."
    ),
)


@cli.command(help=_CHAT_HELP)
@click.argument("prompt", required=False)
@_asking
@click.option("-s", "--system", metavar="TEXT", help="Instructions that stand above the conversation.")
@click.option("-t", "--temperature", type=float, metavar="NUMBER", help="How freely the model chooses; 0 is least.")
@click.option("--json", "as_json", is_flag=True, help="Write each chunk as one line of JSON; an error too.")
@click.option("--stats", is_flag=True, help="After the answer, write tokens, times and finish reason to stderr.")
def chat(prompt: str | None, **options: Any) -> int:
    """Run the command; its options are the fields of `Settings`."""
    from .chat import Settings, chat

    return guarded(lambda: chat(prompt, Settings(**options)))


@cli.command(help=_BATCH_HELP)
@click.argument("source", metavar="INPUT", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "-o", "--output", metavar="OUTPUT", required=True, type=click.Path(dir_okay=False), help="The file of the results."
)
@_asking
@click.option("--text", is_flag=True, help="INPUT is plain text, one prompt per line, whatever its name.")
@click.option("--prompt", metavar="TEXT", help="What to ask about each line of plain text, which stands where {} is.")
@click.option("-s", "--system", metavar="TEXT", help="Instructions that stand above each line of plain text.")
@click.option(
    "--concurrency", type=click.IntRange(min=1), default=16, show_default=True, help="How many requests at a time."
)
@click.option("--rate", metavar="RATE", help="How many requests in a time: 50/s, 300/m, 50/10s.")
@click.option("--adaptive", is_flag=True, help="Have as many at a time, at most, as the server's refusals allow.")
@click.option("--retry-failed", is_flag=True, help="Send again what failed according to OUTPUT.")
@click.option("--dask", metavar="ADDRESS", help="Have the workers of a Dask cluster ask: the scheduler's address.")
def batch(source: str, **options: Any) -> int:
    """Run the command; its options are the fields of `Settings`."""
    from .batch import Settings, batch

    return guarded(lambda: batch(source, Settings(**options)))


@cli.command(help=_SERVE_HELP)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free port.")
@click.option("--pace", type=click.FloatRange(min=0), default=0.03, show_default=True, help="Seconds between tokens.")
@click.option("--reply", metavar="TEXT", help="What to answer; by default a friendly text that quotes the prompt.")
def serve(host: str, port: int, pace: float, reply: str | None) -> int:
    """Run the command."""
    from .serve import serve

    return guarded(lambda: serve(host, port, pace, reply))
