"""What is to be raised when the code of the reference pass changes."""

FORMAT = "ra-dpo-reference-2"
"""Name and version of the files' layout; another version has another number."""

READABLE = ("ra-dpo-reference-1", FORMAT)
"""Versions whose caches can be read. The first one's shards name their cache, their split and their place in it, so
that rows are copied out of them while files of this version are taken over as they are."""

NUMBERS = 1
"""Part of every key: raise it when a change of the code gives any other number for the same inputs."""
