"""Optimise a policy: a generic loop over a DeepSpeed engine, and the tasks (fine-tuning, preferences) it runs."""
