"""Damaged and hostile inputs for every reader of files: made, read, and judged."""
