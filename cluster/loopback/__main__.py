"""`python -m cluster.loopback --listen HOST:PORT --orch-secret S`."""

import argparse
import logging
import sys

from cluster.commands.orchestrator import run
from cluster.errors import ConfigError


def main() -> int:
    """Runs the orchestrator until it is told to stop."""
    parser = argparse.ArgumentParser(prog="cluster.loopback", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:8935", metavar="HOST:PORT")
    parser.add_argument("--orch-secret", required=True, metavar="SECRET")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        return run(listen=arguments.listen, secret=arguments.orch_secret)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
