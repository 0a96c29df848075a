"""The jobs behind the commands: train and evaluate, grids of runs, fine-tuning, the doctor."""
