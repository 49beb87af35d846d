"""How a command ends: with a status, and with one readable line where something went wrong."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

from .. import ChanstreamError
from .render import complain, note, on_terminal

# What a shell reports for a process that died of SIGINT or SIGPIPE: 128 and the signal's number.
INTERRUPTED = 130
BROKEN_PIPE = 141


def guarded(command: Callable[[], int]) -> int:
    """Return the status of a command, whichever way it ends."""
    _prepare_streams()
    try:
        return command()
    except KeyboardInterrupt:
        if on_terminal(sys.stderr):
            note("interrupted")  # the terminal has written ^C, and the shell's prompt wants a line of its own
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads on: `chanstream chat ... | head`
        return BROKEN_PIPE
    except ChanstreamError as error:
        complain(str(error))
        return 1
    except OSError as error:  # such as a full disk below standard output
        complain(error.strerror or str(error))
        return 1
    finally:
        _drop_what_cannot_be_written()


def _prepare_streams() -> None:
    """See to it that text of any kind can be read and written, whatever the terminal's encoding knows of it."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _drop_what_cannot_be_written() -> None:
    """Let nothing remain for the interpreter's last flush to fail on, which would tell the user a second time."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # one that the process was started without is None
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
