r"""The syntax of the regular expressions in schemas (ECMA-262), checked in one pass.

A broken one may break an engine, for everybody. Python's `re` is no judge of them: it knows other
escapes, and one `[\0-\uffff]` takes it milliseconds.
"""

import re

PATTERN_DEPTH_MAX = 64
"""Groups in groups: engines read them recursively."""

_LETTER = r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\u\{[0-9a-fA-F]{1,6}\}"
_TOKEN = re.compile(
    rf"""
      (?P<text>    {_LETTER} | \\. | \.)
    | (?P<class>   \[ \^? (?: \\. | [^\]\\] )* \])
    | (?P<open>    \( (?: \? (?: [:=!] | <[=!] | <[A-Za-z_$][\w$]*> ) )?)
    | (?P<close>   \))
    | (?P<repeat>  (?: [*+?] | \{{ [^}}]* \}}? ) \??)
    | (?P<start>   [\^|$])
    | (?P<broken>  [\[\\])
    | [^\\.\[()*+?{{^|$]+
    """,
    re.DOTALL | re.VERBOSE | re.ASCII,
)
_BRACES = re.compile(r"\{([0-9]{0,9})(?:,([0-9]{0,9}))?\}\??", re.ASCII)
_RANGE = re.compile(rf"({_LETTER}|\\.|[^\\])-({_LETTER}|\\.|[^\\])", re.DOTALL)


def pattern_fault(pattern: str) -> str | None:
    """What is wrong with it; None: nothing."""
    depth = 0
    can_repeat = False
    for token in _TOKEN.finditer(pattern):
        kind = token.lastgroup
        if kind == "broken":
            return f"with {_near(token)}, which does not end there; close or escape it"
        if kind == "class" and (fault := _class_fault(token[0])):
            return fault
        if kind == "repeat":
            fault = _repeat_fault(token) if can_repeat else None
            if not can_repeat:
                fault = f"with {_near(token)}, which repeats nothing; escape it, or remove it"
            if fault:
                return fault
        depth += (kind == "open") - (kind == "close")
        if not 0 <= depth <= PATTERN_DEPTH_MAX:
            break
        can_repeat = kind not in ("open", "start", "repeat")
    if depth > PATTERN_DEPTH_MAX:
        return f"with groups nested deeper than {PATTERN_DEPTH_MAX}; flatten it"
    if depth:
        return "whose groups do not close where they should; mind ( and )"
    return None


def _repeat_fault(token: re.Match[str]) -> str | None:
    """Braces that are no repetition: some engines read them as text, others as one all the same."""
    if token[0][0] != "{":
        return None
    repeat = _BRACES.fullmatch(token[0])
    least, most = (repeat[1], repeat[2]) if repeat else ("", None)
    if not (least or most) or (least and most and int(least) > int(most)):
        return (
            f"with {_near(token)}, which is no repetition such as {{2,5}}; "
            "write \\{ where the brace itself is meant"
        )
    return None


def _class_fault(text: str) -> str | None:
    for found in _RANGE.finditer(text, 2 if text.startswith("[^") else 1, len(text) - 1):
        low, high = _letter(found[1]), _letter(found[2])
        if low is not None and high is not None and low > high:
            return f"with the range {found[0][:32]!r}, which ends before it begins; turn it round"
    return None


def _letter(text: str) -> int | None:
    """The code point that is meant; None: it is an escape of more than one, or not one of ours."""
    if len(text) == 1:
        return ord(text)
    if len(text) == 2:
        return None if text[1].isalnum() else ord(text[1])
    return int(text[2:].strip("{}"), 16)


def _near(token: re.Match[str]) -> str:
    return repr(token.string[token.start() : token.start() + 32])
