"""Values that travel: requests, messages, answers and chunks, to JSON and back, losing nothing.

Sans-IO: nothing here knows a socket, a thread or a clock.
"""
