"""What a training run exports: its weights as a Hugging Face folder that says how it was trained.

Not here: how a folder is written (`models/exporter.py`).
"""

from pathlib import Path

from megatron_reason.engine.startup import Trainable
from megatron_reason.generation.templates import exported_jinja
from megatron_reason.models.companions import Changes
from megatron_reason.rollout.push import Exported
from megatron_reason.training.jobs import TrainJob


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
