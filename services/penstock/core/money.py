"""Money: int64 nano-USD. No float ever touches it.

Prices are integer nano-USD per million tokens, so that one ceil an attempt is the only rounding.
"""

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

NANO_PER_USD = 1_000_000_000
TOKENS_PER_PRICE = 1_000_000
NANO_PLACES = 9
INT64_MAX = 2**63 - 1

AMOUNT_CHARACTERS_MAX = 64
"""Of an amount as text: more than any that fits, and little to parse."""
AMOUNT_EXPONENT_MAX = 10
"""int64 nano-USD end below 10^10 USD."""


@dataclass(frozen=True, slots=True)
class Price:
    """Nano-USD per million tokens."""

    input_nano_usd_per_mtok: int
    cached_input_nano_usd_per_mtok: int
    output_nano_usd_per_mtok: int

    def cost_nano_usd(
        self, *, prompt_tokens: int, completion_tokens: int, cached_prompt_tokens: int = 0
    ) -> int:
        """What the tokens cost; cached tokens are a part of the prompt's. One ceil."""
        assert 0 <= cached_prompt_tokens <= prompt_tokens
        assert completion_tokens >= 0
        scaled = (
            (prompt_tokens - cached_prompt_tokens) * self.input_nano_usd_per_mtok
            + cached_prompt_tokens * self.cached_input_nano_usd_per_mtok
            + completion_tokens * self.output_nano_usd_per_mtok
        )
        return -(-scaled // TOKENS_PER_PRICE)

    def bound_nano_usd(self, *, prompt_tokens: int, completion_tokens: int) -> int:
        """Upper bound over every split of the prompt into cached and fresh tokens."""
        dearest = max(self.input_nano_usd_per_mtok, self.cached_input_nano_usd_per_mtok)
        worst = Price(dearest, dearest, self.output_nano_usd_per_mtok)
        return worst.cost_nano_usd(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def parse_usd(text: str) -> int:
    """Decimal USD as nano-USD.

    Raises:
        ValueError: not a plain finite decimal, finer than a nano-USD, negative or over int64.
    """
    refusal = ValueError(f"{text!r} is not between 0 and {format_usd(INT64_MAX)} USD")
    if len(text) > AMOUNT_CHARACTERS_MAX:
        raise ValueError(f"an amount of USD has at most {AMOUNT_CHARACTERS_MAX} characters")
    try:
        # Decimal also takes underscores and the digits of every script.
        value = Decimal(text.strip() if text.isascii() and "_" not in text else "")
    except InvalidOperation:
        raise ValueError(f"{text!r} is no decimal amount of USD, e.g. 12.50") from None
    if not value.is_finite():
        raise ValueError(f"{text!r} is no finite amount of USD")
    if value < 0 or value.adjusted() > AMOUNT_EXPONENT_MAX:
        raise refusal
    # By integers alone: Decimal's products are rounded to 28 digits, and its exponents overflow.
    _, digits, exponent = value.as_tuple()
    nano: int = int("".join(map(str, digits)))
    rest = 0
    shift = int(exponent) + NANO_PLACES
    if shift < 0:
        nano, rest = divmod(nano, 10 ** min(-shift, len(digits)))
    else:
        nano *= 10 ** min(shift, AMOUNT_EXPONENT_MAX + NANO_PLACES)
    if rest:
        raise ValueError(f"{text!r} is finer than a nano-USD (9 decimal places)")
    if nano > INT64_MAX:
        raise refusal
    return nano


def format_usd(nano_usd: int) -> str:
    """Exact decimal USD with at least two and at most nine places."""
    sign = "-" if nano_usd < 0 else ""
    whole, rest = divmod(abs(nano_usd), NANO_PER_USD)
    places = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{places}"
