"""The frozen reference: what it says about every pair, computed once by Ray actors and read by row id.

::

    key ─► cache (files, manifest) ◄─ stage ─► actor: compute ─► records, compress ─► layout (a shard)
             ▲                                                                          │
             └── reader (trainer) ── shard_file ◄───────────────────────────────────────┘

``stage`` and ``actor`` alone know Ray; ``inspect`` shows a cache to a person.
"""
