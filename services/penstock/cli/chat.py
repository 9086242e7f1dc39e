"""A conversation in the terminal: each answer as it is made, then its route and its cost."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from penstock.cli import refusals
from penstock.cli.wording import NO_NAMES, accounts_in
from penstock.client import Client, PenstockError, Reply, assistant, system, user
from penstock.core.money import format_usd
from penstock.router.v1.router_pb2 import CacheVerdict
from penstock.type.v1.chat_pb2 import Message

ANSWER_SECONDS = 300.0

HISTORY_MESSAGES_MAX = 40
"""Older ones are left out: a small model's context is soon full."""


@dataclass(frozen=True, slots=True)
class Settings:
    model: str
    system: str
    max_tokens: int
    temperature: float | None
    local_only: bool
    no_cache: bool


Names = Callable[[], Awaitable[Mapping[str, str]]]
"""Asks for the names of accounts by id."""


async def _no_names() -> Mapping[str, str]:
    return NO_NAMES


class Chat:
    """One conversation. `names` tells the accounts of a refusal by name, where they are known."""

    def __init__(
        self, client: Client, settings: Settings, console: Console, names: Names = _no_names
    ) -> None:
        self._names = names
        self._client = client
        self._settings = settings
        self._console = console
        self._history: list[Message] = []
        self._spent_nano_usd = 0
        self._saved_nano_usd = 0

    async def converse(self) -> None:
        """Until Ctrl-D. Ctrl-C stops an answer, and the model with it.

        Without a terminal each line is a question, and nothing is said to a person.
        """
        by_hand = sys.stdin.isatty()
        if by_hand:
            self._console.print("Ctrl-D ends, Ctrl-C stops an answer.", style="dim")
        while True:
            try:
                prompt = _read_line(self._console, "[bold cyan]you ›[/] " if by_hand else "")
            except (EOFError, KeyboardInterrupt):
                if by_hand:
                    self._console.print()
                self._sum_up()
                return
            if prompt.strip():
                await self._answer_or_tell(prompt)

    async def _answer_or_tell(self, prompt: str) -> None:
        """An answer that fails, or that Ctrl-C stops, does not end the conversation."""
        kept = len(self._history)
        answering = asyncio.create_task(self.answer(prompt))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, answering.cancel)
        try:
            await answering
        except PenstockError as error:
            await self._tell_refused(error)
            del self._history[kept:]
        except asyncio.CancelledError:
            self._tell_stopped()
            del self._history[kept:]
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    async def answer_once(self, prompt: str) -> None:
        """One question and its answer; Ctrl-C ends both."""
        try:
            await self.answer(prompt)
        except asyncio.CancelledError:
            self._tell_stopped()
            raise

    async def _tell_refused(self, error: PenstockError) -> None:
        names = await self._names() if accounts_in(error.message) else NO_NAMES
        said = refusals.told(error, "the router's address", names)
        self._console.print(escape(said.message), style="red")
        if said.remedy:
            self._console.print(f"  → {escape(said.remedy)}")

    def _tell_stopped(self) -> None:
        self._console.print(
            "\n(stopped; what was made is charged: see `penstock usage`)", style="dim"
        )

    def _sum_up(self) -> None:
        spent, saved = format_usd(self._spent_nano_usd), format_usd(self._saved_nano_usd)
        self._console.print(f"spent {spent} USD, saved {saved} USD", style="dim")

    async def answer(self, prompt: str, *, quiet: bool = False) -> Reply:
        """Asks, prints pieces as they come unless quiet, keeps both in the history.

        Raises:
            PenstockError: as the router says.
        """
        self._history.append(user(prompt))
        async with self._client.stream(
            self._settings.model, self._messages(), **self._options()
        ) as stream:
            async for piece in stream:
                if not quiet:
                    sys.stdout.write(piece.text)
                    sys.stdout.flush()
            reply = stream.reply
        self._history.append(assistant(reply.text))
        self._spent_nano_usd += reply.cost_nano_usd
        self._saved_nano_usd += reply.saved_nano_usd
        if not quiet:
            sys.stdout.write("\n")
            if reply.finish_reason == "budget":
                self._console.print("(here the budget ends)", style="red")
            self._console.print(_receipt(reply), style="dim")
        return reply

    def _messages(self) -> list[Message]:
        told = [system(self._settings.system)] if self._settings.system else []
        return told + self._history[-HISTORY_MESSAGES_MAX:]

    def _options(self) -> dict[str, Any]:
        settings = self._settings
        options: dict[str, Any] = {
            "max_tokens": settings.max_tokens,
            "local_only": settings.local_only,
            "no_cache": settings.no_cache,
            "timeout_seconds": ANSWER_SECONDS,
        }
        if settings.temperature is not None:
            options["temperature"] = settings.temperature
        return options


def _read_line(console: Console, prompt: str) -> str:
    """Blocks the loop: nothing else happens while a person thinks, and Ctrl-C is heard at once."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return console.input(prompt)
    finally:
        signal.signal(signal.SIGINT, before)


def _receipt(reply: Reply) -> str:
    told = reply.receipt
    verdict = CacheVerdict.Name(told.cache).removeprefix("CACHE_VERDICT_").lower()
    estimated = ", estimated" if reply.usage.estimated else ""
    return escape(
        f"[{told.provider}/{told.model} · {told.reason} · cache {verdict} · "
        f"{reply.usage.prompt_tokens}+{reply.usage.completion_tokens} tokens{estimated} · "
        f"{format_usd(told.cost_nano_usd)} USD, saved {format_usd(told.saved_nano_usd)} · "
        f"{told.request_id}]"
    )
