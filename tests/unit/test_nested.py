from __future__ import annotations

from pipeline.nested import flat


def test_dotted_names_in_order() -> None:
    nested = {"train": {"optim": {"lr": 0.1}, "seed": 0}, "name": None, "empty": {}, "list": [1, {"a": 2}]}
    assert list(flat(nested).items()) == [
        ("train.optim.lr", 0.1),
        ("train.seed", 0),
        ("name", None),
        ("list", [1, {"a": 2}]),
    ]
