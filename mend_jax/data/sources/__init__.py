"""The data sets: one module or package each."""
