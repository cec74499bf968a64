from megatron_reason.cli.tables import show_table


def test_cells_are_shown_whole_and_brackets_are_no_markup(capsys):
    long = "a" * 150
    show_table("Title", ["one", "two"], [[long, "[bold]3[/bold]"]])
    shown = capsys.readouterr().out
    assert long in shown
    assert "[bold]3[/bold]" in shown
    assert shown.startswith("Title")
