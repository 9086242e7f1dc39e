"""The catalogue that the parts read: a copy of the last good `penstock.yaml`, in the state folder.

No part reads the file itself. One that is started again while the file is faulty, or away, starts
with what the others have; and what this machine changes in the file (paths, the engine) is changed
in one place. The parts watch the copy as they would watch the file.
"""

from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from penstock.cli.errors import CliError
from penstock.cli.options import VLLM
from penstock.cli.processes import Running
from penstock.cli.state import State, write_secret
from penstock.core.catalogue import Catalogue
from penstock.core.config import ConfigError, LiveCatalogue, load, parse, read
from penstock.core.config_tree import read_tree

VLLM_FORMAT = "w8a8"
"""What vLLM's CPU build answers best with (the weights are converted once from the GGUF)."""


def put_into_use(config: Path, engine: str, state: State) -> LiveCatalogue:
    """What the parts of this `up` read; its `watch` renews the copy.

    Raises:
        CliError: the file became faulty since it was checked, or the copy cannot be written.
    """

    def kept(path: Path) -> Catalogue:
        text, catalogue = _here(path, engine)
        try:
            write_secret(state.config_in_use, text)
        except CliError as error:
            raise ConfigError([f"{error.message}; then save {path} again"]) from None
        return catalogue

    try:
        return LiveCatalogue(config, kept)
    except ConfigError as error:
        raise CliError(str(error)) from None


def why_not_in_use(state: State, running: Running) -> list[str]:
    """The faults for which the file on disk is not what the parts have; empty: it is."""
    config = Path(running.options["config"])
    try:
        _, catalogue = _here(config, running.options.get("engine", ""))
        if catalogue != load(state.config_in_use):
            return [f"{config}: was changed and is not in use yet"]
    except ConfigError as error:
        return error.faults
    return []


def _here(config: Path, engine: str) -> tuple[str, Catalogue]:
    """The file as it is meant on this machine: its text and what that says.

    Raises:
        ConfigError: with all faults of the file.
    """
    text = read(config)
    parse(text, str(config))
    value = read_tree(text).value
    for model in value.get("models", {}).values():
        if not model["source"].startswith(("package:", "hf:")):
            # A relative path is relative to the file that it stands in, and this is another one.
            model["source"] = str(config.parent / Path(model["source"]).expanduser())
        if engine == VLLM and model.get("engine", "llamacpp") == "llamacpp":
            model["engine"] = VLLM
            model["format"] = VLLM_FORMAT
    copy = StringIO()
    YAML().dump(value, copy)
    return copy.getvalue(), parse(copy.getvalue(), str(config))
