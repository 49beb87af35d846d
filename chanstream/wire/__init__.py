"""The wire: bytes and the time in, values out.

Sans-IO: no socket, thread, clock, log or HTTP library. So every engine, replay and test drives the same machine, and
every split of the bytes can be tried in a loop.
"""
