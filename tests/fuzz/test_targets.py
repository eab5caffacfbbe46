"""The laws that are fuzzed, without a fuzzer: over their seeds, what is near them, and random bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import NAMES
from tests.fuzz.targets import SEEDS, TARGETS


def test_every_target_has_seeds_and_can_be_named():
    assert list(TARGETS) == list(SEEDS) == list(NAMES)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_every_cut_and_change_of_them_keep_the_law(name):
    for seed in SEEDS[name]:
        TARGETS[name](seed)
        for at in range(len(seed)):
            TARGETS[name](seed[:at])
            TARGETS[name](seed[:at] + b"\xff" + seed[at + 1 :])
            TARGETS[name](seed[:at] + b"0" + seed[at:])


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_keep_the_law(name):
    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=600))
    def keep(data: bytes) -> None:
        TARGETS[name](data)

    keep()
