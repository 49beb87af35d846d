"""Many requests at once: `Client.batch`, and what stands behind it."""

from .batch import Batch, Plan
from .result import BatchProgress, BatchResult

__all__ = ["Batch", "BatchProgress", "BatchResult", "Plan"]
