"""What the server counts, for Prometheus; the numbers of all its processes together."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

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
    _forget_dead_processes()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _forget_dead_processes() -> None:
    """Remove the gauges of processes that have ended, whose images wait no longer; what they counted stays."""
    for path in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            with suppress(FileNotFoundError):  # another process of the server has removed it
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
