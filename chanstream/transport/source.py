"""The body of an answer as a source of bytes: each read returns what has arrived, as soon as anything has.

``read1`` does so on every framing and on compressed bodies; ``iter_content`` and ``iter_lines`` deliver a
close-delimited body only at its end.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from requests.exceptions import RequestException
from urllib3.exceptions import DecodeError, HTTPError
from urllib3.response import BaseHTTPResponse

from ..errors import StreamDecodeError, StreamInterruptedError

if TYPE_CHECKING:
    from requests import Response

    from .connection import Exchange

_BLOCK = 65536


class Source:
    """The bytes of one answer.

    Thread safety: one thread reads and closes; `cancel` may be called from any thread.
    """

    def __init__(self, response: Response, exchange: Exchange) -> None:
        self.response = response
        self._exchange = exchange
        self._read1 = response.raw.read1 if isinstance(response.raw, BaseHTTPResponse) else None  # else it is a mock
        self._pieces = None if self._read1 else response.iter_content(_BLOCK)

    def read(self) -> bytes:
        """Return the bytes that have arrived, waiting for the first; b"" at the end of the body.

        Raises:
            StreamInterruptedError: The connection was lost before the body's end.
            StreamDecodeError: The body's compression is broken.
        """
        try:
            if self._read1 is not None:
                return bytes(self._read1(_BLOCK, decode_content=True))
            assert self._pieces is not None
            return next(self._pieces, b"")
        except DecodeError as error:
            raise StreamDecodeError(f"the body cannot be decompressed: {error}") from error
        # AttributeError, ValueError: what http.client and ssl raise when the connection is shut down under them
        except (HTTPError, RequestException, OSError, ValueError, AttributeError) as error:
            raise StreamInterruptedError(f"the connection was lost in the middle of the answer: {error}") from error

    def cancel(self) -> None:
        """Wake the reader and let the rest of the body go; never blocks."""
        if not self._exchange.cut():  # a connection that is not ours, of a session that the caller brought
            # ValueError, RuntimeError: there is no socket, or the body was read to its end
            with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError, NotImplementedError):
                self.response.raw.shutdown()

    def close(self) -> None:
        """Give the connection back if the body was read to its end, close it if not."""
        with contextlib.suppress(HTTPError, OSError, ValueError):
            self.response.close()
