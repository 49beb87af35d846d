"""The names of the package: all there, complete, typed, and loaded only when used."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import chanstream

NAMES = """
    Client ChatCompletionRequest SystemMessage UserMessage AssistantMessage ToolMessage
    TextChunk ImageURLChunk DocumentURLChunk ReferenceChunk FileChunk ThinkChunk AudioChunk UnknownChunk
    Tool Function ToolChoice ResponseFormat JSONSchema
    CompletionChunk StreamChoice DeltaMessage ChatCompletionResponse Choice ToolCall FunctionCall UsageInfo FinishReason
    AgentCompletionRequest FIMCompletionRequest RateLimiter
    TextDelta ReasoningDelta ToolCallDelta TextDone ReasoningDone ToolCallDone Finished Failed CompletionEvents
    Role CompletionStream Channel MergedChannel TeedChannel Sender TaskGroup Context Timeout Retry Failover
    ChanstreamError APIError APIStatusError BadRequestError AuthenticationError PermissionDeniedError NotFoundError
    ConflictError UnprocessableEntityError RateLimitError InternalServerError StreamAPIError APIConnectionError
    APITimeoutError StreamError StreamInterruptedError StreamTruncatedError StreamDecodeError EventTooLargeError
    StreamCancelledError ChannelClosedError CacheError JournalError
    CachedClient CacheEngine FileCache RedisCache
""".split()  # noqa: SIM905 - a table is read more easily
"""What users of the package rely on."""

SOURCE = ast.parse(Path(chanstream.__file__).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_imported(name: str) -> None:
    """Each public name is a class of the package, described, and at home in one of its modules."""
    value = getattr(importlib.import_module("chanstream"), name)
    assert inspect.isclass(value)
    assert inspect.getdoc(value)
    assert value.__module__.startswith("chanstream.")
    assert pickle.loads(pickle.dumps(value)) is value


@pytest.mark.parametrize("name", ["select", "merge", "race", "tee"])
def test_a_function(name: str) -> None:
    """Each public function is described, and at home in one of the package's modules."""
    value = getattr(importlib.import_module("chanstream"), name)
    assert inspect.isfunction(value)
    assert inspect.getdoc(value)
    assert value.__module__.startswith("chanstream.")


def test_all_is_complete() -> None:
    """``__all__`` has every public name once, and each of them can be had."""
    assert {*NAMES, "select", "merge", "race", "tee", "CLOSED", "CompletionEvent"} <= set(chanstream.__all__)
    assert len(chanstream.__all__) == len(set(chanstream.__all__))
    assert all(hasattr(chanstream, name) for name in chanstream.__all__)


def test_a_star_import() -> None:
    """A star import gives the public names and nothing else."""
    namespace: dict[str, object] = {}
    exec("from chanstream import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(chanstream.__all__)


def test_type_checkers_see_the_same() -> None:
    """What is declared for type checkers is what is there at run time, from the same modules."""
    ifs = [node for node in SOURCE.body if isinstance(node, ast.If)]
    (block,) = [node for node in ifs if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    declared = {alias.name: node.module for node in imports for alias in node.names}
    assert all(alias.asname == alias.name for node in imports for alias in node.names)  # else it is no re-export
    assert {"__version__", *declared} == set(chanstream.__all__)
    for name, module in declared.items():
        assert getattr(importlib.import_module(f"chanstream.{module}"), name) is getattr(chanstream, name)


def test_dir() -> None:
    """``dir`` shows the public names before they were used."""
    program = "import chanstream; assert set(chanstream.__all__) <= set(dir(chanstream))"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("name", ["client_", "Klient", "_Client", "OpenAI", "__wrapped__"])
def test_an_unknown_name(name: str) -> None:
    """A name that there is not is an AttributeError, as with every module."""
    with pytest.raises(AttributeError, match=f"^module 'chanstream' has no attribute '{name}'$"):
        getattr(chanstream, name)
    assert not hasattr(chanstream, name)


def test_a_wrong_import() -> None:
    """Importing a name that there is not is an ImportError."""
    with pytest.raises(ImportError, match="Klient"):
        from chanstream import Klient  # noqa: F401


def test_nothing_is_loaded_before_it_is_used() -> None:
    """Importing the package loads neither the HTTP library nor a thread; using a name loads what it needs."""
    program = """
import sys, threading
import chanstream
assert not {"requests", "urllib3", "asyncio", "orjson", "click", "rich"} & set(sys.modules)
chanstream.ChatCompletionRequest
assert "requests" not in sys.modules
chanstream.Client, chanstream.CachedClient, chanstream.RedisCache
assert "requests" in sys.modules
assert not {"asyncio", "click", "rich", "redis"} & set(sys.modules)
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_version() -> None:
    """The version is a text of three numbers at least."""
    major, minor, *rest = chanstream.__version__.split(".")
    assert major.isdigit()
    assert minor.isdigit()
    assert rest


def test_other_public_modules() -> None:
    """The event-stream decoder, the test server and the modules that the documentation names can be imported."""
    from chanstream.testing import Reply, StreamServer
    from chanstream.wire.framing import ServerSentEvent, decode_events

    assert all(inspect.getdoc(thing) for thing in (Reply, StreamServer, ServerSentEvent, decode_events))
    assert [event.data for event in decode_events([b"data: x\n\n"])] == ["x"]
