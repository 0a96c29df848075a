"""Training an editor: config, step, loop, checkpoints, and the trained editor itself."""
