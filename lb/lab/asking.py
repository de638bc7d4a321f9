"""A client that asks at a steady pace: `python -m lb.lab.asking ADDRESS PORT RATE`.

It goes on until its input ends. Each request is a connection of its own, and has 5 s (times PATIENCE).
Prints a line when the first was answered; at the end, what came of all, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

from lb.lab.shell import PATIENCE

SECONDS = 5.0 * PATIENCE
REQUEST = b"GET / HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n"


class Score:
    """What came of the requests so far; times in seconds."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.slowest = 0.0


async def ask(address: str, port: int, score: Score) -> None:
    """One request, and what came of it."""
    begin = time.monotonic()
    try:
        async with asyncio.timeout(SECONDS):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(REQUEST)
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
    except TimeoutError:
        score.failures["timeout"] += 1
    except OSError as error:
        score.failures[error.strerror or str(error)] += 1
    else:
        if head.startswith(b"HTTP/1.1 200") and body:
            score.answers[body.decode().strip()] += 1
        else:
            score.failures["wrong answer"] += 1
    score.slowest = max(score.slowest, time.monotonic() - begin)


async def main() -> None:
    """Ask until the input ends, then print the score."""
    address, port, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    score, under_way = Score(), set[asyncio.Task[None]]()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    due = time.monotonic()
    told = False
    while not stop.is_set():
        task = asyncio.create_task(ask(address, port, score))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        due = max(due + 1 / rate, time.monotonic() - 1)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if score.answers and not told:
            told = True
            print("answered", flush=True)
    await asyncio.gather(*under_way)
    print(
        json.dumps(
            {
                "answers": score.answers,
                "failures": score.failures,
                "slowest_ms": round(score.slowest * 1e3),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
