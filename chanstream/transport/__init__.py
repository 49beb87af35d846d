"""The transport: requests and urllib3, and nothing of them outside this room.

Sends a request, retries what may be retried, and gives the body's bytes as they arrive from a source that any thread
can cut.
"""
