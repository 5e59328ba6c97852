"""Which numbers of the optimiser a worker holds, for every ZeRO stage: views that are read for a checkpoint and
written after one.

ZeRO-3 cuts every parameter into equal parts, one for each worker; ZeRO-1 and 2 cut all parameters laid end to end, so
that a worker holds some whole ones and a piece of others; without ZeRO everybody holds everything, and each worker
answers for an equal part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.checkpoints.layout import Slice


def local_slices(engine: Any, model: nn.Module, stage: int, rank: int, world_size: int) -> list[Slice]:
    """This worker's part of every parameter it holds some of: master weight and Adam's moments, as views.

    Args:
        engine: what ``deepspeed.initialize`` gave, without offloading.
        model: the model inside it, whose names are used.
    """
    _make_moments(engine)
    if stage == 3:
        slices = _cut_each(model, rank)
    elif stage in (1, 2):
        slices = _cut_all(engine, model)
    else:
        slices = _cut_by_us(engine, model, rank, world_size)
    return [one for one in slices if one.weight.numel()]


def adam_steps(engine: Any) -> float:
    """Steps that Adam has counted, the same for all parameters."""
    counts = {float(state["step"]) for state in engine.basic_optimizer.state.values() if "step" in state}
    assert len(counts) <= 1, "all parameters are updated together"
    return counts.pop() if counts else 0.0


def set_adam_steps(engine: Any, steps: float) -> None:
    """Make Adam go on counting from ``steps``."""
    for state in engine.basic_optimizer.state.values():
        state["step"].fill_(steps)


def _masters(engine: Any) -> list[Tensor]:
    """The tensors that the inner optimiser updates on this worker."""
    optimizer = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):  # ZeRO-3; ZeRO-1 and 2
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [tensor for group in engine.basic_optimizer.param_groups for tensor in group["params"]]


def _make_moments(engine: Any) -> None:
    """What Adam itself would make at its first step, where that is still to come."""
    for master in _masters(engine):
        state = engine.basic_optimizer.state[master]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(master.detach())
            state["exp_avg_sq"] = torch.zeros_like(master.detach())


def _cut_each(model: nn.Module, rank: int) -> Iterator[Slice]:
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    parameter: Any  # DeepSpeed hangs its own attributes on parameters
    for name, parameter in model.named_parameters():
        part = parameter.ds_tensor.numel()  # the last ones end in padding
        start = min(rank * part, parameter.ds_numel)
        length = min(part, parameter.ds_numel - start)
        views = (
            safe_get_local_fp32_param(parameter),
            safe_get_local_optimizer_state(parameter, "exp_avg"),
            safe_get_local_optimizer_state(parameter, "exp_avg_sq"),
        )
        yield Slice(name, tuple(parameter.ds_shape), start, *(view.detach()[:length] for view in views))


def _cut_all(engine: Any, model: nn.Module) -> Iterator[Slice]:
    masters = _masters(engine)
    assert len(masters) == 1, "all parameters are in one group"
    state = engine.basic_optimizer.state[masters[0]]
    parameter: Any
    for name, parameter in model.named_parameters():
        mapping = parameter._hp_mapping
        if mapping is not None:
            where, within = mapping.hp_fragment_address, mapping.lp_fragment_address
            views = (masters[0], state["exp_avg"], state["exp_avg_sq"])
            cut = (view.detach().narrow(0, where.start, where.numel) for view in views)
            yield Slice(name, tuple(parameter.shape), within.start, *cut)


def _cut_by_us(engine: Any, model: nn.Module, rank: int, world_size: int) -> Iterator[Slice]:
    for (name, parameter), master in zip(model.named_parameters(), _masters(engine), strict=True):
        state = engine.basic_optimizer.state[master]
        count = parameter.numel()
        start, stop = rank * count // world_size, (rank + 1) * count // world_size
        views = (master, state["exp_avg"], state["exp_avg_sq"])
        yield Slice(name, tuple(parameter.shape), start, *(view.detach().view(-1)[start:stop] for view in views))
