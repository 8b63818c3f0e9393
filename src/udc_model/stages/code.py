"""The code files that the results of each computation depend on, relative to the package."""

CODE = {"logits": ("data/logits.py", "data/transforms.py", "inference/classifier.py", "models", "native")}
