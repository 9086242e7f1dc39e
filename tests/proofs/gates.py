"""Gates between the statements of a PL/pgSQL function: a session stands still at one of them, and
meanwhile another commits.

The functions are read from the database, as they are there, and parsed as far as that needs: where
statements begin. So it does not matter how the ledger is cut into functions, or on which lines.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import asyncpg

GATED = "proof-gated"
"""The application_name of sessions that gates stop; others pass."""
LOCK = 715_827_882
"""Of PostgreSQL's advisory locks: who has it keeps the gate closed."""
_GATE = f"""
    CREATE TABLE proof_gap (name text);
    INSERT INTO proof_gap VALUES ('');
    CREATE FUNCTION proof_gate(gap text) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
    BEGIN
        IF current_setting('application_name') = '{GATED}'
            AND gap = (SELECT name FROM proof_gap) THEN
            PERFORM pg_advisory_lock_shared({LOCK});
            PERFORM pg_advisory_unlock_shared({LOCK});
        END IF;
    END $$;
"""
# Only a volatile function sees what others commit while it runs: a stable one sees what the
# statement does that calls it.
_FUNCTIONS = """
    SELECT p.proname AS name, p.prosrc AS body, pg_get_functiondef(p.oid) AS definition,
        l.lanname = 'plpgsql' AND p.provolatile = 'v' AS has_gaps, p.provolatile <> 'i' AS asks
    FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
    WHERE p.pronamespace = 'public'::regnamespace AND p.prokind = 'f'
"""
_TOKEN = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|(\$\w*\$).*?\1|\"[^\"]*\"|[A-Za-z_]\w*|[();]", re.DOTALL
)
_NO_STATEMENT = ("END", "ELSE", "ELSIF", "ELSEIF", "EXCEPTION", "WHEN")
_QUERY = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|PERFORM|EXECUTE|CALL|FROM)\b", re.IGNORECASE)
_NO_QUERY = re.compile(r"IS\s+(NOT\s+)?DISTINCT\s+FROM|extract\s*\(\s*epoch\s+FROM", re.IGNORECASE)
_CALL = re.compile(r"\b(\w+)\s*\(")


@dataclass(frozen=True)
class Gap:
    """Before one statement. `name`: function and number, in the order of the text."""

    name: str
    before: str

    def __str__(self) -> str:
        return f"{self.name} (before `{self.before}`)"


@dataclass(frozen=True)
class Statement:
    """Of a function's body: where it begins, and its text (of a loop or IF: up to its first)."""

    start: int
    text: str


def statements(body: str) -> list[Statement]:
    """All that are executed, in the order of the text."""
    return [
        Statement(start, text)
        for start, text in _pieces(body)
        if not text.upper().startswith(_NO_STATEMENT)
    ]


def _pieces(body: str) -> Iterator[tuple[int, str]]:
    """What stands between `;`, BEGIN, LOOP and the THEN and ELSE that are no CASE's."""
    depth = cases = start = 0
    declares = True
    for token in _TOKEN.finditer(body):
        word = token[0].upper()
        depth += {"(": 1, ")": -1}.get(word, 0)
        if depth or word.startswith(("--", "/*", "'", "$", '"')):
            continue
        if word == "END" and cases:
            cases -= 1
            continue
        cases += word == "CASE"
        if cases or word not in {";", "BEGIN", "LOOP", "THEN", "ELSE", "DECLARE"}:
            continue
        if not declares and word in {";", "LOOP", "THEN"}:
            text = re.sub(r"--[^\n]*", "", body[start : token.end()]).strip()
            if text not in {";", "LOOP"}:
                yield start, text
        declares = word == "DECLARE" or (declares and word != "BEGIN")
        start = token.end()


async def install(connection: asyncpg.Connection, function: str) -> list[Gap]:
    """Puts a gate before each statement of the function, and of those that it calls, that asks the
    database or writes to it; between two others nobody could tell the difference.
    """
    await connection.execute(_GATE)
    known = {row["name"]: row for row in await connection.fetch(_FUNCTIONS)}
    asking = {name for name, row in known.items() if row["asks"]}
    gaps: list[Gap] = []
    for name in _reached(function, known):
        row = known[name]
        if not row["has_gaps"]:
            continue
        body, own = _gated(name, row["body"], asking)
        gaps += own
        await connection.execute(row["definition"].replace(row["body"], body))
    return gaps


def _reached(function: str, known: dict[str, asyncpg.Record]) -> list[str]:
    """It, and what it calls."""
    reached = [function]
    for name in reached:
        called = dict.fromkeys(_CALL.findall(known[name]["body"]))
        reached += (other for other in called if other in known and other not in reached)
    return reached


def _gated(name: str, body: str, asking: set[str]) -> tuple[str, list[Gap]]:
    gaps: list[Gap] = []
    pieces: list[str] = []
    end = 0
    for statement in statements(body):
        text = _NO_QUERY.sub("", statement.text)
        if not _QUERY.search(text) and asking.isdisjoint(_CALL.findall(text)):
            continue
        gap = Gap(f"{name} {len(gaps) + 1}", " ".join(statement.text.split())[:60])
        gaps.append(gap)
        pieces += body[end : statement.start], f" PERFORM proof_gate('{gap.name}');"
        end = statement.start
    return "".join([*pieces, body[end:]]), gaps


async def choose(connection: asyncpg.Connection, gap: Gap) -> None:
    """From now on gated sessions stop there while the connection has LOCK."""
    await connection.execute("UPDATE proof_gap SET name = $1", gap.name)
