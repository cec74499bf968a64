"""The package wandb is optional: a stand-in module fails as the real one may."""

import logging
import sys
from types import SimpleNamespace

import pytest

from megatron_reason.errors import PlatformError
from megatron_reason.tracking.wandb import WandbSink


class Run:
    def __init__(self, fails):
        self.fails = fails
        self.logged = []
        self.finished = False

    def log(self, values, step):
        if step in self.fails:
            raise ConnectionError(f"no route at {step}")
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def install(monkeypatch):
    def as_wandb(init, *, api_key=None):
        module = SimpleNamespace(init=init, api=SimpleNamespace(api_key=api_key))
        monkeypatch.setitem(sys.modules, "wandb", module)

    return as_wandb


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("megatron_reason"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records]


def test_offline_without_a_key_and_the_same_run_for_the_same_folder(install, tmp_path):
    opened = []
    install(lambda **settings: opened.append(settings) or Run(()))
    WandbSink(tmp_path, project="p")
    WandbSink(tmp_path, project="p", resume_after=4)
    WandbSink(tmp_path / "other", project="p")
    assert [settings["mode"] for settings in opened] == ["offline"] * 3
    assert opened[0]["id"] == opened[1]["id"] != opened[2]["id"]
    assert [settings["resume"] for settings in opened] == [None, "allow", None]
    install(lambda **settings: opened.append(settings) or Run(()), api_key="k")
    WandbSink(tmp_path, project="p")
    assert opened[-1]["mode"] == "online"


def test_failures_are_reported_once_counted_and_never_fatal(install, tmp_path, warnings):
    run = Run(fails=(2, 3))
    install(lambda **_: run)
    sink = WandbSink(tmp_path, project="p")
    for step in (1, 2, 3, 4):
        sink.log(step, {"x": 1.0})
    sink.close()
    assert [step for step, _ in run.logged] == [1, 4]
    assert run.finished
    assert sink.num_failures == 2
    assert len([text for text in warnings() if "no route at 2" in text]) == 1
    assert not [text for text in warnings() if "no route at 3" in text]
    assert "2 calls" in warnings()[-1]


def test_a_run_that_cannot_be_opened_is_not_fatal_either(install, tmp_path, warnings):
    def refuse(**_):
        raise RuntimeError("no such project")

    install(refuse)
    sink = WandbSink(tmp_path, project="p")
    sink.log(1, {"x": 1.0})
    sink.close()
    assert sink.num_failures == 2
    assert len([text for text in warnings() if "no such project" in text]) == 1


def test_a_missing_package_is_said_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(PlatformError, match="pip install wandb"):
        WandbSink(tmp_path, project="p")
