from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.generation.seeds import request_seeds

SAMPLING = SamplingConfig(samples_per_prompt=3, seed=1)
PROMPTS = [[1, 2], [3], [1, 2]]


def test_seeds_are_distinct_even_for_a_repeated_prompt():
    seeds = [seed for row in request_seeds(PROMPTS, SAMPLING) for seed in row]
    assert len(set(seeds)) == 9
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_seeds_do_not_depend_on_the_other_prompts():
    whole = request_seeds([[1, 2], [3], [4]], SAMPLING)
    assert request_seeds([[4], [3]], SAMPLING) == [whole[2], whole[1]]


def test_seeds_follow_the_sampling_seed():
    other = SamplingConfig(samples_per_prompt=3, seed=2)
    assert request_seeds(PROMPTS, SAMPLING) != request_seeds(PROMPTS, other)
    more = SamplingConfig(samples_per_prompt=5, seed=1)
    assert request_seeds([[3]], more)[0][:3] == request_seeds([[3]], SAMPLING)[0]
    assert request_seeds([[3]], more, 3)[0] == request_seeds([[3]], more)[0][3:]
