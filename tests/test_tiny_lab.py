"""The tiny lab: its recipe plans as it says, and a cut of it runs from school to table."""

from pathlib import Path

import pytest

from megatron_reason.config.load import load_config
from megatron_reason.pipeline.execute import execute
from megatron_reason.pipeline.plan import make_plan
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.report.table import headline_table
from megatron_reason.schema.tables import Kind, read_table
from tests.training.online_run import metrics, rollouts

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


def test_every_method_with_rollouts_runs_on_a_cut_of_the_lab(recipe, tmp_path):
    """By the recipe's own settings, but two prompts, four answers of eight tokens, two updates."""
    raw = recipe.model_dump(mode="json")
    raw["run"] |= {"dir": str(tmp_path / "runs")}
    sizes = {
        "school": {"size": 64}, "lab": {"size": 64, "heldout": 4}, "expert": {},
        "demos": {}, "lessons": {},
    }  # fmt: skip
    raw["curate"] = [s | sizes[s["name"]] for s in raw["curate"] if s["name"] in sizes]
    online = {name for name in recipe.variants if recipe.learns_online(name)}
    kept = {name: raw["variants"][name] for name in recipe.variants if name.endswith("_seed1")}
    learners = {name: kept[name] for name in kept if name in online}
    cut = {"max_tokens": 8, "monitor": None, "updates": 2}
    for name, variant in learners.items():
        variant["method"] |= {"prompts_per_update": 2, "rollouts_per_prompt": 4}
        for section in (variant["rollout"] or {}, variant["train"] or {}):
            section |= {name: value for name, value in cut.items() if name in section}
        # SFT, then RL: one for all.
        variant["start"] = "pretrained" if name == "grpo_seed1" else None
    school = raw["variants"]["pretrained"]
    school["train"]["updates"] = 2
    raw["variants"] = {"pretrained": school, **learners}
    raw["rollout"] |= {"max_tokens": 8, "monitor": None}
    raw["train"] |= {"updates": 2}
    raw["eval"] |= {"num_entropy_responses": 0}
    raw["eval"]["sampling"] |= {"samples_per_prompt": 1, "max_tokens": 8}
    folder = execute(RunConfig.model_validate(raw))
    measured = {row.model for row in headline_table(folder).measured}
    assert measured == {name.removesuffix("_seed1") for name in raw["variants"]}
    assert len(learners) == 9
    for name in learners:
        (output,) = folder.glob(f"*-train-{name}")
        assert metrics(output)[-1]["step"] == 2
        assert len(rollouts(output, 2)) >= 8


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
