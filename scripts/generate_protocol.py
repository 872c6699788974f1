"""Generates the modules of cluster/protocol from lp_rpc.proto.

python scripts/generate_protocol.py           writes them
python scripts/generate_protocol.py --check   fails if what is checked in differs
"""

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOCOL = ROOT / "cluster" / "protocol"
# Where pip put the two mypy plugins: the directory need not be on the PATH.
BIN = Path(sys.executable).parent
# protoc derives module names from paths relative to its include root, so the root is the
# repository's: the generated modules then import each other as cluster.protocol.*.
SOURCE = "cluster/protocol/lp_rpc.proto"


def generate(destination: Path) -> dict[str, bytes]:
    """Returns the generated files, name to content, as written below `destination`.

    Raises:
        SystemExit: protoc refused the source.
    """
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={ROOT}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--plugin=protoc-gen-mypy={BIN / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={BIN / 'protoc-gen-mypy_grpc'}",
            f"--python_out={destination}",
            f"--grpc_python_out={destination}",
            f"--mypy_out={destination}",
            f"--mypy_grpc_out={destination}",
            SOURCE,
        ]
    )
    if status != 0:
        raise SystemExit(f"protoc exited with status {status}")
    return {path.name: path.read_bytes() for path in destination.glob("cluster/protocol/*.py*")}


def main() -> int:
    """Writes or checks the generated modules and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        generated = generate(Path(scratch))
    stale = [
        name
        for name, content in generated.items()
        if not (PROTOCOL / name).is_file() or (PROTOCOL / name).read_bytes() != content
    ]
    if check:
        for name in stale:
            print(
                f"cluster/protocol/{name} differs from {SOURCE}: run scripts/generate_protocol.py"
            )
        return 1 if stale else 0
    for name in stale:
        (PROTOCOL / name).write_bytes(generated[name])
        print(f"wrote cluster/protocol/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
