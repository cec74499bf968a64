import json
from collections import Counter
from pathlib import Path

import pytest

from megatron_reason.config.load import load_config
from megatron_reason.errors import ConfigError, TopologyError
from megatron_reason.pipeline.plan import check_layouts, find_stage, make_plan, write_plan
from megatron_reason.pipeline.run_config import RunConfig
from tests.pipeline.runs import settings, variants


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(300_000))
    return folder


@pytest.fixture
def config(tmp_path, model):
    return variants(settings(tmp_path, model))


ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted(
    path
    for path in (ROOT / "examples").rglob("*.yaml")
    if path.parent.name not in ("parts", "sweeps")
)


def changed(config: RunConfig, **sections) -> RunConfig:
    raw = config.model_dump()
    for name, values in sections.items():
        raw[name] = {**raw[name], **values} if isinstance(values, dict) else values
    return RunConfig.model_validate(raw)


def differing(before: RunConfig, after: RunConfig) -> set[str]:
    """Names of the stages whose hash changed."""
    old, new = make_plan(before), make_plan(after)
    assert [stage.name for stage in old] == [stage.name for stage in new]
    return {a.name for a, b in zip(old, new, strict=True) if a.hash != b.hash}


ALL = {"a", "b", "c", "eval-base", "train-one", "eval-one", "train-two", "eval-two", "report"}
TRAINED = {"train-one", "eval-one", "train-two", "eval-two", "report"}
EVALS = {"eval-base", "eval-one", "eval-two", "report"}


def test_order_folders_and_file(config, tmp_path):
    plan = make_plan(config)
    assert [stage.folder for stage in plan] == [
        "10-a", "20-b", "30-c", "40-eval-base", "50-train-one", "60-eval-one", "70-train-two",
        "80-eval-two", "report",
    ]  # fmt: skip
    write_plan(tmp_path, plan)
    rows = json.loads((tmp_path / "plan.json").read_text())
    assert rows[0] == {
        "folder": "10-a", "name": "a", "kind": "curate", "stage": "count_for_tests",
        "variant": None, "hash": plan[0].hash,
    }  # fmt: skip
    assert [row["kind"] for row in rows] == [
        "curate", "curate", "curate", "eval", "train", "eval", "train", "eval", "report",
    ]  # fmt: skip
    assert [row["variant"] for row in rows[3:]] == ["base", "one", "one", "two", "two", None]


def test_same_configuration_same_hashes_all_different(config):
    plan = make_plan(config)
    assert plan == make_plan(config)
    assert len({stage.hash for stage in plan}) == len(plan)


def test_whole_run_follows_from_model_template_and_seed(config):
    assert differing(config, changed(config, run={"seed": 7})) == ALL
    assert differing(config, changed(config, model={"dtype": "float32"})) == ALL
    assert differing(config, changed(config, template={"suffix": " Think."})) == ALL


def test_a_stage_changes_what_comes_after_it_only(config):
    curate = config.model_dump()["curate"]
    later = [*curate[:2], {**curate[2], "text": "new"}]
    affected = {"c", "train-two", "eval-two", "report"}
    assert differing(config, changed(config, curate=later)) == affected
    middle = [curate[0], {**curate[1], "text": "new"}, curate[2]]
    assert differing(config, changed(config, curate=middle)) == {"b", "c", *TRAINED}


def test_training_settings_change_training_and_what_is_measured_on_it(config):
    slower = {"updates": 3, "optim": {"lr": 1e-5}}
    assert differing(config, changed(config, train=slower)) == TRAINED
    one = config.model_dump()["variants"]
    one["one"]["method"]["demos_per_update"] = 3
    assert differing(config, changed(config, variants=one)) == {"train-one", "eval-one", "report"}


def test_a_preset_counts_by_its_values(config):
    def named(**method):
        variants = config.model_dump()["variants"]
        variants["two"]["method"] = {"name": "oxa", **method}
        return changed(config, variants=variants)

    assert not differing(config, named(preset="released"))
    assert not differing(named(preset="paper"), named(clamp="exact"))
    affected = {"train-two", "eval-two", "report"}
    assert differing(config, named(preset="paper")) == affected
    assert differing(named(preset="paper"), named(preset="mle")) == affected


def test_evaluation_settings_change_evaluations_only(config):
    longer = {"sampling": {"max_tokens": 300}}
    assert differing(config, changed(config, eval=longer)) == EVALS


@pytest.mark.parametrize("engine", [{"name": "transformers"}, {"max_model_len": 2048}])
def test_the_engine_counts_where_text_is_drawn(config, engine):
    curate = [
        *config.model_dump()["curate"],
        {"stage": "generate", "name": "drawn", "table": "a"},
        {"stage": "grade", "name": "graded", "table": "drawn"},
    ]
    drawing = changed(config, curate=curate)
    assert differing(drawing, changed(drawing, engine=engine)) == {"drawn", "graded", *EVALS}


def test_what_cannot_change_a_result_changes_no_hash(config):
    assert not differing(config, changed(config, launch={"processes": 2}))
    assert not differing(config, changed(config, engine={"kv_cache_mb": 64}))
    assert not differing(config, changed(config, train={"checkpoint": {"every": 1}}))
    # Checkpoints go on under another layout, and packing changes no loss.
    layout = {
        "parallel": {"sequence_parallel": True},
        "batch": {"max_tokens_per_microbatch": 99999},
    }
    assert not differing(config, changed(config, train=layout))
    assert not differing(config, changed(config, track={"sinks": []}))
    assert not differing(config, changed(config, run={"name": "other", "dir": "elsewhere"}))


def test_weights_of_the_base_model_count(config, model):
    before = make_plan(config)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[150_000] = 1
    (model / "model.safetensors").write_bytes(weights)
    assert all(a.hash != b.hash for a, b in zip(before, make_plan(config), strict=True))


def test_contents_of_files_that_a_stage_reads_count(config, tmp_path):
    source = tmp_path / "problems.jsonl"
    source.write_text("{}")
    curate = config.model_dump()["curate"]
    reading = changed(config, curate=[*curate[:2], {**curate[2], "text": str(source)}])
    before = make_plan(reading)
    source.write_text("{} ")
    names = {a.name for a, b in zip(before, make_plan(reading), strict=True) if a.hash != b.hash}
    assert names == {"c", "train-two", "eval-two", "report"}


def test_stages_are_found_by_name_and_folder(config):
    plan = make_plan(config)
    assert find_stage(plan, "train-one", "--only") == 4
    assert find_stage(plan, "50-train-one", "--only") == 4
    with pytest.raises(ConfigError, match="Did you mean 'train-one'") as caught:
        find_stage(plan, "trian-one", "--only")
    assert caught.value.where == "--only"


def test_layouts_that_the_model_cannot_be_split_into_are_refused(config, smollm2):
    parallel = {"tensor_model_parallel_size": 2}
    local = changed(
        config, model={"path": str(smollm2)}, launch={"processes": 2}, train={"parallel": parallel}
    )
    with pytest.raises(TopologyError, match="9 attention heads"):
        check_layouts(local)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_loads_and_plans(path):
    config = load_config(path, [], RunConfig)
    plan = make_plan(config)
    assert plan[-1].kind == "report"
    assert len(plan) > len(config.curate)


def test_every_example_has_a_folder_of_its_own():
    # A recipe called so goes on with the run of the one that it extends.
    own = [path for path in EXAMPLES if not path.stem.endswith("_rlvr")]
    names = Counter(load_config(path, [], RunConfig).run.name for path in own)
    assert not [name for name, count in names.items() if count > 1]


def test_the_quickstart_is_among_the_examples():
    assert ROOT / "examples" / "quickstart_cpu" / "oxa.yaml" in EXAMPLES


PUBLISHED = {
    # learning rate, epochs, sequences an update, norm at which gradients are clipped
    "oxa_1_5b": (2.5e-4, 6, 128, 1.0),
    "oxa_7b": (5e-5, 6, 128, 1.0),
    "dft": (5e-5, 1, 256, 1 / 8),
    "data_rewriting": (5e-5, 1, 256, 1 / 32),
    "data_rewriting_llama": (7e-6, 1, 256, 1 / 32),
    "srft_sft": (5e-6, 3, 128, 1.0),
    "luffy_sft": (5e-5, 3, 64, 1.0),
    "lese_sft": (5e-6, 3, 16, 1.0),
}


def test_the_presets_of_whole_variants_are_these():
    assert PUBLISHED.keys() == {path.stem for path in EXAMPLES if path.parent.name == "presets"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_that_extends_a_preset_plans(name, model, tmp_path):
    lr, epochs, batch, clip = PUBLISHED[name]
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"extends: {ROOT}/examples/presets/{name}.yaml\n"
        f"run: {{name: mine}}\nmodel: {{path: {model}}}\ntrain: {{optim: {{eps: 1.0e-9}}}}\n"
    )
    config = load_config(path, [], RunConfig)
    assert config.train.optim.eps == 1e-9
    assert (config.train.optim.lr, config.train.epochs) == (lr, epochs)
    assert config.train.optim.clip_grad == clip
    assert {v.method.demos_per_update for v in config.variants.values()} == {batch}
    trained = {stage.variant for stage in make_plan(config) if stage.kind == "train"}
    assert trained == set(config.variants)


def test_a_variant_with_rollouts_reads_problems_and_the_weights_it_starts_from(tmp_path, smollm2):
    config = variants(settings(tmp_path, smollm2))
    raw = config.model_dump(mode="json")
    raw["rollout"] = {"problems": "a", "max_tokens": 8, "monitor": {"table": "b", "every": 2}}
    raw["variants"]["live"] = {"start": "one", "method": {"name": "grpo"}}

    def planned(**changes):
        changed = RunConfig.model_validate(raw | {"rollout": raw["rollout"] | changes})
        return {stage.name: stage for stage in make_plan(changed)}

    stages = planned()
    assert stages["train-live"].inputs == ("train-one", "a", "b")
    assert stages["train-one"].inputs == ("b",)
    live = stages["train-live"].hash
    # How often is measured, and by how many graded, changes no result; how long answers get does.
    often = {"table": "b", "every": 1}
    assert planned(reward_workers=7, monitor=often)["train-live"].hash == live
    tolerant = {"probe_tolerance": 0.3}
    assert planned(sync=tolerant, max_empty_steps=3, monitor=often)["train-live"].hash == live
    assert planned(max_tokens=9)["train-live"].hash != live
    assert planned(max_tokens=9)["train-one"].hash == stages["train-one"].hash
