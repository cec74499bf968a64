from megatron_reason.report.differences import Differences, differences


def stage(name, **settings):
    return {"stage": "select", "name": name, **settings}


def test_runs_are_rows_where_there_are_fewer_settings_than_runs():
    runs = {
        f"swept-{index}": {"run": {"name": f"swept-{index}", "seed": 1}, "optim": {"lr": rate}}
        for index, rate in enumerate((1e-4, 1e-3, 1e-3))
    }
    assert differences(runs) == Differences(
        ("run", "optim.lr"),
        (("swept-0", "0.0001"), ("swept-1", "0.001"), ("swept-2", "0.001")),
    )


def test_settings_are_rows_where_there_are_more():
    one = {"curate": [stage("a", count=5), stage("b")], "seeds": [1], "method": "oxa"}
    other = {"curate": [stage("b"), stage("a", count=6)], "seeds": [1, 2], "extra": None}
    assert differences({"one": one, "other": other}) == Differences(
        ("setting", "one", "other"),
        (
            ("curate[a].count", "5", "6"),
            ("seeds", "[1]", "[1, 2]"),
            ("method", "oxa", ""),
            ("extra", "", "null"),
        ),
    )


def test_equal_settings_make_no_table():
    one = {"run": {"name": "one", "dir": "runs"}, "variants": [stage("a"), stage("a")]}
    other = {"run": {"name": "other", "dir": "elsewhere"}, "variants": [stage("a"), stage("a")]}
    assert differences({"one": one, "other": other}) is None
    assert differences({"one": one}) is None


def test_elements_of_one_name_are_compared_as_a_whole():
    one, other = ({"stages": [stage("a"), stage("a", count=count)]} for count in (1, 2))
    table = differences({"one": one, "other": other})
    assert [row[1] for row in table.rows] == [
        f'[{{"stage": "select", "name": "a"}}, {{"stage": "select", "name": "a", "count": {n}}}]'
        for n in (1, 2)
    ]
