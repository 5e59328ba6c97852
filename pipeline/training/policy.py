"""The module that DeepSpeed wraps: backbone, then the task's objective on hidden states and head."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.models.load import final_hidden, output_head
from pipeline.training.task import Batch, Task


class PolicyWithObjective(nn.Module):
    """Forward gives (summed loss, metric sums) of one micro-batch.

    The head's weight is read inside this module's forward: under ZeRO-3 that is what gathers it. The pair loss
    forms its gradients there and then, fine-tuning in its hand-written backward. The task is an argument and not a
    member, for it is no part of the model and changes between training and validation.

    The model stays in evaluation mode: dropout would make a policy that equals its reference look as if it had
    moved (the first loss would not be ln 2), and its noise would depend on the number of workers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> PolicyWithObjective:
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, batch: Batch, task: Task) -> tuple[Tensor, Tensor]:
        hidden = final_hidden(self.model, batch["input_ids"], batch["attention_mask"])
        return task.objective(hidden, output_head(self.model), batch)
