"""What the independent ledger (auditor.py) knows: accounts, budgets, windows, grants."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from zoneinfo import ZoneInfo

from penstock.quota.ledger import Reserve

UNITS = ("nano_usd", "requests", "tokens", "in_flight")
WINDOWS = ("minute", "hour", "day", "week", "month", "total")
FOREVER = datetime.max.replace(tzinfo=UTC)
_FIXED = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1)}


@dataclass
class Balance:
    posted: int = 0
    held: int = 0
    suspense: int = 0

    @property
    def used(self) -> int:
        return self.posted + self.held + self.suspense


@dataclass
class ScopeModel:
    """Globs; empty: everything."""

    providers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def covers(self, reserve: Reserve) -> bool:
        return (
            _matches(self.providers, reserve.provider)
            and _matches(self.models, reserve.model, f"{reserve.provider}/{reserve.model}")
            and all(reserve.tags.get(name) == value for name, value in self.tags.items())
        )


def _matches(globs: tuple[str, ...], *names: str) -> bool:
    return not globs or any(fnmatchcase(name, glob) for glob in globs for name in names)


@dataclass
class BudgetModel:
    account_id: int
    unit: str
    window: str
    limit: int | None
    zone: str = "UTC"
    scope: ScopeModel = field(default_factory=ScopeModel)
    id: int = 0
    closed: bool = False

    def turn(self) -> tuple[int, int, int]:
        return UNITS.index(self.unit), WINDOWS.index(self.window), self.id

    def close(self) -> None:
        """What it holds is still counted, and limited no more."""
        self.closed, self.limit = True, None

    def applies(self, reserve: Reserve) -> bool:
        return not self.closed and self.scope.covers(reserve)

    def began_at(self, now: datetime) -> datetime | None:
        """Of the window that is open: UTC for minutes and hours, else the local date."""
        if self.window == "total":
            return None
        if self.window in _FIXED:
            began = now.astimezone(UTC).replace(second=0, microsecond=0, tzinfo=None)
            return began if self.window == "minute" else began.replace(minute=0)
        day = now.astimezone(ZoneInfo(self.zone)).date()
        if self.window == "week":
            day -= timedelta(days=day.weekday())
        if self.window == "month":
            day = day.replace(day=1)
        return datetime(day.year, day.month, day.day)  # noqa: DTZ001 - a local date

    def ends_at(self, now: datetime) -> datetime:
        """The first instant of the next window."""
        began = self.began_at(now)
        assert began is not None
        if self.window in _FIXED:
            return (began + _FIXED[self.window]).replace(tzinfo=UTC)
        if self.window == "month":
            following = (began + timedelta(days=31)).replace(day=1)
        else:
            following = began + timedelta(days=1 if self.window == "day" else 7)
        # Of a midnight that comes twice `fold` 0 is the first; of one that never comes, the jump.
        return following.replace(tzinfo=ZoneInfo(self.zone)).astimezone(UTC)


@dataclass
class GrantModel:
    account_id: int
    amount: int
    starts_at: datetime
    ends_at: datetime = FOREVER
    scope: ScopeModel = field(default_factory=ScopeModel)
    commercial_use: bool = True
    id: int = 0
    posted: int = 0
    held: int = 0
    suspense: int = 0
    lapsed: int = 0

    @property
    def rest(self) -> int:
        return self.amount - self.posted - self.held - self.suspense - self.lapsed

    def applies(self, reserve: Reserve) -> bool:
        return self.scope.covers(reserve)


@dataclass
class AccountModel:
    """`org_id` of a team and a key, `team_id` of a key."""

    kind: str
    org_id: int | None = None
    team_id: int | None = None
    prepaid: bool = False
    commercial: bool = False
    suspended: bool = False
    revoked: bool = False


@dataclass
class WorldModel:
    """Accounts by id; `pools`: the pool of each provider that has one."""

    accounts: dict[int, AccountModel] = field(default_factory=dict)
    budgets: list[BudgetModel] = field(default_factory=list)
    grants: list[GrantModel] = field(default_factory=list)
    pools: dict[str, int] = field(default_factory=dict)

    @property
    def keys(self) -> list[int]:
        return [id_ for id_, account in self.accounts.items() if account.kind == "key"]

    def path_of(self, reserve: Reserve) -> list[int]:
        """Organisation, team, key, and the pool of a paid attempt if its provider has one."""
        key = self.accounts[reserve.key_id]
        assert key.org_id is not None
        assert key.team_id is not None
        path = [key.org_id, key.team_id, reserve.key_id]
        if reserve.pool == "paid" and reserve.provider in self.pools:
            path.append(self.pools[reserve.provider])
        return path

    def side_of(self, reserve: Reserve, side: int) -> list[int]:
        """0: the tenant's accounts, 1: the provider's."""
        path = self.path_of(reserve)
        return path[3:] if side else path[:3]

    def is_prepaid(self, reserve: Reserve, side: int) -> bool:
        return any(self.accounts[id_].prepaid for id_ in self.side_of(reserve, side))

    def is_commercial(self, reserve: Reserve) -> bool:
        return any(self.accounts[id_].commercial for id_ in self.side_of(reserve, 0))
