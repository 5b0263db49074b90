"""`enclave-server`: what operators type. Here is only the list of its commands; what one needs is imported when it is run."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import typer

from attestation.errors import AttestationError
from enclave_server.commands.usage import in_capitals
from enclave_server.mendable import MendableError

# where each command's function or group is, and its line in the list
COMMANDS = {
    "serve": (
        "enclave_server.commands.serve:serve",
        "Start the engine, hold the model against the settings, and serve.",
    ),
    "policy": (
        "enclave_server.commands.policy:show_policy",
        "Print the client policy that accepts exactly this.",
    ),
    "config": (
        "enclave_server.commands.config:show_config",
        "Print the effective settings and their digest.",
    ),
    "health": ("enclave_server.commands.health:health", "Ask the gateway on this machine how it is."),
    "doctor": (
        "enclave_server.commands.doctor:doctor",
        "Look at this machine: what is wrong, and what to do.",
    ),
    "collect": ("enclave_server.commands.doctor:collect", "Raw evidence of this machine."),
    "keys": ("enclave_server.commands.keys:cli", "API keys: who may use the gateway, and how much."),
    "model": (
        "enclave_server.commands.model:cli",
        "A model's digest, its publisher's signature, and its image.",
    ),
    "engine": ("enclave_server.commands.engine:cli", "What starts an engine elsewhere."),
    "image": ("image.cli:main", "Build, measure and boot the VM's image."),
    "refs": ("image.cli:main", "Sign, end and revoke releases."),
}
_AS_GIVEN = {"allow_extra_args": True, "ignore_unknown_options": True}

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The gateway that runs inside the confidential VM, and what its operators need around it.",
)


def main() -> None:
    """The console script. What an operator can mend is one line on standard error, and exit status 1."""
    try:
        cli()
    except (AttestationError, MendableError, OSError, ValueError) as exc:
        typer.echo(f"enclave-server: {exc}", err=True)
        raise SystemExit(1) from None


def _command(name: str, home: str) -> Callable[[typer.Context], None]:
    """What hands everything after `name` to the command that is at `home`, its `--help` too."""

    def run(context: typer.Context) -> None:
        found = _find(name, home)
        if home.startswith("image."):  # a package that the gateway's own container can do without
            found(name, context.args)
            return
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            found.command()(function)
        in_capitals(found)(context.args, prog_name=f"enclave-server {name}")

    return run


def _find(name: str, home: str) -> Any:
    module, _, attribute = home.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as exc:
        extras = "server,image" if module.startswith("image.") else "server"
        raise ValueError(
            f"`enclave-server {name}` needs the module {exc.name}: pip install 'attested-inference[{extras}]'"
        ) from None


for _name, (_home, _line) in COMMANDS.items():
    cli.command(_name, help=_line, context_settings=_AS_GIVEN, add_help_option=False)(_command(_name, _home))

if __name__ == "__main__":
    main()
