"""TPU slices without a TPU: the mesh of a run, its shardings, and compiling its steps."""
