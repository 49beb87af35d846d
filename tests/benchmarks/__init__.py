"""What a chunk costs: chanstream beside everyone else, measured in one run.

``python -m tests.benchmarks --list`` shows what there is to measure. Nothing here is a timed test.
It needs Linux.

- `scenario`: the words in which a client asks the server for a stream, and the bytes that it gets.
- `server`: the server, a process of its own, so that its CPU is nobody's.
- `clients`: every client behind one small protocol.
- `worker`: one measurement of one client, in a fresh process, so that CPU, switches, threads and memory are the
  client's alone.
- `runner`: all measurements of a run, in turn: round 1 of every client, then round 2, and so on.
- `report`: medians, ratios, tables, and the limits that must hold. `docs`: the same as plots and Markdown.
"""
