"""The only place that knows DeepSpeed: an engine that trains one model with ZeRO on CPU or CUDA."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoints.layout import Slice
from pipeline.checkpoints.reader import CheckpointReader
from pipeline.config import OptimConfig
from pipeline.errors import TrainingError
from pipeline.models.load import load_model, weights_digest
from pipeline.training.partition import adam_steps, local_slices, set_adam_steps
from pipeline.training.policy import PolicyWithObjective
from pipeline.training.task import Batch, Task

_GATHER_PARAMETERS = 32
"""Parameters gathered together when weights are read out of ZeRO-3; bounds the extra memory."""


def prepare_process(device: torch.device) -> None:
    """Import DeepSpeed for this process. Call once, before the first engine, in every worker."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # torch._dynamo fails to import when that first happens inside DeepSpeed's patched constructors.
    import deepspeed
    import torch._dynamo  # noqa: F401

    # On CPU DeepSpeed compiles an extension at the first start that only its inference all-reduce uses. Without
    # it no compiler is needed, and a worker killed in the middle of the build cannot leave a lock behind.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@dataclass(frozen=True)
class StepResult:
    """One optimiser step, the same on every rank."""

    sums: Tensor
    """Metric sums over all ranks ``[len(task.metric_names)]``; not to be used when there is a fault."""
    grad_norm: float
    """Norm of the gradient, before clipping."""
    fault: str | None
    """``"loss"`` or ``"gradient"``, whichever was not finite: the weights and moments are then those from before."""


class Engine:
    """A policy under DeepSpeed.

    Args:
        source: local model directory the weights start from; after partitioning they are compared with its
            files tensor by tensor (some loaders are known to re-initialise weights under ZeRO-3).
        optim: optimiser options; AdamW with betas (0.9, 0.999).
        dtype: of the weights; bfloat16 keeps float32 master weights.
        micro_batches: forward and backward passes per optimiser step.
        resume: a checkpoint to go on from, written with any number of workers; ``source`` then gives the shape only.

    Raises:
        TrainingError: when the weights inside the engine differ from the source's, or from the checkpoint's.
    """

    def __init__(
        self,
        source: Path,
        optim: OptimConfig,
        dtype: torch.dtype,
        device: torch.device,
        micro_batches: int,
        resume: CheckpointReader | None = None,
    ) -> None:
        import deepspeed

        model = load_model(source, dtype)
        if resume is not None:
            _load_weights(model, resume)
        loaded = weights_digest(model.named_parameters()) if torch.distributed.get_rank() == 0 else ""
        config: dict[str, Any] = {
            # Only the ratio of the first two matters to DeepSpeed; sequence lengths and row counts are ours.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": micro_batches,
            "gradient_clipping": optim.max_grad_norm,
            "optimizer": {
                "type": "AdamW",
                "params": {"lr": optim.lr, "weight_decay": optim.weight_decay, "torch_adam": True},
            },
            "zero_optimization": {
                "stage": optim.zero_stage,
                "overlap_comm": device.type == "cuda",
                "contiguous_gradients": True,
                # On CPU, DeepSpeed's own linear layer is slower than torch's, and gloo is faster with one
                # all-reduce of many parameters than with an all-gather for each.
                "memory_efficient_linear": device.type == "cuda",
                "stage3_use_all_reduce_for_fetch_params": device.type == "cpu",
            },
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": dtype == torch.bfloat16},
            "steps_per_print": 2**31 - 1,
        }
        module = PolicyWithObjective(model)
        self._engine, _, _, _ = deepspeed.initialize(
            model=module, model_parameters=list(module.parameters()), config=config
        )
        self._deepspeed = deepspeed
        self._model_config = model.config
        self.device = device
        self.rank: int = torch.distributed.get_rank()
        self.world_size: int = torch.distributed.get_world_size()
        self.micro_batches = micro_batches
        self.zero_stage = optim.zero_stage
        self.weights_digest = self._check_weights(None if resume else source, dtype, loaded)
        """Digest of the weights that this engine started from (rank 0)."""
        if resume is not None:
            self._restore(resume)

    # -- steps ---------------------------------------------------------------------------------------------

    def train_step(self, micro_batches: Sequence[Batch], task: Task, normaliser: float, lr: float) -> StepResult:
        """One optimiser step on this rank's micro-batches.

        The gradient is that of (sum of losses over the global batch) / ``normaliser``. A loss or a gradient that is
        not finite on any rank never reaches the optimiser, on no rank and in no dtype: the step changes nothing.
        """
        assert len(micro_batches) == self.micro_batches
        self._engine.train()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        # DeepSpeed averages over ranks and over accumulated micro-batches; a sum over both is wanted.
        scale = self.world_size * self.micro_batches / normaliser
        sums = torch.zeros(len(task.metric_names) + 1, device=self.device)
        for index, batch in enumerate(micro_batches):
            if index:
                self._engine.step()  # not a boundary: DeepSpeed only counts the micro-batch
            loss, metrics = self._engine(self._to_device(batch), task)
            sums += torch.cat([metrics.detach().float().sum(dim=0), loss.detach().float().reshape(1)])
            self._engine.backward(loss * scale)
        torch.distributed.all_reduce(sums)
        grad_norm = self._gradient_norm()
        fault = None
        # Sums are the same everywhere, but one decision that all share must not hang on that.
        if self.agree(not bool(torch.isfinite(sums).all())):
            fault = "loss"
        elif self.agree(not math.isfinite(grad_norm)):
            fault = "gradient"
        with self._held() if fault else contextlib.nullcontext():
            self._engine.step()
        return StepResult(sums[:-1], grad_norm, fault)

    def agree(self, flag: bool) -> bool:
        """Whether any rank says so; every rank must ask."""
        said = torch.tensor([int(flag)], dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MAX)
        return bool(said.item())

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Let DeepSpeed do all that belongs to a step (counting, dropping the gradient) but the update itself."""
        inner = self._engine.basic_optimizer
        inner.step = lambda *args, **kwargs: None
        try:
            yield
        finally:
            del inner.step

    def _gradient_norm(self) -> float:
        """Norm of the accumulated gradient over all ranks, before clipping."""
        # In float64, as DeepSpeed's own: sums of millions of float32 squares lose the fifth digit.
        square = torch.zeros((), dtype=torch.float64, device=self.device)
        for gradient in self._gradients():
            square += torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
        if self.zero_stage:
            torch.distributed.all_reduce(square)
        return math.sqrt(square.item())

    def _gradients(self) -> Iterator[Tensor]:
        """This rank's part of the gradient; all of it without partitioning."""
        if self.zero_stage == 3:
            from deepspeed.utils import safe_get_local_grad

            yield from (safe_get_local_grad(parameter) for parameter in self._engine.module.parameters())
        elif self.zero_stage:
            for group in self._engine.optimizer.averaged_gradients.values():
                yield from group
        else:
            yield from (one.grad for one in self._engine.module.parameters() if one.grad is not None)

    @torch.no_grad()
    def evaluate(self, micro_batches: Iterable[Batch], task: Task) -> Tensor:
        """Metrics of every row of this rank's micro-batches and of all ranks' ``[rows, len(task.metric_names)]`` (every
        rank brings the same number), zeros for padding.

        Raises:
            TrainingError: on every rank, when one is not finite.
        """
        self._engine.eval()
        mine = torch.cat([self._engine(self._to_device(batch), task)[1].float() for batch in micro_batches])
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        torch.distributed.all_gather(everyone, mine)
        rows = torch.cat(everyone)
        if not bool(torch.isfinite(rows).all()):
            raise TrainingError("a validation metric is not finite: training diverged; lower train.optim.lr")
        return rows

    def _to_device(self, batch: Batch) -> dict[str, Tensor]:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    # -- weights -------------------------------------------------------------------------------------------

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters by name, on CPU. Every rank must iterate to the end; only rank 0 gets the tensors
        (the others get empty ones)."""
        named = list(self._engine.module.model.named_parameters())
        for start in range(0, len(named), _GATHER_PARAMETERS):
            chunk = named[start : start + _GATHER_PARAMETERS]
            with self._deepspeed.zero.GatheredParameters([parameter for _, parameter in chunk]):
                for name, parameter in chunk:
                    yield name, parameter.detach().cpu().clone() if self.rank == 0 else torch.empty(0)

    def save(self, out_dir: Path, tokenizer: Any) -> str:
        """Gather the weights and write a safetensors Hugging Face directory on rank 0; returns their digest there
        (an empty string elsewhere)."""
        from transformers import AutoModelForCausalLM

        gathered = dict(self.weights())
        if self.rank != 0:
            return ""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self._model_config)
        model.load_state_dict(gathered, strict=False, assign=True)
        model.tie_weights()
        left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        if left:
            raise TrainingError(f"the gathered weights lack {', '.join(left[:3])}")
        model.save_pretrained(out_dir, safe_serialization=True)
        tokenizer.save_pretrained(out_dir)
        return weights_digest(gathered.items())

    # -- checkpoints ---------------------------------------------------------------------------------------

    def slices(self) -> list[Slice]:
        """This rank's part of every master weight and of Adam's moments, as views into the optimiser's memory."""
        return local_slices(self._engine, self._engine.module.model, self.zero_stage, self.rank, self.world_size)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, whole."""
        named = self._engine.module.model.named_parameters()
        return {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in named}

    def optimizer_state(self) -> dict[str, Any]:
        """What the optimiser knows beside the moments, for JSON: its steps and the options of its groups."""
        groups = [
            {name: value for name, value in group.items() if name != "params" and not isinstance(value, Tensor)}
            for group in self._engine.basic_optimizer.param_groups
        ]
        return {"type": "AdamW", "steps": adam_steps(self._engine), "groups": groups}

    def _restore(self, checkpoint: CheckpointReader) -> None:
        """Put a checkpoint's numbers into the optimiser; the weights inside the model are its already."""
        state = checkpoint.manifest["optimizer"]
        # Without partitioning a rank answers for a part of what it holds when it saves, and needs all of it.
        parts = self.slices() if self.zero_stage else local_slices(self._engine, self._engine.module.model, 0, 0, 1)
        for part in parts:
            stop = part.start + part.weight.numel()
            part.weight.copy_(checkpoint.read("weight", part.name, part.start, stop))
            part.exp_avg.copy_(checkpoint.read("exp_avg", part.name, part.start, stop))
            part.exp_avg_sq.copy_(checkpoint.read("exp_avg_sq", part.name, part.start, stop))
        set_adam_steps(self._engine, state["steps"])
        for group, saved in zip(self._engine.basic_optimizer.param_groups, state["groups"], strict=True):
            group.update({name: tuple(value) if name == "betas" else value for name, value in saved.items()})

    def _check_weights(self, source: Path | None, dtype: torch.dtype, loaded: str) -> str:
        """Digest of what the engine holds (rank 0), equal to what was loaded and to what the source's files hold."""
        gathered = dict(self.weights())
        verdict: list[str] = [""]
        digest = ""
        if self.rank == 0:
            digest = weights_digest(gathered.items())
            if source is not None:
                verdict[0] = _first_difference(gathered, source, dtype)
            if not verdict[0] and digest != loaded:
                verdict[0] = "partitioning changed a parameter"
        torch.distributed.broadcast_object_list(verdict, src=0)
        if verdict[0]:
            where = source or "the checkpoint's"
            raise TrainingError(f"the weights inside the training engine differ from {where}: {verdict[0]}")
        return digest


@torch.no_grad()
def _load_weights(model: torch.nn.Module, checkpoint: CheckpointReader) -> None:
    named = dict(model.named_parameters())
    if {name: tuple(parameter.shape) for name, parameter in named.items()} != checkpoint.shapes:
        raise TrainingError(f"{checkpoint.path} holds other parameters than the model has")
    for name, parameter in named.items():
        parameter.copy_(checkpoint.whole("weight", name))


def _first_difference(gathered: dict[str, Tensor], source: Path, dtype: torch.dtype) -> str:
    """Name of the first stored tensor that is not what the engine holds, or an empty string."""
    from safetensors import safe_open

    compared = 0
    for path in _weight_files(source):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                if name not in gathered:
                    continue  # a buffer, a tied weight's second name, or a name that loading translates
                compared += 1
                stored = file.get_tensor(name).to(dtype)
                if stored.shape != gathered[name].shape or not torch.equal(stored, gathered[name]):
                    return name
    return "" if compared else "no stored tensor has the name of a parameter"


def _weight_files(source: Path) -> list[Path]:
    index = source / "model.safetensors.index.json"
    if index.is_file():
        return sorted({source / name for name in json.loads(index.read_text())["weight_map"].values()})
    return sorted(source.glob("*.safetensors"))
