"""The log on standard error that the environment variable CHANSTREAM_LOG asks for; loaded only if it is set."""

from __future__ import annotations

import logging

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def log_to_stderr(level: str) -> None:
    """Have the logger ``chanstream``, and no other, write to standard error from this level on.

    Args:
        level: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``, in any case. Anything else is told in the log and
            changes nothing: a slip in the environment must not keep a program from starting.
    """
    logger = logging.getLogger("chanstream")
    number = _LEVELS.get(level.strip().lower())
    if number is None:
        logger.warning("CHANSTREAM_LOG: expected debug, info, warning or error, got %r; it is ignored", level)
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(number)
