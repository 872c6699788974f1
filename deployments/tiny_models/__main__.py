"""`python -m deployments.tiny_models DIR`."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from deployments.errors import LivepeerRayError
from deployments.loading import quiet_libraries
from deployments.tiny_models import RECIPES, write_tiny_models

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes tiny models from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments.tiny_models", description="Writes tiny random-weight models."
    )
    parser.add_argument("directory", type=Path, help="where to write models and aiModels.json")
    parser.add_argument("--pipeline", action="append", default=[], choices=sorted(RECIPES))
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_libraries()
    try:
        models = write_tiny_models(options.directory, options.pipeline)
    except (LivepeerRayError, OSError) as error:
        parser.error(str(error))
    for model in models:
        logger.info("%s: %s", model.pipeline, model.model_id)


if __name__ == "__main__":
    main()
