"""Checkpoints of a training under way: a format that knows no number of workers, and the directory they live in."""
