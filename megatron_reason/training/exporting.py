"""What a training run exports: its weights as a Hugging Face folder that says how it was trained.

Not here: how a folder is written (`models/exporter.py`).
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from megatron_reason.engine.startup import Trainable
from megatron_reason.generation.templates import exported_jinja
from megatron_reason.models.companions import Changes
from megatron_reason.models.exporter import export_hf
from megatron_reason.schema.topology import Topology
from megatron_reason.training.jobs import TrainJob


@dataclass(frozen=True)
class Exported:
    """A model and the folder in which others find it."""

    stage: nn.Module
    """This rank's pipeline stage."""
    source: Path
    """Folder the model was imported from."""
    folder: Path
    """Folder that is written."""
    topology: Topology
    changes: Changes

    def write(self) -> None:
        """Write the present weights; all ranks call it."""
        export_hf(self.stage, self.source, self.folder, self.topology, self.changes)


def exported(job: TrainJob, trainable: Trainable, folder: Path) -> Exported:
    """The model of `trainable` as it is to be written to `folder`, at any time of the run."""
    template = None if job.template is None else exported_jinja(job.template)
    return Exported(
        stage=trainable.model.module,
        source=job.model_folder,
        folder=folder,
        topology=trainable.topology,
        changes=Changes(job.model.rope_theta, job.model.context_length, template),
    )
