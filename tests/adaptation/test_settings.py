"""Numbers of a run: what is out of range, or no number at all, is refused by its name."""

import math

import numpy as np
import pytest

from lorahub_edge.adaptation.settings import check_numbers
from lorahub_edge.errors import InvalidInput

NO_NUMBERS = [True, "3", math.nan, math.inf, -math.inf, 10**400, 1j]
NO_COUNTS = [*NO_NUMBERS, 0, -1, 3.5, 3.0, np.float64(3), 10**7 + 1]


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("budget", [1, 10**7, np.int64(5), None], NO_COUNTS),
        ("n_examples", [1, np.uint8(5)], NO_COUNTS),
        ("batch_size", [1], NO_COUNTS),
        ("seed", [0, 2**32 - 1, np.int64(3)], [*NO_NUMBERS, -1, 2**32, 0.5]),
        ("alpha", [0, 0.05, 1e300, np.float32(0.5)], [*NO_NUMBERS, -0.1]),
        ("bound", [1e-9, 1.5, 10**6], [*NO_NUMBERS, 0, -1.5, 1e7]),
        ("min_survival", [0, 0.9, 1], [*NO_NUMBERS, -0.1, 1.1]),
        ("max_memory", [1, 2**40], [*NO_NUMBERS, 0, 0.5]),
    ],
)
def test_each_number_has_its_range(name, right, wrong):
    for value in right:
        check_numbers(**{name: value})
    for value in wrong:
        with pytest.raises(InvalidInput, match=rf"^{name}: expected a .*number .*, received .{{1,40}}$"):
            check_numbers(**{name: value})


def test_the_message_says_what_is_right():
    with pytest.raises(InvalidInput) as refused:
        check_numbers(bound=math.nan)
    assert str(refused.value) == "bound: expected a number above 0 and at most 1000000, received nan"
