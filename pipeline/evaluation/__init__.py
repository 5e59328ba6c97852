"""Sampling from both models, scoring, and the figures and verdict that follow."""
