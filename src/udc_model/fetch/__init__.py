"""Brings data sets into a folder of the project: by name from torchvision and Hugging Face, by address through DVC."""
