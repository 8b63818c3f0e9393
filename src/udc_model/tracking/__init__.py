"""Records of runs: the journal of a stage, the process that delivers it to MLflow, and runs found by name."""
