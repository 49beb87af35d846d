"""What the command line takes for granted about each dialect. No library is needed for it, so that help is quick."""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """The defaults of one dialect.

    Attributes:
        model: The model to ask: one that is cheap, quick, and open to every key.
        key_variable: The environment variable that holds the key, as the library has it.
    """

    model: str
    key_variable: str


PRESETS = {
    "mistral": Preset("mistral-small-latest", "MISTRAL_API_KEY"),
    "groq": Preset("llama-3.1-8b-instant", "GROQ_API_KEY"),
    "openai": Preset("gpt-4o-mini", "OPENAI_API_KEY"),
}
"""The dialects' presets by name; the first is the default dialect."""
