"""Streaming chat completions for threaded Python: ``for evt in client.chat_completion_stream(request)``.

Names are loaded when they are first used, so that ``import chanstream`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from os import environ as _environ
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .batch.batch import Batch as Batch
    from .batch.result import BatchProgress as BatchProgress
    from .batch.result import BatchResult as BatchResult
    from .cache.client import CachedClient as CachedClient
    from .cache.engine import CacheEngine as CacheEngine
    from .cache.files import FileCache as FileCache
    from .cache.redis import RedisCache as RedisCache
    from .channel import CLOSED as CLOSED
    from .channel import Channel as Channel
    from .channel import ChannelStatistics as ChannelStatistics
    from .channel import MergedChannel as MergedChannel
    from .channel import Sender as Sender
    from .channel import TeedChannel as TeedChannel
    from .channel import merge as merge
    from .channel import race as race
    from .channel import select as select
    from .channel import tee as tee
    from .client import Client as Client
    from .context import Context as Context
    from .context import Timeout as Timeout
    from .dialects import Dialect as Dialect
    from .errors import APIConnectionError as APIConnectionError
    from .errors import APIError as APIError
    from .errors import APIStatusError as APIStatusError
    from .errors import APITimeoutError as APITimeoutError
    from .errors import AuthenticationError as AuthenticationError
    from .errors import BadRequestError as BadRequestError
    from .errors import CacheError as CacheError
    from .errors import ChannelClosedError as ChannelClosedError
    from .errors import ChanstreamError as ChanstreamError
    from .errors import ConflictError as ConflictError
    from .errors import EventTooLargeError as EventTooLargeError
    from .errors import InternalServerError as InternalServerError
    from .errors import JournalError as JournalError
    from .errors import NotFoundError as NotFoundError
    from .errors import PermissionDeniedError as PermissionDeniedError
    from .errors import RateLimitError as RateLimitError
    from .errors import StreamAPIError as StreamAPIError
    from .errors import StreamCancelledError as StreamCancelledError
    from .errors import StreamDecodeError as StreamDecodeError
    from .errors import StreamError as StreamError
    from .errors import StreamInterruptedError as StreamInterruptedError
    from .errors import StreamTruncatedError as StreamTruncatedError
    from .errors import UnprocessableEntityError as UnprocessableEntityError
    from .errors import WorkerLostError as WorkerLostError
    from .failover import Failover as Failover
    from .models.catalog import ModelCapabilities as ModelCapabilities
    from .models.catalog import ModelCard as ModelCard
    from .models.chat import AgentCompletionRequest as AgentCompletionRequest
    from .models.chat import ChatCompletionRequest as ChatCompletionRequest
    from .models.chat import ChatCompletionResponse as ChatCompletionResponse
    from .models.chat import Choice as Choice
    from .models.chat import FIMCompletionRequest as FIMCompletionRequest
    from .models.chat import FinishReason as FinishReason
    from .models.chat import JSONSchema as JSONSchema
    from .models.chat import ResponseFormat as ResponseFormat
    from .models.chat import UsageInfo as UsageInfo
    from .models.chunk import CompletionChunk as CompletionChunk
    from .models.chunk import DeltaMessage as DeltaMessage
    from .models.chunk import StreamChoice as StreamChoice
    from .models.content import AudioChunk as AudioChunk
    from .models.content import DocumentURLChunk as DocumentURLChunk
    from .models.content import FileChunk as FileChunk
    from .models.content import ImageURLChunk as ImageURLChunk
    from .models.content import ReferenceChunk as ReferenceChunk
    from .models.content import TextChunk as TextChunk
    from .models.content import ThinkChunk as ThinkChunk
    from .models.content import UnknownChunk as UnknownChunk
    from .models.embeddings import Embedding as Embedding
    from .models.embeddings import EmbeddingRequest as EmbeddingRequest
    from .models.embeddings import EmbeddingResponse as EmbeddingResponse
    from .models.events import CompletionEvent as CompletionEvent
    from .models.events import Failed as Failed
    from .models.events import Finished as Finished
    from .models.events import ReasoningDelta as ReasoningDelta
    from .models.events import ReasoningDone as ReasoningDone
    from .models.events import TextDelta as TextDelta
    from .models.events import TextDone as TextDone
    from .models.events import ToolCallDelta as ToolCallDelta
    from .models.events import ToolCallDone as ToolCallDone
    from .models.messages import AssistantMessage as AssistantMessage
    from .models.messages import Role as Role
    from .models.messages import SystemMessage as SystemMessage
    from .models.messages import ToolMessage as ToolMessage
    from .models.messages import UserMessage as UserMessage
    from .models.tools import Function as Function
    from .models.tools import FunctionCall as FunctionCall
    from .models.tools import Tool as Tool
    from .models.tools import ToolCall as ToolCall
    from .models.tools import ToolChoice as ToolChoice
    from .quotas import RateLimits as RateLimits
    from .stream import CompletionEvents as CompletionEvents
    from .stream import CompletionStream as CompletionStream
    from .taskgroup import TaskGroup as TaskGroup
    from .transport.head import ResponseHead as ResponseHead
    from .transport.limits import RateLimiter as RateLimiter
    from .transport.retry import Retry as Retry

_HOMES = {
    "batch.batch": "Batch",
    "batch.result": "BatchProgress BatchResult",
    "cache.client": "CachedClient",
    "cache.engine": "CacheEngine",
    "cache.files": "FileCache",
    "cache.redis": "RedisCache",
    "channel": "CLOSED Channel ChannelStatistics MergedChannel Sender TeedChannel merge race select tee",
    "client": "Client",
    "context": "Context Timeout",
    "dialects": "Dialect",
    "errors": "APIConnectionError APIError APIStatusError APITimeoutError AuthenticationError BadRequestError"
    " CacheError ChannelClosedError ChanstreamError ConflictError EventTooLargeError InternalServerError JournalError"
    " NotFoundError PermissionDeniedError RateLimitError StreamAPIError StreamCancelledError StreamDecodeError"
    " StreamError StreamInterruptedError StreamTruncatedError UnprocessableEntityError WorkerLostError",
    "failover": "Failover",
    "models.catalog": "ModelCapabilities ModelCard",
    "models.chat": "AgentCompletionRequest ChatCompletionRequest ChatCompletionResponse Choice FIMCompletionRequest"
    " FinishReason JSONSchema ResponseFormat UsageInfo",
    "models.chunk": "CompletionChunk DeltaMessage StreamChoice",
    "models.content": "AudioChunk DocumentURLChunk FileChunk ImageURLChunk ReferenceChunk TextChunk ThinkChunk"
    " UnknownChunk",
    "models.embeddings": "Embedding EmbeddingRequest EmbeddingResponse",
    "models.events": "CompletionEvent Failed Finished ReasoningDelta ReasoningDone TextDelta TextDone ToolCallDelta"
    " ToolCallDone",
    "models.messages": "AssistantMessage Role SystemMessage ToolMessage UserMessage",
    "models.tools": "Function FunctionCall Tool ToolCall ToolChoice",
    "quotas": "RateLimits",
    "stream": "CompletionEvents CompletionStream",
    "taskgroup": "TaskGroup",
    "transport.head": "ResponseHead",
    "transport.limits": "RateLimiter",
    "transport.retry": "Retry",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604 - all texts


if not TYPE_CHECKING:  # a type checker shall know the names above, and complain about others

    def __getattr__(name: str) -> Any:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{home}", __name__), name)
        globals()[name] = value
        return value


if _environ.get("CHANSTREAM_LOG"):
    from .logs import log_to_stderr as _log_to_stderr

    _log_to_stderr(_environ["CHANSTREAM_LOG"])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
