"""What the server counts, for Prometheus: vLLM's names where it has them, under ``zipar:``."""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)


class Metrics:
    """Every series has a label ``model_name``. Those of requests count each image, as vLLM does, but for two."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._running = self._new(Gauge, "num_requests_running", "Images in lanes.")
        self._waiting = self._new(Gauge, "num_requests_waiting", "Images in the queue.")
        self.queue_seconds = self._seconds("request_queue_time_seconds", "From arrival to a lane.")
        self.prefill_seconds = self._seconds("request_prefill_time_seconds", "Reading the prompt.")
        self.decode_seconds = self._seconds("request_decode_time_seconds", "From the prompt to the last token.")
        self.latency = self._seconds("e2e_request_latency_seconds", "Of whole requests, from arrival to the answer.")
        self.success = self._new(Counter, "request_success", "Whole requests that were answered with images.")
        self.rejections = self._new(Counter, "admission_rejections", "Requests refused, as the queue was full.")
        self.passes = self._new(Counter, "forward_passes", "Forward passes of lanes.")
        self.images = self._new(Counter, "images", "Finished images.")

    def watch(self, models: Iterable[str], running: Callable[[str], int], waiting: Callable[[str], int]) -> None:
        """Ask these functions how many images of a model are in lanes and in the queue."""
        for name in models:
            self._running.labels(name).set_function(lambda name=name: running(name))
            self._waiting.labels(name).set_function(lambda name=name: waiting(name))
            for each in (self.success, self.rejections, self.passes, self.images):
                each.labels(name)  # there from the start, at 0

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def _new(self, kind: Callable[..., Any], name: str, help: str, **options: Any) -> Any:
        return kind(f"zipar:{name}", help, ["model_name"], registry=self._registry, **options)

    def _seconds(self, name: str, help: str) -> Any:
        return self._new(Histogram, name, help, buckets=SECONDS)
