"""Benchmarks: how far each step is from what the machine can do."""
