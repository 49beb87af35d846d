"""Pages of a real Chromium, each in front of the Flask example and a scripted model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from chanstream import Client, Retry
from chanstream.testing import Reply, StreamServer
from tests.browser import chromium
from tests.browser.apps import Line, serving
from tests.conftest import SCALE
from tests.debian import NotThereError, programs_folder

SHOWN = 5000 * SCALE
"""Milliseconds within which a page must have come to show something."""


@pytest.fixture(scope="package")  # and no longer: its event loop would be in the way of other tests' own
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The browser. The tests are skipped where there is none, with the reason."""
    pytest.importorskip("flask")
    driver = pytest.importorskip("playwright.sync_api", reason="pip install 'chanstream[browser]' brings playwright")
    try:
        program = chromium.find(programs_folder(request, tmp_path_factory))
    except NotThereError as error:
        pytest.skip(str(error))
    with driver.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program.path, env=program.environment)
        yield launched
        launched.close()


@attrs.define
class Chat:
    """The chat page, its app's model, and the line from the browser to the app.

    Attributes:
        page: Playwright's.
        model: The scripted model.
        line: Carries all that the page asks for.
        asked: The addresses of everything that the page asked for.
        complaints: What the browser's console said.
    """

    page: Any
    model: StreamServer
    line: Line
    asked: list[str] = attrs.field(factory=list)
    complaints: list[str] = attrs.field(factory=list)

    def watch(self) -> None:
        """Note what the page does."""
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda said: self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    @property
    def question(self) -> Any:
        """The field for what to ask."""
        return self.page.get_by_role("textbox", name="Your message")

    @property
    def answer(self) -> Any:
        """The text of the newest answer."""
        return self.page.locator(".answered .text").last

    @property
    def notice(self) -> Any:
        """What is said of the newest answer."""
        return self.page.locator(".answered .notice").last

    def button(self, name: str) -> Any:
        """Return the newest button of a name."""
        return self.page.get_by_role("button", name=name).last

    def ask(self, question: str, *, wait: bool = True) -> None:
        """Send a question, and wait for the end of the answer."""
        self.question.fill(question)
        self.button("Send").click()
        if wait:
            self.wait_for_end()

    def wait_for_end(self) -> None:
        """Wait until no answer is coming."""
        self.button("Send").wait_for()

    def messages(self) -> list[dict[str, Any]]:
        """Return what the model was asked last, without the app's own words."""
        said = self.model.requests[-1].json["messages"]
        return [message for message in said if message["role"] != "system"]

    def model_is_free(self) -> bool:
        """Return whether nobody is connected to the model, long before the next heartbeat."""
        return self.model.wait_for(lambda model: model.open_connections == 0, 5 * SCALE)


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Return how to open the page of an app, which is at a port: with what is its model, and the browser's settings.

    Afterwards the page must have asked nothing of another host, and have complained of nothing but of responses that
    are errors, which the browser itself tells its console.
    """
    opened: list[Chat] = []
    with contextlib.ExitStack() as exits:

        def open_page(port: int, model: Any, **settings: Any) -> Chat:
            line = exits.enter_context(contextlib.closing(Line(port)))
            context = browser.new_context(**settings)
            exits.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(SHOWN)
            opened.append(Chat(page, model, line))
            opened[-1].watch()
            page.goto(line.url)
            return opened[-1]

        yield open_page
    for page in opened:
        assert [url for url in page.asked if not url.startswith(page.line.url)] == []
        assert [said for said in page.complaints if "Failed to load resource" not in said] == []


@pytest.fixture
def chat(visit: Any) -> Iterator[Any]:
    """Return how to open the page of the Flask example: with what the model is to say, and the browser's settings."""
    with contextlib.ExitStack() as exits:

        def open_page(*replies: Reply | str, reply_with: Any = None, **settings: Any) -> Chat:
            model = exits.enter_context(StreamServer(*replies, reply_with=reply_with))
            client = exits.enter_context(Client("a-key", base_url=model.url, retry=Retry(max_retries=0)))
            page: Chat = visit(exits.enter_context(serving(client)), model, **settings)
            return page

        yield open_page
