"""The cost matrix, losses that know it, calibration, and the decision rules."""
