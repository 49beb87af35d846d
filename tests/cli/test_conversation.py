"""``chanstream chat`` in front of somebody: on a pseudo-terminal, with keys pressed."""

from __future__ import annotations

import os
import subprocess

import pytest

from chanstream.testing import Reply
from tests.cli.commands import Terminal, asking, read_until
from tests.conftest import Link

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs pseudo-terminals")

CTRL_C, CTRL_D = "\x03", "\x04"

SILENT = Reply("one two three four", stall_after=2)


class TestConversation:
    def test_history(self, plain: Link) -> None:
        """Each prompt is sent with all that was said before; an empty line asks nothing; /quit leaves with 0."""
        server = plain.serve("I am fine.", "Indeed.")
        with Terminal(*asking(server, "--system", "Be brief.")) as terminal:
            terminal.see("> ")
            terminal.type("How are you?\n")
            terminal.see("I am fine.")
            terminal.see("> ")
            terminal.type("\n")
            terminal.see("> ")
            terminal.type("Really?\n")
            terminal.see("Indeed.")
            terminal.see("> ")
            terminal.type("/quit\n")
            assert terminal.ends() == 0
        assert [request.json["messages"] for request in server.requests] == [
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How are you?"}],
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "How are you?"},
                {"role": "assistant", "content": "I am fine."},
                {"role": "user", "content": "Really?"},
            ],
        ]

    def test_ctrl_d(self, plain: Link) -> None:
        """Ctrl-D at the prompt leaves with 0, and nothing was sent."""
        server = plain.serve("Never.")
        with Terminal(*asking(server)) as terminal:
            terminal.see("> ")
            terminal.type(CTRL_D)
            assert terminal.ends() == 0
        assert server.connections == 0

    def test_ctrl_c_at_the_prompt(self, plain: Link) -> None:
        """Ctrl-C at the prompt leaves with 130."""
        with Terminal(*asking(plain.serve("Never."))) as terminal:
            terminal.see("> ")
            assert terminal.insist(CTRL_C) == 130

    def test_ctrl_c_in_an_answer(self, plain: Link) -> None:
        """Ctrl-C in an answer stops that answer and no more; what had come of it stays in the history."""
        server = plain.serve(SILENT, "Then not.")
        with Terminal(*asking(server)) as terminal:
            terminal.see("> ")
            terminal.type("Count.\n")
            terminal.see("two")
            terminal.type(CTRL_C)
            terminal.see("(stopped)")
            assert server.wait_for(lambda s: s.open_connections == 0)
            terminal.see("> ")
            terminal.type("Go on.\n")
            terminal.see("Then not.")
            terminal.see("> ")
            terminal.type(CTRL_D)
            assert terminal.ends() == 0
        assert [message["content"] for message in server.requests[1].json["messages"]] == [
            "Count.",
            "one two",
            "Go on.",
        ]

    def test_an_error(self, plain: Link) -> None:
        """An error is told and the conversation goes on, without the prompt that nothing was said to."""
        server = plain.serve(Reply.error(400, "That is rude."), "Better.")
        with Terminal(*asking(server)) as terminal:
            terminal.see("> ")
            terminal.type("You fool.\n")
            assert "Traceback" not in terminal.see("chanstream: [400] api_error: That is rude.")
            terminal.see("> ")
            terminal.type("Please.\n")
            terminal.see("Better.")
            terminal.see("> ")
            terminal.type(CTRL_D)
            assert terminal.ends() == 0
        assert [message["content"] for message in server.requests[1].json["messages"]] == ["Please."]

    def test_answers_into_a_file(self, plain: Link) -> None:
        """With standard output elsewhere the conversation works, and only the answers go there."""
        with Terminal(*asking(plain.serve("Hello.", "Bye.")), stdout=subprocess.PIPE) as terminal:
            assert terminal.process.stdout is not None
            terminal.see("> ")
            terminal.type("Hi\n")
            assert read_until(terminal.process.stdout.fileno(), ".\n") == "Hello.\n"
            terminal.see("> ")
            terminal.type("Bye\n")
            assert read_until(terminal.process.stdout.fileno(), ".\n") == "Bye.\n"
            terminal.see("> ")
            terminal.type(CTRL_D)
            assert terminal.ends() == 0
            assert terminal.process.stdout.read() == b""

    def test_demo(self) -> None:
        """--demo holds a conversation too, and says once that it is one."""
        with Terminal("chat", "--demo") as terminal:
            assert terminal.see("> ").count("demo: ") == 1
            terminal.type("Hi\n")
            assert "demo: " not in terminal.see("is what you said.")
            terminal.type(CTRL_C)
            terminal.see("(stopped)")
            terminal.see("> ")
            terminal.type("/quit\n")
            assert terminal.ends() == 0


class TestOneAnswer:
    def test_thoughts_are_dimmed(self, plain: Link) -> None:
        """What the model thinks is dimmed, and a blank line parts it from what it says."""
        with Terminal(*asking(plain.serve(Reply("Yes.", reasoning="Hm. Well.")), "Is it?")) as terminal:
            screen = terminal.see("Yes.\r\n")
            assert terminal.ends() == 0
        assert screen == "\x1b[2mHm.\x1b[0m\x1b[2m Well.\x1b[0m\r\n\r\nYes.\r\n"

    def test_control_characters(self, plain: Link) -> None:
        """What a server sends cannot steer the terminal, neither in an answer nor in an error."""
        server = plain.serve("\x1b]0;title\x07A\tB\r\n\x9b2JC", Reply.error(400, "\x1b[2Jgone"))
        with Terminal(*asking(server, "Hello")) as terminal:
            assert terminal.see("C") == "\u241b]0;title\u2407A\tB\r\n2JC"
            assert terminal.ends() == 0
        with Terminal(*asking(server, "Hello")) as terminal:
            assert "\u241b[2Jgone" in terminal.see("gone")
            assert terminal.ends() == 1

    def test_ctrl_c(self, plain: Link) -> None:
        """Ctrl-C on the keyboard ends with 130 and leaves the cursor at the beginning of a line."""
        with Terminal(*asking(plain.serve(SILENT), "Count.")) as terminal:
            assert terminal.see("two") == "one two"
            terminal.type(CTRL_C)
            assert terminal.see("interrupted").startswith("^C\r\n")
            assert terminal.ends() == 130
