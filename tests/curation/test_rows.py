"""Chosen rows in a chosen order, from a table that is read in batches."""

import random

import numpy as np
import polars as pl
import pytest

from megatron_reason.curation import _rows
from megatron_reason.curation._rows import rows_at
from megatron_reason.schema import tables
from megatron_reason.schema.tables import Kind, TableReader, TableWriter, read_table
from tests.curation.stages import sample, write_samples


@pytest.mark.parametrize("batch_bytes", [1, 2_000, 1 << 20])
def test_rows_in_order_with_repeats(tmp_path, monkeypatch, batch_bytes):
    monkeypatch.setattr(tables, "BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(_rows, "_MOST_SHEETS", 4)
    rows = [sample(number, response="x" * (number * 7 % 50)) for number in range(60)]
    source = TableReader(write_samples(tmp_path / "in", rows), Kind.SAMPLES)
    positions = np.array(random.Random(1).choices(range(60), k=40))
    found = pl.concat(list(rows_at(source, positions, tmp_path)))
    assert found.equals(read_table(source.path, Kind.SAMPLES)[positions])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_rows_wait_until_there_is_a_batch_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_BYTES", 1)
    folder = write_samples(tmp_path / "in", [sample(number) for number in range(60)])
    appended = []

    class Counting(TableWriter):
        def append(self, rows):
            appended.append(len(rows))
            super().append(rows)

    monkeypatch.setattr(_rows, "TableWriter", Counting)
    monkeypatch.setattr(tables, "BATCH_BYTES", 1 << 20)
    source = TableReader(folder, Kind.SAMPLES)
    assert len(list(source.batches())) == 60
    assert [len(rows) for rows in rows_at(source, np.arange(60)[::-2], tmp_path)] == [30]
    assert appended == [30]


def test_no_rows(tmp_path):
    source = TableReader(write_samples(tmp_path / "in", [sample(0)]), Kind.SAMPLES)
    assert list(rows_at(source, np.array([], dtype=np.int64), tmp_path)) == []
