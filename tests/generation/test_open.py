import subprocess
import sys
from pathlib import Path

from megatron_reason.config.sampling import EngineConfig
from megatron_reason.generation.hf_engine import HFEngine
from megatron_reason.generation.open import open_engine


def test_transformers_is_opened_by_name(smollm2: Path, tmp_path: Path):
    config = EngineConfig(name="transformers")
    engine = open_engine(smollm2, config, dtype="bfloat16", log_folder=tmp_path)
    assert isinstance(engine, HFEngine)
    engine.close()


def test_missing_vllm_is_an_error_with_the_way_out(tmp_path: Path):
    """In an interpreter that cannot find vLLM, and that must not need it until then."""
    script = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *rest: None if name == 'vllm' else find(name, *rest)\n"
        "from pathlib import Path\n"
        "from megatron_reason.config.sampling import EngineConfig\n"
        "from megatron_reason.errors import PlatformError\n"
        "from megatron_reason.generation.open import open_engine\n"
        "try:\n"
        f"    open_engine(Path({str(tmp_path)!r}), EngineConfig(), dtype='bfloat16',"
        f" log_folder=Path({str(tmp_path)!r}))\n"
        "except PlatformError as error:\n"
        "    sys.stdout.write(str(error))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, timeout=120, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "pip install vllm" in found.stdout, found.stderr
    assert "engine.name: transformers" in found.stdout
