"""TLS without I/O: ciphertext in and plaintext out, and the other way.

The event loop's own TLS would hide how much has been written and when the peer left, and would say goodbye properly
where a script asks for a cut. With this the connection drives plain and TLS clients through the same transport.
"""

from __future__ import annotations

import contextlib
import ssl

_READ_BYTES = 64 * 1024


class TLS:
    """The server's side of one TLS session."""

    def __init__(self, context: ssl.SSLContext) -> None:
        """Waits for the client's greeting."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._handshaken = False
        self.peer_left = False

    def receive(self, data: bytes) -> bytes:
        """Returns the plaintext that became readable; sets `peer_left` if the client said goodbye.

        There may be something `to_send` afterwards, also after an error.

        Raises:
            ssl.SSLError: The client does not speak TLS, or trusts someone else.
        """
        self._incoming.write(data)
        plain = bytearray()
        with contextlib.suppress(ssl.SSLWantReadError):
            self._handshake()
            while piece := self._session.read(_READ_BYTES):
                plain += piece
            self.peer_left = True
        return bytes(plain)

    def send(self, data: bytes) -> bytes:
        """Returns the ciphertext of `data`."""
        view = memoryview(data)
        while view:
            view = view[self._session.write(view) :]
        return self.to_send()

    def close(self) -> bytes:
        """Returns the goodbye that parts a proper end from a cut."""
        with contextlib.suppress(ssl.SSLError):  # it does not wait for the client's own
            self._session.unwrap()
        return self.to_send()

    def to_send(self) -> bytes:
        """Returns what the session itself has to say: handshake messages and alerts."""
        return self._outgoing.read()

    def _handshake(self) -> None:
        if not self._handshaken:
            self._session.do_handshake()
            self._handshaken = True
