"""Whatever lies in `penstock.yaml`, loading it gives a catalogue or tells its faults."""

from pathlib import Path

import hypothesis.strategies as st
from hypothesis import example, given, settings

import penstock
from penstock.core.config import ConfigError, load

DEFAULT = (Path(penstock.__file__).parent / "penstock.yaml").read_text()
"""What most operators begin with. Its models are cut to a few: each takes as long as the others."""
BOOK, ALIASES = DEFAULT.index("      gpt-4o:"), DEFAULT.index("# Names that requests use")
LINES = (DEFAULT[:BOOK] + DEFAULT[ALIASES:]).splitlines(keepends=True)

SCRAPS = [
    *("&a ", "*a", "<<: *a", "<<: [*a, *a]", "<<: 3", "!secret ", "!!set ", "!!int ", "!!bool "),
    *("!!float ", "!!binary ", "!!timestamp ", "!!null ", "!!omap ", "!!python/object:x ", "! "),
    *("2026-11-31", "2026-13-45T99:99:99Z", "0x" + "f" * 5000, "9" * 5000, ".inf", ".nan", "1e999"),
    *("[" * 40, "{" * 40, "- " * 40, "? ", ": ", ": {}", "? [a] : b", "~", "null", "true", "-1"),
    *("%YAML 1.1\n---\n", "%YAML 9.9\n---\n", "%TAG ! x\n---\n", "---\n", "...\n", "|\n", ">-\n"),
    *(
        "'",
        '"',
        '"\\x',
        '"\\ud800"',
        "\t",
        "\0",
        "\x85",
        "\u2028",
        "\ufeff",
        "\U0001f600",
        "#",
        "@",
        "`",
    ),
    *(
        "http://[",
        "sk-key",
        "a/b",
        "local/x",
        "''",
        "[]",
        "[1, {}]",
        "{a: [b]}",
        "_",
        "0o9",
        "+",
        "-",
    ),
]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """The example with a few of its lines changed, moved, repeated, dropped or cut."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        column = draw(st.integers(0, len(line)))
        scrap = draw(st.sampled_from(SCRAPS) | st.text(max_size=8))
        match draw(st.sampled_from(["insert", "value", "repeat", "drop", "move", "indent"])):
            case "insert":
                lines[at] = line[:column] + scrap + line[column:]
            case "value":
                name, colon, _ = line.partition(":")
                lines[at] = f"{name}{colon} {scrap}\n"
            case "repeat":
                lines.insert(at, line)
            case "drop":
                del lines[at]
                lines = lines or ["\n"]
            case "move":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
            case "indent":
                lines[at] = " " * draw(st.integers(0, 9)) + line.lstrip(" ")
    return "".join(lines)


def loaded(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    faults = []
    try:
        load(path)
    except ConfigError as error:
        faults = error.faults or [""]
    assert [] == [fault for fault in faults if not fault.startswith(f"{path}:")]


@settings(max_examples=300)
@given(text=mutated())
def test_a_mutated_file_is_a_catalogue_or_told(text: str, tmp_path_factory) -> None:
    loaded(tmp_path_factory.getbasetemp() / "mutated.yaml", text.encode(errors="replace"))


@settings(max_examples=300)
@given(data=st.binary(max_size=64) | st.text(max_size=64).map(lambda t: t.encode(errors="replace")))
@example(data=b"a: &a {<<: *a}")
@example(data=b"%YAML 1.1\n---\nversion: 1:1\n")
@example(data=b"\xff\xfev\x00:\x00 \x001\x00")
def test_any_bytes_are_told(data: bytes, tmp_path_factory) -> None:
    loaded(tmp_path_factory.getbasetemp() / "bytes.yaml", data)
