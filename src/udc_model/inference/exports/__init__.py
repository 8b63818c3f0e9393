"""Exports: one file or folder that maps images to decisions in another runtime, checked on the test split."""
