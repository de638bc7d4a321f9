"""`python arrivals.py RATE SECONDS ADDRESS:PORT…`: so many new HTTP connections a second to each,
whatever becomes of those before; prints for each target a list of [Unix time of the start, "" or what
went wrong], as one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys
import time

ANSWER_SECONDS = 2.0
REQUEST = b"GET / HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n"


async def ask(host: str, port: int) -> str:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(REQUEST)
                status = (await reader.readline()).split()
            finally:
                writer.transport.abort()
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return error.strerror or "error"
    return "" if status[1:2] == [b"200"] else f"status {status[1].decode()}" if status else "closed"


async def serve(rate: float, seconds: float, targets: list[str]) -> dict[str, list[tuple[float, str]]]:
    found: dict[str, list[tuple[float, str]]] = {target: [] for target in targets}

    async def one(target: str) -> None:
        host, _, port = target.rpartition(":")
        began = time.time()
        found[target].append((began, await ask(host, int(port))))

    loop = asyncio.get_running_loop()
    begin = loop.time()
    tasks = []
    for turn in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin + turn / rate - loop.time()))
        tasks += [loop.create_task(one(target)) for target in targets]
    await asyncio.gather(*tasks)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(serve(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))))
