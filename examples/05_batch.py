"""Many requests at once, into a file that outlives whatever ends the program.

Run it with ``python examples/05_batch.py``. It needs no key: a scripted server on this machine answers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from chanstream import ChatCompletionRequest, Client, UserMessage
from chanstream.testing import RecordedRequest, Reply, StreamServer

FRUITS = ["cherry", "lime", "plum", "lemon", "orange"]


def requests() -> Iterator[tuple[str, ChatCompletionRequest]]:
    """Yield requests with ids; they are asked for one by one, so this may as well read a file of any size."""
    for fruit in FRUITS:
        yield fruit, ChatCompletionRequest("any-model", [UserMessage(f"What colour is a {fruit}?")])


def answer(request: RecordedRequest) -> Reply:
    """Be the server, which does not know everything."""
    question = request.json["messages"][0]["content"]
    return Reply.error(400, "What is a plum?") if "plum" in question else Reply("It has a colour of its own.")


def broken_off(client: Client, journal: Path) -> None:
    """Each result is in the file before it is given; here the program loses interest after two."""
    with client.batch(requests(), concurrency=1, journal=journal) as results:
        for result in islice(results, 2):
            print(f"{result.id}: {result.response.text if result.response else result.error}")


def gone_on(client: Client, journal: Path) -> None:
    """What the file has is not asked again. One request that fails stops no other."""
    for result in client.batch(requests(), concurrency=4, ordered=True, journal=journal):
        print(f"{result.id}: {result.error or 'answered'}")


def read(journal: Path) -> None:
    """The file is one of results as OpenAI's batch API gives them."""
    results = [json.loads(line) for line in journal.read_text().splitlines()]
    answered = [line["custom_id"] for line in results if line["error"] is None]
    print(f"{len(results)} lines, {len(answered)} of them answers")


def main() -> None:
    """Run a batch twice."""
    with (
        tempfile.TemporaryDirectory() as folder,
        StreamServer(reply_with=answer) as server,
        Client(api_key="", base_url=server.url, dialect="openai") as client,
    ):
        journal = Path(folder, "colours.jsonl")
        broken_off(client, journal)
        gone_on(client, journal)
        read(journal)


if __name__ == "__main__":
    main()
