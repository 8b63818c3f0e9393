"""The forward pass on a CUDA GPU, recorded once for each shape of a batch and replayed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_MOST = 16  # recordings; each keeps the batch and the logits of its shape, and all share the memory between


class GraphedForward:
    """A forward pass whose kernels the GPU starts by itself (CUDA graphs).

    Otherwise the processor launches one after the other, which takes longer than small batches compute. A shape is
    recorded when it comes the second time: the last batch of a split comes once. Calls may come from several threads.

    Parameters
    ----------
    forward : a function from a batch on the GPU to logits there, without a branch that depends on their values.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self._forward = forward
        self._seen: set[torch.Size] = set()
        self._recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._can_record = True
        self._lock = threading.Lock()

    def __call__(self, images: Tensor) -> Tensor:
        """Map a batch (n, C, size, size) on the GPU to logits (n, K) there."""
        with self._lock:
            if images.shape in self._seen and images.shape not in self._recorded:
                self._record(images)
            self._seen.add(images.shape)
            if images.shape not in self._recorded:
                return self._forward(images)
            graph, inputs, logits = self._recorded[images.shape]
            inputs.copy_(images)
            graph.replay()
            return logits.clone()  # the next replay overwrites them

    def _record(self, images: Tensor) -> None:
        """Record the forward pass for the shape of ``images``, if the network can be recorded."""
        if not self._can_record or len(self._recorded) == _MOST:
            return
        inputs, graph = images.clone(memory_format=torch.channels_last), torch.cuda.CUDAGraph()
        pool = next((other.pool() for other, _, _ in self._recorded.values()), None)
        try:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._forward(inputs)  # what libraries set up in a first call cannot be recorded
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                logits = self._forward(inputs)
        except RuntimeError as error:
            self._can_record = False
            reason = " ".join(str(error).split())[:200]
            logger.info("the network cannot be recorded as a CUDA graph, so small batches are slower: %s", reason)
            return
        self._recorded[images.shape] = graph, inputs, logits
