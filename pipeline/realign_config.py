"""When production is looked at again, and when it is aligned again (nothing heavy is imported here)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.section import Section


class RealignConfig(Section):
    """The written policy of jobs/realign.py (pipeline.realign.policy; no other job reads it). An accuracy is the share
    of pairs whose log pi/pi_ref is larger on chosen than on rejected. Its bounds are exact (Clopper-Pearson), for pairs
    that are independent of one another."""

    min_new_pairs: PositiveInt = 100
    """New pairs that are worth a re-alignment; fewer wait for more, unless another rule asks for one."""
    min_batch_pairs: PositiveInt = 30
    """So many new pairs production is measured on; fewer wait for more, and start no Ray. What came between two calls
    is one batch, and judged by itself."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of every one-sided bound."""
    max_accuracy_drop: float | None = Field(0.1, ge=0, lt=1)
    """Production's accuracy on new pairs is demonstrably lower, by more than this, than on the pairs that it was judged
    by: preferences have changed, and a re-alignment does not wait for min_new_pairs. None is no such rule."""
    suspect_below: float | None = Field(0.5, gt=0, lt=1)
    """The upper bound of production's accuracy on a batch lies below this: the batch contradicts what production has
    learnt, as one with swapped columns does. It is held for a person and not trained on. None holds nothing."""
    max_age_days: PositiveFloat | None = 30.0
    """Production is evaluated again on the present data when its last evaluation is older; None never asks."""
    on_alert: Literal["evaluate", "realign"] = "evaluate"
    """What an alert of the watch on the version in production asks for."""
    realign_after_days: PositiveFloat | None = None
    """Align again after so long, also without new pairs (there has to be some change for another policy to come out);
    None never asks."""
    pilot: float | None = Field(None, gt=0, lt=1)
    """Before a re-alignment choose the setting anew: what sweep.space lists, tried on this share of the training groups
    first, under sweep.tolerance (as jobs/sweep.py --pilot). When nothing keeps the limits the run's own setting stays.
    None never asks."""

    @model_validator(mode="after")
    def _check(self) -> RealignConfig:
        if self.min_batch_pairs > self.min_new_pairs:
            raise ValueError(
                f"realign.min_batch_pairs ({self.min_batch_pairs}) is above realign.min_new_pairs "
                f"({self.min_new_pairs}): pairs would be trained on before they are measured; lower the former"
            )
        return self
