"""Commands and jobs: train and evaluate, grids of runs, several seeds, fine-tuning, the doctor."""
