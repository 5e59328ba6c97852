"""The frozen reference: what it says about every pair, computed once by Ray actors and read by content.

::

    key ─► plan ◄─ cover ◄─ donors: other caches' headers      takeover: their files and rows ─┐
             ▼                                                                                 ▼
    cache (files, manifest) ◄─ stage ─► actor: compute ─► records, compress ────────► layout (a shard)
             ▲                                                                                 │
             └── reader (trainer) ── stored ── shard_file ◄────────────────────────────────────┘

``stage`` and ``actor`` alone know Ray; ``inspect`` shows a cache to a person, ``foresight`` says what a pass would do.
"""
