"""Stateless draws: the published generator, without bias, and the same however they are batched."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from lightning_meta.functional.random_bits import bits, choose, fold, integers, key, mix, uniform

WORD = 1 << 64
SEEDS = st.integers(-(1 << 63), (1 << 63) - 1)
# Under a right generator a p-value falls below this once in a million draws; seeds are fixed, so tests do not flicker.
UNLIKELY = 1e-6


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator as published, in Python's integers (Steele, Lea and Flood 2014; Vigna's splitmix64.c)."""
    numbers, state = [], seed % WORD
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % WORD
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
        numbers.append(z ^ (z >> 31))
    return numbers


def unsigned(numbers: Tensor) -> list[int]:
    return [number % WORD for number in numbers.tolist()]


def chi_square(counts: Tensor) -> float:
    """The p-value of counts that should all be alike."""
    return float(stats.chisquare(counts.flatten().double().numpy()).pvalue)


def counted(codes: Tensor, kinds: int) -> Tensor:
    return torch.bincount(codes.flatten(), minlength=kinds)


# The generator


def test_the_known_stream_of_seed_1234567() -> None:
    # The vector that Rosetta Code and several implementations check themselves against.
    known = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(1234567, 5) == known
    assert unsigned(bits(torch.tensor(1234567), 5)) == known


@given(seed=SEEDS)
def test_bits_are_those_of_python_integers(seed: int) -> None:
    assert unsigned(bits(torch.tensor([seed]), 7)[0]) == splitmix64(seed, 7)


@given(seed=SEEDS)
def test_uniform_numbers_are_the_upper_53_bits(seed: int) -> None:
    expected = [number / WORD for number in ((n >> 11) << 11 for n in splitmix64(seed, 4))]
    assert uniform(torch.tensor(seed), 4).tolist() == expected


def test_mix_is_one_to_one_on_a_sample() -> None:
    z = np.arange(200_000, dtype=np.uint64) - np.uint64(100_000)
    assert len(np.unique(mix(z.copy()))) == len(z)


# Keys


def test_keys_fold_every_word_in_order() -> None:
    words = [key(*order) for order in permutations((0, 1, 2))]
    assert len({int(word) for word in words}) == 6
    assert int(key(1)) != int(key(1, 0)) != int(key(0, 1))


def test_keys_of_neighbouring_words_never_meet() -> None:
    seeds, splits, tasks = torch.arange(20)[:, None, None], torch.arange(3)[:, None], torch.arange(1000)
    keys = key(seeds, splits, tasks)
    assert keys.shape == (20, 3, 1000)
    assert len(keys.unique()) == keys.numel()


def test_words_broadcast_to_the_keys_of_each() -> None:
    keys = key(7, torch.arange(4))
    assert keys.tolist() == [int(key(7, i)) for i in range(4)]


def test_words_are_not_changed_and_make_the_key_that_integers_make() -> None:
    words = torch.tensor([3, -5, 2**62])
    assert key(1, words, -2).tolist() == [int(key(1, word, -2)) for word in (3, -5, 2**62)]
    assert words.tolist() == [3, -5, 2**62]
    assert fold(key(1, words), -2).tolist() == key(1, words, -2).tolist()


# Numbers in a range


def test_integers_hold_both_ends_and_are_uniform() -> None:
    drawn = integers(key(3, torch.arange(60_000)), -2, 4)
    assert set(drawn.tolist()) == set(range(-2, 5))
    assert chi_square(counted(drawn + 2, 7)) > UNLIKELY


def test_uniform_numbers_are_uniform_over_keys_and_over_positions() -> None:
    numbers = uniform(key(11, torch.arange(2_000)), 20)
    assert stats.kstest(numbers[:, 0].numpy(), "uniform").pvalue > UNLIKELY
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > UNLIKELY
    neighbours = torch.corrcoef(numbers.T) - torch.eye(20, dtype=torch.float64)
    assert neighbours.abs().max() < 6 / 2_000**0.5


# Different numbers out of many

WAYS, CLASSES = 5, 23


@pytest.fixture(scope="module")
def over_tasks() -> Tensor:
    return choose(key(5, torch.arange(40_000)), WAYS, CLASSES)


@pytest.fixture(scope="module")
def over_seeds() -> Tensor:
    return choose(key(torch.arange(40_000), 0), WAYS, CLASSES)


@pytest.mark.parametrize("draws", ["over_tasks", "over_seeds"])
def test_choose_has_no_favourite_number_place_pair_or_order(draws: str, request: pytest.FixtureRequest) -> None:
    drawn: Tensor = request.getfixturevalue(draws)
    for place in range(WAYS):
        assert chi_square(counted(drawn[:, place], CLASSES)) > UNLIKELY
    for first, second in ((0, 1), (1, 0), (3, 4), (0, 4)):
        pairs = counted(drawn[:, first] * CLASSES + drawn[:, second], CLASSES**2).view(CLASSES, CLASSES)
        assert not pairs.diagonal().any()
        assert chi_square(pairs[~torch.eye(CLASSES, dtype=torch.bool)]) > UNLIKELY
    order = drawn.argsort(dim=1)
    codes = (order * WAYS ** torch.arange(WAYS)).sum(1)
    assert chi_square(codes.unique(return_counts=True)[1]) > UNLIKELY
    assert len(codes.unique()) == 120


@pytest.mark.parametrize("draws", ["over_tasks", "over_seeds"])
def test_neighbouring_draws_are_independent(draws: str, request: pytest.FixtureRequest) -> None:
    drawn: Tensor = request.getfixturevalue(draws)
    pairs = counted(drawn[0::2, 0] * CLASSES + drawn[1::2, 0], CLASSES**2)
    assert chi_square(pairs) > UNLIKELY


def test_the_draws_of_one_seed_do_not_repeat_under_another() -> None:
    a, b = (choose(key(seed, torch.arange(2_000)), WAYS, 1000) for seed in (0, 1))
    shared = (a.unsqueeze(2) == b.unsqueeze(1)).sum()
    assert abs(int(shared) - 2_000 * WAYS * WAYS / 1000) < 6 * (2_000 * WAYS * WAYS / 1000) ** 0.5


@given(
    seed=SEEDS,
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    data=st.data(),
)
@settings(max_examples=60)
def test_chosen_numbers_differ_and_fit_their_own_size(seed: int, sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, min(sizes)))
    keys = key(seed, torch.arange(len(sizes)))
    drawn = choose(keys, count, torch.tensor(sizes))
    assert drawn.shape == (len(sizes), count)
    for row, size in zip(drawn.tolist(), sizes, strict=True):
        assert len(set(row)) == count
        assert all(0 <= number < size for number in row)


def test_ragged_sizes_are_each_drawn_evenly() -> None:
    sizes = torch.tensor([3, 17, 64, 65]).expand(10_000, 4)
    drawn = choose(key(2, torch.arange(40_000).view(10_000, 4)), 2, sizes)
    for column, size in enumerate((3, 17, 64, 65)):
        for place in range(2):
            assert chi_square(counted(drawn[:, column, place], size)) > UNLIKELY


def test_drawing_all_is_a_permutation() -> None:
    drawn = choose(key(9, torch.arange(50)), 12, 12)
    assert torch.equal(drawn.sort(dim=1).values, torch.arange(12).expand(50, 12))


@given(seed=SEEDS, cut=st.integers(1, 11), start=st.integers(0, 10))
@settings(max_examples=40)
def test_a_draw_is_the_same_in_any_batch(seed: int, cut: int, start: int) -> None:
    keys, sizes = key(seed, torch.arange(12)), torch.tensor([5, 300] * 6)
    whole = choose(keys, 4, sizes)
    assert torch.equal(whole[:cut], choose(keys[:cut], 4, sizes[:cut]))
    assert torch.equal(whole[cut:], choose(keys[cut:], 4, sizes[cut:]))
    assert torch.equal(whole[start], choose(keys[start], 4, sizes[start]))


def test_fewer_are_the_beginning_of_more() -> None:
    keys = key(4, torch.arange(30))
    assert torch.equal(choose(keys, 9, 50)[:, :3], choose(keys, 3, 50))


def test_what_cannot_be_drawn_is_refused() -> None:
    keys = key(0, torch.arange(2))
    with pytest.raises(ValueError, match="6 different numbers out of 5"):
        choose(keys, 6, 5)
    with pytest.raises(ValueError, match="6 different numbers out of 5"):
        choose(keys, 6, torch.tensor([9, 5]))
