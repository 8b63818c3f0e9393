"""The training run: session, loop, losses, optimiser, checkpoints and distribution over processes."""
