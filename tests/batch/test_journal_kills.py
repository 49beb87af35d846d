"""A batch that is killed again and again, and what it costs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from chanstream.testing import RecordedRequest, Reply
from tests.conftest import SCALE, Link

TOTAL, CONCURRENCY, KILLS = 400, 8, 10

ROOT = str(Path(__file__).parents[2])

# Runs the batch, and says the id of each result on a line of its own as soon as it has it.
_PROGRAM = f"""
import sys
sys.path.insert(0, {ROOT!r})
from chanstream import ChatCompletionRequest, Client, UserMessage
url, journal = sys.argv[1:]
requests = ((f"id-{{n}}", ChatCompletionRequest("m", [UserMessage(f"No. {{n}}")])) for n in range({TOTAL}))
with Client("a-secret-key", base_url=url, dialect="openai") as client:
    for result in client.batch(requests, concurrency={CONCURRENCY}, journal=journal):
        assert result.response.text == "Fine, " + result.request.messages[0].content, result
        print(result.id, flush=True)
"""


class Counting:
    """How a server answers that counts its requests, and tells when so many have come."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.awaited = 0
        self.reached = threading.Event()

    def __call__(self, request: RecordedRequest) -> Reply:
        """Reply to a request."""
        prompt = request.json["messages"][0]["content"]
        with self.lock:
            self.asked[prompt] += 1
            if self.asked.total() >= self.awaited:
                self.reached.set()
        return Reply(f"Fine, {prompt}", pace=0.001)

    def await_more(self, count: int) -> None:
        """Wait until so many more requests have come."""
        with self.lock:
            self.awaited = self.asked.total() + count
            self.reached.clear()
        assert self.reached.wait(20 * SCALE)


@pytest.fixture
def counting() -> Counting:
    """The server's side."""
    return Counting()


@pytest.mark.slow
def test_killed_at_ten_random_moments(plain: Link, counting: Counting, tmp_path: Path) -> None:
    """Killed ten times and run again, the batch is complete, has no result twice, and repeats little of its work."""
    server = plain.serve(reply_with=counting, keep=0)
    journal = tmp_path / "journal.jsonl"
    command = [sys.executable, "-c", _PROGRAM, server.url, str(journal)]
    chance = random.Random(str(tmp_path))
    told: set[str] = set()
    for _ in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            counting.await_more(chance.randrange(1, 20))
            time.sleep(chance.random() * 0.01)  # any moment will do: that is the point
            process.kill()
            said = process.communicate()[0].split()
        now = {json.loads(line)["custom_id"] for line in journal.read_bytes().splitlines(keepends=True)[:-1]}
        assert len(said) == len(set(said))
        told.update(said)
        assert told <= _ids(journal), "a result that was given is not in the journal"
        assert now <= _ids(journal)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0
    assert sorted(done.stdout.split()) == sorted(f"id-{number}" for number in range(TOTAL))
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    assert sorted(line["custom_id"] for line in lines) == sorted(f"id-{number}" for number in range(TOTAL))
    assert b"a-secret-key" not in journal.read_bytes()
    assert set(counting.asked) == {f"No. {number}" for number in range(TOTAL)}
    assert counting.asked.total() <= TOTAL + KILLS * CONCURRENCY


def _ids(journal: Path) -> set[str]:
    """Return the ids of the whole lines of a journal."""
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    return {json.loads(line)["custom_id"] for line in lines if line.endswith(b"\n")}
