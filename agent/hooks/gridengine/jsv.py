"""The server JSV: every submission is looked at before the queue master takes it (jsv(1)).

A job that names an image leaves here with the site's variables, amounts and requests; one that does
not leaves without the variables, whatever its user gave. It answers within seconds, whatever the
agent does: one that does not answer costs the affinity, no more, since the node looks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agent.hooks.gridengine.names import (
    CONTEXT_IMAGE,
    IMAGE_VARIABLE,
    IMAGES,
    JOB_VARIABLES,
    MEMORY,
    MEMORY_VARIABLE,
    READY,
    image_id,
    images_pattern,
    memory_mib,
)
from distrib.errors import DistribError, NetworkError, NotReady, OperatorError
from distrib.printable import printable
from distrib.trust.sitelist import parse_image_ref

DEFAULT_MEMORY_MIB = 1024
LEAST_MEMORY_MIB = 64

_INTERACTIVE = frozenset({"qlogin", "qsh", "qrsh"})


@dataclass(frozen=True)
class Verdict:
    """What is said of a job. ``environment``: None deletes; ``parameters`` replace."""

    state: Literal["ACCEPT", "CORRECT", "REJECT", "REJECT_WAIT"]
    message: str = ""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    warning: str = ""

    def lines(self) -> Iterator[str]:
        """As jsv(1) has it."""
        for name, value in self.environment.items():
            yield f"ENV DEL {name}" if value is None else f"ENV ADD {name} {value}"
        for name, value in self.parameters.items():
            yield f"PARAM {name} {value}"
        if self.warning:
            yield f"LOG WARN {_line(self.warning)}"
        yield f"RESULT STATE {self.state} {_line(self.message)}".rstrip()


class Site(Protocol):
    """What the JSV asks of others."""

    def want(self, image: str, *, user: str, job: str) -> str:
        """The UUID of an approved image, which is on its way from then on.

        Raises what the agent answers, NetworkError or TimedOut."""
        ...

    def held(self) -> frozenset[str] | None:
        """The short ids of all images on any host; None where that is not known."""
        ...


def judge(
    parameters: Mapping[str, str], site: Site, *, memory: int = DEFAULT_MEMORY_MIB
) -> Verdict:
    """What is to be done with a submission. ``memory``: MiB for jobs that ask for none."""
    context = dict(_pairs(parameters.get("ac", "")))
    nothing: dict[str, str | None] = dict.fromkeys(JOB_VARIABLES)
    if CONTEXT_IMAGE not in context:
        return Verdict("CORRECT", environment=nothing)
    image = context[CONTEXT_IMAGE]
    if parameters.get("CLIENT") in _INTERACTIVE:
        return Verdict("REJECT", f"image {image}: guests run batch jobs, submit it with qsub")
    hard = dict(_pairs(parameters.get("l_hard", "")))
    mib = memory_mib(hard[MEMORY]) if MEMORY in hard else memory
    if mib is None or mib < LEAST_MEMORY_MIB:
        return Verdict("REJECT", f"{MEMORY}={hard[MEMORY]}: not {LEAST_MEMORY_MIB}M or more")
    soft = dict(_pairs(parameters.get("l_soft", "")))
    warning = ""
    try:
        ref = parse_image_ref(image)
        identifier = site.want(
            image, user=parameters.get("USER", ""), job=parameters.get("JOB_ID", "")
        )
    except (NetworkError, NotReady) as error:
        warning = f"image {image} is taken unchecked, its node will look: {error.message}"
    except OperatorError as error:
        return _refused(error)
    except DistribError as error:
        if error.code in {"unreachable", "timed-out", "not-ready", "bug"}:
            warning = f"image {image} is taken unchecked, its node will look: {error.message}"
        else:
            return _refused(error)
    else:
        wanted = image_id(f"{identifier}@{ref.version}" if ref.version else identifier)
        held = site.held()
        # On no host yet: it waits in the queue for the first that has it. Else it prefers those
        # that have it, and may go on to others, which will fetch it.
        requests = soft if held is None or wanted in held else hard
        requests[IMAGES] = images_pattern(wanted)
    # As the scheduler counts it: what the guest really gets.
    hard[MEMORY] = f"{mib}M"
    hard[READY] = "1"
    changed = {"l_hard": _joined(hard)} | ({"l_soft": _joined(soft)} if soft else {})
    return Verdict(
        "CORRECT",
        environment={IMAGE_VARIABLE: image, MEMORY_VARIABLE: str(mib)},
        parameters=changed,
        warning=warning,
    )


def converse(
    lines: Iterator[str],
    say: Callable[[str], None],
    verdict: Callable[[Mapping[str, str]], Verdict],
) -> None:
    """Speak with a queue master until it says QUIT or goes."""
    parameters: dict[str, str] = {}
    for line in lines:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "QUIT":
            return
        if word == "START":
            parameters = {}
            say("STARTED")
        elif word == "PARAM":
            name, _, value = rest.partition(" ")
            parameters[name] = value
        elif word == "BEGIN":
            for answer in verdict(parameters).lines():
                say(answer)


def _refused(error: DistribError) -> Verdict:
    hint = f" ({error.hint})" if error.hint else ""
    return Verdict("REJECT", f"{error.message}{hint}")


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name:
            yield name, value


def _joined(pairs: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" if value else name for name, value in pairs.items())


def _line(text: str) -> str:
    return printable(" ".join(text.split()))[:900]
