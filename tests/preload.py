"""What every rank of a distributed test imports, imported once.

`tests/distributed.py` has a server import this module and fork the ranks from it: seconds of
imports in each rank become milliseconds. Nothing here starts threads or touches torch's state.
"""

from megatron_reason import platform

with platform.cpu():
    import megatron.core.models.gpt  # noqa: F401
    import transformers  # noqa: F401

    import megatron_reason.engine.update
    import megatron_reason.models.exporter
    import megatron_reason.models.importer  # noqa: F401
