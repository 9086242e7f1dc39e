"""`penstock up`: everything on one machine, in the foreground, until it is told to stop."""

import asyncio
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console
from rich.markup import escape

from penstock.cli import (
    admin,
    bootstrap,
    config_in_use,
    lock,
    preflight,
    processes,
    tokens,
    welcome,
)
from penstock.cli.child import Child
from penstock.cli.errors import CliError
from penstock.cli.leftovers import sweep
from penstock.cli.options import UpOptions
from penstock.cli.outlet import enduring, on_hangup
from penstock.cli.ports import internal_ports
from penstock.cli.screen import Screen
from penstock.cli.state import State, read_env, write_env
from penstock.cli.supervisor import Supervisor
from penstock.cli.topology import Plan, services
from penstock.core.catalogue import LOCAL_PROVIDER, Catalogue
from penstock.core.config import ConfigError, LiveCatalogue
from penstock.core.errors import PenstockError

SUMMARY_SECONDS = 10.0
"""Between two lines that say whom a start still waits for, where there is no live table."""

RECORD_RETRY_SECONDS = 5.0
"""Until the record of what runs is written again, where a full disk did not take it."""

READY_FD = "PENSTOCK_READY_FD"
"""Set by `--detach`: the pipe that is told "ready". If its reader ends before, we stop."""


def up(console: Console, state: State, options: UpOptions) -> None:
    """Runs until a signal.

    Raises:
        Busy, CliError.
    """
    state.make()
    with lock.locked(state, lock.UP):
        ended = sweep(state)
        processes.forget(state)
        if ended:
            console.print(f"  ended what a killed `up` left: {', '.join(ended)}", style="dim")
        catalogue = preflight.check(options, state)
        ports = internal_ports(state, (options.grpc_port, options.http_port))
        state.short_temp.mkdir(mode=0o700, exist_ok=True)
        plan = Plan(
            state=state,
            options=options,
            ports=ports,
            secrets=tokens.load_or_make(state),
            environment=dict(os.environ),
            upstream_variables=preflight.upstream_variables(catalogue),
        )
        in_use = config_in_use.put_into_use(options.config, options.engine, state)
        paid_variables = preflight.key_variables(catalogue, os.environ)
        paid = preflight.paid_sentence(options, catalogue, paid_variables)
        try:
            with enduring(console) as steady:
                asyncio.run(_Run(steady, plan, in_use, paid, paid_variables).run())
        finally:
            sweep(state)
            processes.forget(state)
            shutil.rmtree(state.short_temp, ignore_errors=True)


class _Run:
    """One run of the supervisor, with its screen and signals."""

    def __init__(
        self,
        console: Console,
        plan: Plan,
        in_use: LiveCatalogue,
        paid: str,
        paid_variables: tuple[str, ...],
    ) -> None:
        self._console = console
        self._in_use = in_use
        self._paid_variables = paid_variables
        self._plan = plan
        self._paid = paid
        self._children: Sequence[Child] = ()
        self._stop = asyncio.Event()
        self._is_stopping = False
        self._hurry = asyncio.Event()
        self._record_retry: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        self._await_orders()
        console, plan = self._console, self._plan
        console.print(f"Starting Penstock in {plan.state.root} (paid side {self._paid})")
        wanted = services(plan)
        self._screen = Screen(console, wanted)
        supervisor = Supervisor(
            wanted, log_of=plan.state.log, watcher=self._screen, on_change=self._record
        )
        self._telling = asyncio.create_task(self._tell_waiting())
        watching = asyncio.create_task(self._watch_config())
        try:
            await supervisor.run(self._stop, self._greet)
        finally:
            watching.cancel()
            self._telling.cancel()
            self._screen.close()
            self._is_stopping = True
            console.print("Stopping (again Ctrl-C kills)", style="dim")
            await supervisor.stop(self._hurry)
        console.print("Penstock is down. Its data is kept; `make clean` removes it.")

    def _await_orders(self) -> None:
        """To stop: signals, the terminal's end, the end of the command that detached this one."""
        loop, file = asyncio.get_running_loop(), self._console.file
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else: nohup
            loop.add_signal_handler(signal.SIGHUP, self._stop.set)
            if file.isatty():
                on_hangup(file.fileno(), lambda: loop.call_soon_threadsafe(self._stop.set))
        if (pipe := _ready_pipe()) is not None:
            # A pipe that nobody reads any more counts as readable at its other end.
            loop.add_reader(pipe, self._on_abandoned, pipe)

    def _on_signal(self, number: signal.Signals) -> None:
        # Only a person who was told so is in a hurry: `timeout` and `make` send a signal twice.
        if self._is_stopping and number == signal.SIGINT:
            self._hurry.set()
        self._stop.set()

    def _on_abandoned(self, pipe: int) -> None:
        asyncio.get_running_loop().remove_reader(pipe)
        self._console.print("The command that began this start was ended: it is taken back.")
        self._stop.set()

    def _record(self, children: Sequence[Child]) -> None:
        self._children = children
        records = tuple(c.record for c in children if c.record is not None)
        me = processes.Record.of(lock.UP, os.getpid())
        running = processes.Running(
            me, records, self._plan.options.told, self._paid_variables, self._paid
        )
        if self._record_retry is not None:
            self._record_retry.cancel()
        try:
            processes.save(self._plan.state, running)
        except CliError as error:
            if self._record_retry is None:
                self._console.print(f"  [bold red]{escape(error.message)}[/]")
                self._console.print(
                    f"  → {escape(error.remedy)} `penstock status` lags until then."
                )
            self._record_retry = asyncio.get_running_loop().call_later(
                RECORD_RETRY_SECONDS, lambda: self._record(self._children)
            )
        else:
            self._record_retry = None

    async def _watch_config(self) -> None:
        """Renews what the parts watch, and tells a person."""
        options = self._plan.options

        def on_change(catalogue: Catalogue) -> None:
            self._paid = preflight.paid_sentence(options, catalogue, self._paid_variables)
            self._record(self._children)
            self._console.print(f"  configuration reloaded from {options.config}", style="dim")

        def on_fault(error: ConfigError) -> None:
            self._console.print(
                "  [bold red]the configuration is faulty; the last good one stays in use:[/]"
            )
            for fault in error.faults:
                self._console.print(f"    {escape(fault)}")

        await self._in_use.watch(on_change, on_fault)

    async def _tell_waiting(self) -> None:
        while True:
            await asyncio.sleep(SUMMARY_SECONDS)
            if not self._screen.is_live:
                self._console.print(f"  {self._screen.summary()}", style="dim")

    async def _greet(self) -> None:
        """All are ready: the first key, the files for scripts, the welcome."""
        self._telling.cancel()
        self._screen.close()
        key = await self._ensure_key()
        state, plan = self._plan.state, self._plan
        local = self._in_use.current.models
        wanted = {f"{LOCAL_PROVIDER}/{name}" for name, model in local.items() if model.replicas}
        if not await bootstrap.await_models(plan.grpc_address, key.secret, wanted):
            self._console.print(
                "  [yellow]not every local model is ready: see `penstock status`[/]"
            )
        write_env(
            state.env,
            {
                "PENSTOCK_GRPC": plan.grpc_address,
                "PENSTOCK_HTTP": plan.http_url,
                "PENSTOCK_API_KEY": key.secret,
            },
        )
        write_env(
            state.admin_env,
            {
                admin.ADDRESS: plan.at("quota_admin"),
                admin.TOKEN: plan.secrets.admin_token,
                admin.TRACES: str(state.traces),
                admin.KEY_ID: key.id,
                admin.QUOTA_DSN: plan.quota_dsn,
            },
        )
        facts = facts_of(plan.state, paid=self._paid, key_is_new=key.is_new)
        if (pipe := _ready_pipe()) is None:
            welcome.show(self._console, facts)
        else:
            asyncio.get_running_loop().remove_reader(pipe)
            with suppress(OSError):
                os.write(pipe, b"ready\n")
                os.close(pipe)

    async def _ensure_key(self) -> bootstrap.ReadyKey:
        kept, kept_admin = read_env(self._plan.state.env), read_env(self._plan.state.admin_env)
        access = admin.Access(self._plan.at("quota_admin"), self._plan.secrets.admin_token)
        try:
            async with admin.opened(access) as found:
                return await bootstrap.ensure_key(
                    found,
                    kept_id=kept_admin.get(admin.KEY_ID, ""),
                    kept_secret=kept.get("PENSTOCK_API_KEY", ""),
                )
        except PenstockError as error:
            raise CliError(
                f"the first key cannot be made: {error.reason}: {error.message}",
                remedy=f"The ledger's log: {self._plan.state.log('quota')}",
            ) from None


def _ready_pipe() -> int | None:
    value = os.environ.get(READY_FD)
    return int(value) if value else None


def facts_of(state: State, *, paid: str, key_is_new: bool = False) -> welcome.Facts:
    env = read_env(state.env)
    return welcome.Facts(
        grpc=env.get("PENSTOCK_GRPC", ""),
        http=env.get("PENSTOCK_HTTP", ""),
        api_key=env.get("PENSTOCK_API_KEY", ""),
        key_id=read_env(state.admin_env).get(admin.KEY_ID, ""),
        key_is_new=key_is_new,
        paid=paid,
        env_file=state.env,
    )
