"""What an editor does: scores, metrics and reports."""
