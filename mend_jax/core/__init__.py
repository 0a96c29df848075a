"""The maths of editing: weight edits, factors of gradients, meta-losses, the editor protocol."""
