"""A small finished run, its tables written by the package's own writers."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.evaluation.card import EvalCard, hash_problems, write_card
from megatron_reason.evaluation.summary import summarise, write_summary
from megatron_reason.files import write_json, write_text
from megatron_reason.pipeline.manifest import Manifest, write_manifest
from megatron_reason.schema.records import EvalRecord, Finish, Message, Origin, Sample, Status
from megatron_reason.schema.tables import Kind, Quarantine, read_table, write_table
from megatron_reason.tracking.jsonl import METRICS, JsonlSink

VARIANTS = ("sft", "sft_lp", "oxa_mle", "oxa_full")
NUM_PROBLEMS, NUM_SAMPLES, NUM_UPDATES = 12, 4, 10
SELECTIONS = {"random": "demo", "low_ppl": "demo", "promote": "demo", "suppress": "negative"}
TABLE_OF = {"sft": "random", "sft_lp": "low_ppl", "oxa_mle": "promote", "oxa_full": "promote"}
EDGES = [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
TARGET = [2, 6, 8, 6, 2]

STAGES = [
    ("teacher_ppl", "curate", "score", None),
    ("self_ppl", "curate", "score", None),
    *((name, "curate", "select", None) for name in SELECTIONS),
    ("eval-base", "eval", "eval", "base"),
    *((f"{kind}-{v}", kind, kind, v) for v in VARIANTS for kind in ("train", "eval")),
    ("report", "report", "report", None),
]


def make_run(folder: Path) -> Path:
    """Write the run; every stage is done."""
    rng = np.random.default_rng(7)
    plan = [
        {"folder": "report" if name == "report" else f"{10 * i}-{name}", "name": name,
         "kind": kind, "stage": stage, "variant": variant, "hash": f"hash-{name}"}
        for i, (name, kind, stage, variant) in enumerate(STAGES, start=1)
    ]  # fmt: skip
    write_json(folder / "plan.json", plan)
    write_json(folder / "environment.json", {"versions": {"python": "3.11"}, "cpus": 2})
    write_text(folder / "config.yaml", yaml.safe_dump(_config(), sort_keys=False))
    for row in plan:
        stage_folder = folder / row["folder"]
        if row["kind"] == "eval":
            write_eval(stage_folder, row["variant"], rng)
        elif row["kind"] == "train":
            _train(stage_folder, row["variant"])
    _curate({row["name"]: folder / row["folder"] for row in plan}, rng)
    for row in plan:
        if row["kind"] != "report":
            finish(folder / row["folder"], row["name"], row["kind"])
    return folder


def folder_of(run: Path, name: str) -> Path:
    """Folder of the stage called `name`."""
    return next(path for path in run.iterdir() if path.name.partition("-")[2] == name)


def finish(folder: Path, name: str, kind: str, **changes) -> None:
    """Declare a stage done."""
    manifest = Manifest(
        name=name, kind=kind, hash=f"hash-{name}", inputs={}, num_rows=24,
        counts={"candidates": 180, "shortage": 0}, seconds=12.34, versions={}, finished_at="now",
    )  # fmt: skip
    write_manifest(folder, Manifest(**{**vars(manifest), **changes}))


def write_eval(folder: Path, model: str, rng: np.random.Generator, **changes) -> None:
    """Write an evaluation of `model`; `changes` are fields of its first answer or its card."""
    skill = 0.1 + 0.08 * ["base", *VARIANTS].index(model)
    records = [
        _answer(problem, index, rng.random() < skill * (0.3 + problem / 8), rng)
        for problem in range(NUM_PROBLEMS)
        for index in range(NUM_SAMPLES)
    ]
    card = {key: changes.pop(key) for key in list(changes) if key in EvalCard.model_fields}
    records[0] = EvalRecord(**{**vars(records[0]), **changes})
    write_table(folder, Kind.GENERATIONS, records)
    write_summary(folder, summarise(read_table(folder, Kind.GENERATIONS), seed=1))
    settings = {
        "versions": {"vllm": "1"}, "template_hash": "t",
        "sampling": SamplingConfig(samples_per_prompt=NUM_SAMPLES),
        "reward": "math_verify", "engine": {"kind": "vllm"},
        "problems_hash": hash_problems({record.problem_id for record in records}),
        "num_problems": NUM_PROBLEMS, "weights": model,
    }  # fmt: skip
    write_card(folder, EvalCard.model_validate(settings | card))


def _answer(problem: int, index: int, is_right: bool, rng: np.random.Generator) -> EvalRecord:
    num_tokens = int(rng.integers(30, 120)) if is_right else int(rng.integers(60, 201))
    is_cut = num_tokens >= 190
    status = Status.OK if is_right else Status.NO_ANSWER if is_cut else Status.WRONG
    value = str(3 * problem + (0 if is_right else 1))
    return EvalRecord(
        problem_id=f"p{problem:02d}",
        sample_index=index,
        problem=f"Ann picks {problem} apples on each of 3 days. How many has she in the end?",
        answer=str(3 * problem),
        family=f"f{problem % 3}",
        response=f"Each day she picks {problem}.\nOver 3 days that makes {value}.\n" * 4,
        finish=Finish.LENGTH if is_cut else Finish.STOP,
        num_tokens=num_tokens,
        mean_entropy=float(rng.uniform(0.4, 1.2)) if index == 0 else None,
        status=status,
        score=float(is_right),
        extracted="" if is_cut else value,
    )


def _train(folder: Path, variant: str) -> None:
    sink = JsonlSink(folder / METRICS)
    for step in range(1, NUM_UPDATES + 1):
        start = 1.5 + 0.2 * VARIANTS.index(variant)
        values = {
            "train/ce": start * math.exp(-step / 15),
            "train/loss": start * math.exp(-step / 15),
            "train/entropy_demo": 1.3 - 0.03 * step,
            "train/lr": 1e-4 * min(step / 3, 1.0),
            "train/grad_norm": 2.0 / step + 0.3,
        }
        if variant == "oxa_full":
            values |= {"train/ul": 0.9 - 0.02 * step, "train/entropy_negative": 0.6 + 0.01 * step}
        sink.log(step, values)
    sink.close()


def _curate(folders: dict[str, Path], rng: np.random.Generator) -> None:
    pool = _samples(rng.lognormal(2.0, 0.35, 180), rng, Status.OK, "teacher")
    errors = _samples(1 + rng.lognormal(0.2, 0.6, 90), rng, Status.WRONG, "self")
    write_table(folders["teacher_ppl"], Kind.SAMPLES, pool)
    write_table(folders["self_ppl"], Kind.SAMPLES, errors)
    with Quarantine(folders["teacher_ppl"]) as quarantine:
        quarantine.add("perplexity is not finite", {"sample_id": "x"})
        quarantine.add("perplexity is not finite", {"sample_id": "y"})
    bell = pool.filter(pl.col("ppl").is_between(EDGES[0], EDGES[-1])).head(24)
    chosen = {
        "random": pool.head(24),
        "low_ppl": pool.sort("ppl").head(24),
        "promote": bell,
        "suppress": errors.sort("ppl").head(24),
    }
    for name, rows in chosen.items():
        role = SELECTIONS[name]
        write_table(folders[name], Kind.SAMPLES, rows.with_columns(role=pl.lit(role)))
        bins = (EDGES, TARGET, TARGET) if name == "promote" else ([], [], [])
        rule = {"name": "gaussian" if name == "promote" else "lowest"}
        details = dict(zip(("edges", "target", "taken"), bins, strict=True))
        write_json(
            folders[name] / "selection.json",
            {"rule": rule, "role": role, "wanted": 24, "num_taken": len(rows), "counts": {}}
            | details,
        )


def _samples(
    ppl: np.ndarray, rng: np.random.Generator, status: Status, generator: str
) -> pl.DataFrame:
    rows = []
    for index, value in enumerate(ppl):
        num_tokens = int(rng.integers(40, 200))
        rows.append(
            Sample(
                sample_id=f"{generator}{index}", problem_id=f"q{index}",
                messages=(Message("user", "?"),), answer="1", source="s", family="f",
                split="train", response="1", finish=Finish.STOP, origin=Origin.TEACHER,
                generator=generator, status=status, score=float(status == Status.OK),
                extracted="1", nll_sum=num_tokens * math.log(value), num_tokens=num_tokens,
                ppl=float(value), mean_entropy=1.0, scorer="base",
            )
        )  # fmt: skip
    return pl.DataFrame([vars(row) | {"messages": [vars(m) for m in row.messages]} for row in rows])


def _config() -> dict:
    selects = [
        {"stage": "select", "name": name, "role": role,
         "table": "self_ppl" if role == "negative" else "teacher_ppl"}
        for name, role in SELECTIONS.items()
    ]  # fmt: skip
    mixes = [
        {"stage": "mix", "name": f"{variant}_table", "tables": [
            {"table": TABLE_OF[variant]}, *([{"table": "suppress"}] if "full" in variant else [])]}
        for variant in VARIANTS
    ]  # fmt: skip
    return {
        "run": {"name": "tiny"},
        "model": {"path": "smollm2-135m"},
        "curate": [*selects, *mixes],
        "variants": {v: {"table": f"{v}_table", "method": {"name": "sft"}} for v in VARIANTS},
        "eval": {"table": "teacher"},
    }
