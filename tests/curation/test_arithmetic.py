"""Equations found in prose are those that hold."""

import pytest

from megatron_reason.curation._arithmetic import find_equations


@pytest.mark.parametrize(
    ("prose", "found"),
    [
        ("She needs 1200 clam / 12 clam/minute = 100 minutes", ["1200 / 12 = 100"]),
        ("a total of 24*3 = 72 minutes, then 72+18=90", ["24 * 3 = 72", "72 + 18 = 90"]),
        ("$400,000 x 8/100 = $32,000", ["400000 * 8 / 100 = 32000"]),
        ("96 plants \N{MULTIPLICATION SIGN} £3 per plant = £288", ["96 * 3 = 288"]),
        ("The rest is 50% * 40 = 20 of them", ["50 / 100 * 40 = 20"]),
        ("(3 + 4) * 2 = 14.0", ["(3 + 4) * 2 = 14"]),
        ("30.8 - 7.1 = 23.700000000000001", ["30.8 - 7.1 = 23.700000000000001"]),
        ("48=48 emails, and 2x+60=176", []),
        ("2 + 2 = 5, 1 / 0 = 3", []),
        ("about 564.3 / 1.35 = 417", []),
    ],
)
def test_find_equations(prose, found):
    assert [equation.text for equation in find_equations(prose)] == found
