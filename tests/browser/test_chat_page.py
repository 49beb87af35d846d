"""The chat page of the Flask example in a real browser."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from chanstream.testing import RecordedRequest, Reply
from tests.browser.conftest import Chat
from tests.conftest import SCALE
from tests.docs.test_example_apps import APPS, running
from tests.redis_server import redis_server

__all__ = ["redis_server"]

PACE = 0.03
COUNT = " ".join(map(str, range(40)))
LONG = " ".join(f"word{number}" for number in range(400))


def test_text_grows_as_it_comes(chat: Any) -> None:
    """An answer is shown word by word, and then how long it took and how many tokens it was."""
    page: Chat = chat(Reply(COUNT, pace=PACE))
    page.page.evaluate(
        """() => {
          window.lengths = new Set();
          const look = () => window.lengths.add(document.querySelector(".answered .text")?.textContent.length);
          new MutationObserver(look).observe(document.getElementById("log"), {childList: true, subtree: true});
        }"""
    )
    page.ask("Count.")
    lengths = page.page.evaluate("[...window.lengths]")
    assert len(lengths) >= 5, lengths
    assert lengths == sorted(lengths)
    assert page.answer.inner_text() == COUNT
    figures = page.page.locator(".figures").inner_text()
    assert re.fullmatch(r"first token \d+\.\d\d s · total \d+\.\d\d s · 40 tokens, \d+/s", figures), figures


@pytest.mark.parametrize("name", ["django_chat/app.py", "bottle_chat.py"])
def test_other_frameworks(visit: Any, name: str) -> None:
    """The other examples serve the same page, and it works there too."""
    pytest.importorskip(APPS[name][0])
    with running(name) as app:
        page: Chat = visit(int(app.url.rpartition(":")[2]), None)
        page.ask("Hello")
        assert page.answer.inner_text().startswith("Hello! I am a demo")
        page.ask("Tell me a story", wait=False)
        page.answer.get_by_text("Once there was").wait_for()
        page.button("Stop").click()
        page.wait_for_end()
        assert page.notice.inner_text() == "Stopped."


def test_a_question_brings_the_conversation(chat: Any) -> None:
    """A second question keeps the first and its answer in context."""
    page: Chat = chat("It is Paris.", "About two million.")
    page.ask("What is the capital of France?")
    page.ask("How many live there?")
    assert page.answer.inner_text() == "About two million."
    assert page.messages() == [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "It is Paris."},
        {"role": "user", "content": "How many live there?"},
    ]


def test_a_long_conversation_is_cut_at_its_beginning(chat: Any) -> None:
    """Only as much of a conversation is sent as a model can read; the question always is."""
    page: Chat = chat("x" * 30_000, "short", "done")
    for question in ("first", "second", "third"):
        page.ask(question)
    assert [message["content"] for message in page.messages()][::2] == ["first", "second", "third"]
    page.model.reply("enough")
    page.ask("y" * 20_000)
    assert [message["content"][:6] for message in page.messages()] == ["second", "short", "third", "done", "yyyyyy"]


@pytest.mark.parametrize("reply", [Reply(LONG, pace=PACE), Reply(LONG, stall_after=3)], ids=["speaking", "silent"])
def test_stop_frees_the_model(chat: Any, reply: Reply) -> None:
    """The stop button ends the answer at the model, also while it is silent, and keeps what has come."""
    page: Chat = chat(reply, "Yes.")
    page.ask("Talk.", wait=False)
    page.answer.get_by_text("word2").wait_for()
    page.button("Stop").click()
    assert page.model_is_free()
    page.wait_for_end()
    assert page.notice.inner_text() == "Stopped."
    kept = page.answer.inner_text()
    assert kept.startswith("word0 word1 word2")
    page.ask("And?")
    assert [message["content"] for message in page.messages()] == ["Talk.", kept, "And?"]


def test_stop_before_the_first_word(chat: Any) -> None:
    """The stop button frees a model that has not even begun to answer."""
    page: Chat = chat(Reply("Too late.", head_delay=60))
    page.ask("Talk.", wait=False)
    assert page.model.wait_for(lambda model: len(model.requests) == 1)
    page.button("Stop").click()
    assert page.model_is_free()
    page.wait_for_end()
    assert page.notice.inner_text() == "Stopped."


@pytest.mark.parametrize("reply", [Reply(LONG, pace=PACE), Reply(LONG, head_delay=60)], ids=["speaking", "not yet"])
def test_leaving_the_page_frees_the_model(chat: Any, reply: Reply) -> None:
    """Who closes the page ends the answer at the model, whether it speaks already or not yet."""
    page: Chat = chat(reply)
    page.ask("Talk.", wait=False)
    assert page.model.wait_for(lambda model: len(model.requests) == 1)
    if not reply.head_delay:
        page.answer.get_by_text("word2").wait_for()
    page.page.close()
    assert page.model_is_free()


def test_an_error_can_be_read(chat: Any) -> None:
    """An error is told in the server's words, with a button that tries again; the failed try is not in the context."""
    page: Chat = chat(Reply.error(429, "You ask too much. Wait a minute."), "Here I am.")
    page.ask("Are you there?")
    assert "You ask too much. Wait a minute." in page.notice.inner_text()
    page.button("Try again").click()
    page.answer.get_by_text("Here I am.").wait_for()
    page.wait_for_end()
    assert not page.notice.is_visible()
    assert page.messages() == [{"role": "user", "content": "Are you there?"}]


def test_an_answer_that_the_model_breaks_off(chat: Any) -> None:
    """An answer that breaks off at the model is kept, and goes on from there at one click."""

    def reply_with(request: RecordedRequest) -> Reply:
        last = request.json["messages"][-1]
        return Reply(last["content"] + " And runs downhill.") if last.get("prefix") else Reply("Water is wet.", **CUT)

    page: Chat = chat(reply_with=reply_with)
    page.ask("Tell me of water.")
    assert "cut off" in page.notice.inner_text()
    assert page.answer.inner_text() == "Water is wet."
    page.button("Go on").click()
    page.answer.get_by_text("downhill").wait_for()
    assert page.answer.inner_text() == "Water is wet. And runs downhill."


CUT = {"finish_reason": None, "done": False}


def test_reconnect(chat: Any) -> None:
    """After a lost connection the page says so, keeps what came, and goes on from there at one click."""

    def reply_with(request: RecordedRequest) -> Reply:
        last = request.json["messages"][-1]
        return Reply(" (on we go)") if last.get("prefix") else Reply(LONG, pace=PACE)

    page: Chat = chat(reply_with=reply_with)
    page.ask("Talk.", wait=False)
    page.answer.get_by_text("word2").wait_for()
    page.line.cut()
    page.button("Reconnect").wait_for()
    assert page.notice.locator("p").inner_text() == "The connection was lost. What came is kept."
    kept = page.answer.inner_text()
    assert kept.startswith("word0 word1 word2")
    assert page.model_is_free()

    page.button("Reconnect").click()  # too early
    page.button("Reconnect").wait_for()
    assert page.answer.inner_text() == kept
    page.line.mend()
    page.button("Reconnect").click()
    page.answer.get_by_text("(on we go)").wait_for()
    page.wait_for_end()
    assert page.answer.inner_text() == f"{kept} (on we go)"
    assert page.messages()[-1] == {"role": "assistant", "content": kept, "prefix": True}


def test_an_answer_that_goes_on_without_the_page(visit: Any, redis_server: Any) -> None:
    """Of the app with a worker, a page that has lost its connection, or is loaded anew, shows what came meanwhile."""
    pytest.importorskip("rq")
    with running("celery_or_rq_job.py", REDIS_URL=redis_server.url) as app:
        page: Chat = visit(int(app.url.rpartition(":")[2]), None)
        page.ask("Tell me a story", wait=False)
        page.answer.get_by_text("Once there was").wait_for()
        page.line.cut()
        page.button("Reconnect").wait_for()
        page.line.mend()
        page.button("Reconnect").click()
        page.answer.get_by_text("One day the word came").wait_for()
        assert page.answer.inner_text().count("Once there was") == 1

        page.page.reload()
        page.answer.get_by_text("One day the word came").wait_for()
        assert page.page.locator(".asked p").inner_text() == "Tell me a story"
        page.button("Stop").click()
        page.wait_for_end()
        page.page.reload()
        page.notice.get_by_text("The answer was cancelled.").wait_for()


def test_retry(chat: Any) -> None:
    """The last answer can be asked for again, and takes the place of the one before."""
    page: Chat = chat("First.", "Second.", "Other.")
    page.ask("One?")
    page.ask("Two?")
    assert page.page.get_by_role("button", name="Retry").count() == 1
    page.button("Retry").click()
    page.answer.get_by_text("Other.").wait_for()
    page.wait_for_end()
    assert [message["content"] for message in page.messages()] == ["One?", "First.", "Two?"]
    assert "Second." not in page.page.locator("#log").inner_text()


def test_new_chat(chat: Any) -> None:
    """A new chat has forgotten the old one."""
    page: Chat = chat("First.", "Second.")
    page.ask("One?")
    page.button("New chat").click()
    assert page.page.get_by_role("heading", name="What would you like to know?").is_visible()
    page.ask("Two?")
    assert page.messages() == [{"role": "user", "content": "Two?"}]


def focused(page: Chat) -> str:
    """Return what has the focus, by its words."""
    name: str = page.page.evaluate(
        "document.activeElement.getAttribute('aria-label') ?? document.activeElement.placeholder"
        " ?? document.activeElement.textContent.trim()"
    )
    return name


def test_keyboard_only(chat: Any) -> None:
    """Everything can be done with keys alone, in the order in which it is seen, and what has the focus shows it."""
    page: Chat = chat(Reply("First."), Reply(LONG, pace=PACE), Reply("Third."))
    keys = page.page.keyboard
    assert focused(page) == "Ask anything"
    keys.press("Enter")  # nothing is sent
    keys.type("A question")
    keys.press("Shift+Enter")
    keys.type("of two lines")
    keys.press("Enter")
    page.answer.get_by_text("First.").wait_for()
    page.wait_for_end()
    assert page.messages() == [{"role": "user", "content": "A question\nof two lines"}]
    assert focused(page) == "Ask anything"

    keys.type("Talk.")
    keys.press("Enter")
    page.answer.get_by_text("word2").wait_for()
    keys.press("Escape")
    assert page.model_is_free()
    page.wait_for_end()

    visited = []
    for _ in range(4):
        keys.press("Shift+Tab")
        visited.append(focused(page))
        assert page.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", visited
    assert visited == ["Retry", "Copy", "Copy", "New chat"]
    for _ in range(3):
        keys.press("Tab")
    keys.press("Enter")
    page.answer.get_by_text("Third.").wait_for()
    page.wait_for_end()
    assert focused(page) == "Ask anything"


def test_a_screen_reader_is_told(chat: Any) -> None:
    """The conversation is a live region that says an answer when it is whole, and the status tells of its course."""
    page: Chat = chat(Reply(LONG, pace=PACE))
    page.ask("Talk.", wait=False)
    page.answer.get_by_text("word2").wait_for()
    log = page.page.get_by_role("log", name="Conversation")
    assert log.is_visible()
    assert page.page.get_by_role("status").inner_text() == "The answer is coming."
    assert log.locator("article").last.get_attribute("aria-busy") == "true"
    page.button("Stop").click()
    page.wait_for_end()
    assert page.page.get_by_role("status").inner_text() == "Stopped."
    assert log.locator("article").last.get_attribute("aria-busy") == "false"


WIDE = f"""\
Code: `{"x" * 90}`, a word: {"y" * 120}, an address: https://example.org/{"z" * 120}

```python
{"long_name = " * 30}
```
"""


def test_on_a_phone(chat: Any) -> None:
    """On a phone 380 pixels wide nothing scrolls sideways, and buttons are as large as a finger."""
    page: Chat = chat(
        Reply(WIDE), Reply.error(500, "Sorry, this failed. " * 9),
        viewport={"width": 380, "height": 720}, is_mobile=True, has_touch=True, device_scale_factor=2,
    )  # fmt: skip

    def width() -> int:
        wide: int = page.page.evaluate("document.documentElement.scrollWidth")
        return wide

    assert width() == 380
    page.ask("q" * 200)
    page.ask("And now?")
    page.notice.get_by_text("Sorry").wait_for()
    assert width() == 380
    assert page.page.evaluate("parseFloat(getComputedStyle(question).fontSize)") >= 16  # phones zoom in below that
    for name in ("Send", "Try again", "New chat"):
        box = page.button(name).bounding_box()
        assert box["height"] >= 44, name
        assert 0 <= box["x"] < box["x"] + box["width"] <= 380, name


HOSTILE = """\
<img src="x" onerror="window.harmed = 1"> <script>window.harmed = 2</script>

[a](javascript:window.harmed=3) [b](data:text/html,<script>alert(4)</script>) [c](JaVaScRiPt:alert(5))
[d](//example.org)

![secret](https://example.org/p.png?q=secret) [e](https://example.org/"onmouseover="window.harmed=6)

<https://example.org> <svg onload=alert(7)> &lt;b&gt; <a href="javascript:alert(8)">click</a>

# <iframe src="https://example.org"></iframe>

- <b onclick=alert(9)>x</b> [vb](vbscript:x) [f](https://example.org/ok)

```"><script>window.harmed=10</script>
<script>window.harmed=11</script>
```

`<script>window.harmed=12</script>`
"""


def test_an_answer_brings_no_markup(chat: Any) -> None:
    """Whatever an answer holds is text: no script runs, no image is fetched, no link is but to the web."""
    page: Chat = chat(Reply(HOSTILE))
    page.ask('<img src=x onerror="window.harmed = 0">')
    found = page.page.evaluate(
        """() => {
          const all = [...document.querySelectorAll("#log *")];
          return {
            harmed: window.harmed,
            tags: [...new Set(all.map((node) => node.localName))].sort(),
            attributes: [...new Set(all.flatMap((node) => node.getAttributeNames()))].sort(),
            links: all.filter((node) => node.href).map((node) => new URL(node.href).protocol),
          };
        }"""
    )
    assert found["harmed"] is None
    assert not {"img", "script", "iframe", "svg", "b"} & set(found["tags"]), found["tags"]
    known = {"aria-busy", "class", "data-language", "href", "rel", "tabindex", "target", "type"}
    assert set(found["attributes"]) <= known, found["attributes"]
    assert found["links"]
    assert set(found["links"]) == {"https:"}
    shown = page.page.locator("#log").inner_text()
    assert '<img src="x" onerror="window.harmed = 1">' in shown
    assert "[a](javascript:window.harmed=3)" in shown


def test_the_policy_forbids_the_rest(chat: Any) -> None:
    """Should a script get in nevertheless, it reaches no other host, and text cannot become markup."""
    page: Chat = chat()
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}/"
        tried = page.page.evaluate(
            """async (url) => {
              const blocked = [];
              document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
              await fetch(url).catch(() => {});
              await new Promise((done) => Object.assign(new Image(), {onload: done, onerror: done, src: url}));
              try { document.body.innerHTML += "<b>x</b>" } catch {}
              const script = document.createElement("script");
              try { script.textContent = "window.harmed = 1"; document.body.append(script) } catch {}
              const style = document.createElement("style");
              style.textContent = "body { display: none }";
              document.head.append(style);
              for (let waited = 0; waited < 3000 && !blocked.includes("style-src-elem"); waited += 10)
                await new Promise((done) => setTimeout(done, 10)); // they are told of later
              return {blocked, harmed: window.harmed, display: getComputedStyle(document.body).display};
            }""",
            url,
        )
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()
    assert {"connect-src", "img-src", "require-trusted-types-for", "style-src-elem"} <= set(tried["blocked"])
    assert tried["harmed"] is None
    assert tried["display"] == "flex"
    page.asked = [asked for asked in page.asked if not asked.startswith(url)]  # asked, and not let out
    page.complaints.clear()


MARKDOWN = """\
## A *heading*

Some **bold**, *emphasis*, ***both***, `code`,

snake_case_name, 2 * 3 * 4 and
https://example.org/a_(b)_c.

1. one
   - in **item**

   ```python
   x < 1
   ```
2. two

> quoted

---

- a
- b

~~~
unfinished `code`"""


def test_markdown(chat: Any) -> None:
    """Markdown is shown as its elements, the same at the end as if it had come at once."""
    page: Chat = chat(Reply([*MARKDOWN]), Reply([MARKDOWN]))
    page.ask("Show me.")
    outline = """node => {
      const tell = (node) => node.nodeType === Node.TEXT_NODE ? node.data.replace("<", "&lt;")
        : `<${node.localName}>${[...node.childNodes].map(tell).join("")}</${node.localName}>`;
      return [...node.childNodes].map(tell);
    }"""
    told = page.answer.evaluate(outline)
    assert told == [
        "<h4>A <em>heading</em></h4>",
        "<p>Some <strong>bold</strong>, <em>emphasis</em>, <strong><em>both</em></strong>, <code>code</code>,</p>",
        "<p>snake_case_name, 2 * 3 * 4 and\n<a>https://example.org/a_(b)_c</a>.</p>",
        "<ol><li>one<ul><li>in <strong>item</strong></li></ul><pre><code>x &lt; 1</code></pre></li><li>two</li></ol>",
        "<blockquote><p>quoted</p></blockquote>",
        "<hr></hr>",
        "<ul><li>a</li><li>b</li></ul>",
        "<pre><code>unfinished `code`</code></pre>",
    ]
    page.ask("Again.")
    assert page.answer.evaluate(outline) == told


def test_markdown_that_is_hostile_takes_no_time(chat: Any) -> None:
    """Text made to keep a renderer busy is shown within a second."""
    heaps = ["**a " * 9000, "`" * 30000, "[" * 30000, "> " * 9000, "- " * 9000, "_a" * 15000, "*a* **b " * 4000]
    page: Chat = chat()
    took = page.page.evaluate(
        """async (text) => {
          const { render } = await import("./markdown.js");
          const began = performance.now();
          render(document.createElement("div"), text);
          return performance.now() - began;
        }""",
        "\n\n".join(heaps),
    )
    assert took < 1000 * SCALE, took
