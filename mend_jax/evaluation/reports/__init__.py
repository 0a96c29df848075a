"""Reports of runs and of grids: HTML pages, plots and tables."""
