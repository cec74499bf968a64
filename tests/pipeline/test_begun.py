from megatron_reason.pipeline.begun import begin, begun_as


def test_a_folder_is_begun_as_one_thing_and_keeps_what_was_done(tmp_path):
    folder = tmp_path / "stage"
    assert begun_as(folder) is None
    begin(folder, "one")
    assert begun_as(folder) == "one"
    (folder / "parts").mkdir()
    whole, half = folder / "parts" / "0000", folder / "parts" / ".0003.77.tmp"
    for part in (whole, half):
        part.mkdir()
        (part / "samples.parquet").write_text("rows")
    (folder / ".samples.parquet.77.tmp").write_text("half")
    begin(folder, "one")
    assert begun_as(folder) == "one"
    assert (whole / "samples.parquet").is_file()
    assert not half.exists()
    assert sorted(path.name for path in folder.iterdir()) == ["hash", "parts"]
