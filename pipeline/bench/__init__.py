"""What the fused head costs, beside what it replaces: subjects, measurement, table. `jobs/benchmark.py` runs it."""
