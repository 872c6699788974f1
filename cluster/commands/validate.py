"""`livepeer-ray validate`: what an aiModels.json says, or all that is wrong with it."""

import sys

from cluster.ai_models import format_table, load_ai_models
from cluster.errors import AIModelsError


def run(source: str) -> int:
    """Prints the table to stdout and warnings or problems to stderr.

    Args:
        source: a file or the short form, as `load_ai_models` takes it.

    Returns:
        The exit status: 0, or 2 where there are problems.
    """
    try:
        ai_models = load_ai_models(source)
    except AIModelsError as error:
        sys.stderr.writelines(f"{problem}\n" for problem in error.problems)
        return 2
    sys.stdout.write(f"{format_table(ai_models)}\n")
    sys.stderr.writelines(f"warning: {warning}\n" for warning in ai_models.warnings)
    return 0
