from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distuda import draws
from distuda.data.order import Order
from distuda.errors import UserError

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=7)
FAST = settings(max_examples=40, deadline=None)


def order(rows: list[int], **options: object) -> Order:
    return Order(rows, **{"seed": 7, "domain": "source", **options})  # type: ignore[arg-type]


def take(source: Order, count: int) -> list[int]:
    ids: list[int] = []
    windows = source.windows()
    while len(ids) < count:
        ids += next(windows).ids.tolist()
    return ids[:count]


def ranks(rows: list[int], world: int, **options: object) -> list[Order]:
    return [order(rows, rank=rank, world=world, **options) for rank in range(world)]


@FAST
@given(SIZES, st.integers(1, 4), st.integers(0, 2**40))
def test_same_arguments_same_order(rows: list[int], window: int, seed: int) -> None:
    first = take(order(rows, seed=seed, window=window), 30)
    assert first == take(order(rows, seed=seed, window=window), 30)


def test_seed_domain_and_epoch_change_the_order() -> None:
    rows = [8] * 4
    base = take(order(rows), 64)
    assert base != take(order(rows, seed=8), 64)
    assert base != take(order(rows, domain="target"), 64)
    assert [i % 32 for i in base[:32]] != [i % 32 for i in base[32:]]
    assert base[:32] != sorted(base[:32])


@FAST
@given(SIZES, st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_ranks_are_disjoint_and_together_complete(rows: list[int], world: int, window: int, weighted: bool) -> None:
    num = sum(rows)
    weights = np.arange(1.0, num + 1) if weighted else None
    taken = [take(o, 3 * num) for o in ranks(rows, world, window=window, weights=weights)]
    seen = Counter(i for ids in taken for i in ids)
    assert max(seen.values()) == 1
    # after 3 N samples a rank, 3 * world epochs are through and nothing else has begun
    assert sorted(seen) == list(range(3 * num * world))


@FAST
@given(SIZES, st.integers(1, 6), st.integers(0, 60))
def test_ranks_never_drift_apart(rows: list[int], world: int, count: int) -> None:
    num = sum(rows)
    epochs = [take(o, count + 1)[-1] // num for o in ranks(rows, world)]
    if num >= world:
        assert max(epochs) - min(epochs) <= 1


def test_windows_hold_few_row_groups_and_shuffle_across_them() -> None:
    rows = [10] * 12
    windows = order(rows, window=4).windows()
    for _ in range(6):
        groups = next(windows).groups
        assert len(set(groups.tolist())) == 4 and len(groups) == 40
        assert len(set(groups[:10].tolist())) > 1, "rows of different groups have to mix"


@FAST
@given(SIZES, st.integers(1, 4), st.integers(0, 50), st.integers(1, 4), st.booleans())
def test_resume_continues_exactly(rows: list[int], world: int, cut: int, window: int, weighted: bool) -> None:
    options = {"window": window, "weights": np.arange(1.0, sum(rows) + 1) if weighted else None}
    for whole in ranks(rows, world, **options):
        later = order(rows, rank=whole.rank, world=world, history=whole.history_after(cut), **options)
        assert take(whole, cut + 20)[cut:] == take(later, 20)


@settings(max_examples=30, deadline=None)
@given(
    SIZES,
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 25)), min_size=1, max_size=4),
    st.integers(1, 3),
    st.booleans(),
)
def test_changing_the_world_neither_repeats_nor_skips(
    rows: list[int], past: list[tuple[int, int]], window: int, weighted: bool
) -> None:
    num = sum(rows)
    options = {"window": window, "weights": np.arange(1.0, num + 1) if weighted else None}
    history: tuple[tuple[int, int], ...] = ()
    seen: list[int] = []
    for world, count in past:
        group = ranks(rows, world, history=history, **options)
        seen += [i for o in group for i in take(o, count)]
        history = group[0].history_after(count)
    assert len(seen) == len(set(seen)), "a sample of an epoch was seen twice"
    end = (max(seen) // num + 1) * num if seen else 0
    rest = take(order(rows, history=history, **options), end - len(seen)) if past[-1][0] != 1 else []
    if past[-1][0] != 1:
        assert sorted(seen + rest) == list(range(end)), "a sample of an open epoch was skipped"


def test_two_workers_become_three_in_mid_epoch() -> None:
    rows = [5, 7, 4, 6]
    before = [i for o in ranks(rows, 2) for i in take(o, 4)]
    after = [i for o in ranks(rows, 3, history=((2, 4),)) for i in take(o, 5)]  # 22 - 8 = 14 are left, 4 or 5 a rank
    epoch = [i for i in before + after if i < 22]
    assert sorted(epoch) == list(range(22))
    assert len(set(before + after)) == 8 + 15


def test_more_ranks_than_row_groups_all_have_work() -> None:
    taken = [take(o, 2) for o in ranks([8], 4)]
    assert sorted(i for ids in taken for i in ids) == list(range(8))


def test_resuming_late_is_quick_and_right() -> None:
    rows, far = [3, 4, 5], 12 * 1_000_000 + 5
    ids = take(order(rows, history=((1, far),)), 19)
    assert sorted(ids[7:]) == list(range(12 * 1_000_001, 12 * 1_000_002))


def test_history_keeps_one_pair_while_the_world_stays() -> None:
    assert order([4], world=2, history=[[2, 10]]).history_after(5) == ((2, 15),)
    assert order([4], world=3, rank=1, history=[[2, 10]]).history_after(5) == ((2, 10), (3, 5))


def test_location_and_seed_follow_from_the_id() -> None:
    rows = [3, 1, 4]
    for whole in ranks(rows, 2):
        window = next(whole.windows())
        starts = np.array([0, 3, 4])
        assert (starts[window.groups] + window.rows).tolist() == [i % 8 for i in window.ids.tolist()]
        assert window.seeds.tolist() == [draws.sample_seed(7, "source", i) for i in window.ids.tolist()]


def test_a_sample_keeps_its_seed_whatever_the_world() -> None:
    seeds: list[dict[int, int]] = []
    for world in (1, 3):
        found: dict[int, int] = {}
        for o in ranks([4, 4, 4], world):
            for window, _ in zip(o.windows(), range(3), strict=False):
                found |= dict(zip(window.ids.tolist(), window.seeds.tolist(), strict=True))
        seeds.append(found)
    common = set(seeds[0]) & set(seeds[1])
    assert len(common) >= 12 and all(seeds[0][i] == seeds[1][i] for i in common)


def test_weights_decide_how_often_a_sample_comes() -> None:
    weights = np.array([0.5, 0.25, 0.125, 0.125, 0, 0, 0, 0])
    source = order([4, 4], weights=weights)
    for window, _ in zip(source.windows(), range(4), strict=False):
        assert set(window.groups.tolist()) == {0}
        assert Counter(window.rows.tolist()) == {0: 4, 1: 2, 2: 1, 3: 1}
    assert take(source, 16) == take(order([4, 4], weights=weights * 10), 16)


def test_fractional_weights_average_out() -> None:
    weights = np.array([3.0, 1.0, 1.0, 1.0, 0.5, 0.5])
    source = order([6], weights=weights)
    counts = np.zeros(6)
    for window, _ in zip(source.windows(), range(400), strict=False):
        counts += np.bincount(window.rows, minlength=6)
    assert counts / counts.sum() == pytest.approx(weights / weights.sum(), abs=0.02)


@pytest.mark.parametrize(
    ("rows", "options"),
    [([], {}), ([3, 0], {}), ([3], {"rank": 2, "world": 2}), ([3], {"window": 0})]
    + [([3], {"weights": np.array(w)}) for w in ([1.0], [1.0, -1, 1], [0.0, 0, 0], [1.0, np.nan, 1])],
)
def test_senseless_arguments_are_refused(rows: list[int], options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        order(rows, **options)
