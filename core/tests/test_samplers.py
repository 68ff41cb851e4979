"""Batch samplers: nothing is lost, nothing is repeated, the constraint holds, epochs differ and are reproducible."""

import numpy as np
import pytest

from embedloss import EmbedlossError
from embedloss.samplers import GroupByLabelSampler, NoDuplicatesSampler, RandomSampler, text_id


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
