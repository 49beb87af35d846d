"""Certificates: an authority of one's own, a certificate for the client, and what is wrong with either."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import requests
import trustme

from chanstream import APIConnectionError, Client, Retry
from chanstream.testing import StreamServer
from chanstream.transport.session import new_session
from tests.conftest import REQUEST

pytestmark = pytest.mark.usefixtures("nothing_left")

OFTEN = Retry(max_retries=5, min_delay=0.0)
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
SESSIONS: list[Callable[[], requests.Session]] = [requests.Session, new_session]


@attrs.frozen
class Office:
    """An authority that nobody knows, its files, and servers that it vouches for.

    Attributes:
        folder: Where the files are: ``ca.pem``, the client's ``me.pem`` (with its key), ``me.crt``, ``me.key``; the
            same of another authority, ``other-...``; and ``junk.pem``, which is nothing.
    """

    folder: Path
    authority: trustme.CA

    def file(self, name: str) -> str:
        """Return the path of a file, whether there is one or not."""
        return str(self.folder / name)

    def context(self, version: ssl.TLSVersion | None = None, *, name: str = "127.0.0.1", mutual: bool = False) -> Any:
        """Return the TLS of a server of this name; a mutual one wants a certificate of the client."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(name).configure_cert(context)
        if mutual:
            self.authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Office:
    """The office: its keys take a while to make."""
    folder = tmp_path_factory.mktemp("office")
    authority, other = trustme.CA(), trustme.CA()
    for prefix, ca in (("", authority), ("other-", other)):
        mine = ca.issue_cert("me@client.test")
        ca.cert_pem.write_to_path(str(folder / f"{prefix}ca.pem"))
        mine.private_key_and_cert_chain_pem.write_to_path(str(folder / f"{prefix}me.pem"))
        mine.cert_chain_pems[0].write_to_path(str(folder / f"{prefix}me.crt"))
        mine.private_key_pem.write_to_path(str(folder / f"{prefix}me.key"))
    (folder / "junk.pem").write_text("This is no certificate.\n")
    return Office(folder, authority)


@pytest.fixture
def office(files: Office, monkeypatch: pytest.MonkeyPatch) -> Office:
    """The office, in an environment that names no bundle."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # requests takes them before the session's own setting
        monkeypatch.delenv(name, raising=False)
    return files


@contextlib.contextmanager
def asking(server: StreamServer, make: Callable[[], requests.Session] | None, **settings: Any) -> Iterator[Client]:
    """Give a client that tries often, with a session that has these settings; with its own where none is made."""
    with contextlib.ExitStack() as exits:
        session = None if make is None else exits.enter_context(make())
        for name, value in settings.items():
            setattr(session, name, value)
        yield exits.enter_context(Client("a-key", base_url=server.url, session=session, retry=OFTEN))


class TestAnAuthorityOfOnesOwn:
    @pytest.mark.parametrize("make", SESSIONS)
    def test_by_the_session(self, office: Office, make: Any) -> None:
        """session.verify names the bundle that servers are checked with."""
        with (
            StreamServer("one two", tls=office.context()) as server,
            asking(server, make, verify=office.file("ca.pem")) as client,
        ):
            assert client.chat_completion_stream(REQUEST).collect().text == "one two"

    @pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
    def test_by_the_environment(self, office: Office, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """The variables that requests knows name it for clients without a session."""
        monkeypatch.setenv(name, office.file("ca.pem"))
        with StreamServer("one two", tls=office.context()) as server, asking(server, None) as client:
            assert client.chat_completion_stream(REQUEST).collect().text == "one two"

    @pytest.mark.parametrize("make", [None, *SESSIONS])
    @pytest.mark.parametrize(
        ("name", "words"), [("127.0.0.1", "self-signed|self signed|unable to get local issuer"), ("elsewhere.test", "")]
    )
    def test_that_is_not_known(self, office: Office, make: Any, name: str, words: str) -> None:
        """A server whose certificate does not hold is told with the reason, at once: it is not asked again."""
        with StreamServer("never", tls=office.context(name=name)) as server, asking(server, make) as client:
            for ask in (client.chat_completion_stream, client.chat_completion):
                with pytest.raises(APIConnectionError, match=f"certificate verify failed: .*({words})"):
                    ask(REQUEST)
            assert server.connections == 2
            assert server.requests == ()

    @pytest.mark.parametrize("make", SESSIONS)
    def test_for_another_name(self, office: Office, make: Any) -> None:
        """A certificate that is good, but of another server, is told as that."""
        with (
            StreamServer("never", tls=office.context(name="elsewhere.test")) as server,
            asking(server, make, verify=office.file("ca.pem")) as client,
        ):
            with pytest.raises(APIConnectionError, match=r"not valid for '127\.0\.0\.1'"):
                client.chat_completion(REQUEST)
            assert server.connections == 1


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
class TestACertificateOfTheClient:
    @pytest.mark.parametrize("make", SESSIONS)
    @pytest.mark.parametrize("cert", ["me.pem", ("me.crt", "me.key")], ids=["one file", "two"])
    def test_that_is_good(self, office: Office, version: ssl.TLSVersion, make: Any, cert: Any) -> None:
        """session.cert names the certificate, with its key or beside it, that a server may want."""
        mine = office.file(cert) if isinstance(cert, str) else tuple(map(office.file, cert))
        with (
            StreamServer("one two", tls=office.context(version, mutual=True)) as server,
            asking(server, make, verify=office.file("ca.pem"), cert=mine) as client,
        ):
            assert client.chat_completion_stream(REQUEST).collect().text == "one two"
            assert client.chat_completion(REQUEST).text == "one two"

    def test_that_is_missing(self, office: Office, version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that wants one and gets none is told by its own words, though it left in the middle of ours."""
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", office.file("ca.pem"))
        with (
            StreamServer("never", tls=office.context(version, mutual=True)) as server,
            asking(server, None) as client,
        ):
            for _ in range(10):
                with pytest.raises(APIConnectionError, match=r"(?i)certificate required|handshake failure"):
                    client.chat_completion_stream(REQUEST)
            assert server.connections == 10
            assert server.requests == ()

    def test_of_somebody_else(self, office: Office, version: ssl.TLSVersion) -> None:
        """A certificate of an authority that the server does not know is refused, and not tried again."""
        with (
            StreamServer("never", tls=office.context(version, mutual=True)) as server,
            asking(server, new_session, verify=office.file("ca.pem"), cert=office.file("other-me.pem")) as client,
        ):
            with pytest.raises(APIConnectionError, match=r"(?i)unknown ca"):
                client.chat_completion_stream(REQUEST)
            assert server.connections == 1
            assert server.requests == ()


class TestFiles:
    @pytest.mark.parametrize("make", SESSIONS)
    @pytest.mark.parametrize(
        ("setting", "value", "words"),
        [
            ("verify", "gone.pem", "Could not find a suitable TLS CA certificate bundle, invalid path: .*gone.pem"),
            ("verify", "junk.pem", "(?i)no certificate"),
            ("cert", "gone.pem", "Could not find the TLS certificate file, invalid path: .*gone.pem"),
            ("cert", "junk.pem", "PEM lib"),
            ("cert", "me.crt", "PEM lib"),
            ("cert", ("me.crt", "gone.key"), "Could not find the TLS key file, invalid path: .*gone.key"),
            ("cert", ("me.crt", "other-me.key"), "(?i)key values mismatch"),
        ],
    )
    def test_that_are_no_good(self, office: Office, make: Any, setting: str, value: Any, words: str) -> None:
        """A file that is not there, or is not what it should be, is told once and without a word to the server."""
        path = office.file(value) if isinstance(value, str) else tuple(map(office.file, value))
        settings = {"verify": office.file("ca.pem"), setting: path}
        with StreamServer("never", tls=office.context()) as server, asking(server, make, **settings) as client:
            with pytest.raises(APIConnectionError, match=words) as caught:
                client.chat_completion(REQUEST)
            assert server.requests == ()
        assert not OFTEN.allows(caught.value, 0)


def test_a_host_with_such_a_name() -> None:
    """What is said of certificates is looked for in the cause alone: a server may have the word in its name."""
    error = APIConnectionError("no answer from https://certificate.test/v1: refused")
    error.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert Retry().allows(error, 0)
    assert Retry().allows(APIConnectionError("the connection was lost"), 0)
