"""Batch samplers: nothing is lost, nothing is repeated, the constraint holds, epochs differ and are reproducible."""

import datasets
import numpy as np
import pytest

from embedloss import EmbedlossError
from embedloss.samplers import (
    GroupByLabelSampler,
    LengthGroupedSampler,
    NoDuplicatesSampler,
    OwnSampler,
    RandomSampler,
    make_sampler,
    text_id,
)


def rows_of(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return [[key - epoch * sampler.rows for key in batch] for batch in sampler]


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 65, 127, 128, 129, 1000])
def test_every_row_once(rows):
    labels = [i % 5 for i in range(rows)] if rows >= 10 else None
    made = [RandomSampler(rows, 64, seed=3), NoDuplicatesSampler([[i] for i in range(rows)], 64, seed=3)]
    if labels:
        made.append(GroupByLabelSampler(labels, 64, seed=3))
    for sampler in made:
        for epoch in (0, 1):
            batches = rows_of(sampler, epoch)
            assert sorted(r for b in batches for r in b) == list(range(rows))
            assert len(batches) == len(sampler)
            assert sampler.left_out == 0


def test_epochs_differ_and_repeat():
    one, two = RandomSampler(100, 10, seed=1), RandomSampler(100, 10, seed=1)
    assert rows_of(one, 0) == rows_of(two, 0)
    assert rows_of(one, 0) != rows_of(one, 1)
    assert rows_of(RandomSampler(100, 10, seed=2), 0) != rows_of(one, 0)


def test_keys_carry_the_epoch():
    sampler = RandomSampler(10, 4)
    sampler.set_epoch(3)
    keys = [key for batch in sampler for key in batch]
    assert {key // 10 for key in keys} == {3}
    assert sorted(key % 10 for key in keys) == list(range(10))


def test_small_remainder_joins_the_last_batch():
    assert [len(b) for b in rows_of(RandomSampler(129, 64))] == [64, 65]
    assert [len(b) for b in rows_of(RandomSampler(130, 64))] == [64, 64, 2]
    assert [len(b) for b in rows_of(RandomSampler(130, 64, drop_last=True))] == [64, 64]


def test_no_text_twice_in_a_batch():
    rng = np.random.default_rng(0)
    texts = [[int(a), 1000 + int(b)] for a, b in zip(rng.integers(0, 60, 800), rng.integers(0, 90, 800), strict=True)]
    sampler = NoDuplicatesSampler(texts, 16, seed=5)
    batches = rows_of(sampler)
    for batch in batches:
        seen = [t for row in batch for t in texts[row]]
        assert len(seen) == len(set(seen))
    assert sorted(r for b in batches for r in b) == list(range(800))
    assert max(map(len, batches)) == 16


@pytest.mark.parametrize("block", [3, 1 << 16])
def test_texts_lists_and_ids_of_a_row_are_found_block_after_block(block, monkeypatch):
    """The batches do not depend on how many rows are read at a time, and hold no text and no id twice."""
    rng = np.random.default_rng(2)
    rows = [
        {"anchor": f"a{a}", "negative": [f"a{b}", *[f"n{c}"] * int(c % 3)], "id": int(i)}
        for a, b, c, i in zip(*(rng.integers(0, 400, 300) for _ in range(4)), strict=True)
    ]
    data = datasets.Dataset.from_list(rows)
    wanted = rows_of(make_sampler("no-duplicates", data, ["anchor", "negative"], 16, 0))
    monkeypatch.setattr("embedloss.samplers.RowTexts.BLOCK", block)
    batches = rows_of(make_sampler("no-duplicates", data, ["anchor", "negative"], 16, 0))
    assert batches == wanted
    assert sorted(row for batch in batches for row in batch) == list(range(300))
    assert 19 <= len(batches) < 60
    for batch in batches:
        of_rows = [{rows[i]["anchor"], *rows[i]["negative"], rows[i]["id"]} for i in batch]
        assert sum(map(len, of_rows)) == len(set().union(*of_rows))


def test_processes_share_joint_batches():
    texts = [[i % 40] for i in range(200)]
    shares = []
    for rank in range(2):
        sampler = NoDuplicatesSampler(texts, 8, seed=5)
        sampler.rank, sampler.processes = rank, 2
        shares.append(rows_of(sampler))
    assert len(shares[0]) == len(shares[1])
    for mine, other in zip(*shares, strict=True):
        joint = [texts[r][0] for r in (*mine, *other)]
        assert len(joint) == len(set(joint))
        assert abs(len(mine) - len(other)) <= 1


def test_group_by_label_needs_two_and_two():
    rng = np.random.default_rng(1)
    labels = np.concatenate([np.full(2, 9), rng.integers(0, 6, 301)]).tolist()
    labels = [v for v in labels if labels.count(v) > 1]
    sampler = GroupByLabelSampler(labels, 12, seed=2)
    for epoch in range(5):
        batches = rows_of(sampler, epoch)
        assert sorted(r for b in batches for r in b) == list(range(len(labels)))
        for batch in batches:
            values, counts = np.unique([labels[r] for r in batch], return_counts=True)
            assert len(values) >= 2
            assert counts.min() >= 2


def test_group_by_label_with_one_large_class():
    labels = [0] * 90 + [1] * 10
    batches = rows_of(GroupByLabelSampler(labels, 20, seed=0))
    assert all(len({labels[r] for r in b}) == 2 for b in batches)
    with pytest.raises(EmbedlossError, match="98% of the rows"):
        len(GroupByLabelSampler([0] * 98 + [1] * 2, 8))


@pytest.mark.parametrize(
    ("labels", "batch_size", "message"),
    [([0, 0, 0], 4, "all rows have the class 0"), ([0, 0, 1], 4, "one row only"), ([0, 0, 1, 1], 3, "cannot hold two classes")],
)
def test_group_by_label_refuses(labels, batch_size, message):
    with pytest.raises(EmbedlossError, match=message) as caught:
        GroupByLabelSampler(labels, batch_size)
    assert caught.value.code == "E106"


def test_text_ids():
    assert text_id("a") == text_id("a") != text_id("b")
    assert 0 <= text_id("é") < 2**63


def test_a_very_frequent_text_makes_smaller_batches_instead_of_empty_ones():
    texts = [[0 if i < 300 else i] for i in range(6400)]  # 300 occurrences, 200 batches of 32
    sampler = NoDuplicatesSampler(texts, 32, seed=1)
    sizes = [len(b) for b in sampler.batches()]
    assert sum(sizes) == 6400
    assert len(sizes) == 300
    assert max(sizes) == 22
    assert sampler.short <= 14  # the last batches, cut to whole rows
    constant = NoDuplicatesSampler([[0]] * 50, 16)
    assert [len(b) for b in constant.batches()] == [1] * 50
    assert constant.short == 50


@pytest.mark.parametrize("processes", [1, 2])
def test_every_epoch_has_the_batches_of_the_first(processes):
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 30, 205).tolist()
    labels = [v for v in labels if labels.count(v) > 1]
    texts = [[int(v)] for v in rng.integers(0, 40, 300)]
    made = [NoDuplicatesSampler(texts, 20, seed=1), GroupByLabelSampler(labels, 8, seed=1), RandomSampler(101, 10, seed=1)]
    planned = set()
    for sampler in made:
        sampler.processes = processes
        for epoch in range(30):
            sampler.set_epoch(epoch)
            planned.add((type(sampler), len(sampler._planned())))
            batches = sampler.batches()
            assert len(batches) == len(sampler) == len(list(sampler))
            assert min(map(len, batches)) >= processes
            rows = [int(row) for batch in batches for row in batch]
            assert set(rows) == set(range(sampler.rows)) or (processes > 1 and isinstance(sampler, NoDuplicatesSampler))
            for batch in batches:
                if isinstance(sampler, NoDuplicatesSampler):
                    assert len({texts[row][0] for row in batch}) == len(batch)
                if isinstance(sampler, GroupByLabelSampler):
                    _, counts = np.unique([labels[row] for row in batch], return_counts=True)
                    assert len(counts) >= 2
                    assert counts.min() >= 2
    assert len(planned) >= 5  # without the correction the number would differ


def test_length_grouped():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 500, 4001).tolist()
    sampler = LengthGroupedSampler(lengths, 16, seed=3)
    batches = rows_of(sampler)
    assert sorted(r for b in batches for r in b) == list(range(4001))
    assert max(lengths) in [lengths[row] for row in batches[0]]

    def padding(made):
        return 1 - sum(lengths) / sum(len(b) * max(lengths[row] for row in b) for b in made)

    assert padding(batches) < 0.1 < 0.4 < padding(rows_of(RandomSampler(4001, 16, seed=3)))
    assert rows_of(sampler, 1) != batches


def bound(**columns):
    return datasets.Dataset.from_dict(columns)


def test_only_texts_of_roles_and_ids_are_duplicates():
    data = bound(anchor=[f"q{i}" for i in range(40)], positive=[f"p{i}" for i in range(40)], source=["wiki"] * 40)
    assert {len(b) for b in rows_of(make_sampler("no-duplicates", data, ["anchor", "positive"], 8, 0))} == {8}
    assert {len(b) for b in rows_of(make_sampler("no-duplicates", data, ["anchor", "source"], 8, 0))} == {1}
    ids = [i % 10 for i in range(40)]
    lists = [[f"n{i}", "common"] if i < 4 else [f"n{i}"] for i in range(40)]
    data = bound(anchor=[f"q{i}" for i in range(40)], negative=lists, id=ids)
    batches = rows_of(make_sampler("no-duplicates", data, ["anchor", "negative"], 8, 0))
    assert all(len({ids[row] for row in batch}) == len(batch) for batch in batches)
    assert all(sum(row < 4 for row in batch) <= 1 for batch in batches)


def test_a_text_in_two_roles_of_one_row_is_no_duplicate():
    data = bound(anchor=[f"t{i}" for i in range(16)], positive=[f"t{i}" for i in range(16)])
    assert [len(b) for b in rows_of(make_sampler("no-duplicates", data, ["anchor", "positive"], 8, 0))] == [8, 8]


class Backwards:
    def __init__(self, rows, size, says=None):
        self.rows, self.size, self.says, self.epoch = rows, size, says, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.says or -(-self.rows // self.size)

    def __iter__(self):
        order = list(range(self.rows))[:: -1 if self.epoch % 2 else 1]
        yield from (order[i : i + self.size] for i in range(0, self.rows, self.size))


def test_an_order_of_ones_own():
    sampler = OwnSampler(Backwards(10, 4), 10)
    assert rows_of(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert rows_of(sampler, 1) == [[9, 8, 7, 6], [5, 4, 3, 2], [1, 0]]
    sampler.rank, sampler.processes = 1, 2
    sampler.set_epoch(2)
    assert rows_of(sampler, 2) == [[2, 3], [6, 7], [9]]


@pytest.mark.parametrize(
    ("own", "rows", "message"),
    [
        ([[0, 1]], 2, "the batch sampler list has no set_epoch"),
        (Backwards(10, 4, says=5), 10, "Backwards says 5 batches and gave 3 in epoch 0"),
        (Backwards(10, 4), 9, "asks for a row outside 0 to 8"),
    ],
)
def test_orders_that_are_refused(own, rows, message):
    with pytest.raises(EmbedlossError, match=message) as caught:
        list(OwnSampler(own, rows))
    assert caught.value.code == "E401"


def test_samplers_that_cannot_be_made():
    data = bound(anchor=["a", "b"])
    with pytest.raises(EmbedlossError, match="unknown sampler 'sorted'"):
        make_sampler("sorted", data, ["anchor"], 2, 0)
    with pytest.raises(EmbedlossError, match="needs data with a class label"):
        make_sampler("group-by-label", data, ["anchor"], 4, 0)
