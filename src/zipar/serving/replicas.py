"""The server on the machines of a Ray cluster: Ray Serve shares requests out to replicas.

Each is a scheduler with a queue of its own, which refuses what is too much, as that of a single server does.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError

from zipar.decoding.names import parse
from zipar.errors import ZipARError, reason
from zipar.pipeline import pipeline
from zipar.serving.app import application
from zipar.serving.machines import connected, needs
from zipar.serving.scheduler import Scheduler
from zipar.serving.served import Served
from zipar.serving.threads import aside

APP = "zipar"
"""What Serve calls it."""
PATIENCE = 600
"""Seconds that a replica has to finish what it was given, before it is removed."""


@dataclass(frozen=True)
class Setup:
    """What a replica is made of, wherever it is."""

    models: Mapping[str, str | Path]
    """By name; as ``zipar.pipeline`` takes them."""
    strategy: str | None = None
    sizes: Sequence[tuple[int, int]] = ()
    dtype: str | None = None
    quantize: str | None = None
    device: str | None = None
    cuda_graphs: bool = True
    rows: int = 8
    lanes: int = 2
    queue: int = 64
    longest_prompt: int = 256
    aliases: Mapping[str, str] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)
    allowed_origins: Sequence[str] = ()

    def scheduler(self) -> Scheduler:
        """Load the models.

        Raises:
            ZipARError: one cannot be loaded or served.
        """
        options: dict[str, Any] = {"dtype": self.dtype, "quantize": self.quantize, "device": self.device}
        served = []
        for name, model in self.models.items():
            pipe = aside(partial(pipeline, model, cuda_graphs=self.cuda_graphs, **options))
            pipe.strategy = parse(self.strategy) if self.strategy else pipe.strategy
            served.append(Served.of(name, pipe, self.longest_prompt, self.sizes))
        return Scheduler(served, rows=self.rows, lanes=self.lanes, queue=self.queue, aliases=self.aliases)


class Replica:
    """The application, and the engine behind it."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._scheduler = setup, setup.scheduler().__enter__()  # until the process ends
        self._scheduler.warm_up()

    def __serve_build_asgi_app__(self) -> Any:
        return application(self._scheduler, api_key=self._setup.api_key, allowed_origins=self._setup.allowed_origins)

    def check_health(self) -> None:
        """Serve asks, and makes another where this raises."""
        if not self._scheduler.alive:
            raise RuntimeError("the engine is dead")


def deploy(setup: Setup, host: str, port: int, replicas: tuple[int, int], proxies: str = "EveryNode") -> None:
    """Have replicas answer at an address; returns once they do.

    Args:
        replicas: as few and as many; in between, by how many requests there are.
        proxies: where the address is, as Ray Serve calls it: on each machine with a replica, or "HeadOnly".

    Raises:
        ZipARError: they cannot be made.
    """
    least, most = replicas
    scaling: dict[str, Any] = {"num_replicas": least}
    if least < most:
        bounds = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": setup.rows}
        scaling = {"autoscaling_config": bounds}
    deployment: Any = serve.deployment(serve.ingress()(Replica))
    bound = deployment.options(
        name=APP,
        # more than the queue takes: it is the scheduler that refuses, in OpenAI's form
        max_ongoing_requests=2 * (setup.rows * setup.lanes + setup.queue),
        graceful_shutdown_timeout_s=PATIENCE,
        ray_actor_options=needs(setup.device),
        **scaling,
    ).bind(setup)
    try:
        serve.start(proxy_location=proxies, http_options={"host": host, "port": port})
        serve.run(bound, name=APP, route_prefix="/")
    except (RayError, RuntimeError) as error:
        raise ZipARError(f"no replica could be made ({reason(error)}): see Ray's logs") from error


def run(setup: Setup, address: str | None, host: str, port: int, replicas: tuple[int, int]) -> None:
    """Serve until Ctrl-C, then finish what was accepted.

    Args:
        address: of the cluster; None for one of this machine alone.

    Raises:
        ZipARError: there is no such cluster, or replicas cannot be made.
    """
    with connected(address):
        try:
            deploy(setup, host, port, replicas)
            print(f"http://{host}:{port}/v1 is ready", flush=True)
            threading.Event().wait()
        finally:
            end = time.monotonic() + PATIENCE
            while APP in serve.status().applications and time.monotonic() < end:
                with suppress(TimeoutError):  # Serve waits for a minute, but replicas finish what they were given
                    serve.delete(APP)
