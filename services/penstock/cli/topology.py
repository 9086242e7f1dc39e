"""Which processes make one machine's Penstock, with what environment, in which order."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.cli.child import Service
from penstock.cli.options import STAND_IN, STOOD_IN_PROVIDER, VLLM, UpOptions
from penstock.cli.ports import HOST
from penstock.cli.readiness import EndsWell, GrpcHealth, HttpOk, ReadyFile
from penstock.cli.state import State
from penstock.cli.tokens import Secrets

QUOTA_DATABASE = "penstock_quota"
CACHE_DATABASE = "penstock_cache"

LOCAL_START_SECONDS = 900.0
"""Ray, then weights: seconds for the default model; minutes for a big one, or one to convert."""

ROUTER_STOP_SECONDS = 40.0
"""Its own drain (`router/wiring.py`: at most 37 s) and some."""

STOP_FIRST, STOP_NEXT, STOP_LAST = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the services' commands and environments are made of."""

    state: State
    options: UpOptions
    ports: Mapping[str, int]
    secrets: Secrets
    environment: Mapping[str, str]
    """Of the caller."""
    upstream_variables: tuple[str, ...]
    """Of the providers' keys and base URLs: for the router alone."""

    def at(self, name: str) -> str:
        return f"{HOST}:{self.ports[name]}"

    @property
    def has_stand_in(self) -> bool:
        return self.options.paid == STAND_IN

    @property
    def grpc_address(self) -> str:
        return f"{HOST}:{self.options.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://{HOST}:{self.options.http_port}/v1"

    @property
    def quota_dsn(self) -> str:
        return self._dsn(QUOTA_DATABASE, self.secrets.quota_password)

    @property
    def cache_dsn(self) -> str:
        return self._dsn(CACHE_DATABASE, self.secrets.cache_password)

    def _dsn(self, database: str, password: str) -> str:
        return f"postgresql://{database}:{password}@{self.at('postgres')}/{database}"


def services(plan: Plan) -> list[Service]:
    """In an order in which each comes after all that it needs. Slow ones begin first."""
    found = [_local(plan), _postgres(plan), _traces(plan)]
    if plan.has_stand_in:
        found.append(_stand_in(plan))
    return [*found, _migrate(plan), _quota(plan), _cache(plan), _capacity(plan), _router(plan)]


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


def _base(plan: Plan, service: str) -> dict[str, str]:
    """What every child gets: the caller's environment without what is others' secret."""
    kept = {
        name: value
        for name, value in plan.environment.items()
        if name not in plan.upstream_variables and not name.startswith(("PENSTOCK_", "OTEL_"))
    }
    # Its own settings, of which the plan sets some: PENSTOCK_ROUTER_METRICS_LISTEN, …
    own = ("PENSTOCK_LOG_LEVEL", f"PENSTOCK_{service.upper()}_")
    kept |= {name: v for name, v in plan.environment.items() if name.startswith(own)}
    bypass = [kept.get("no_proxy") or kept.get("NO_PROXY", ""), HOST, "localhost"]
    kept["no_proxy"] = kept["NO_PROXY"] = ",".join(filter(None, bypass))
    kept["PYTHONUNBUFFERED"] = "1"
    if service not in {"traces", "postgres", "stand-in", "migrate"}:
        kept["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://{plan.at('traces')}"
        kept["OTEL_EXPORTER_OTLP_HEADERS"] = f"authorization=Bearer%20{plan.secrets.traces_token}"
        kept["OTEL_EXPORTER_OTLP_PROTOCOL"] = "grpc"
    return kept


def _postgres(plan: Plan) -> Service:
    state = plan.state
    return Service(
        name="postgres",
        what="PostgreSQL",
        command=_python("penstock.cli.postgres"),
        readiness=ReadyFile(state.ready_file("postgres")),
        ready_file=state.ready_file("postgres"),
        environment={
            **_base(plan, "postgres"),
            "PENSTOCK_POSTGRES_FOLDER": str(state.postgres),
            "PENSTOCK_POSTGRES_PORT": str(plan.ports["postgres"]),
            "PENSTOCK_READY_FILE": str(state.ready_file("postgres")),
            "PENSTOCK_QUOTA_DSN": plan.quota_dsn,
            "PENSTOCK_CACHE_DSN": plan.cache_dsn,
        },
        stop_rank=STOP_LAST,
        start_seconds=120,
        stop_seconds=70,
        check=f"PostgreSQL's own: {state.postgres / 'postgres.log'}.",
    )


def _traces(plan: Plan) -> Service:
    environment = {
        **_base(plan, "traces"),
        # Of the user's own collector: it gets copies from there.
        **{name: v for name, v in plan.environment.items() if name.startswith("OTEL_")},
        "PENSTOCK_TRACES_STORE": str(plan.state.traces),
        "PENSTOCK_TRACES_LISTEN": plan.at("traces"),
        "PENSTOCK_TRACES_TOKEN": plan.secrets.traces_token,
    }
    return Service(
        name="traces",
        what="the last traces",
        command=_python("penstock.traces"),
        readiness=GrpcHealth(plan.at("traces")),
        environment=environment,
        stop_rank=STOP_LAST,
    )


def _migrate(plan: Plan) -> Service:
    return Service(
        name="migrate",
        what="the ledger's schema",
        command=_python("penstock.quota", "migrate"),
        readiness=EndsWell(),
        environment={**_base(plan, "migrate"), "PENSTOCK_QUOTA_DSN": plan.quota_dsn},
        after=("postgres",),
        start_seconds=120,
    )


def _quota(plan: Plan) -> Service:
    return Service(
        name="quota",
        what="the ledger",
        command=_python("penstock.quota"),
        readiness=GrpcHealth(plan.at("quota")),
        environment={
            **_base(plan, "quota"),
            **{n: v for n, v in plan.environment.items() if n.startswith("PENSTOCK_ALERTS_")},
            "PENSTOCK_QUOTA_DSN": plan.quota_dsn,
            "PENSTOCK_QUOTA_LISTEN": plan.at("quota"),
            "PENSTOCK_QUOTA_ADMIN_LISTEN": plan.at("quota_admin"),
            "PENSTOCK_SERVICE_TOKEN": plan.secrets.service_token,
            "PENSTOCK_ADMIN_TOKEN": plan.secrets.admin_token,
        },
        after=("migrate",),
        stop_rank=STOP_NEXT,
    )


def _cache(plan: Plan) -> Service:
    return Service(
        name="cache",
        what="the cache",
        command=_python("penstock.cache"),
        readiness=GrpcHealth(plan.at("cache")),
        environment={
            **_base(plan, "cache"),
            "PENSTOCK_CACHE_DSN": plan.cache_dsn,
            "PENSTOCK_CACHE_LISTEN": plan.at("cache"),
            "PENSTOCK_SERVICE_TOKEN": plan.secrets.service_token,
        },
        after=("postgres",),
        stop_rank=STOP_NEXT,
    )


def _ray(plan: Plan) -> dict[str, str]:
    return {
        "PENSTOCK_RAY_API": f"http://{plan.at('ray_api')}",
        "PENSTOCK_RAY_ADDRESS": plan.at("ray_gcs"),
        "PENSTOCK_ROUTER_TOKEN": plan.secrets.router_token,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": plan.secrets.ray_token,
    }


def _local(plan: Plan) -> Service:
    ready = plan.state.ready_file("local")
    is_vllm = plan.options.engine == VLLM
    python = str(plan.options.vllm_python) if is_vllm else sys.executable
    return Service(
        name="local",
        what=f"models on Ray Serve, {plan.options.engine}",
        command=(python, "-m", "penstock.local"),
        readiness=ReadyFile(ready),
        ready_file=ready,
        environment={
            **_base(plan, "local"),
            **_ray(plan),
            "PENSTOCK_CONFIG": str(plan.state.config_in_use),
            "PENSTOCK_LOCAL_READY_FILE": str(ready),
            "PENSTOCK_MODEL_CACHE": plan.environment.get("PENSTOCK_MODEL_CACHE")
            or str(plan.state.models),
            "TMPDIR": str(plan.state.short_temp),
        },
        stop_rank=STOP_NEXT,
        start_seconds=LOCAL_START_SECONDS,
        check="`make up` starts it anew; is there memory enough for the model?",
    )


def _capacity(plan: Plan) -> Service:
    return Service(
        name="capacity",
        what="replicas and their load",
        command=_python("penstock.capacity"),
        readiness=GrpcHealth(plan.at("capacity")),
        environment={
            **_base(plan, "capacity"),
            **_ray(plan),
            "PENSTOCK_CONFIG": str(plan.state.config_in_use),
            "PENSTOCK_CAPACITY_LISTEN": plan.at("capacity"),
            "PENSTOCK_SERVICE_TOKEN": plan.secrets.service_token,
        },
        start_seconds=LOCAL_START_SECONDS,
        stop_rank=STOP_NEXT,
    )


def stand_in_health(address: str) -> str:
    """llama.cpp's own word on whether it can answer."""
    return f"http://{address}/health"


def _stand_in(plan: Plan) -> Service:
    return Service(
        name="stand-in",
        what="a paid API's stand-in: llama.cpp's own server",
        command=_python(
            "penstock.local.stand_in",
            *("--listen", plan.at("stand_in"), "--api-key-env", "PENSTOCK_STAND_IN_KEY"),
        ),
        readiness=HttpOk(stand_in_health(plan.at("stand_in"))),
        environment={
            **_base(plan, "stand-in"),
            "PENSTOCK_STAND_IN_KEY": plan.secrets.stand_in_key,
        },
        stop_rank=STOP_NEXT,
        start_seconds=120,
    )


def _router(plan: Plan) -> Service:
    environment = {
        **_base(plan, "router"),
        "PENSTOCK_CONFIG": str(plan.state.config_in_use),
        "PENSTOCK_ROUTER_GRPC_LISTEN": plan.grpc_address,
        "PENSTOCK_ROUTER_HTTP_LISTEN": f"{HOST}:{plan.options.http_port}",
        "PENSTOCK_QUOTA_ADDRESS": plan.at("quota"),
        "PENSTOCK_CACHE_ADDRESS": plan.at("cache"),
        "PENSTOCK_CAPACITY_ADDRESS": plan.at("capacity"),
        "PENSTOCK_SERVICE_TOKEN": plan.secrets.service_token,
        "PENSTOCK_ROUTER_TOKEN": plan.secrets.router_token,
    }
    if plan.has_stand_in:
        environment |= {
            "PENSTOCK_STAND_IN": STOOD_IN_PROVIDER,
            "PENSTOCK_STAND_IN_URL": f"http://{plan.at('stand_in')}/v1",
            "PENSTOCK_STAND_IN_KEY": plan.secrets.stand_in_key,
        }
    else:
        given = plan.environment
        environment |= {name: given[name] for name in plan.upstream_variables if given.get(name)}
    needs = ("quota", "cache", "capacity")
    return Service(
        name="router",
        what="the data plane: gRPC and HTTP",
        command=_python("penstock.router"),
        readiness=GrpcHealth(plan.grpc_address),
        environment=environment,
        after=(*needs, "stand-in") if plan.has_stand_in else needs,
        stop_rank=STOP_FIRST,
        stop_seconds=ROUTER_STOP_SECONDS,
    )
