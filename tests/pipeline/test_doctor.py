import sys

from megatron_reason.pipeline import doctor
from megatron_reason.pipeline.doctor import Finding, examine


def test_this_environment_can_run_everything_required():
    findings = {finding.what: finding for finding in examine()}
    assert findings["torch"].verdict == "ok"
    assert findings["megatron-core"].found.startswith("megatron-core 0.")
    assert findings["device"].found
    assert not [finding for finding in findings.values() if finding.verdict == "missing"]


def test_whatever_is_not_ok_comes_with_a_way_out():
    assert all(finding.way_out for finding in examine() if finding.verdict != "ok")


def test_a_missing_library_is_named_with_the_command_that_installs_it():
    absent = doctor._Library("nope", ("no-such-distribution",), True, "nothing at all")
    assert doctor._library(absent) == Finding(
        "no-such-distribution",
        "not installed; needed for nothing at all",
        "missing",
        "./scripts/quickstart.sh installs the locked set; or: pip install no-such-distribution",
    )


def test_an_old_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert doctor._python().verdict == "missing"


def test_what_stands_in_for_missing_accelerators_and_slurm_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {finding.what: finding for finding in examine()}
    assert found["collectives"].found in ("gloo", "nccl")
    assert "attention kernels in torch" in found["flash_attn"].found
    assert found["shared memory"].found.endswith("GB")
    assert found["slurm"].verdict == "note"
    assert "tools/local_slurm.sh" in found["slurm"].way_out
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    assert {finding.what: finding for finding in examine()}["slurm"].verdict == "ok"
