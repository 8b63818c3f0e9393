"""The files of a model folder, checked completely before PyTorch is imported and before anything is allocated."""
