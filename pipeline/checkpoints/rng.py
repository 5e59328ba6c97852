"""The state of every random generator of a worker, as tensors and JSON.

Training itself draws nothing at present (batches are a function of seed and step, dropout is off); a scorer, a
measure or a task of the user's own may.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def capture(device: torch.device) -> tuple[dict[str, Tensor], str]:
    """Tensors by name, and the rest as JSON text."""
    _, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    tensors = {
        "rng/torch": torch.get_rng_state(),
        "rng/numpy": torch.from_numpy(np.asarray(words, dtype=np.int64)),
        "rng/python": torch.tensor(internal, dtype=torch.int64),
    }
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    rest = {"numpy": [int(position), int(has_gauss), float(gauss)], "python": [version, gauss_next]}
    return tensors, json.dumps(rest)


def restore(tensors: Mapping[str, Tensor], rest: str, device: torch.device) -> None:
    """Put back what `capture` gave."""
    values = json.loads(rest)
    torch.set_rng_state(tensors["rng/torch"])
    position, has_gauss, gauss = values["numpy"]
    words = tensors["rng/numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, position, has_gauss, gauss))
    version, gauss_next = values["python"]
    random.setstate((version, tuple(tensors["rng/python"].tolist()), gauss_next))
    if device.type == "cuda" and "rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng/cuda"], device)
