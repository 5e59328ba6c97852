"""The reference's forward pass over pairs (no Ray: the actor calls it, and so can a test).

Which pairs share a batch, how it is padded and how products are cut follow from the pairs and the options alone,
so that equal shards get equal bytes wherever they are computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.config import ReferenceConfig
from pipeline.errors import ModelError
from pipeline.models.batches import token_batches
from pipeline.models.load import output_head
from pipeline.models.packing import packed_length, packed_states, separate_states
from pipeline.records import PairTokens
from pipeline.reference.compress import RoundingError, compress, rounding_error
from pipeline.reference.layout import ShardRow
from pipeline.reference.records import label_logps, top_k
from pipeline.risk.head import Head


@torch.no_grad()
def reference_rows(
    model: nn.Module,
    pairs: Sequence[PairTokens],
    options: ReferenceConfig,
    *,
    pad_id: int,
    device: torch.device,
    packed: bool,
) -> tuple[list[ShardRow], RoundingError | None]:
    """What the reference says about every pair, in the given order, on CPU.

    Args:
        packed: compute a pair's prompt once (`pipeline.models.packing.can_pack` tells whether the model bears it).

    Returns:
        The rows, and for 8-bit ones their measured error.

    Raises:
        ModelError: when a log-probability is not finite.
    """
    rows: list[ShardRow | None] = [None] * len(pairs)
    head, errors = output_head(model), []
    lengths = [packed_length(pair) if packed else _separate_width(pair) for pair in pairs]
    for positions in token_batches(lengths, options.batch_tokens):
        batch = [pairs[i] for i in positions]
        states = (packed_states if packed else separate_states)(model, batch, pad_id, device)
        # In the order of the file: chosen and rejected of one pair after the other.
        hidden = torch.cat([part for pair in states for part in pair])
        labels = torch.tensor([token for pair in batch for token in (*pair.chosen_ids, *pair.rejected_ids)])
        logps, kept, error = _records(hidden, head, labels.to(device), options)
        errors += [error] if error else []
        ends = torch.tensor([[len(pair.chosen_ids), len(pair.rejected_ids)] for pair in batch]).flatten().cumsum(0)
        pieces = _split(kept, ends.tolist())
        sums = [float(part.double().sum()) for part in logps.cpu().tensor_split(ends[:-1])]
        for number, position in enumerate(positions):
            pair, both = pairs[position], slice(2 * number, 2 * number + 2)
            if not all(map(math.isfinite, sums[both])):
                raise ModelError(
                    f"the reference gives a response of row {pair.row_id!r} the log-probability {min(sums[both])}: it "
                    "masks a token of it, or its weights do not bear model.dtype; drop the row, or take another model"
                )
            tensors = {name: (parts[both][0], parts[both][1]) for name, parts in pieces.items()}
            lengths_of = len(pair.chosen_ids), len(pair.rejected_ids)
            rows[position] = ShardRow(pair.row_id, pair.content, lengths_of, (sums[both][0], sums[both][1]), tensors)
    return [row for row in rows if row is not None], _together(errors)


def computed_positions(pair: PairTokens, packed: bool) -> int:
    """Positions that the model computes for a pair."""
    return packed_length(pair) + (0 if packed else len(pair.prompt_ids))


def _separate_width(pair: PairTokens) -> int:
    """Padded tokens of both sequences of a pair."""
    return 2 * (len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids)) - 1)


def _records(
    hidden: Tensor, head: Head, labels: Tensor, options: ReferenceConfig
) -> tuple[Tensor, dict[str, Tensor], RoundingError | None]:
    """Labels' log-probabilities, what the tier keeps (by tensor name, see `pipeline.reference.layout`), the error."""
    if options.tier == "topk":
        logps, kept = top_k(hidden, head, labels, options.top_k, options.top_mass)
        return logps, kept._asdict() | {"label_logps": logps}, None
    logps = label_logps(hidden, head, labels)
    if options.tier == "scalar":
        return logps, {}, None
    if options.hidden_rows == "exact":
        return logps, {"hidden": hidden}, None
    values, scales = compress(hidden)
    return logps, {"hidden_8bit": values, "hidden_scale": scales}, rounding_error(hidden, head, labels)


def _split(kept: dict[str, Tensor], ends: list[int]) -> dict[str, tuple[Tensor, ...]]:
    """Each tensor cut into responses; those with a number of entries for every position follow ``counts``."""
    cut = {}
    for name, tensor in kept.items():
        bounds = ends[:-1]
        if name in ("ids", "log_probs"):
            entries = kept["counts"].cumsum(0)
            bounds = [int(entries[end - 1]) for end in ends[:-1]]
        cut[name] = tensor.cpu().tensor_split(bounds)
    return cut


def _together(errors: list[RoundingError]) -> RoundingError | None:
    if not errors:
        return None
    return RoundingError(
        sum(error.positions for error in errors),
        sum(error.kl_sum for error in errors),
        max(error.kl_max for error in errors),
        max(error.logp_max for error in errors),
    )
