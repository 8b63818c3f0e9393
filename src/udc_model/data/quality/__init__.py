"""What is suspicious about the images of a data set: near-duplicates, shortcuts, outliers, groups in file names."""
