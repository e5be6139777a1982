"""``distrib-agent hooks htcondor``: what HTCondor runs, and its configuration."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from agent.hooks import programs
from agent.hooks.guest_environment import guest_context, guest_environment
from agent.hooks.htcondor.ads import answer, job_image, machine
from agent.hooks.htcondor.classad import Value, dump, parse
from agent.hooks.staging import await_image
from agent.socket.client import ask
from distrib.errors import DistribError, OperatorError

WAIT_S = 120.0

CONFIGURATION = """\
# HTCondor's part of distrib, for an execution point: a file of its own in config.d.
STARTD_CRON_JOBLIST = $(STARTD_CRON_JOBLIST) DISTRIB
STARTD_CRON_DISTRIB_EXECUTABLE = {python}
STARTD_CRON_DISTRIB_ARGS = {arguments} ad
STARTD_CRON_DISTRIB_PERIOD = 30s
STARTD_CRON_DISTRIB_MODE = Periodic
STARTD_CRON_DISTRIB_KILL = True

# A hook is a path, without arguments: {directory} has both.
STARTER_DEFAULT_JOB_HOOK_KEYWORD = DISTRIB
DISTRIB_HOOK_PREPARE_JOB = {directory}/prepare
DISTRIB_HOOK_PREPARE_JOB_TIMEOUT = 180
USER_JOB_WRAPPER = {directory}/wrapper

# A job that names an image goes where images may run, best to where its own is.
START = ($(START)) && (TARGET.VmName =?= undefined || MY.DistribLeasable =?= true)
# On the central manager:
# NEGOTIATOR_PRE_JOB_RANK = stringListMember(TARGET.VmName, MY.DistribImages) =?= true
"""

WRAPPERS = {
    "prepare": """\
#!/bin/sh
# HTCondor's prepare hook, as the job's owner: its ad on standard input.
PATH=/usr/bin:/bin
export PATH
[ -x {python} ] || {{
    grep -qi '^VmName *= *"' || exit 0
    echo 'HookStatusCode = 300'
    echo 'HookStatusMessage = "distrib: its interpreter is not there"'
    exit 0
}}
exec {python} {arguments} prepare
""",
    "wrapper": """\
#!/bin/sh
# HTCondor's USER_JOB_WRAPPER, as the job's owner: wrapper COMMAND ARGS...
grep -qi '^VmName *= *"' "${{_CONDOR_JOB_AD:-/dev/null}}" 2>/dev/null || exec "$@"
PATH=/usr/bin:/bin
export PATH
# Signals are for the child, which hands them on to the guest.
trap : HUP INT QUIT TERM USR1 USR2
outcome=$(mktemp) || outcome=/dev/null
[ ! -x {python} ] || DISTRIB_OUTCOME=$outcome {python} {arguments} run -- "$@"
status=$?
said="the guest could not be run or watched (status $status)"
if [ -s "$outcome" ]; then
    # Written when the job has ended: then the status is its own; else it says why not.
    if ! grep -q '^{{"error"' "$outcome" || {{ [ $status != 99 ] && [ $status != 100 ]; }}; then
        rm -f "$outcome"
        exit $status
    fi
    said=$(cat "$outcome")
fi
rm -f "$outcome"
# With this file there HTCondor does not take the status for the job's.
echo "distrib: $said" >"${{_CONDOR_WRAPPER_ERROR_FILE:-/dev/null}}"
exit 1
""",
}


@click.group()
def htcondor() -> None:
    """HTCondor: jobs that name an image (`+VmName = "IMAGE"`) run in guests."""


@htcondor.command()
@click.pass_obj
def ad(socket: Path) -> None:
    """Attributes for the machine ad, as a startd cron job prints them."""
    try:
        status = ask(socket, "status", timeout_s=10.0)
    except DistribError:
        status = None
    # The dash ends a block, and has the startd publish it.
    click.echo("\n".join([*dump(machine(status)), "-"]))


@htcondor.command()
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=WAIT_S, show_default=True)
@click.pass_obj
def prepare(socket: Path, wait_s: float) -> None:
    """Look at the job whose ad is on standard input; wait for its image."""
    found = parse(sys.stdin.read())
    image = job_image(found)
    if image is None:
        return
    job = f"htcondor:{found.get('clusterid')}.{found.get('procid')}"
    try:
        # In the name of who calls: a hook runs as the job's owner.
        await_image(socket, image, user=None, job=job, wait_s=wait_s)
    except DistribError as error:
        click.echo("\n".join(dump(answer(error))))


@htcondor.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def run(socket: Path, command: tuple[str, ...]) -> None:
    """Run the job COMMAND in the image that its ad names; the scratch directory goes in and out."""
    arguments = launch_arguments(
        _ad("_CONDOR_JOB_AD"), _ad("_CONDOR_MACHINE_AD"), command, os.environ
    )
    base = [sys.executable, "-I", "-m", "agent.cli.main", "--socket", str(socket)]
    os.execv(sys.executable, [*base, *arguments])  # noqa: S606


_DIRECTORY = click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=lambda: Path(sys.prefix) / "libexec" / "htcondor",
    show_default="libexec/htcondor of this installation",
    help="Where the wrappers are.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Change nothing.")


@htcondor.command()
@_DIRECTORY
@_DRY_RUN
@_JSON
@click.pass_obj
def install(socket: Path, directory: Path, dry_run: bool, as_json: bool) -> None:
    """Write the wrappers on this host, and print the configuration for config.d."""
    arguments = f"-I -m agent.cli.main --socket {socket} hooks htcondor"
    given = {"python": sys.executable, "arguments": arguments, "directory": str(directory)}
    texts = {directory / name: text.format(**given) for name, text in WRAPPERS.items()}
    changed = [str(file) for file in programs.put(texts, dry_run=dry_run)]
    configuration = CONFIGURATION.format(**given)
    if as_json:
        answer = {"dry_run": dry_run, "changed": changed, "configuration": configuration}
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo(configuration, nl=False)


@htcondor.command()
@_DIRECTORY
@_DRY_RUN
@_JSON
def remove(directory: Path, dry_run: bool, as_json: bool) -> None:
    """Take the wrappers away. First their file in config.d, and have HTCondor read it again."""
    files = [directory / name for name in WRAPPERS]
    gone = [str(file) for file in programs.take_away(files, dry_run=dry_run)]
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "changed": gone}, indent=2))
        return
    for name in gone or ["nothing to do"]:
        click.echo(name)


def launch_arguments(
    job: dict[str, Value | None],
    slot: dict[str, Value | None],
    command: tuple[str, ...],
    environ: Mapping[str, str],
) -> list[str]:
    """What ``distrib-agent`` is called with. Raises OperatorError where the ad names no image."""
    image = job_image(job)
    if image is None:
        raise OperatorError("the job's ad names no image", hint='+VmName = "IMAGE"')
    arguments = ["launch", "--name", f"htcondor:{job.get('clusterid')}.{job.get('procid')}"]
    for option, amount in (
        ("--memory", _amount("memory", job, slot)),
        ("--vcpus", _amount("cpus", job, slot)),
    ):
        if amount is not None:
            arguments += [option, str(amount)]
    if scratch := environ.get("_CONDOR_SCRATCH_DIR"):
        arguments += ["--workdir", scratch]
    arguments += ["--node-fault", "99", "--refused", "100"]
    if outcome := environ.get("DISTRIB_OUTCOME"):
        arguments += ["--accounting", outcome]
    arguments += guest_context(environ)
    return [*arguments, *guest_environment(environ), "--stdin", "--", image, *command]


def _amount(
    what: str, job: Mapping[str, Value | None], slot: Mapping[str, Value | None]
) -> int | None:
    """What a job asked for, as far as that is a number, else what was cut out of its machine for
    it; never more than its slot has: a static slot may have more than a job asked for."""
    asked = _positive(job.get(f"request{what}")) or _positive(job.get(f"{what}provisioned"))
    has = _positive(slot.get(what))
    return min(asked, has) if asked and has else asked or has


def _positive(value: Value | None) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _ad(variable: str) -> dict[str, Value | None]:
    path = os.environ.get(variable, "")
    try:
        return parse(Path(path).read_text("utf-8", "replace"))
    except OSError as error:
        raise OperatorError(
            f"{variable}={path}: {error.strerror}", hint="HTCondor calls this"
        ) from None
