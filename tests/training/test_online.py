"""Every method that learns from rollouts, live on a tiny random model, and what goes wrong."""

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_reason.config.train import KeepConfig
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import build_method
from tests.distributed import spawn
from tests.engine import invariance
from tests.training import online_run
from tests.training.online_run import (
    make_data,
    make_job,
    metrics,
    one_update,
    rollouts,
    run_all,
    state_of,
    weights_before,
)
from tests.training.tiny_run import kill_after, losses, run, start

FEW = {"prompts_per_update": 3, "rollouts_per_prompt": 4}
METHODS = {
    "grpo": ("grpo", {"kl_weight": 0.0}, {}),
    "referenced": ("grpo", {"kl_weight": 0.1}, {}),
    "dapo": ("grpo", {"clip_high": 0.28, "dual_clip": None, "drop_equal_groups": True}, {}),
    "dr_grpo": ("grpo", {"divide_by_std": False, "mean": "seq_mean_token_sum_norm"}, {}),
    "gspo": ("grpo", {"ratio": "sequence", "mean": "seq_mean_token_mean"}, {}),
    "tempered": ("grpo", {"temperature": 0.7}, {}),
    "whole_tis": ("grpo", {"tis": "sequence"}, {"updates_per_step": 2}),
    "srft": ("srft", {}, {}),
    "lese": ("lese", {"max_reward": 1.0, "max_std": 0.5}, {"order": "table"}),
    "luffy": ("luffy", {"max_response_length": 8}, {}),
    "relift": ("relift", {"max_response_length": 8, "burst_size": 2, "rollouts_per_prompt": 2}, {}),
    "chord_mu": ("chord", {"demos_per_update": 2, "decay_updates": 4}, {}),
    "chord_phi": (
        "chord",
        {"demos_per_update": 2, "peak": 0.1, "valley": 0.1, "decay_updates": 0,
         "token_weight": "probability_complement"},
        {},
    ),
    "hpt": ("hpt", {"max_response_length": 8, "gate": 1}, {}),
    "clip_cov": ("cov", {"cov_low": 0.01, "clip_fraction": 0.1}, {"updates_per_step": 2}),
    "kl_cov": ("cov", {"mode": "kl", "kl_fraction": 0.1}, {"updates_per_step": 2}),
}  # fmt: skip
UPDATES = 4
TWO = {"prompts_per_update": 2, "rollouts_per_prompt": 4}
REWRITE = {"sampling": {"samples_per_prompt": 4, "max_tokens": 6}}
MONITOR = {
    "table": "sums", "every": 2, "max_problems": 2, "samples_per_prompt": 2,
    "reward": "parity_for_tests",
}  # fmt: skip
SPECIAL = {
    "ahead": ("grpo", FEW | {"tis": "token"}, {"steps_ahead": 1}),
    "monitored": ("grpo", FEW, {"monitor": MONITOR}),
    "retold": ("srft", FEW, {"rewrite": REWRITE}),
    "retold_only": ("sft", {"demos_per_update": 4}, {"rewrite": REWRITE}),
    "single": ("grpo", {"prompts_per_update": 3, "rollouts_per_prompt": 1}, {}),
    "breaks": ("grpo", FEW, {"reward": "breaks_for_tests"}),
    "hangs": ("grpo", TWO, {"reward": "hangs_for_tests", "reward_deadline_s": 0.3}),
    "nan": ("grpo", FEW, {"reward": "nan_for_tests"}),
    "zero": ("grpo", TWO | {"drop_equal_groups": True},
             {"reward": "zero_for_tests", "max_empty_steps": 2, "max_refills": 1}),
    "unwritable": ("grpo", FEW, {}),
    "unmeasured": ("grpo", FEW, {"monitor": MONITOR}),
    "long": ("grpo", FEW, {"max_tokens": 41}),
    "too_long": ("grpo", FEW, {"max_tokens": 60}),
}  # fmt: skip
"""Runs that are not about a method, each of two updates."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method's run, all made by one process."""
    folder = tmp_path_factory.mktemp("live")
    make_data(folder)
    jobs = [
        make_job(folder, name, method, FEW | settings, updates=UPDATES, rollout=rollout)
        for name, (method, settings, rollout) in METHODS.items()
    ]
    jobs += [
        make_job(folder, name, method, settings, updates=2, rollout=rollout)
        for name, (method, settings, rollout) in SPECIAL.items()
    ]
    # A file where a folder of rollouts should be, as good as a full disk.
    (folder / "unwritable").mkdir()
    (folder / "unwritable" / "rollouts").touch()
    (folder / "unmeasured").mkdir()
    (folder / "unmeasured" / "eval").touch()
    learns = {"prompts_per_update": 8, "rollouts_per_prompt": 8}
    other_engines: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "sleeps": ({"sleep_mode": True}, {}),
        "sleepless": ({"sleep_mode": True}, {"steps_ahead": 1}),
        "crowded": ({"max_model_len": 24}, {"max_tokens": 1, "monitor": MONITOR}),
    }
    for name, (engine, rollout) in other_engines.items():
        job = make_job(folder, name, "grpo", FEW, updates=2, rollout=rollout)
        assert job.rollout is not None
        asked = job.rollout.model_copy(
            update={"engine": job.rollout.engine.model_copy(update=engine)}
        )
        jobs.append(job.model_copy(update={"rollout": asked}))
    keep = KeepConfig(last=1, best="eval/sums/pass@1", best_is="highest")
    best = make_job(folder, "best", "grpo", FEW, updates=6, rollout={"monitor": MONITOR}, every=2)
    saving = best.train.checkpoint.model_copy(update={"keep": keep})
    train = best.train.model_copy(update={"checkpoint": saving})
    jobs.append(best.model_copy(update={"train": train}))
    jobs.append(make_job(folder, "learns", "grpo", learns, updates=24, rollout={"max_tokens": 1}))
    spawn(run_all, 1, jobs, [*METHODS, "ahead"])
    return folder


def test_rollouts_that_cannot_be_written_stop_the_run_with_a_word(folder: Path) -> None:
    error = error_of(folder / "unwritable")
    assert "the rollouts of this step cannot be written" in error
    assert "goes on from the last checkpoint" in error


def test_other_files_that_cannot_be_written_do_so_too(folder: Path) -> None:
    error = error_of(folder / "unmeasured")
    assert error.startswith(f"PlatformError  {folder / 'unmeasured/eval'}")
    assert "goes on from the last checkpoint" in error


def test_a_monitored_problem_without_room_for_an_answer_is_named_at_the_start(folder: Path) -> None:
    error = error_of(folder / "crowded")
    assert "2 of 2 problems leave no room for an answer" in error
    assert "(25 tokens)" in error
    assert "engine.max_model_len" in error
    assert not (folder / "crowded/rollouts").exists()


def error_of(output: Path) -> str:
    """What a run could not go on with."""
    found = output / "error_0.txt"
    return found.read_text(encoding="utf-8") if found.is_file() else ""


@pytest.mark.parametrize("name", [*METHODS, "ahead"])
def test_runs_live_and_each_loss_is_that_of_the_recorded_batch(folder: Path, name: str):
    """The loss of each live update, computed again in float64 by Hugging Face's model."""
    method, settings, _ = (METHODS | SPECIAL)[name]
    output = folder / name
    assert not error_of(output)
    learner = build_method(make_job(folder, name, method, FEW | settings).method)
    rows = metrics(output)
    assert rows[-1]["step"] == (UPDATES if name in METHODS else 2)
    for update in range(int(rows[-1]["step"])):
        drawn, found = one_update(output, update)
        weights, state = weights_before(output, update), state_of(output, update)
        loss, _ = invariance.reference(learner, weights, folder / "model", drawn, state)
        assert found["train/loss"] == pytest.approx(loss, abs=2e-6, rel=2e-6), update


@pytest.mark.parametrize("name", METHODS)
def test_engine_and_trainer_agree_and_only_a_second_update_leaves_the_policy_that_answered(
    folder: Path, name: str
) -> None:
    output = folder / name
    # At whatever temperature.
    found = [row.get("mismatch/logprob_abs_diff", 0.0) for row in metrics(output)]
    assert max(found) < 1e-5
    a_step = METHODS[name][2].get("updates_per_step", 1)
    for update in range(UPDATES):
        # The log-probs of the statistics pass are those of a step's first update, to the last bit.
        distance = one_update(output, update)[1].get("policy/ppo_kl", 0.0)
        assert (distance == 0.0) == (update % a_step == 0), update


def test_rollouts_made_ahead_are_of_other_weights_and_say_so(folder: Path) -> None:
    first, second = metrics(folder / "ahead")
    assert first["mismatch/logprob_abs_diff"] < 1e-5 < second["mismatch/logprob_abs_diff"]


def test_the_penalty_grows_as_the_policy_leaves_its_reference(folder: Path) -> None:
    first, *later = [
        row["policy/kl_ref"] for row in metrics(folder / "referenced") if "policy/kl_ref" in row
    ]
    assert first == pytest.approx(0, abs=1e-6)
    assert min(later) > 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_metrics_have_the_names_users_know(folder: Path, name: str):
    always = {
        "train/loss", "train/entropy", "train/grad_norm", "train/lr", "train/nonfinite_skipped",
        "perf/tflops_per_rank", "perf/tokens_per_s", "perf/peak_mem_gb", "time/step",
        "time/prepass", "time/train", "time/sync", "progress/samples", "progress/tokens",
    }  # fmt: skip
    of_rollouts = {
        "mismatch/logprob_abs_diff", "mismatch/logprob_abs_diff_p99",
        "mismatch/logprob_abs_diff_max", "mismatch/k3_kl", "mismatch/ess", "reward/mean",
        "reward/status_timeout", "groups/all_correct", "groups/all_wrong", "groups/mixed",
        "response_length/mean", "response_length/truncated", "time/rollout", "time/grade",
    }  # fmt: skip
    if name != "srft":  # It has no older policy to leave.
        of_rollouts |= {"train/pg", "policy/ppo_kl"}
    if name not in ("srft", "luffy", "relift", "hpt", "kl_cov"):
        of_rollouts |= {"policy/clipfrac_low", "policy/clipfrac_high"}
    rows = metrics(folder / name)
    assert all(always <= row.keys() for row in rows)
    with_rollouts = [row for row in rows if "reward/mean" in row]
    assert with_rollouts
    assert all(of_rollouts <= row.keys() for row in with_rollouts)
    assert {row["progress/updates"] for row in rows} == {UPDATES}


def test_progress_counts_the_prompts(folder: Path) -> None:
    assert [row["progress/prompts"] for row in metrics(folder / "grpo")] == [3, 6, 9, 12]


def test_an_update_makes_better_answers_likelier(folder: Path):
    """The last weights against the log-probs before the last update."""
    drawn, _ = one_update(folder / "grpo", UPDATES - 1)
    model = AutoModelForCausalLM.from_pretrained(folder / "grpo/huggingface")
    gain = 0.0
    for sample in drawn:
        with torch.no_grad():
            logits_TV = model(torch.tensor([sample.ids[:-1]])).logits[0].log_softmax(-1)
        first = sample.num_prompt_tokens - 1
        targets = torch.tensor(sample.ids[first + 1 :])
        now_N = logits_TV[first:].gather(1, targets[:, None])[:, 0]
        gain += sample.advantage * float((now_N - torch.tensor(sample.old_logprobs)).sum())
    assert gain > 0


def test_rewards_rise(folder: Path):
    """Answers of one token, rewarded for being odd."""
    rewards = [row["reward/mean"] for row in metrics(folder / "learns")]
    assert sum(rewards[:3]) / 3 < 0.85
    assert sum(rewards[-3:]) / 3 > 0.95


def test_rollouts_can_be_read(folder: Path):
    for step, row in enumerate(metrics(folder / "grpo"), start=1):
        found = rollouts(folder / "grpo", step)
        assert len(found) == 12
        assert sum(r["reward"] for r in found) / 12 == pytest.approx(row["reward/mean"])
        assert {r["policy_version"] for r in found} == {step - 1}
        assert all(r["response"] and r["problem"].endswith("=") for r in found)
    drawn = one_update(folder / "grpo", 0)[0]
    assert [s.advantage for s in drawn] == [r["advantage"] for r in rollouts(folder / "grpo", 1)]


def test_dapo_refills_what_it_drops(folder: Path):
    rows = metrics(folder / "dapo")
    for update in range(UPDATES):
        rewards = Counter[str]()
        drawn = one_update(folder / "dapo", update)[0]
        for sample in drawn:
            rewards[sample.group] += sample.is_correct
        assert all(0 < solved < 4 for solved in rewards.values())
    for row in rows:
        answered = row["progress/prompts"]
        assert answered >= 3 * row["step"]
    dropped = sum(row["groups/dropped"] > 0 for row in rows)
    assert dropped
    assert dropped == sum(row["groups/refills"] > 0 for row in rows)


def test_demonstrations_join_their_own_prompts(folder: Path):
    for name, kept in (("srft", 3), ("luffy", 3), ("chord_mu", 2)):
        drawn = one_update(folder / name, 0)[0]
        demos = [sample for sample in drawn if sample.role == Role.DEMO]
        assert len(demos) == kept, name
        if name != "chord_mu":
            for demo in demos:
                own = [s for s in drawn if s.group == demo.group and s.role == Role.ROLLOUT]
                prompts = {s.ids[: s.num_prompt_tokens] for s in own}
                assert len(own) == 4
                assert prompts == {demo.ids[: demo.num_prompt_tokens]}
    # The problem without one is not asked by methods that join, and is counted.
    aside = pl.read_parquet(folder / "srft/quarantine.parquet")
    assert aside["reason"].to_list() == ["no demonstration"]
    assert not (folder / "chord_mu/quarantine.parquet").exists()


def test_hpt_imitates_where_too_few_are_solved(folder: Path):
    kinds = set()
    for update in range(UPDATES):
        groups: dict[str, list[TokenizedSample]] = {}
        for sample in one_update(folder / "hpt", update)[0]:
            groups.setdefault(sample.group, []).append(sample)
        for members in groups.values():
            roles = {member.role for member in members}
            assert len(roles) == 1
            kinds |= roles
            if Role.ROLLOUT in roles:
                assert sum(member.is_correct for member in members) > 1
    assert kinds == {Role.DEMO, Role.ROLLOUT}


def test_lese_keeps_the_order_of_the_table(folder: Path):
    asked = [row["problem"] for step in (1, 2) for row in rollouts(folder / "lese", step)]
    assert list(dict.fromkeys(asked)) == [f"{n}+{n + 1}=" for n in range(1, 7)]


def test_relift_bursts_on_what_nobody_solved(folder: Path):
    waiting = 0
    bursts = 0
    for update, row in enumerate(metrics(folder / "relift")):
        drawn = one_update(folder / "relift", update)[0]
        if waiting >= 2:
            assert [s.role for s in drawn] == [Role.DEMO] * 2
            assert row["groups/burst_demos"] == 2
            bursts += 1
        waiting = row["pool/hard"]
    assert bursts


def test_one_step_ahead_learns_from_weights_one_step_old_and_corrects(folder: Path):
    assert (folder / "ahead/overlapped").exists(), "no rollout was made during an update"
    rows = metrics(folder / "ahead")
    assert [row["rollout/staleness"] for row in rows] == [0, 1]
    assert [rollouts(folder / "ahead", s)[0]["policy_version"] for s in (1, 2)] == [0, 0]
    first, second = (one_update(folder / "ahead", update)[0] for update in (0, 1))
    # The first is on-policy; the second was drawn before the first update.
    assert max(_gaps(first)) < 1e-5
    assert max(_gaps(second)) > 1e-3
    # What is drawn ahead is what would have been drawn, had the weights not changed.
    assert [s.ids[: s.num_prompt_tokens] for s in second] == [
        s.ids[: s.num_prompt_tokens] for s in one_update(folder / "grpo", 1)[0]
    ]


@pytest.mark.parametrize("name", ["retold", "retold_only"])
def test_demonstrations_are_rewritten_before_each_update(folder: Path, name: str):
    assert not error_of(folder / name)
    for step, row in enumerate(metrics(folder / name), start=1):
        shares = [row[f"rewrite/{stage}"] for stage in ("self", "guided", "fallback")]
        assert sum(shares) == pytest.approx(1)
        drawn, _ = one_update(folder / name, step - 1)
        demos = [sample for sample in drawn if sample.role == Role.DEMO]
        assert demos
        kept = sum("/" not in sample.sample_id.removesuffix("/demo") for sample in demos)
        if name == "retold_only":
            assert kept / len(demos) == pytest.approx(shares[2])
    assert row["time/rewrite"] > 0


def test_an_engine_may_sleep_during_the_updates_but_not_when_it_works_ahead(folder: Path):
    assert not error_of(folder / "sleeps")
    assert losses(folder / "sleeps") == losses(folder / "grpo")[:2]
    assert (folder / "sleeps/slept").read_text(encoding="utf-8") == "zz", "once for each step"
    assert not (folder / "grpo/slept").exists()
    assert "rollout.steps_ahead" in error_of(folder / "sleepless")


def _gaps(samples: list[TokenizedSample]) -> list[float]:
    return [
        abs(own - engine)
        for s in samples
        for own, engine in zip(s.old_logprobs or (), s.rollout_logprobs or (), strict=True)
    ]


def test_the_same_engine_measures_heldout_problems(folder: Path):
    rows = metrics(folder / "monitored")
    assert [row["step"] for row in rows if "eval/sums/avg@2" in row] == [0, 2]
    answered = pl.read_parquet(folder / "monitored/eval/sums/step_000002/generations.parquet")
    assert len(answered) == 4
    assert rows[-1]["eval/sums/avg@2"] == pytest.approx(answered["score"].mean())
    assert set(answered["problem"].str.slice(-6)) <= {"10+11=", "11+12="}
    # Measuring changes nothing of the training.
    assert rows[1]["train/grad_norm"] == metrics(folder / "grpo")[0]["train/grad_norm"]


def test_the_best_checkpoint_by_the_monitor_stays(folder: Path):
    assert not error_of(folder / "best")
    name = "eval/sums/pass@1"
    found = {row["step"]: row[name] for row in metrics(folder / "best") if name in row}
    assert list(found) == [0, 2, 4, 6]
    best = max((2, 4, 6), key=lambda step: found[step])
    kept = {path.name for path in (folder / "best/checkpoints").glob("iter_*")}
    assert kept == {f"iter_{step:07d}" for step in (best, 6)}


def test_a_group_of_one_member_is_reinforced_by_its_reward(folder: Path):
    assert not error_of(folder / "single")
    for update in range(2):
        drawn = one_update(folder / "single", update)[0]
        assert [s.advantage for s in drawn] == [float(s.is_correct) for s in drawn]


@pytest.mark.parametrize(("name", "status"), [("breaks", "crash"), ("hangs", "timeout")])
def test_answers_that_cannot_be_checked_are_neither_right_nor_wrong(
    folder: Path, name: str, status: str
):
    output = folder / name
    assert not error_of(output)
    unchecked = 0
    for step, row in enumerate(metrics(output), start=1):
        found = rollouts(output, step)
        without = [r for r in found if r["status"] == status]
        unchecked += len(without)
        assert row[f"reward/status_{status}"] == pytest.approx(len(without) / len(found))
        assert all(r["advantage"] is None for r in without)
        assert len(one_update(output, step - 1)[0]) <= len(found) - len(without)
    assert unchecked


def test_a_reward_that_is_no_number_stops_the_run(folder: Path):
    assert "RewardError" in error_of(folder / "nan")
    assert "it gave nan for an answer to problem" in error_of(folder / "nan")


def test_steps_without_anything_to_learn_from_are_bounded(folder: Path):
    error = error_of(folder / "zero")
    assert "in 2 steps in a row no prompt gave anything to learn from" in error
    rows = metrics(folder / "zero")
    # The first such step makes no update, and says so; refills are bounded.
    assert "train/loss" not in rows[0]
    assert (rows[0]["groups/dropped"], rows[0]["groups/refills"]) == (1.0, 1.0)
    assert rows[0]["progress/prompts"] == 4


def test_prompts_that_leave_no_room_are_set_aside(folder: Path):
    aside = pl.read_parquet(folder / "long/quarantine.parquet")
    # 64 positions hold 41 new tokens and the prompt of a one-digit sum, of 22 or 23 tokens.
    assert set(aside["reason"]) == {"prompt too long"}
    assert 0 < len(aside) < online_run.NUM_PROBLEMS
    assert not error_of(folder / "long")
    assert "none of 10 problems can be learnt from" in error_of(folder / "too_long")


def test_every_layout_makes_the_same_updates(folder: Path):
    """Two data-parallel and two tensor-parallel ranks against the single one."""
    layouts = {"dp": {}, "tp": {"tensor_model_parallel_size": 2}}
    jobs = [
        make_job(folder, f"grpo_{name}", "grpo", FEW, updates=2, parallel=layout)
        for name, layout in layouts.items()
    ]
    spawn(run_all, 2, jobs)
    for job in jobs:
        assert not error_of(job.output)
        for one, two in zip(metrics(folder / "grpo"), metrics(job.output), strict=False):
            assert two["reward/mean"] == one["reward/mean"]
            assert two["train/grad_norm"] == pytest.approx(one["train/grad_norm"], rel=1e-4)
            assert two["policy/ppo_kl"] == 0.0
        for step in (1, 2):
            assert rollouts(job.output, step) == rollouts(folder / "grpo", step)


RESUMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "relift": ({"max_response_length": 8, "burst_size": 3}, {}),
    "chord": ({"demos_per_update": 3, "decay_updates": 10, "max_response_length": 8},
              {"rewrite": REWRITE}),
    "grpo": ({"drop_equal_groups": True}, {"order": "table", "updates_per_step": 2}),
    "srft": ({}, {"steps_ahead": 1}),
}  # fmt: skip
"""With prompts that wait in a pool; with stored demonstrations in its own words, and a schedule;
with refills, and two updates a step; with rollouts of older weights."""


@pytest.mark.parametrize("method", RESUMED)
def test_killed_and_resumed_equals_never_interrupted(tmp_path: Path, method: str):
    """Rollouts and losses, over two pipeline stages."""
    make_data(tmp_path)
    settings, rollout = RESUMED[method]
    settings = {"prompts_per_update": 2, "rollouts_per_prompt": 2} | settings
    stages = {"pipeline_model_parallel_size": 2}
    whole, broken = (
        make_job(
            tmp_path, name, method, settings, updates=14, rollout=rollout, parallel=stages, every=3
        )
        for name in ("whole", "broken")
    )
    spawn(run_all, 2, [whole])
    broken.output.mkdir()
    file = broken.output / "job.json"
    file.write_text(broken.model_dump_json(), encoding="utf-8")
    kill_after(broken.output, start(file), 8 // rollout.get("updates_per_step", 1))
    assert "resumed from iter_" in run(file)
    assert losses(broken.output) == losses(whole.output)
    assert losses(whole.output)[-1][0] == 14
    for path in sorted((whole.output / "rollouts").iterdir()):
        twin = broken.output / "rollouts" / path.name
        assert twin.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
    for left, right in zip(metrics(whole.output), metrics(broken.output), strict=True):
        assert left["pool/hard"] == right["pool/hard"]
    rows = metrics(whole.output)
    if method == "relift":
        assert any("groups/burst_demos" in row for row in rows)
    elif method == "chord":
        roles = Counter(sample.role for sample in one_update(whole.output, 13)[0])
        assert roles[Role.DEMO] == 3
    elif method == "grpo":
        assert any(row["groups/refills"] for row in rows)
    else:
        stale = [row["rollout/staleness"] for row in metrics(broken.output)]
        assert stale == [0.0, *[1.0] * 13]
