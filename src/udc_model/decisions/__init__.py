"""Cost matrix, calibration, decisions, and the policy that combines them. No torch."""
