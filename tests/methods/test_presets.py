"""Every preset, setting by setting, as papers and released scripts have them; typed by hand."""

from typing import Any

import pytest

from megatron_reason.schema.method import METHODS, create_method

_LIKELIHOOD = {
    "sft": {
        "oxa": {"demos_per_update": 128, "mean": "seq_mean_token_mean"},
        "oxa_150k": {"demos_per_update": 384, "mean": "seq_mean_token_mean"},
        "srft": {"demos_per_update": 128, "mean": "token_mean"},
        "lese": {"demos_per_update": 16, "mean": "seq_mean_token_mean"},
        "luffy": {"demos_per_update": 64},
        "data_rewriting": {"demos_per_update": 256, "mean": "chunk_mean_token_mean", "chunk": 4},
    },
    "sft_kl": {
        "paper": {
            "demos_per_update": 128, "kl_weight": 0.2, "kl_kind": "full", "mean": "token_mean",
        },
    },
    "dft": {
        "paper": {"demos_per_update": 256, "weight": "probability", "mean": "seq_mean_token_sum"},
        "released": {
            "demos_per_update": 256, "weight": "probability", "mean": "chunk_mean_token_mean",
            "chunk": 4,
        },
    },
    "oxa": {
        "paper": {"demos_per_update": 128, "suppress_weight": 1e-4, "clamp": "exact"},
        "released": {
            "demos_per_update": 128, "negatives_per_update": 128, "suppress_weight": 1e-4,
            "clamp": "official",
        },
        "mle": {"demos_per_update": 128, "negatives_per_update": 0},
        "mle_150k": {"demos_per_update": 384, "negatives_per_update": 0},
    },
}  # fmt: skip

_OXA_RL = {
    "prompts_per_update": 64, "rollouts_per_prompt": 8, "temperature": 0.85, "divide_by_std": True,
    "ratio": "token", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0, "mean": "token_mean",
    "kl_weight": 0.001, "kl_kind": "k3", "entropy_bonus": 0.0, "drop_equal_groups": False,
}  # fmt: skip
_GRPO = {
    "grpo": {
        "dapo": {
            "divide_by_std": True, "ratio": "token", "clip_low": 0.2, "clip_high": 0.28,
            "mean": "token_mean", "kl_weight": 0.0, "drop_equal_groups": True,
        },
        "dr_grpo": {
            "divide_by_std": False, "ratio": "token", "mean": "seq_mean_token_sum_norm",
            "max_response_length": 3000, "kl_weight": 0.0,
        },
        "gspo": {
            "divide_by_std": True, "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4,
            "mean": "seq_mean_token_mean",
        },
        "oxa": _OXA_RL | {"max_response_length": 16384},
        "oxa_1_5b": _OXA_RL | {"max_response_length": 18432},
        "oxa_7b_sft": _OXA_RL | {"max_response_length": 14336},
        "luffy_sft_rl": {
            "prompts_per_update": 64, "rollouts_per_prompt": 8, "divide_by_std": False,
            "clip_low": 0.2, "clip_high": 0.2, "mean": "sum_over_constant",
            "policy_weight": 1 / 8, "max_response_length": 8192, "kl_weight": 0.0,
            "entropy_bonus": 0.001, "dual_clip": None,
        },
    },
}  # fmt: skip

_COV = {
    "prompts_per_update": 32, "rollouts_per_prompt": 8, "temperature": 1.0, "dual_clip": None,
    "mean": "token_mean", "kl_weight": 0.0, "scope": "batch",
}  # fmt: skip
_CLIP_COV = {
    "mode": "clip", "clips": True, "clip_fraction": 2e-4, "cov_low": 1.0, "cov_high": 5.0,
    "dual_clip": None,
}  # fmt: skip
_ENTROPY = {
    "cov": {
        "clip_cov": _COV | _CLIP_COV | {"clip_low": 1.0, "clip_high": 1.0},
        "kl_cov": _COV | {"mode": "kl", "clips": False, "kl_fraction": 2e-3, "kl_beta": 1.0},
        "kl_cov_32b": _COV | {"mode": "kl", "clips": False, "kl_fraction": 2e-4, "kl_beta": 1.0},
        "verl_clip_cov": _CLIP_COV | {"clip_low": 0.2, "clip_high": 0.2},
        "verl_kl_cov": {"mode": "kl", "clips": False, "kl_fraction": 2e-4, "kl_beta": 0.1},
    },
}  # fmt: skip

_SRFT = {
    "prompts_per_update": 128, "rollouts_per_prompt": 8, "temperature": 1.0, "divide_by_std": True,
    "sft_scale": 0.5, "rl_scale": 0.1, "weigh_sft": True, "weigh_rl": True,
    "entropy_scope": "sequence", "demo_shape": "none", "mean": "token_mean",
    "rl_mean": "token_mean", "rl_weight": 1.0, "max_response_length": 8192, "entropy_bonus": 0.0,
}  # fmt: skip
_LESE = {
    "prompts_per_update": 16, "rollouts_per_prompt": 4, "temperature": 1.0, "divide_by_std": True,
    "clip_low": 0.2, "clip_high": 0.28, "dual_clip": None, "mean": "group_mean_token_mean",
    "max_response_length": 8192, "kl_weight": 0.0, "mix": "lese", "scale": 1.8, "threshold": 0.0,
    "max_std": 1.55, "max_reward": 3.1, "skip_saturated": True,
}  # fmt: skip
_CHORD = {
    "prompts_per_update": 32, "rollouts_per_prompt": 8, "demos_per_update": 64, "temperature": 1.0,
    "divide_by_std": True, "clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0,
    "mean": "token_mean", "max_response_length": 10240, "kl_weight": 0.0,
}  # fmt: skip
_PHI = {"token_weight": "probability_complement"}
_WEIGHTED = {
    "srft": {
        "paper": _SRFT,
        "without_w_sft": _SRFT | {"weigh_sft": False},
        "without_w_rl": _SRFT | {"weigh_rl": False},
        "third_party": {
            "prompts_per_update": 64, "rollouts_per_prompt": 7, "divide_by_std": False,
            "sft_scale": 0.5, "rl_scale": 0.1, "weigh_sft": True, "weigh_rl": True,
            "entropy_scope": "sequence", "demo_shape": "luffy", "mean": "token_mean",
            "rl_mean": "sum_over_constant", "rl_weight": 1 / 8, "max_response_length": 8192,
            "entropy_bonus": 0.001,
        },
    },
    "lese": {
        "paper": _LESE,
        "mastery": _LESE | {"mix": "mastery"},
        "diversity": _LESE | {"mix": "diversity"},
        "static": _LESE | {"mix": "static", "static_alpha": 0.5},
        "random": _LESE | {"mix": "random"},
        "literal": _LESE | {"clip_low": 0.8},
    },
    "chord": {
        "mu": _CHORD | {
            "warmup_updates": 0, "decay_updates": 200, "peak": 0.9, "valley": 0.05,
            "token_weight": "none",
        },
        "phi": _CHORD | _PHI | {
            "warmup_updates": 0, "decay_updates": 0, "peak": 0.1, "valley": 0.1,
        },
        "shipped": _CHORD | _PHI | {
            "warmup_updates": 200, "decay_updates": 400, "peak": 0.5, "valley": 0.02,
        },
    },
}  # fmt: skip

_SUMMED = {
    "prompts_per_update": 64, "temperature": 1.0, "divide_by_std": False, "clip_low": None,
    "clip_high": None, "dual_clip": None, "mean": "sum_over_constant", "policy_weight": 1 / 8,
    "max_response_length": 8192, "kl_weight": 0.0, "entropy_bonus": 0.001,
}  # fmt: skip
_RELIFT = _SUMMED | {
    "rollouts_per_prompt": 8, "sft_weight": 1.0, "sft_mean": "chunk_mean_token_mean",
    "burst_size": 128, "burst_moments": True, "burst_clip_grad": 1.0,
}  # fmt: skip
_HPT = _SUMMED | {"rollouts_per_prompt": 8, "sft_mean": "token_mean"}
_HYBRID = {
    "luffy": {
        "paper": {
            "rollouts_per_prompt": 7, "temperature": 1.0, "divide_by_std": True, "clip_low": 0.2,
            "clip_high": 0.2, "mean": "token_mean", "kl_weight": 0.0, "gamma": 0.1,
            "group": "all", "demo_loss": "shaped",
        },
        "released": _SUMMED | {
            "rollouts_per_prompt": 7, "gamma": 0.1, "group": "all", "demo_loss": "shaped",
        },
        "rl_with_sft_loss": _SUMMED | {
            "rollouts_per_prompt": 7, "group": "rollouts", "demo_loss": "likelihood",
            "sft_weight": 1.0, "sft_mean": "token_mean",
        },
    },
    "relift": {"released": _RELIFT | {"chunk": 4}, "released_1_5b": _RELIFT | {"chunk": 2}},
    "hpt": {
        "released": _HPT | {"sft_weight": 1.0, "gate": 0},
        "released_1_5b": _HPT | {"sft_weight": 0.3, "gate": 0},
        "released_llama_8b": _HPT | {"sft_weight": 1.0, "gate": 2},
    },
}  # fmt: skip

PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {
    (name, preset): settings
    for presets in (_LIKELIHOOD, _GRPO, _ENTROPY, _WEIGHTED, _HYBRID)
    for name, chosen in presets.items()
    for preset, settings in chosen.items()
}


def test_every_preset_is_pinned_and_no_other() -> None:
    known = {(name, preset.name) for name, cls in METHODS for preset in cls.presets}
    assert PUBLISHED.keys() == known


@pytest.mark.parametrize(("name", "preset"), PUBLISHED)
def test_a_preset_has_the_published_values(name: str, preset: str) -> None:
    published = PUBLISHED[name, preset]
    config = create_method(name, preset=preset).config
    assert {field: getattr(config, field) for field in published} == published
