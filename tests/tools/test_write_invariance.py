import write_invariance

from tests.engine import invariance


def test_the_table_has_a_row_per_method_and_a_column_per_layout() -> None:
    columns = {
        "tp1": {"SFT": (0.0, 1e-7), "GRPO": (5e-8, 2e-6)},
        "tp2": {"SFT": (1e-8, 3e-7), "GRPO": (6e-8, 4e-6)},
    }
    text = write_invariance.table(columns, ["packed"])
    assert "| SFT | 0e+00, 1e-07 | 1e-08, 3e-07 |" in text
    assert "| GRPO | 5e-08, 2e-06 | 6e-08, 4e-06 |" in text


def test_the_committed_page_covers_every_method_and_layout() -> None:
    page = write_invariance.PAGE.read_text(encoding="utf-8")
    for method in invariance.METHODS:
        assert f"| {method} |" in page
    for layout in invariance.LAYOUTS:
        assert f"| {layout} |" in page
