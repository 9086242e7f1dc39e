"""What `penstock up` prints when everything is ready: where, with what key, and what to try."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from penstock.cli.bootstrap import BUDGET_NANO_USD
from penstock.core.money import format_usd

PROMPT = "Write one sentence about the sea."
PYTHON = ".venv/bin/python"
BUF = ".venv/bin/buf"


@dataclass(frozen=True, slots=True)
class Facts:
    grpc: str
    http: str
    api_key: str
    key_id: str
    key_is_new: bool
    paid: str
    """A sentence on the paid side."""
    env_file: Path


def show(console: Console, facts: Facts) -> None:
    budget = ""
    if facts.key_is_new:
        budget = (
            f"   (new; {format_usd(BUDGET_NANO_USD)} USD a month, change it: penstock budget set)"
        )
    console.print()
    console.print("[bold green]Penstock is up.[/]  Ctrl-C or `make down` stops it.")
    console.print(f"  gRPC    [bold]{facts.grpc}[/]   penstock.router.v1.RouterService, plaintext")
    console.print(f"  HTTP    [bold]{facts.http}[/]   OpenAI-compatible")
    console.print(f"  key     [bold]{escape(facts.api_key)}[/]{budget}")
    console.print(f"  paid    {escape(facts.paid)}")
    console.print(f"  files   {facts.env_file} holds these for scripts")
    console.print()
    for title, command in commands(facts):
        console.print(f"[bold]{title}[/]")
        # Plain: no wrapping, no markup, no highlighting may come between it and a shell.
        console.out(command, highlight=False)
        console.print()


def commands(facts: Facts) -> list[tuple[str, str]]:
    """(title, command to be pasted into a shell in the project's folder)."""
    found = [("gRPC, by buf", _buf(facts))]
    if shutil.which("grpcurl"):
        found.append(("gRPC, by grpcurl", _grpcurl(facts)))
    found += [("gRPC, in Python", _python(facts)), ("OpenAI's SDK", _openai(facts))]
    return found


_BODY = (
    '{"model": "auto", "input": {"messages": [{"role": "ROLE_USER", '
    f'"content": [{{"text": "{PROMPT}"}}]}}], "maxTokens": 40, "temperature": 0}}}}'
)


def _buf(facts: Facts) -> str:
    return (
        f"{BUF} curl --protocol grpc --http2-prior-knowledge --reflect \\\n"
        f"  -H 'authorization: Bearer {facts.api_key}' -d '{_BODY}' \\\n"
        f"  http://{facts.grpc}/penstock.router.v1.RouterService/Generate"
    )


def _grpcurl(facts: Facts) -> str:
    return (
        f"grpcurl -plaintext -H 'authorization: Bearer {facts.api_key}' \\\n"
        f"  -d '{_BODY}' \\\n"
        f"  {facts.grpc} penstock.router.v1.RouterService/Generate"
    )


def _python(facts: Facts) -> str:
    return f"""{PYTHON} - <<'EOF'
import asyncio
from penstock.client import Client, user
async def main():
    async with Client("{facts.grpc}", "{facts.api_key}") as client:
        reply = await client.generate("auto", [user("{PROMPT}")], max_tokens=40)
        print(reply.text, reply.provider, reply.reason, reply.cost_nano_usd, "nano-USD")
asyncio.run(main())
EOF"""


def _openai(facts: Facts) -> str:
    return f"""{PYTHON} - <<'EOF'
from openai import OpenAI
client = OpenAI(base_url="{facts.http}", api_key="{facts.api_key}")
messages = [{{"role": "user", "content": "{PROMPT}"}}]
answer = client.chat.completions.create(model="auto", messages=messages, max_tokens=40)
print(answer.choices[0].message.content, answer.model_extra["penstock"])
EOF"""
