"""Where a model's weights lie: `source` of the catalogue to a file or folder on this machine."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

PACKAGE_PREFIX = "package:"
HUB_PREFIX = "hf:"
HUB_REPOSITORY_PARTS = 2
"""A repository of the hub is `<owner>/<name>`; what follows is a file in it."""


class ModelNotFound(Exception):
    """No weights there; says what was looked for, where, and the remedy."""


class Hub(Protocol):
    """Downloads from a model hub, once: later calls find the copy on disk."""

    def file(self, repository: str, name: str) -> Path: ...

    def folder(self, repository: str) -> Path: ...


class HuggingFaceHub:
    """`huggingface_hub`, with its own cache and variables (HF_HOME, HF_TOKEN, HF_ENDPOINT)."""

    def file(self, repository: str, name: str) -> Path:
        return Path(str(self._library().hf_hub_download(repository, name)))

    def folder(self, repository: str) -> Path:
        return Path(str(self._library().snapshot_download(repository)))

    @staticmethod
    def _library() -> Any:
        try:
            import huggingface_hub  # optional: only a source `hf:…` needs it
        except ImportError:
            raise ModelNotFound(
                "a source `hf:…` needs the package huggingface_hub, the extra `hub` of penstock: "
                f"{sys.executable} -m pip install 'huggingface_hub>=0.30'"
            ) from None
        return huggingface_hub


def resolve(source: str, *, base: Path, hub: Hub | None = None) -> Path:
    """The file or folder that `source` names.

    Args:
        source: `package:<module>/<glob>`, `hf:<owner>/<repository>[/<file>]`, or a path.
        base: What a relative path is relative to: the folder of penstock.yaml.
        hub: Where `hf:` sources come from; absent: Hugging Face.

    Raises:
        ModelNotFound: nothing, or more than one file, is there.
    """
    if source.startswith(PACKAGE_PREFIX):
        return _in_package(source)
    if source.startswith(HUB_PREFIX):
        return _in_hub(source, hub or HuggingFaceHub())
    path = base / Path(source).expanduser()
    if not path.exists():
        raise ModelNotFound(f"{source}: there is no {path}; is the path right?")
    return path.resolve()


def _in_package(source: str) -> Path:
    module, _, pattern = source.removeprefix(PACKAGE_PREFIX).partition("/")
    if not module.isidentifier() or not pattern or pattern.startswith("/") or ".." in pattern:
        raise ModelNotFound(f"{source}: write package:<module>/<glob>, e.g. package:m/*.gguf")
    # Found, not imported: such a package's code may need things that are not installed.
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotFound(f"{source}: the package {module} is not installed (make env)")
    found = sorted(
        p for where in spec.submodule_search_locations for p in Path(where).glob(pattern)
    )
    if len(found) != 1:
        listed = ", ".join(p.name for p in found) or "nothing"
        raise ModelNotFound(f"{source}: must match one file of {module}, matches {listed}")
    return found[0]


def _in_hub(source: str, hub: Hub) -> Path:
    parts = source.removeprefix(HUB_PREFIX).split("/")
    if len(parts) < HUB_REPOSITORY_PARTS or not all(parts):
        raise ModelNotFound(f"{source}: write hf:<owner>/<repository>[/<file>]")
    repository = "/".join(parts[:HUB_REPOSITORY_PARTS])
    name = "/".join(parts[HUB_REPOSITORY_PARTS:])
    try:
        path = hub.file(repository, name) if name else hub.folder(repository)
    except ModelNotFound:
        raise
    except Exception as error:
        raise ModelNotFound(f"{source}: cannot be had from the hub: {error}") from error
    if not path.exists():
        raise ModelNotFound(f"{source}: the hub's copy {path} is not there")
    return path
