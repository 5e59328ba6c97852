"""A production log of the version in production: usual outputs, then such of a model that is far too hot.

Not a test: a part of the simulated year.
"""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.config import EvaluationConfig
from pipeline.console import switch_off_bars
from pipeline.data.tables import read_table
from pipeline.evaluation.sampling import sample_batch
from pipeline.models.load import load_model, load_tokenizer
from pipeline.records import PromptTokens
from pipeline.release.registry import open_registry
from pipeline.traffic import LogRow, dump

HOT = 2.5
"""Temperature."""


def write_log(storage: Path, path: Path, usual: int, hot: int) -> None:
    """So many outputs of each kind, to prompts that the version was judged by and seeds that it was not."""
    switch_off_bars()
    line = open_registry(str(storage / "registry")).line()
    fetched = line.fetch("production", storage / "versions")
    model, tokenizer = load_model(fetched.path, torch.float32), load_tokenizer(fetched.path)
    prompts = read_table(fetched.path / "prompts.parquet", PromptTokens)
    rows: list[bytes] = []
    for temperature, count in ((1.0, usual), (HOT, hot)):
        config = EvaluationConfig(temperature=temperature, max_new_tokens=48)
        asked = [(prompts[number % len(prompts)], 1000 + number) for number in range(count)]
        for start in range(0, count, 40):
            for one in sample_batch(model, tokenizer, asked[start : start + 40], config, torch.device("cpu")):
                ids = tuple(one.prompt_ids), tuple(one.response_ids)
                rows.append(
                    dump(
                        LogRow(
                            one.prompt,
                            one.text,
                            line=line.name,
                            version=fetched.version,
                            id=f"{temperature}-{len(rows)}",
                            prompt_ids=ids[0],
                            output_ids=ids[1],
                            finished=one.finished,
                        )
                    )
                )
    path.write_bytes(b"".join(one if one.endswith(b"\n") else one + b"\n" for one in rows))
