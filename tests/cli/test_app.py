import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from megatron_reason.cli.app import app

ROOT = Path(__file__).parent.parent.parent
QUICKSTART = str(ROOT / "examples" / "quickstart_cpu" / "oxa.yaml")

# The program as users and scripts know it. A change here is a change to every one of them.
VERBS = {
    "": ["--help", "--version"],
    "plan": ["--gpus", "--help", "--json", "--mfu", "--on", "--set", "config"],
    "run": ["--from", "--help", "--json", "--on", "--only", "--set", "--to", "config"],
    "sweep": ["--collect", "--help", "--json", "--on", "--python", "grid"],
    "train": ["--help", "--job-file", "--out", "--set", "--table", "--variant", "config"],
    "resume-check": [
        "--help",
        "--json",
        "--set",
        "--table",
        "--updates",
        "--variant",
        "config",
    ],
    "stage": ["--help", "--in", "--json", "--out", "--set", "--shard", "kind"],
    "eval": ["--help", "--json", "--out", "--set", "--suite", "--table", "model"],
    "regrade": ["--grader", "--help", "--json", "folder"],
    "compare": ["--force", "--help", "--json", "first", "second"],
    "analyse": ["--help", "--json", "--out", "inputs", "name"],
    "logprobs": ["--answers", "--help", "--out", "--set", "model"],
    "watch": ["--help", "--once", "--updates", "run"],
    "serve": ["--gpus", "--help", "--host", "--port", "--register", "--set", "config"],
    "report": ["--force", "--help", "--json", "--markdown", "--out", "folders"],
    "list": ["--help", "--json", "kind"],
    "show": ["--help", "--json", "kind", "name"],
    "doctor": ["--help", "--json", "--model", "--self-test"],
    "convert": ["--help"],
    "convert import": ["--help", "source", "target"],
    "convert export": ["--help", "--set", "source", "target"],
    "convert verify": ["--help", "--json", "--report", "--set", "source"],
}


def commands():
    """Every command by the words one types, groups included."""
    found = {}

    def walk(command, words):
        found[" ".join(words)] = command
        for name, child in getattr(command, "commands", {}).items():
            walk(child, [*words, name])

    walk(get_command(app), [])
    return found


def options(command):
    names = ["--help"]
    for parameter in command.params:
        names.append(max(parameter.opts, key=len))
    return sorted(set(names))


def mreason(*words):
    done = CliRunner().invoke(app, list(words))
    # The handler writes to the runner's streams, which are closed now.
    logger = logging.getLogger("megatron_reason")
    logger.handlers.clear()
    logger.propagate = True
    if done.exception:
        raise done.exception
    return done


def test_verbs_and_options_are_frozen():
    assert {words: options(command) for words, command in commands().items()} == VERBS


@pytest.mark.parametrize("words", [w for w in VERBS if w])
def test_every_help_is_complete_and_has_an_example(words):
    text = mreason(*words.split(), "--help").output
    command = commands()[words]
    if not hasattr(command, "commands"):
        assert f"Example: mreason {words}" in " ".join(text.split())
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{words} {parameter.name} has no help"


def test_help_answers_at_once():
    started_s = time.monotonic()
    seen = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "megatron_reason.cli.app", "run", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--only" in seen.stdout
    heavy = ("torch", "megatron.core", "vllm", "transformers", "polars", "matplotlib")
    imported = {line.rpartition("|")[2].strip() for line in seen.stderr.splitlines()}
    assert not imported & set(heavy)
    assert time.monotonic() - started_s < 60


def test_errors_are_shown_without_a_traceback(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("run: {name: x, sede: 3}\nmodel: {path: smollm2-135m}\n")
    done = subprocess.run(
        [sys.executable, "-m", "megatron_reason.cli.app", "plan", str(config)],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"ConfigError  {config}:1  run.sede\n")
    assert "Did you mean 'seed' or 'seeds'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_shows_the_quickstart_and_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = mreason("plan", QUICKSTART, "--set", "train.updates=7").output
    assert "220-train-oxa_full" in shown
    assert "7 updates of 8 demo + 8 negative (oxa)" in shown
    assert "TP 1 x PP 1 x DP 2" in shown
    rows = json.loads(mreason("plan", QUICKSTART, "--json").output)
    assert rows[0]["folder"] == "10-teacher"
    assert {row["state"] for row in rows} == {"to do"}
    assert not list(tmp_path.iterdir())
