"""What the server counts, for Prometheus; the numbers of all its processes together."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

REQUESTS = Counter("udc_requests", "Requests by status of the answer.", ["status"])
IMAGES = Counter("udc_images", "Images by result: a decision, or an error.", ["result"])
SECONDS = Histogram(
    "udc_request_seconds", "Time from the head of a request to its answer.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)  # fmt: skip
BATCH = Histogram("udc_batch_images", "Images of a forward pass.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))
WAITING = Gauge("udc_waiting_images", "Images that wait for the network.", multiprocess_mode="livesum")


def exposition() -> bytes:
    """The numbers in Prometheus' text format."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
