"""What the server makes of the load that it is offered: writes the last section of docs/serving.md.

    python benchmarks/serving.py --seconds 60

Requests for single images arrive at random (Poisson), whether or not earlier ones are answered, at shares of the rate
at which the pipeline makes full batches. Three servers get the same arrivals: ours, one that makes an image after the
other, and one that makes a batch of what has queued whenever it is done with the last. They differ in their engine
alone. Finished measurements stay in ``--output``: a run that was killed goes on where it was. Give it idle cores.
"""

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import openai

import overload
import zipar
from ablations import kept
from decoding import machine
from zipar.decoding import names
from zipar.serving import server
from zipar.serving.app import application
from zipar.serving.batch import Recipe, finished
from zipar.serving.events import Made
from zipar.serving.lines import Line
from zipar.serving.painter import encode
from zipar.serving.scheduler import Scheduler
from zipar.serving.served import Served
from zipar.serving.threads import aside

ENGINES = {"ours": "continuous batching", "one": "one image at a time", "queued": "a batch of what has queued"}
LOADS = (0.1, 0.5, 0.9, 1.5)
"""Shares of the offline rate. The first is light load, the last one saturates."""
FEWEST = 24
"""Requests of a load, however light."""
PROMPTS = 32
"""That requests take in turn; the seed is a request's number."""
MARK = "<!-- written by benchmarks/serving.py -->\n"
Figures = dict[str, Any]


class Queued(Scheduler):
    """Makes a batch of what has queued, ``rows`` images at most, and answers when it is done."""

    def _run(self) -> None:
        while self._more():
            batch = tuple(self._waiting[: self.rows])
            for image in batch:
                self._leave_queue(image)
            orders = [image.job.order for image in batch]
            first = orders[0]
            made = first.style.served.pipe(
                [order.prompt for order in orders],
                seed=[order.seeds[image.index] for order, image in zip(orders, batch, strict=True)],
                strategy=first.style.strategy,
                **asdict(first.sampling),
            )
            for image, order, picture in zip(batch, orders, made.images, strict=True):
                self._tell(image, Made(image.index, order.seeds[image.index], encode([picture], "png", 100), 0, 0, 0.0))
                self._settle(image)

    def _more(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting)
            return not self._stopping


def serve(args: argparse.Namespace) -> None:
    """The other process: a server with one of the engines, whose port is the first line it prints."""
    pipe = aside(partial(pipeline, args))
    kind = Scheduler if args.serve == "ours" else Queued
    rows = 1 if args.serve == "one" else args.rows
    taken = server.bind("127.0.0.1", 0)
    with kind([Served.of("model", pipe, 256)], rows=rows, lanes=1, queue=100_000) as scheduler:
        port = taken.getsockname()[1]
        server.run(application(scheduler), scheduler, taken, partial(print, port, flush=True))


def pipeline(args: argparse.Namespace) -> zipar.Pipeline:
    pipe = zipar.pipeline(args.model)
    return zipar.Pipeline(pipe.model, args.strategy or pipe.strategy)


@contextmanager
def running(engine: str, args: argparse.Namespace) -> Iterator[int]:
    """A server in a process of its own, for as long as the block; gives its port."""
    options = [
        "--model",
        args.model,
        "--rows",
        str(args.rows),
        *(["--strategy", args.strategy] if args.strategy else []),
    ]
    command = [sys.executable, __file__, "--serve", engine, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def offline(pipe: zipar.Pipeline, args: argparse.Namespace) -> Figures:
    """Seconds of single images, those of the lightest load, and images a second in full batches, files included."""
    prompts = pipe.model.examples(PROMPTS)

    _seconds(pipe, prompts[: args.rows], 0)  # warms up
    single = [_seconds(pipe, [prompts[number % PROMPTS]], number) for number in range(FEWEST)]
    full = [_seconds(pipe, prompts[: args.rows], seed) for seed in range(args.batches)]
    return {
        "machine": machine(),
        "single": statistics.median(single),
        "rate": args.rows / statistics.median(full),
    }


def _seconds(pipe: zipar.Pipeline, prompts: Sequence[str], seed: int) -> float:
    started = time.perf_counter()
    for image in pipe(list(prompts), seed=seed).images:
        encode([image], "png", 100)
    return time.perf_counter() - started


def job(pipe: zipar.Pipeline, args: argparse.Namespace) -> Figures:
    """Images a second of a batch job, and of the same images in full batches, each before and after the other."""
    prompts, numbers = pipe.model.examples(PROMPTS), range(args.rows * args.batches)
    strategy = {"strategy": names.name(pipe.strategy)}
    lines = [Line(n + 1, str(n), {"prompt": prompts[n % PROMPTS], "seed": n, **strategy}) for n in numbers]

    def full() -> float:
        parts = (numbers[first : first + args.rows] for first in numbers[:: args.rows])
        return sum(_seconds(pipe, [prompts[n % PROMPTS] for n in part], part[0]) for part in parts)

    taken, beside = 0.0, aside(full)
    for _ in range(2):
        with (
            TemporaryDirectory() as folder,
            Recipe("model", args.model, Path(folder), rows=args.rows).started() as make,
        ):
            started = time.perf_counter()
            assert all("error" not in record for record in finished(make, lines))
            taken += time.perf_counter() - started
    beside += aside(full)
    return {"images": len(lines), "job": 2 * len(lines) / taken, "full": 2 * len(lines) / beside}


async def offered(port: int, rate: float, count: int, prompts: Sequence[str]) -> Figures:
    """Seconds of each request, from when it was due, and images a second, when they arrive at ``rate`` a second."""
    draw = random.Random(0)
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx2.AsyncClient(trust_env=False, limits=httpx2.Limits(max_connections=None)),
    ) as client:

        async def ask(number: int, due: float) -> float:
            await asyncio.sleep(due - time.perf_counter())
            await client.images.generate(prompt=prompts[number % len(prompts)], extra_body={"seed": number})
            return time.perf_counter() - due

        await client.images.generate(prompt=prompts[0])  # warms up
        due = started = time.perf_counter()
        asking = []
        for number in range(count):
            due += draw.expovariate(rate)
            asking.append(asyncio.ensure_future(ask(number, due)))
        seconds = await asyncio.gather(*asking)
        return {"seconds": seconds, "rate": count / (time.perf_counter() - started)}


def measured(engine: str, rates: Sequence[float], prompts: Sequence[str], args: argparse.Namespace) -> list[Figures]:
    """Figures of an engine under each load, one after the other."""
    found = []
    with running(engine, args) as port:
        for rate in rates:
            count = max(FEWEST, round(rate * args.seconds))
            found.append(asyncio.run(offered(port, rate, count, prompts)))
            print(f"{engine}, {rate:.2f} images a second offered: {found[-1]['rate']:.2f} made", flush=True)
    return found


def table(loads: Sequence[float], found: dict[str, list[Figures]], base: Figures) -> str:
    lines = [
        "| offered | engine | images a second | of full batches | p50, s | p90, s | p99, s |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, load in enumerate(loads):
        for engine, words in ENGINES.items():
            figures = found[engine][number]
            ordered = sorted(figures["seconds"])
            marks = [f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.2f}" for share in (0.5, 0.9, 0.99)]
            cells = [f"{load:.0%}", words, f"{figures['rate']:.2f}", f"{figures['rate'] / base['rate']:.2f}", *marks]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--strategy", help="such as zipar:4; the pipeline's own unless told otherwise")
    parser.add_argument("--rows", type=int, default=8, help="images of a lane, and of a batch")
    parser.add_argument("--seconds", type=float, default=60, help="of arrivals, at each load")
    parser.add_argument("--clients", type=int, default=200, help="that are too many")
    parser.add_argument("--siege", type=float, default=120, help="seconds of too many")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--batches", type=int, default=8, help="timed offline")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/serving"))
    parser.add_argument("--page", type=Path, default=Path("docs/serving.md"))
    parser.add_argument("--serve", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.serve:
        return serve(args)
    pipe = aside(partial(pipeline, args))  # a team of threads less
    prompts = pipe.model.examples(PROMPTS)
    base = kept(args.output / "offline.json", lambda: aside(partial(offline, pipe, args)))
    rates = [load * base["rate"] for load in args.loads]

    def load(engine: str) -> Figures:
        return {"loads": measured(engine, rates, prompts, args)}

    found = {engine: kept(args.output / f"{engine}.json", partial(load, engine))["loads"] for engine in ENGINES}
    batch = kept(args.output / "job.json", lambda: job(pipe, args))
    siege = kept(args.output / "siege.json", lambda: overload.measure(args.model, args.clients, args.siege))
    text = (Path(__file__).parent / "serving.md").read_text(encoding="utf-8")
    filled = text.format(
        model=args.model,
        strategy=names.name(pipe.strategy),
        rows=args.rows,
        seconds=f"{args.seconds:g}",
        fewest=FEWEST,
        machine=base["machine"],
        single=f"{base['single']:.2f}",
        rate=f"{base['rate']:.2f}",
        loads=table(args.loads, found, base),
        images=batch["images"],
        job=f"{batch['job']:.2f}",
        beside=f"{batch['job'] / batch['full']:.2f}",
        siege=overload.sentence(siege),
        light=f"{statistics.median(found['ours'][0]['seconds']) / base['single'] - 1:+.0%}",
        saturated=f"{found['ours'][-1]['rate'] / base['rate']:.2f}",
    )
    page = args.page.read_text(encoding="utf-8")
    args.page.write_text(page.partition(MARK)[0] + MARK + filled, encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
