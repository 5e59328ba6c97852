"""Which rows come from where: worked by hand, and every row exactly once whatever the donors hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from pipeline.reference.cover import DonorFile, fixed_parts, make_plan
from pipeline.reference.plan import HEAD, Part, Piece, Plan, Source, numbers_in, ranges


def test_without_donors_pieces_are_fixed_ranges_of_rows() -> None:
    parts = fixed_parts({"train": 7, "validation": 3}, 3, has_head=True)
    assert parts == [
        Part(Piece("train", 0), ((0, 3),)),
        Part(Piece("train", 1), ((3, 6),)),
        Part(Piece("train", 2), ((6, 7),)),
        Part(Piece("validation", 0), ((0, 3),)),
        Part(Piece(HEAD)),
    ]
    assert make_plan({"train": list("abcdefg"), "validation": list("xyz")}, {}, [], 3, has_head=True).parts == (*parts,)
    assert fixed_parts({"train": 0}, 3, has_head=False) == []


def test_growth_by_hand() -> None:
    """Donor: abc, de (half full) and x. Wanted: a b n c d e m in train, x in validation; the new ones stand between
    the old ones in the table. abc, de and x are taken as they are; n and m share a new file."""
    donors = [
        DonorFile("old", "head-1", HEAD, ()),
        DonorFile("old", "train-0", "train", ("a", "b", "c")),
        DonorFile("old", "train-1", "train", ("d", "e")),
        DonorFile("old", "validation-0", "validation", ("x",)),
    ]
    plan = make_plan({"train": list("abncdem"), "validation": ["x"]}, {}, donors, 3, has_head=True)
    assert plan.parts == (
        Part(Piece("train", 0), ((0, 2), (3, 4)), (Source("old", "train-0"),)),
        Part(Piece("train", 1), ((4, 6),), (Source("old", "train-1"),)),
        Part(Piece("train", 2), ((2, 3), (6, 7))),
        Part(Piece("validation", 0), ((0, 1),), (Source("old", "validation-0"),)),
        Part(Piece(HEAD), (), (Source("old", "head-1"),)),
    )


def test_rows_that_are_left_of_several_files_are_copied_into_one() -> None:
    """Of abc and def the rows b and e are gone: what is left of both does not fit in one file of 3, of def and gh it
    would not either. Nothing is computed."""
    donors = [DonorFile("old", f"f{n}", "train", tuple(rows)) for n, rows in enumerate(("abc", "def", "ghi"))]
    some = ((0, 1), (2, 3))
    plan = make_plan({"train": list("acdfg")}, {}, donors, 4, has_head=False)
    assert plan.parts == (
        Part(Piece("train", 0), ((0, 4),), (Source("old", "f0", some), Source("old", "f1", some))),
        Part(Piece("train", 1), ((4, 5),), (Source("old", "f2", ((0, 1),)),)),
    )


def test_data_that_grow_a_little_every_day_do_not_end_in_a_file_a_day() -> None:
    """Two more rows each day for a month, eight to a file: never more than two files that are not full enough."""
    rows, per_file = 20, 8
    donors = [DonorFile("0", f"f{n}", "train", tuple(map(str, range(n, min(n + 8, 20))))) for n in range(0, 20, 8)]
    for day in range(1, 31):
        rows += 2
        wanted = [str(row) for row in range(rows)]
        plan = make_plan({"train": wanted}, {}, donors, per_file, has_head=False)
        assert sum(part.pairs for part in plan.parts if not part.sources) == 2
        assert sum(2 * part.pairs < per_file for part in plan.parts) <= 2
        assert len(plan.parts) <= 2 * rows / per_file + 2
        donors = [
            DonorFile(str(day), part.piece.stem, "train", tuple(wanted[row] for row in numbers_in(part.rows)))
            for part in plan.parts
        ]


def test_a_row_that_has_moved_to_another_split_is_copied() -> None:
    donors = [DonorFile("old", "f0", "train", ("a", "b"))]
    plan = make_plan({"train": ["a"], "validation": ["b"]}, {}, donors, 4, has_head=False)
    assert plan.parts == (
        Part(Piece("train", 0), ((0, 1),), (Source("old", "f0", ((0, 1),)),)),
        Part(Piece("validation", 0), ((0, 1),), (Source("old", "f0", ((1, 2),)),)),
    )


def test_a_row_that_is_wanted_more_often_than_it_is_stored_is_copied() -> None:
    plan = make_plan({"train": list("aba")}, {}, [DonorFile("old", "f", "train", ("a", "b"))], 4, has_head=False)
    assert plan.parts == (
        Part(Piece("train", 0), ((0, 2),), (Source("old", "f"),)),
        Part(Piece("train", 1), ((2, 3),), (Source("old", "f", ((0, 1),)),)),
    )


def test_files_that_are_only_read_row_by_row() -> None:
    donors = [DonorFile("old", "f0", "train", ("a", "b"), as_it_is=False)]
    plan = make_plan({"train": ["a", "b"]}, {}, donors, 4, has_head=False)
    assert plan.parts == (Part(Piece("train", 0), ((0, 2),), (Source("old", "f0", ((0, 2),)),)),)


def test_without_its_plan_a_cache_goes_on_from_its_files() -> None:
    """Of a pass in files of two, the second and the last file are there; a stray of another cache is left alone."""
    here = {Piece("train", 1): ("c", "d"), Piece("train", 2): ("e",), Piece("train", 7): ("z",)}
    plan = make_plan({"train": list("abcde")}, here, [], 2, has_head=False)
    assert plan.parts == tuple(fixed_parts({"train": 5}, 2, has_head=False))


def test_no_donor_is_asked_when_nothing_is_wanted_any_more() -> None:
    asked = []

    def donors() -> object:
        for name in ("new", "old"):
            asked.append(name)
            yield DonorFile(name, "f", "train", ("a",))

    make_plan({"train": ["a"]}, {}, donors(), 2, has_head=False)  # type: ignore[arg-type]
    assert asked == ["new"]


def test_ranges() -> None:
    assert ranges([4, 5, 6, 2, 3, 3]) == ((4, 7), (2, 4), (3, 4))
    assert numbers_in(ranges([4, 5, 6, 2, 3, 3])) == [4, 5, 6, 2, 3, 3]


contents = st.lists(st.sampled_from("abcdefghijklmnop"), max_size=12)
files = st.lists(st.tuples(contents, st.sampled_from(["train", "validation"]), st.booleans()), max_size=6)


@given(train=contents, validation=contents, held=files, here=st.lists(contents, max_size=2), size=st.integers(1, 4))
def test_every_row_is_covered_once_and_none_is_computed_that_a_donor_has(
    train: list[str],
    validation: list[str],
    held: list[tuple[list[str], str, bool]],
    here: list[list[str]],
    size: int,
) -> None:
    wanted = {"train": train, "validation": validation}
    donors = [DonorFile("old", str(n), split, tuple(rows), whole) for n, (rows, split, whole) in enumerate(held)]
    lying = {Piece("train", 2 * n): rows for n, rows in enumerate(here) if rows}
    plan = make_plan(wanted, lying, donors, size, has_head=False)
    covered: dict[str, list[int]] = {split: [] for split in wanted}
    for part in plan.parts:
        covered[part.piece.split] += numbers_in(part.rows)
        mine = [wanted[part.piece.split][number] for number in numbers_in(part.rows)]
        if part.sources:
            assert mine == [row for source in part.sources for row in rows_of(source, donors)]
        elif lying.get(part.piece) != mine:
            assert not set(mine) & {row for donor in donors for row in donor.contents}
            assert len(mine) <= size
    assert {split: sorted(numbers) for split, numbers in covered.items()} == {
        split: list(range(len(rows))) for split, rows in wanted.items()
    }
    assert len({part.piece for part in plan.parts}) == len(plan.parts)
    assert Plan.of_json(json.loads(json.dumps(plan.as_json()))) == plan


def rows_of(source: Source, donors: Sequence[DonorFile]) -> Sequence[str]:
    held: Mapping[str, DonorFile] = {donor.file: donor for donor in donors}
    every = held[source.file].contents
    return every if source.rows is None else [every[number] for number in numbers_in(source.rows)]
