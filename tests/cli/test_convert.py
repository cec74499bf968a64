import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_reason.errors import ConversionError, TopologyError
from megatron_reason.pipeline.conversion import compare
from tests.cli.test_app import mreason
from tests.models.tiny import FAMILIES, save_tiny


def test_placeholder():
    assert FAMILIES and save_tiny
