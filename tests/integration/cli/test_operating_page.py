"""docs/operating.md: each of its commands, in its order, against real quota processes."""

import re
import shlex
from pathlib import Path

from support.operating import Operator

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "operating.md"


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


async def test_every_command_of_the_page_succeeds(own_operator: Operator) -> None:
    assert len(commands()) > 20
    failed = []
    for line in commands():
        program, *words = shlex.split(line)
        assert "penstock" == program
        result = await own_operator.ask(*words)
        if result.exit_code:
            failed.append((line, result.output))
    assert [] == failed
    assert (await own_operator.ledger.audit()).ok
