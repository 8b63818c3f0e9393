"""Image sources, checks, splits, the packed data set, preprocessing and training batches."""
