"""Threads for the whole test run, set before torch or tokenizers are imported.

More threads than cores only get in each other's way, and tests compare runs to the last bit.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
