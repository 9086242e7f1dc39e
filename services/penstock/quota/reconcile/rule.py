"""How what a provider billed is shared out. Pure; exact integers; the same input, the same result.

Of the attempts of one group (a day, a model, an account) some are exact. The others are open:
settled by an estimate, or in suspense. Both stand at conservative bounds, so what they really cost
lies between 0 and their bounds. Together they are brought to

    target = reported - exact, but at least 0 and at most the sum of their bounds

and each gets its part in proportion to its bound: in the order of their ids, attempt i gets
floor(target * c(i) / total) - floor(target * c(i - 1) / total), where c(i) is the sum of the bounds
up to i. The parts sum to the target to the nano, none is negative or above its bound, and none is
further than a nano from its exact proportion; and a page of attempts needs to know only where the
one before ended. What is left, reported - exact - target, is drift: no entry explains it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

_DATE_SUFFIX = re.compile(r"-\d{4}-\d{2}-\d{2}$", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """`model` without its date. `account_id` 0: whoever made the attempts. Rows of projects that no
    account stands behind have `is_ours` False: nothing of the ledger is compared with them.
    """

    day: date
    model: str
    account_id: int = 0
    is_ours: bool = True


@dataclass(slots=True)
class Reported:
    """What the provider says of a group."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    amount_nano_usd: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """What the ledger says of a group.

    Attributes:
        exact_nano_usd: Posted by settlements that are no estimates.
        open_posted_nano_usd: Posted by estimates, and by what reconciliation settled.
        suspense_nano_usd: Of abandoned attempts.
        bound_nano_usd: Most that the open attempts can have cost together.
    """

    attempts: int = 0
    exact_nano_usd: int = 0
    open_posted_nano_usd: int = 0
    suspense_nano_usd: int = 0
    bound_nano_usd: int = 0
    attempts_in_suspense: int = 0

    @property
    def attempts_settled(self) -> int:
        return self.attempts - self.attempts_in_suspense

    @property
    def posted_nano_usd(self) -> int:
        return self.exact_nano_usd + self.open_posted_nano_usd


@dataclass(frozen=True, slots=True)
class Plan:
    """What the open attempts of a group are brought to, and what their bounds sum to."""

    target_nano_usd: int
    bound_nano_usd: int

    def parts(self, before_nano_usd: int, bounds: Sequence[int]) -> list[int]:
        """Of the attempts with these bounds, where those before them sum to `before_nano_usd`."""
        found = []
        reached = before_nano_usd
        given = self._share(reached)
        for bound in bounds:
            reached += bound
            upto = self._share(reached)
            found.append(upto - given)
            given = upto
        return found

    def _share(self, reached: int) -> int:
        # An attempt that came after the plan was made finds nothing left; the next pass sees it.
        if self.bound_nano_usd == 0 or reached >= self.bound_nano_usd:
            return self.target_nano_usd
        return self.target_nano_usd * reached // self.bound_nano_usd


def plan(reported_nano_usd: int, standing: Standing) -> Plan:
    wanted = max(reported_nano_usd - standing.exact_nano_usd, 0)
    return Plan(min(wanted, standing.bound_nano_usd), standing.bound_nano_usd)


def base_of(model: str) -> str:
    """The model without its date: what a provider bills by date may be asked for without."""
    return _DATE_SUFFIX.sub("", model)


@dataclass(frozen=True, slots=True)
class Accounts:
    """Whose accounts stand behind which project and key; the most specific one counts: project and
    key, then key, then project, then any.
    """

    by_source: Mapping[tuple[str, str], int]

    def group(self, day: date, model: str, project: str, key: str) -> Group:
        if not self.by_source:
            return Group(day, base_of(model))
        for source in ((project, key), ("", key), (project, ""), ("", "")):
            account_id = self.by_source.get(source)
            if account_id is not None:
                return Group(day, base_of(model), account_id)
        return Group(day, base_of(model), is_ours=False)


def rounding_nano_usd(attempts: int, rows: int) -> int:
    """What rounding alone explains: each attempt's price is rounded up to a nano-USD when it is
    settled, and each line of an export to the nearest.
    """
    return attempts + rows
