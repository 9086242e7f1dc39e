"""An operator's command: what it is given, how it asks the ledger, how its answer is shown.

`operation` adds to each the options that all share (`--json`; to one that changes something also
`--dry-run`, `--reason` and `--actor`), so that a command holds only what is its own.
"""

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import typer
from google.protobuf.message import Message
from rich.markup import escape
from rich.table import Table

from penstock.cli import admin, names
from penstock.cli.admin import Admin, Change
from penstock.cli.app import (
    Json,
    awaited,
    clear_faults,
    err,
    examples,
    out,
    print_json,
    print_table,
    state_of,
)
from penstock.cli.as_json import as_dict
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.names import Named
from penstock.cli.state import State
from penstock.cli.wording import accounts_in
from penstock.core.errors import PenstockError

M = TypeVar("M", bound=Message)
T = TypeVar("T")

ACCOUNT_HELP = "org:NAME, team:ORG/NAME, key:NAME, pool:NAME or an id."

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check it and show what would be; change nothing.")
]
WHY = "Why; kept in the ledger's entry."
Reason = Annotated[str, typer.Option("--reason", help=WHY)]
NeededReason = Annotated[str, typer.Option("--reason", help=f"{WHY} Needed.")]
Actor = Annotated[str, typer.Option("--actor", help="Who; default: the user of this machine.")]

View = str | Table
Told = Message | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """An answer: its JSON document, and what a person sees; by name of the accounts in it.

    `done_before`: of what is made once a key only, whether it had been; None: of anything else.
    """

    document: Told
    view: Sequence[View] | Callable[[Sequence[Named]], Sequence[View]]
    done_before: bool | None = None


@dataclass
class Call:
    """One run of a command.

    `faults`: of its common options, a line each; told after its own first one, or alone before the
    ledger is asked.
    """

    state: State
    as_json: bool
    change: Change | None = None
    faults: Sequence[str] = ()
    _closing: AsyncExitStack = field(default_factory=AsyncExitStack)
    _admin: Admin | None = None
    _known: list[Named] | None = None

    async def ask(self, method: str, request: Message, answer: type[M]) -> M:
        """AdminService's answer; a change with who makes it and why.

        Raises:
            CliError: as the service says.
        """
        told, _ = await self.ask_once(method, request, answer)
        return told

    async def ask_once(self, method: str, request: Message, answer: type[M]) -> tuple[M, bool]:
        """As `ask`; also whether it was done before, of what is done once a key only."""
        found = await self.admin_service()
        metadata = self.change.metadata() if self.change else ()
        try:
            told, done_before = await found.call_once(method, request, metadata)
        except PenstockError as error:
            address = admin.access(self.state).address
            raise admin.told(error, address, method, await self._names(error)) from None
        assert isinstance(told, answer)
        if self.change is not None and not self.change.dry_run:
            self._known = None  # there may be another name now
        return told, done_before

    def told(self, error: CliError) -> CliError:
        """Together with the faults of its common options that are not told yet."""
        lines = [error.message, *self.faults]
        return CliError("\n  ".join(lines), remedy=error.remedy, code=error.code)

    async def admin_service(self) -> Admin:
        """Raises CliError: a common option has a fault."""
        if self.faults:
            first, *self.faults = self.faults  # `told` adds the others
            raise CliError(first, code=BAD_USAGE)
        if self._admin is None:
            opening = admin.opened(admin.access(self.state))
            self._admin = await self._closing.enter_async_context(opening)
        return self._admin

    async def stream(self, method: str, request: Message) -> AsyncIterator[Any]:
        """AdminService's answers, for as long as it goes on.

        Raises:
            CliError: as the service says.
        """
        found = await self.admin_service()
        address = admin.access(self.state).address
        answers = found.stream(method, request)
        async for answer in answered(lambda error: admin.told(error, address), answers):
            yield answer

    async def known(self) -> list[Named]:
        """Everything that has a name; asked once."""
        if self._known is None:
            found = await self.admin_service()
            try:
                self._known = await names.directory(found)
            except PenstockError as error:
                raise admin.told(error, admin.access(self.state).address) from None
        return self._known

    async def _names(self, error: PenstockError) -> dict[str, str]:
        """Of the accounts that the refusal tells by their ids."""
        if not accounts_in(error.message):
            return {}
        try:
            return names.by_id(await self.known())
        except CliError:
            return {}

    async def find(self, text: str, *kinds: str) -> Named:
        """The account that `text` means. Raises CliError: none, or more than one."""
        return names.find(await self.known(), text, kinds=kinds)

    async def find_id(self, text: str | None, *kinds: str) -> str:
        """Its id; "" where nothing was asked for."""
        return "" if text is None else (await self.find(text, *kinds)).id

    async def show(self, shown: Shown) -> None:
        dry_run = self.change is not None and self.change.dry_run
        if self.as_json:
            document = shown.document
            told = as_dict(document) if isinstance(document, Message) else dict(document)
            if shown.done_before is not None:
                told["done_before"] = shown.done_before
            print_json({**told, "dry_run": True} if dry_run else told)
            return
        if dry_run:
            err.print("dry run: nothing was changed; it would be:", style="yellow")
        view = shown.view
        for one in view(await self.known()) if callable(view) else view:
            if isinstance(one, Table):
                print_table(one)
            else:
                out.print(escape(one))
        if shown.done_before:
            out.print("(done before, nothing changed)")

    async def aclose(self) -> None:
        await self._closing.aclose()


Body = Callable[..., Awaitable[Shown | None]]
F = TypeVar("F", bound=Body)


def operation(
    group: typer.Typer,
    name: str,
    *typed: str,
    changes: bool = False,
    reason_needed: bool = False,
    settings: dict[str, Any] | None = None,
) -> Callable[[F], F]:
    """Registers `async def body(call, …) -> Shown | None` as the command `name` of the group.

    `typed`: examples, for its help. `reason_needed`: it is refused without `--reason`, or with a
    blank one. A body checks what was typed before it asks the ledger. None: it has shown its answer
    itself.
    """

    def register(body: F) -> F:
        @functools.wraps(body)
        async def run(context: typer.Context, *, as_json: bool, **given: Any) -> None:
            call = Call(state_of(context), as_json)
            if changes:
                dry_run, why, who = (given.pop(n) for n in ("dry_run", "reason", "actor"))
                call.change = Change.of(who, why, dry_run=dry_run)
                call.faults = call.change.faults(reason_needed=reason_needed)
            try:
                shown = await body(call, **given)
                if shown is not None:
                    await call.show(shown)
            except CliError as error:
                raise call.told(error) from None
            finally:
                await call.aclose()

        own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
        signature = inspect.Signature(
            [_CONTEXT, *own, *(_changing(reason_needed=reason_needed) if changes else ()), _JSON]
        )
        command = clear_faults(awaited(run))
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        command.__doc__ = _paragraphs(body.__doc__ or "")
        group.command(name, epilog=examples(*typed), context_settings=settings)(command)
        return body

    return register


def _paragraphs(text: str) -> str:
    """Each on one line, for the terminal to wrap: a line's end here would be kept there."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


_CONTEXT = _parameter("context", typer.Context, inspect.Parameter.empty)
_JSON = _parameter("as_json", Json, False)


def _changing(*, reason_needed: bool) -> list[inspect.Parameter]:
    return [
        _parameter("dry_run", DryRun, False),
        _parameter("reason", NeededReason if reason_needed else Reason, ""),
        _parameter("actor", Actor, ""),
    ]


async def answered(
    error_of: Callable[[PenstockError], CliError], answers: AsyncIterator[T]
) -> AsyncIterator[T]:
    """The answers of a stream, its refusal as a line."""
    try:
        async for answer in answers:
            yield answer
    except PenstockError as error:
        raise error_of(error) from None
