"""The cost matrix, calibration, and the policy that turns logits into decisions."""
