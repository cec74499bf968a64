"""The tiny lab: its recipe plans as it says, and a cut of it runs from school to table."""

from pathlib import Path

import pytest

from megatron_reason.config.load import load_config
from megatron_reason.pipeline.execute import execute
from megatron_reason.pipeline.plan import make_plan
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.report.table import headline_table
from megatron_reason.schema.tables import Kind, read_table

RECIPE = Path(__file__).parent.parent / "examples" / "tiny_lab" / "compare.yaml"
METHODS = {
    "sft", "sft_lp", "oxa_mle", "oxa_full", "dft", "dr_dft", "grpo", "clip_cov", "srft", "lese",
    "luffy", "relift", "chord_mu", "chord_phi", "hpt",
}  # fmt: skip
KEPT = ("school", "lab", "lessons", "self", "sft_table")


@pytest.fixture
def recipe(monkeypatch) -> RunConfig:
    monkeypatch.chdir(RECIPE.parent.parent.parent)
    return load_config(RECIPE, [], RunConfig)


def test_every_method_starts_from_one_model_with_three_seeds(recipe):
    trained = {stage.variant for stage in make_plan(recipe) if stage.kind == "train"}
    assert trained == {"pretrained"} | {f"{m}_seed{seed}" for m in METHODS for seed in (1, 2, 3)}
    assert {v.start for n, v in recipe.variants.items() if n != "pretrained"} == {"pretrained"}
    budgets = {
        recipe.train_of(name).updates * recipe.variants[name].method.prompts_per_update
        for name in recipe.variants
        if recipe.learns_online(name)
    }
    assert len(budgets) == 1


def test_a_cut_of_the_lab_runs_from_school_to_table(recipe, tmp_path):
    raw = recipe.model_dump(mode="json")
    raw["run"] |= {"dir": str(tmp_path / "runs")}
    sizes = {
        "school": {"size": 64}, "lab": {"size": 64, "heldout": 8}, "self": {"max_problems": 4},
        "sft_table": {"tables": [{"table": "lab", "as_role": "demo"}]},
    }  # fmt: skip
    raw["curate"] = [s | sizes.get(s["name"], {}) for s in raw["curate"] if s["name"] in KEPT]
    raw["variants"] = {
        name: variant | {"train": None, "rollout": None}
        for name, variant in raw["variants"].items()
        if name in ("pretrained", "sft_seed1", "sft_seed2")
    }
    raw["rollout"] = None
    raw["train"] |= {"updates": 1}
    raw["eval"] |= {"num_entropy_responses": 0}
    raw["eval"]["sampling"] |= {"samples_per_prompt": 2, "max_tokens": 8}
    folder = execute(RunConfig.model_validate(raw))
    (answers,) = folder.glob("*-self")
    assert len(read_table(answers, Kind.SAMPLES)) == 8
    table = headline_table(folder)
    assert [(row.model, row.size) for row in table.measured] == [
        ("pretrained", "8 x 2"), ("sft", "8 x 2 x 2 seeds"),
    ]  # fmt: skip
    weights = [
        next(folder.glob(f"*-train-sft_seed{seed}")) / "huggingface" / "model.safetensors"
        for seed in (1, 2)
    ]
    assert weights[0].read_bytes() != weights[1].read_bytes()
