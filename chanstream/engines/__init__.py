"""Engines: what moves bytes from a source through a machine into a channel, and ends streams on time."""
