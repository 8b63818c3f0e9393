"""What ``udc export`` can write; without torch, for the command line."""

from __future__ import annotations

# Target, and the precisions in which it is written.
TARGETS = {
    "onnx": ("fp32", "fp16", "int8"),
    "torch-export": ("fp32", "fp16", "bf16"),
    "openvino": ("fp32", "fp16", "int8"),
    "safetensors-hf": ("fp32",),
}
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}  # the others are folders
TOLERANCE = 0.01  # of the mean cost: less than its standard error unless the test split has 10,000 mistakes
