"""Takes the pictures of the chat page that the documentation shows: ``python -m tests.browser.screenshots``."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.browser import chromium
from tests.browser.apps import modules, serving

IMAGES = Path(__file__).parents[2] / "docs" / "images"

PICTURES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "flask-chat.png": (
        {"viewport": {"width": 880, "height": 800}, "device_scale_factor": 1.5, "color_scheme": "light"},
        ["How do I read a stream in Python?"],
    ),
    "flask-chat-phone.png": (
        {
            "viewport": {"width": 380, "height": 720}, "device_scale_factor": 1.5, "color_scheme": "dark",
            "is_mobile": True, "has_touch": True,
        },
        ["What can you do?"],
    ),
}  # fmt: skip


def take(browser: Any, url: str, picture: Path, settings: dict[str, Any], questions: list[str]) -> None:
    """Ask the questions, and take a picture when they are answered."""
    page = browser.new_context(**settings).new_page()
    page.goto(url)
    for question in questions:
        page.get_by_role("textbox").fill(question)
        page.get_by_role("button", name="Send").click()
        page.get_by_role("button", name="Send").wait_for()
    page.get_by_role("textbox").blur()
    page.screenshot(path=picture)


def main() -> None:
    """Take all pictures."""
    IMAGES.mkdir(exist_ok=True)
    place = Path(sys.argv[1] if sys.argv[1:] else tempfile.gettempdir())  # where Chromium is, or comes
    program = chromium.find(place)
    with modules():
        demo = importlib.import_module("demo")
    with demo.demo_client() as client, serving(client) as port, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program.path, env=program.environment)
        for name, (settings, questions) in PICTURES.items():
            take(browser, f"http://127.0.0.1:{port}/", IMAGES / name, settings, questions)
        browser.close()


if __name__ == "__main__":
    main()
