"""The official packages, as their documentation says to use them, with a pool wide enough for all streams."""

# ruff: noqa: D102 - what the methods do, the base class says

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from .base import PROMPT, Client
from .plain import wide_httpx


class Openai(Client):
    label = "openai"
    packages = ("openai",)
    statement = "import openai"

    def __init__(self, port: int) -> None:
        from openai import OpenAI

        super().__init__(port)
        self._client = OpenAI(api_key="key", base_url=f"{self.url}/v1", http_client=wide_httpx(), max_retries=0)

    def stream(self, model: str) -> Iterable[Any]:
        return self._client.chat.completions.create(model=model, messages=PROMPT, stream=True)

    def text(self, item: Any) -> str:
        return item.choices[0].delta.content or ""


class Groq(Openai):
    label = "groq"
    packages = ("groq",)
    statement = "import groq"

    def __init__(self, port: int) -> None:
        from groq import Groq as Sdk

        Client.__init__(self, port)
        self._client = Sdk(api_key="key", base_url=self.url, http_client=wide_httpx(), max_retries=0)


class Mistralai(Client):
    label = "mistralai"
    packages = ("mistralai",)
    statement = "from mistralai.client import Mistral"

    def __init__(self, port: int) -> None:
        from mistralai.client import Mistral

        super().__init__(port)
        self._client = Mistral(api_key="key", server_url=self.url, client=wide_httpx())

    def stream(self, model: str) -> Iterable[Any]:
        return self._client.chat.stream(model=model, messages=PROMPT)

    def text(self, item: Any) -> str:
        return item.data.choices[0].delta.content or ""


class Litellm(Openai):
    label = "litellm"
    packages = ("litellm", "openai")
    statement = "import litellm"

    def __init__(self, port: int) -> None:
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks the network
        super().__init__(port)
        import litellm

        self._completion = litellm.completion

    def stream(self, model: str) -> Iterable[Any]:
        return self._completion(model=f"openai/{model}", messages=PROMPT, stream=True, client=self._client)
