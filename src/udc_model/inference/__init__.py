"""Applies trained models: prediction, scoring, serving, ONNX export and the cache of logits."""
