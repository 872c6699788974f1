"""What a replica is constructed with: the `args` of its application in the Serve config.

Stands alone so that whoever renders a Serve config imports neither Ray nor torch.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

DEPLOYMENT = "model"
"""The name of the one deployment of every application; a Serve config sets its replicas by it."""


class ModelArgs(BaseModel):
    """One model and how to run it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    pipeline: str
    """A name in `deployments.registry.PIPELINES`."""
    model_id: str
    """The Hugging Face id, `organisation/name`."""
    models_dir: Path
    """A directory in the Hugging Face cache layout, the same path on every node."""
    engine: str | None = None
    """aiModels.json's `engine`; None: the pipeline's own."""
    gpu_share: float = Field(default=1.0, gt=0, le=1)
    """Part of its GPU's memory that the model may fill, where it would fill what there is."""
    sfast: bool = False
    """aiModels.json's SFAST flag: compile a diffusion model's blocks."""
    deepcache: bool = False
    """aiModels.json's DEEPCACHE flag: reuse a diffusion model's work between steps."""
