"""Generates services/penstock/*/v1 from protos/: messages, gRPC stubs and their types."""

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def main(out: str) -> int:
    protos = sorted(str(p) for p in (ROOT / "protos").rglob("*.proto"))
    plugins = [
        f"--plugin=protoc-gen-{name}={Path(sys.executable).parent / f'protoc-gen-{name}'}"
        for name in ("mypy", "mypy_grpc")
    ]
    includes = [f"-I{ROOT / 'protos'}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    outs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    code: int = protoc.main(["protoc", *includes, *plugins, *outs, *protos])
    for package in Path(out).glob("penstock/*/v1"):
        (package / "__init__.py").touch()
        (package.parent / "__init__.py").touch()
    (Path(out) / "penstock" / "__init__.py").touch()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "services")))
