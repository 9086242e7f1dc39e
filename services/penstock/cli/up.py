"""`penstock up`: everything on one machine, in the foreground, until it is told to stop."""

import asyncio
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.markup import escape

from penstock.cli import admin, bootstrap, preflight, processes, tokens, welcome
from penstock.cli.child import Child
from penstock.cli.errors import CliError
from penstock.cli.leftovers import sweep
from penstock.cli.options import UpOptions
from penstock.cli.ports import internal_ports
from penstock.cli.screen import Screen
from penstock.cli.state import State, read_env, write_env
from penstock.cli.supervisor import Supervisor
from penstock.cli.topology import Plan, services
from penstock.core.catalogue import LOCAL_PROVIDER, Catalogue
from penstock.core.config import ConfigError, LiveCatalogue, load
from penstock.core.errors import PenstockError

SUMMARY_SECONDS = 10.0
"""Between two lines that say whom a start still waits for, where there is no live table."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

READY_FD = "PENSTOCK_READY_FD"
"""Set by `--detach`: the file descriptor that is told "ready"."""


class AlreadyRunning(Exception):
    """Another `up` has this state folder."""


@contextmanager
def locked(state: State) -> Iterator[None]:
    """Held as long as an `up` runs; the kernel frees it with the process.

    Raises:
        AlreadyRunning: another process holds it.
    """
    with state.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning from None
        yield


def up(console: Console, state: State, options: UpOptions) -> None:
    """Runs until a signal.

    Raises:
        AlreadyRunning, CliError.
    """
    state.make()
    with locked(state):
        ended = sweep(state)
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
            local_config=preflight.local_config(options, state),
        )
        paid_variables = preflight.key_variables(catalogue, os.environ)
        paid = preflight.paid_sentence(options, catalogue, paid_variables)
        try:
            asyncio.run(_Run(console, plan, paid, paid_variables).run())
        finally:
            sweep(state)
            processes.forget(state)
            shutil.rmtree(state.short_temp, ignore_errors=True)


class _Run:
    """One run of the supervisor, with its screen and signals."""

    def __init__(
        self, console: Console, plan: Plan, paid: str, paid_variables: tuple[str, ...]
    ) -> None:
        self._console = console
        self._paid_variables = paid_variables
        self._plan = plan
        self._paid = paid
        self._children: Sequence[Child] = ()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
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
            console.print("Stopping (again Ctrl-C kills)", style="dim")
            await supervisor.stop(self._hurry)
        console.print("Penstock is down. Its data is kept; `make clean` removes it.")

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def _record(self, children: Sequence[Child]) -> None:
        self._children = children
        records = tuple(c.record for c in children if c.record is not None)
        me = processes.Record.of("penstock up", os.getpid())
        running = processes.Running(
            me, records, self._plan.options.told, self._paid_variables, self._paid
        )
        processes.save(self._plan.state, running)

    async def _watch_config(self) -> None:
        """Each service reloads the file by itself; here a person is told."""
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

        try:
            await LiveCatalogue(options.config).watch(on_change, on_fault)
        except ConfigError as error:
            # It was good a moment ago, at the preflight.
            on_fault(error)

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
        local = load(plan.local_config).models
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
        fd = os.environ.get(READY_FD)
        if fd is None:
            welcome.show(self._console, facts)
        else:
            with suppress(OSError):
                os.write(int(fd), b"ready\n")
                os.close(int(fd))

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
