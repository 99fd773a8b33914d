"""A server under more than it can do: who is answered, who is refused, and what memory does meanwhile.

    python benchmarks/overload.py --clients 200 --seconds 120

So many clients ask again as soon as they are answered or, refused, a moment later: sooner than they are told to. The
server is ``zipar serve`` in a process of its own, and is told to end when the clients are done.
"""

import argparse
import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import psutil

SETTLED = 0.25
"""The share of the time after which memory should stand still."""


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """``zipar serve`` and its address, for as long as the block."""
    command = [sys.executable, "-m", "zipar", "serve", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            line = next(line for line in process.stdout if line.endswith("is ready\n"))
            yield process, line.removesuffix("/v1 is ready\n")
        finally:
            process.kill()


async def besiege(process: subprocess.Popen, address: str, clients: int, seconds: float) -> dict[str, Any]:
    """Answers by kind, seconds of those that brought an image, and MiB of the server over time."""
    statuses: Counter[str] = Counter()
    taken: list[float] = []
    memory: list[float] = []
    end = time.perf_counter() + seconds
    limits = httpx2.Limits(max_connections=None)

    async def client(number: int, http: httpx2.AsyncClient) -> None:
        draw = random.Random(number)
        while (started := time.perf_counter()) < end:
            try:
                answer = await http.post("/v1/images/generations", json={"prompt": "a red fox"}, timeout=600)
            except httpx2.HTTPError as error:
                statuses[type(error).__name__] += 1
                continue
            refused = answer.status_code == 503 and "retry-after" in answer.headers
            statuses["refused" if refused else str(answer.status_code)] += 1
            if answer.status_code == 200:
                taken.append(time.perf_counter() - started)
            await asyncio.sleep(draw.uniform(0.5, 1.5) if refused else 0)

    async def watch() -> None:
        server = psutil.Process(process.pid)
        while time.perf_counter() < end:
            memory.append(server.memory_info().rss / 2**20)
            await asyncio.sleep(0.5)

    async with httpx2.AsyncClient(base_url=address, trust_env=False, limits=limits) as http:
        await asyncio.gather(watch(), *(client(number, http) for number in range(clients)))
    return {"statuses": dict(statuses), "seconds": taken, "memory": memory}


def measure(model: str, clients: int, seconds: float, strategy: str | None = None) -> dict[str, Any]:
    """The figures of one siege."""
    options = ["--model", model, "--rows", "8", "--lanes", "1", "--queue", "32"]
    with serving(*options, *(["--strategy", strategy] if strategy else [])) as (process, address):
        found = asyncio.run(besiege(process, address, clients, seconds))
        process.send_signal(signal.SIGTERM)
        found["ended"] = process.wait(60)
    settled = found["memory"][int(SETTLED * len(found["memory"])) :]
    statuses = found["statuses"]
    return {
        "clients": clients,
        "time": seconds,
        "answered": statuses.pop("200", 0),
        "refused": statuses.pop("refused", 0),
        "others": statuses,
        "median": statistics.median(found["seconds"]),
        "memory": [settled[0], max(settled), settled[-1]],
        "ended": found["ended"],
    }


def sentence(found: dict[str, Any]) -> str:
    """The figures in words."""
    first, most, last = (f"{each:,.0f}" for each in found["memory"])
    others = ", ".join(f"{count} {kind}" for kind, count in found["others"].items()) or "none"
    return (
        f"{found['clients']} clients for {found['time']:.0f} s, with 8 images a lane and 32 in the queue: "
        f"{found['answered']:,} images, after {found['median']:.1f} s at the median; {found['refused']:,} times "
        f"503 with `Retry-After`; other answers: {others}. The process held {first} MiB after a quarter of that time, "
        f"{most} at most from then on and {last} in the end. Told to end, it did so with exit code {found['ended']}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--strategy", help="such as zipar:2; the default one unless told otherwise")
    args = parser.parse_args()
    found = measure(args.model, args.clients, args.seconds, args.strategy)
    print(json.dumps(found, indent=1))
    print(sentence(found))


if __name__ == "__main__":
    main()
