"""Training: the loop, losses, optimisation, checkpoints and resume, several processes, hardware."""
