"""Stage ``data``: read the source, drop and count faulty rows, split by group, write pairs and texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.config import DataConfig
from pipeline.data.checks import DUPLICATE, DUPLICATE_ID, DropLog, RowError, check_pair
from pipeline.data.formats import content_id, to_pair
from pipeline.data.reviews import read_reviews, review_pairs, review_texts
from pipeline.data.sources import Located, left_out, read_rows
from pipeline.data.splits import config_split, hash_key, in_hash_order, require_splits
from pipeline.data.tables import write_json, write_jsonl, write_table
from pipeline.records import SPLITS, DroppedRow, PairRow, Split, TextRow


def prepare(config: DataConfig, out_dir: Path) -> None:
    """Write the files of the ``data`` artefact (see `pipeline.records`) into ``out_dir``, which must exist.

    Rows stand in hash order of their id, so the files do not depend on the order of the source. stats.json
    holds the rows read, rows and groups and characters by split, and the dropped rows by reason.
    Raises DataError for a source that cannot be read or used.
    """
    log = DropLog(config)
    pairs, texts, total = usable_pairs(config, log)
    splits = split_pairs(pairs, config)
    groups = {name: len({pair.group for pair in splits[name]}) for name in SPLITS}
    require_splits({name: len(splits[name]) for name in SPLITS}, groups, "after splitting by group")
    if texts is None:
        sft = [TextRow(one.row_id, one.group, one.prompt, one.chosen, one.chat) for one in splits["train"]]
    else:
        sft = in_hash_order(text for text in texts if config_split(text.group, config) == "train")

    for name in SPLITS:
        write_table(out_dir / f"{name}.parquet", splits[name], PairRow)
    write_table(out_dir / "sft.parquet", sft, TextRow)
    write_jsonl(out_dir / "dropped.jsonl", log.rows)
    stats = {
        "rows_read": total,
        "pairs": {name: len(splits[name]) for name in SPLITS},
        "groups": groups,
        "characters": {name: _characters(splits[name]) for name in SPLITS},
        "sft": {"rows": len(sft), "characters": sum(len(text.prompt) + len(text.response) for text in sft)},
        "dropped": log.counts(),
    }
    write_json(out_dir / "stats.json", stats)


def usable_pairs(config: DataConfig, log: DropLog) -> tuple[list[PairRow], list[TextRow] | None, int]:
    """Every pair of the source that can be used and is not left out, texts for fine-tuning where they are not the
    pairs' own, and how many rows there were. Raises as `prepare`."""
    texts = None
    if config.format == "reviews":
        reviews, total = read_reviews(read_rows(config), log)
        pairs, texts = review_pairs(reviews), review_texts(reviews)
    else:
        pairs, total = read_pairs(read_rows(config), config, log)
    log.finish(total)
    out = left_out(config)
    return [pair for pair in pairs if content_of(pair) not in out], texts, total


def content_of(pair: PairRow) -> str:
    """The id of a pair's content, whatever its row id is."""
    return content_id(pair.prompt, pair.chosen, pair.rejected)


def read_pairs(rows: Iterable[Located], config: DataConfig, log: DropLog) -> tuple[list[PairRow], int]:
    """The usable pairs of located raw rows, and how many rows there were; the rest goes to ``log``."""
    located: list[tuple[str, PairRow]] = []
    total = 0
    for where, raw in rows:
        total += 1
        row_id = ""
        try:
            pair = to_pair(raw, config)
            row_id = pair.row_id
            check_pair(pair)
            located.append((where, pair))
        except RowError as fault:
            log.drop(where, row_id, fault.reason, fault.detail)
    return _distinct(located, log), total


def split_pairs(pairs: Iterable[PairRow], config: DataConfig) -> dict[Split, list[PairRow]]:
    """Pairs by split, each in hash order of the row id."""
    splits: dict[Split, list[PairRow]] = {name: [] for name in SPLITS}
    for pair in in_hash_order(pairs):
        splits[config_split(pair.group, config)].append(pair)
    return splits


def _distinct(located: list[tuple[str, PairRow]], log: DropLog) -> list[PairRow]:
    """One pair for every id and every content. Which one is kept follows from the rows, not from their order."""
    kept: dict[str, tuple[str, PairRow]] = {}
    contents: dict[str, str] = {}
    dropped: list[DroppedRow] = []
    digests = [content_id(pair.prompt, pair.chosen, pair.rejected) for _, pair in located]
    order = sorted(
        range(len(located)), key=lambda i: (hash_key(located[i][1].row_id), digests[i], located[i][1].group, i)
    )
    for i in order:
        where, pair = located[i]
        if digests[i] in contents:
            dropped.append(DroppedRow(where, pair.row_id, DUPLICATE, f"same content as {contents[digests[i]]}"))
        elif pair.row_id in kept:
            dropped.append(DroppedRow(where, pair.row_id, DUPLICATE_ID, f"same id as {kept[pair.row_id][0]}"))
        else:
            kept[pair.row_id] = (where, pair)
            contents[digests[i]] = where
    places = {where: position for position, (where, _) in enumerate(located)}
    for row in sorted(dropped, key=lambda row: places[row.where]):
        log.drop(row.where, row.row_id, row.reason, row.detail)
    return [pair for _, pair in kept.values()]


def _characters(pairs: list[PairRow]) -> dict[str, int]:
    return {
        "prompt": sum(len(pair.prompt) for pair in pairs),
        "chosen": sum(len(pair.chosen) for pair in pairs),
        "rejected": sum(len(pair.rejected) for pair in pairs),
    }
