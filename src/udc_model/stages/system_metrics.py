"""How a training run uses the machine, for the page of system metrics in MLflow."""

from __future__ import annotations

import time

import torch

LONG = 600.0  # seconds; of a shorter run nobody asks whether it used the machine well


class SystemMetrics:
    """Measures from one epoch to the next.

    Parameters
    ----------
    device : on which the model is trained.
    """

    def __init__(self, device: torch.device) -> None:
        import psutil

        self.device, self._started = device, time.monotonic()
        self._process = psutil.Process()
        psutil.cpu_percent(None)  # the first call only starts the measurement

    def read(self) -> dict[str, float]:
        """Metrics since the last call, by name; none in the first minutes (`LONG`)."""
        import psutil

        utilization = psutil.cpu_percent(None)
        if time.monotonic() - self._started < LONG:
            return {}
        metrics = {
            "system/cpu_utilization_percentage": utilization,
            "system/process_memory_megabytes": self._process.memory_info().rss / 1e6,
        }
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            metrics["system/gpu_memory_usage_percentage"] = 100 * (total - free) / total
        return metrics
