"""What is to be raised when the code of the reference pass changes."""

FORMAT = "ra-dpo-reference-1"
"""Name and version of the files' layout; another version has another number."""

NUMBERS = 1
"""Part of every key: raise it when a change of the code gives any other number for the same inputs."""
