"""The page of the proofs: each command writes its own part."""

from pathlib import Path

from proofs import page


def test_each_command_replaces_its_own_part_alone(tmp_path: Path) -> None:
    path = tmp_path / "proofs.md"

    page.write("prove-mutants", "by b", ("rule", "by"), [("no lock", "a|b")], "1 of 1.", path)
    page.write("prove", "by a", ("proof",), [("races",)], "All hold.", path)
    page.write("prove-mutants", "by c", ("rule", "by"), [("no lock", "x\ny")], "2 of 2.", path)

    text = path.read_text()
    assert text.startswith("# The proofs of the ledger\n")
    assert "## Proofs\n\nby a\n\n| proof |\n|---|\n| races |\n\nAll hold.\n\n## Mutants\n" in text
    end = "## Mutants\n\nby c\n\n| rule | by |\n|---|---|\n| no lock | x<br>y |\n\n2 of 2.\n"
    assert text.endswith(end)


def test_what_was_never_written_is_said(tmp_path: Path) -> None:
    path = tmp_path / "proofs.md"

    page.write("prove", "by a", ("proof",), [("a|b",)], "All hold.", path)

    text = path.read_text()
    assert "| a\\|b |" in text
    assert text.endswith(
        "## Mutants\n\nNothing was written yet. `make prove-mutants ARGS='--write'` does.\n"
    )
