"""Names that other people's code relies on."""

import inspect

import megatron_reason

PARAMETERS = {
    "token_stats": "hidden weight target tp_group temperature vocab_size backend",
    "token_stats_from_logits": "logits target tp_group temperature vocab_size backend",
    "select_gaussian": "rows mean std low high bin_width total max_per_query prefer seed exact",
    "pass_at_k": "num_samples num_correct k",
    "create_method": "name",
    "method_names": "",
}


def test_every_public_name_can_be_imported_and_no_other() -> None:
    assert sorted(megatron_reason.__all__) == [
        "AnswerPool", "TokenStats", "create_method", "export_hf", "import_hf", "method_names",
        "pass_at_k", "select_gaussian", "token_stats", "token_stats_from_logits",
    ]  # fmt: skip
    for name in megatron_reason.__all__:
        assert callable(getattr(megatron_reason, name)), name


def test_they_take_what_they_are_called_with() -> None:
    for name, expected in PARAMETERS.items():
        found = inspect.signature(getattr(megatron_reason, name)).parameters
        assert [*found][: len(expected.split())] == expected.split(), name


def test_all_methods_have_their_names() -> None:
    names = "chord cov dft grpo hpt lese luffy oxa relift sft sft_kl srft"
    assert sorted(megatron_reason.method_names()) == names.split(" ")
