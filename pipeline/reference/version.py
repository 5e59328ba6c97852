"""Name and version of the cache's format; another version has another number."""

FORMAT = "ra-dpo-reference-1"
