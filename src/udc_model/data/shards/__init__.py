"""Prepared images in tar shards, for data larger than memory (``data.packed: shards``)."""
