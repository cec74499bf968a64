"""Shards of a parallel trainer into an engine on rank 0, and what follows when something breaks."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.config.sync import SyncConfig
from megatron_reason.errors import EngineDiedError, GenerationError
from megatron_reason.generation.base import Completion, Engine
from tests.distributed import spawn
from tests.generation.test_owned import ENTRY
from tests.models import grid, tiny
from tools.make_tiny_model import make_tiny_model

PROMPTS = [[1, 2, 3], [4, 5], [6]]
SAMPLING = SamplingConfig(samples_per_prompt=2, max_tokens=6)
ENGINE = EngineConfig(name="transformers", max_model_len=128)
MODEL = ModelConfig(path="x", dtype="float32")
CLOSE = SyncConfig(bucket_mb=1, probe_tolerance=1e-4)
LAYOUTS = [
    ("TP 2 PP 2", "Qwen2ForCausalLM-tied"),
    ("TP 2 PP 2", "Qwen3ForCausalLM-untied"),
    ("TP 4 PP 1", "LlamaForCausalLM-untied"),
    ("TP 1 PP 1", "Qwen2ForCausalLM-untied"),
    ("TP 2 EP 2", "Qwen3MoeForCausalLM-tied"),
]


def pair(root: Path, family: str) -> tuple[Path, Path]:
    """Folders of two models that differ in their weights only."""
    hf_class, config = tiny.FAMILIES[family]
    made = [make_tiny_model(hf_class, root / f"{family}-{n}", seed=n, **config) for n in (1, 2)]
    return made[0], made[1]


def plain(rows: Sequence[Sequence[Completion]]) -> list[tuple[Any, ...]]:
    return [(c.token_ids, c.logprobs) for row in rows for c in row]


def misses_a_copy(rank: int, world_size: int, root: str) -> None:
    """Of two copies the second keeps its old weights."""
    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.generation.hf_engine import HFEngine
    from megatron_reason.models.importer import import_hf
    from megatron_reason.rollout import weight_sync

    del rank, world_size
    old, new = (Path(root) / f"Qwen2ForCausalLM-tied-{n}" for n in (1, 2))
    left_out = HFEngine(old, ENGINE, dtype="float32")

    class Two(HFEngine):
        num_copies = 2

        def _score(self, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
            first, second = sequences
            return [*super()._score([first]), *left_out.score([second])]

    parallel = grid.parallel_of(grid.LAYOUTS["TP 1 PP 1"])
    topology = init_topology(parallel)
    stage = load_model(MODEL, old, parallel, topology)
    engine = Two(old, ENGINE, dtype="float32")
    sync = weight_sync.WeightSync(stage, old, topology=topology, engine=engine, config=CLOSE)
    assert sync.push(1).probe_largest < 1e-4
    import_hf(stage, new, topology)
    with pytest.raises(GenerationError, match="after the transfer"):
        sync.push(2)


def test_the_probe_asks_every_copy(tmp_path: Path) -> None:
    pair(tmp_path, "Qwen2ForCausalLM-tied")
    spawn(misses_a_copy, 1, str(tmp_path))


def pushes_on_every_layout(rank: int, world_size: int, root: str) -> None:
    from megatron.core import parallel_state

    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.generation.hf_engine import HFEngine
    from megatron_reason.models.importer import import_hf
    from megatron_reason.rollout import weight_sync

    # Buckets of a few tensors, and a tensor larger than a bucket.
    weight_sync._MIB = 8000
    for layout, family in LAYOUTS:
        old, new = (Path(root) / f"{family}-{n}" for n in (1, 2))
        parallel = grid.parallel_of((grid.LAYOUTS | grid.EXPERT_LAYOUTS)[layout])
        topology = init_topology(parallel)
        stage = load_model(MODEL, old, parallel, topology)
        engine = HFEngine(old, ENGINE, dtype="float32") if rank == 0 else None
        sync = weight_sync.WeightSync(stage, old, topology=topology, engine=engine, config=CLOSE)
        import_hf(stage, new, topology)
        report = sync.push(3)
        assert report.version == 3
        assert report.num_buckets > 3
        assert report.probe_difference <= report.probe_largest < 1e-4
        if engine is not None:
            assert sync._buffer.numel() < report.num_bytes / 2, "rank 0 held a full copy"
            found = engine.generate(PROMPTS, SAMPLING)
            assert {c.policy_version for row in found for c in row} == {3}
            with HFEngine(new, ENGINE, dtype="float32") as fresh:
                assert plain(found) == plain(fresh.generate(PROMPTS, SAMPLING)), (layout, family)
        parallel_state.destroy_model_parallel()


def test_any_layout_reaches_the_engine_bit_for_bit(tmp_path: Path) -> None:
    for _, family in LAYOUTS:
        pair(tmp_path, family)
    spawn(pushes_on_every_layout, 4, str(tmp_path))


def disagreements(rank: int, world_size: int, root: str) -> None:
    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.generation.hf_engine import HFEngine
    from megatron_reason.rollout.weight_sync import WeightSync

    old = Path(root) / "Qwen2ForCausalLM-tied-1"
    other = Path(root) / "other"
    parallel = grid.parallel_of({"tensor_model_parallel_size": 2})
    topology = init_topology(parallel)
    turned = MODEL.model_copy(update={"rope_theta": 50.0})
    stage = load_model(turned, old, parallel, topology)
    engine = HFEngine(old, ENGINE, dtype="float32") if rank == 0 else None
    sync = WeightSync(stage, old, topology=topology, engine=engine, config=CLOSE)
    with pytest.raises(GenerationError, match="differ from the trainer"):
        sync.push(1)
    engine = HFEngine(other, ENGINE, dtype="float32") if rank == 0 else None
    with pytest.raises(GenerationError, match="vocabulary"):
        WeightSync(stage, old, topology=topology, engine=engine)

    def fails(engine: Engine) -> None:
        raise GenerationError("somewhere", "no more prompts.", "-")

    with pytest.raises(GenerationError, match="no more prompts"):
        sync.run(fails)
    assert sync.run(lambda _: 7) == (7 if rank == 0 else None)


def test_disagreement_stops_every_rank(tmp_path: Path) -> None:
    pair(tmp_path, "Qwen2ForCausalLM-tied")
    other = make_tiny_model("Qwen2ForCausalLM", tmp_path / "other", tie_word_embeddings=True)
    tokenizer = other / "tokenizer.json"
    text = tokenizer.read_text()
    tokenizer.write_text(text.replace('"A":', '"X":', 1).replace('"B":', '"A":', 1))
    assert tokenizer.read_text() != text
    spawn(disagreements, 2, str(tmp_path))


def killed_in(sync: Any, number: int) -> None:
    """Have the engine killed while the next sync is at bucket `number`."""
    buckets = sync._buckets

    def killing() -> Iterator[Any]:
        sync._buckets = buckets
        for at, bucket in enumerate(buckets()):
            if at == number and sync._engine is not None:
                os.kill(sync._engine.pid, signal.SIGKILL)
            yield bucket

    sync._buckets = killing


def deaths(rank: int, world_size: int, root: str) -> None:
    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.generation import vllm_engine
    from megatron_reason.rollout.weight_sync import WeightSync

    sys.path.insert(0, root)
    vllm_engine.ENTRY = "small_engine:serve"
    folder = Path(root) / "Qwen2ForCausalLM-tied-1"
    topology = init_topology(grid.parallel_of({"pipeline_model_parallel_size": 2}))
    parallel = grid.parallel_of({"pipeline_model_parallel_size": 2})
    stage = load_model(MODEL, folder, parallel, topology)
    engine = None
    if rank == 0:
        config = EngineConfig(max_restarts=1)
        engine = vllm_engine.VllmEngine(folder, config, dtype="float32", log_folder=Path(root))
    anything = SyncConfig(probe_tolerance=1e9)
    sync = WeightSync(stage, folder, topology=topology, engine=engine, config=anything)
    killed_in(sync, 0)
    sync.push(3)
    if rank == 0:
        engine._deaths = 0
        (Path(root) / "die in Score").write_text("1")
    sync.push(4)
    told = [row[0] for row in engine.score([[1, 2]])] if engine else []

    def interrupted(engine: Any) -> list[Any]:
        whole = plain(engine.generate(PROMPTS, SAMPLING))
        os.kill(engine.pid, signal.SIGKILL)
        assert plain(engine.generate(PROMPTS, SAMPLING)) == whole
        # Again in the middle of a request, and while the probe is scored after that.
        (Path(root) / "die in Score").write_text("1")
        engine._config = EngineConfig(max_restarts=2)
        (Path(root) / "die after a prompt").write_text("1")
        assert plain(engine.generate(PROMPTS, SAMPLING)) == whole
        assert {logprobs for _, logprobs in whole} == {tuple(told)}
        assert engine.policy_version == 4
        (Path(root) / "die in Generate").write_text("9")
        return plain(engine.generate(PROMPTS, SAMPLING))

    with pytest.raises(EngineDiedError, match="exit code -9"):
        sync.run(interrupted)
    if engine is not None:
        assert not engine.is_open
        engine.close()


def test_killed_engine_gets_the_weights_of_all_ranks_back(tmp_path: Path) -> None:
    """In a sync, in its probe, before a request, in one, too often; with a small process."""
    pair(tmp_path, "Qwen2ForCausalLM-tied")
    (tmp_path / "small_engine.py").write_text(ENTRY)
    spawn(deaths, 2, str(tmp_path))


def damage_one_bucket() -> None:
    """Turn a bit of the next bucket, once it lies where the engine reads it."""
    from megatron_reason.generation.buckets import SharedBuffer

    fill = SharedBuffer.fill

    def damaged(buffer: SharedBuffer, bucket: Any) -> None:
        fill(buffer, bucket)
        buffer._memory[100] ^= 1
        SharedBuffer.fill = fill

    SharedBuffer.fill = damaged


def death_of_vllm(rank: int, world_size: int, root: str) -> None:
    from megatron_reason.engine.startup import load_model
    from megatron_reason.engine.topology import init_topology
    from megatron_reason.generation.vllm_engine import VllmEngine
    from megatron_reason.models.importer import import_hf
    from megatron_reason.rollout.weight_sync import WeightSync

    old, new = Path(root) / "1", Path(root) / "2"
    parallel = grid.parallel_of({"pipeline_model_parallel_size": 2})
    topology = init_topology(parallel)
    stage = load_model(MODEL, old, parallel, topology)
    config = EngineConfig(max_model_len=128, kv_cache_mb=64, max_num_seqs=8, max_restarts=1)
    engine = None
    if rank == 0:
        engine = VllmEngine(old, config, dtype="float32", log_folder=Path(root))
    sync = WeightSync(stage, old, topology=topology, engine=engine, config=CLOSE)
    import_hf(stage, new, topology)
    killed_in(sync, 0)
    report = sync.push(1)
    assert report.probe_largest < 1e-3
    if engine is not None:
        ((one, _), *_) = engine.generate(PROMPTS, SAMPLING)
        assert one.policy_version == 1
    import_hf(stage, old, topology)
    if engine is not None:
        first = engine.pid
        damage_one_bucket()
    assert sync.push(2).probe_largest < 1e-3
    if engine is not None:
        log = (Path(root) / "vllm.log").read_text()
        assert "its checksum is" in log
        assert engine.pid != first, "it was started again"
        ((one, _), *_) = engine.generate(PROMPTS, SAMPLING)
        assert one.policy_version == 2
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDiedError):
            engine.generate(PROMPTS, SAMPLING)
        engine.close()


def test_vllm_that_dies_in_a_sync_has_the_new_weights_after_it(tmp_path: Path) -> None:
    """Killed, or by a bucket that came damaged; the probe says so. Three starts of vLLM."""
    pytest.importorskip("vllm")
    for seed in (1, 2):
        make_tiny_model(
            "Qwen2ForCausalLM", tmp_path / str(seed), seed=seed, hidden_size=128,
            tie_word_embeddings=True,
        )  # fmt: skip
    spawn(death_of_vllm, 2, str(tmp_path))
