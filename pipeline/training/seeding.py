"""Seeds of every random generator of a worker."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int, rank: int, step: int) -> None:
    """Seed as a function of the run's seed, the rank and the step it starts at; a checkpoint's states replace this
    where the rank was there before."""
    words = np.random.SeedSequence([seed, rank, step]).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))
