"""Models and tokenizers: find, build, load, digest, save (the only place that loads from transformers)."""
