"""Two models, versions of the registry, or files of any system's outputs, compared on the same prompts and seeds."""
