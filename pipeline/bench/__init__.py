"""What things cost beside what they replace; `jobs/benchmark.py` runs it.

``job``, with ``subjects``, ``measure`` and ``report``: the fused output head. ``reference_job``, with ``material``,
``pass_speed``, ``step_speed`` and ``reference_figures``: the reference pass, and training steps that read its cache.
"""
