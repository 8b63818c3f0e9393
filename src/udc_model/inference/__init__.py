"""Applies trained models: prediction, serving, ONNX export and the cache of logits."""
