from megatron_reason.generation.server_folder import register, registered, unregister


def test_servers_are_found_while_they_are_registered(tmp_path):
    folder = tmp_path / "servers"
    assert registered(folder) == ()
    register(folder, "b-8000", "http://b:8000")
    register(folder, "a-8000", "http://a:8000")
    (folder / "notes.txt").write_text("not a server")
    assert registered(folder) == ("http://a:8000", "http://b:8000")
    unregister(folder, "a-8000")
    unregister(folder, "a-8000")
    assert registered(folder) == ("http://b:8000",)


def test_one_that_goes_away_while_it_is_read_is_not_there(tmp_path):
    register(tmp_path, "a", "http://a")
    (tmp_path / "b.url").symlink_to(tmp_path / "gone")
    assert registered(tmp_path) == ("http://a",)
