"""Hostile bytes for everything that reads some: damaged good ones, and noise.

TEST_FUZZ=100 tries a hundred times as many.
"""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import mutate
from tests.fuzz.targets import SEEDS, TARGETS, WORDS

_TIMES = int(os.environ.get("TEST_FUZZ", "1"))


@pytest.mark.parametrize("name", TARGETS)
def test_good_input_is_taken(name: str) -> None:
    for seed in SEEDS[name]:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_read_or_refused(name: str) -> None:
    chance = random.Random(f"{name} {_TIMES}")
    for _ in range(150 * _TIMES):
        data = mutate(chance.choice(SEEDS[name]), WORDS[name], chance)
        try:
            TARGETS[name](data)
        except BaseException as error:
            raise AssertionError(f"{name}({data[:2000]!r})") from error


@pytest.mark.parametrize("name", TARGETS)
def test_noise_is_read_or_refused(name: str) -> None:
    words = st.sampled_from(WORDS[name])
    noise = st.lists(st.one_of(words, st.binary(max_size=12)), max_size=24).map(b"".join)

    @settings(max_examples=40 * _TIMES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(noise)
    def attempt(data: bytes) -> None:
        TARGETS[name](data)

    attempt()
