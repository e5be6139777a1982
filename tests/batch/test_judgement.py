"""What the JSV says and the sensor reports, without a Grid Engine."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from agent.hooks.gridengine.farm import held_in
from agent.hooks.gridengine.hook import GridEngineHook
from agent.hooks.gridengine.jsv import converse, judge
from agent.hooks.gridengine.names import (
    IMAGES,
    VALUE_MAX_BYTES,
    image_id,
    images_value,
    memory_mib,
)
from agent.hooks.gridengine.sensor import values
from distrib.errors import DistribError, NetworkError, NoSpace, NotFound, Revoked

UUID = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11"


class Site:
    """Approves one image; answers as told."""

    def __init__(
        self, *, held: frozenset[str] | None = None, error: DistribError | None = None
    ) -> None:
        self._held = held
        self._error = error

    def want(self, image: str, *, user: str, job: str) -> str:
        if self._error is not None:
            raise self._error
        return UUID

    def held(self) -> frozenset[str] | None:
        return self._held


def test_a_job_without_an_image_loses_what_its_user_forged() -> None:
    lines = list(judge({"ac": "other=1"}, Site()).lines())
    assert lines == ["ENV DEL VM_IMG", "ENV DEL VM_MEM_MIB", "RESULT STATE CORRECT"]


def test_an_image_that_some_host_holds_is_preferred_and_one_that_none_holds_waited_for() -> None:
    asked = {"ac": "vm_name=ccin2p3", "l_hard": "arch=lx-amd64,vmem=2g"}
    ours = image_id(UUID)
    prefers = judge(asked, Site(held=frozenset({ours}))).parameters
    assert prefers["l_soft"] == f"{IMAGES}=*+{ours}+*"
    assert prefers["l_hard"] == "arch=lx-amd64,vmem=2048M,vm_ready=1"
    waits = judge(asked, Site(held=frozenset())).parameters
    assert f"{IMAGES}=*+{ours}+*" in waits["l_hard"].split(",")
    assert "l_soft" not in waits
    versioned = judge({"ac": "vm_name=ccin2p3@1.0"}, Site(held=None)).parameters
    assert versioned["l_soft"] == f"{IMAGES}=*+{image_id(UUID + '@1.0')}+*"


def test_an_agent_that_is_away_costs_the_affinity_only() -> None:
    verdict = judge({"ac": "vm_name=ccin2p3"}, Site(error=NetworkError("agent: not there")))
    assert verdict.state == "CORRECT"
    assert verdict.environment["VM_IMG"] == "ccin2p3"
    assert "not there" in verdict.warning
    assert IMAGES not in str(verdict.parameters)


@pytest.mark.parametrize("error", [NotFound("image x: no such"), Revoked("image x: denied")])
def test_a_refusal_is_one_line(error: DistribError) -> None:
    (line,) = judge({"ac": "vm_name=x"}, Site(error=error)).lines()
    assert line == f"RESULT STATE REJECT {error.message}"


def test_a_name_cannot_speak_to_the_queue_master() -> None:
    (line,) = judge({"ac": "vm_name=x\rRESULT STATE ACCEPT"}, Site()).lines()
    assert line.startswith("RESULT STATE REJECT ")


def test_a_conversation_has_one_answer_for_each_job() -> None:
    said: list[str] = []

    def verdict(given: Mapping[str, str]) -> object:
        return judge(given, Site(held=None))

    lines = ["START\n", "PARAM ac vm_name=ccin2p3\n", "BEGIN\n", "START\n", "BEGIN\n", "QUIT\n"]
    converse(iter([*lines, "START\n"]), said.append, verdict)  # type: ignore[arg-type]
    assert said.count("STARTED") == 2
    assert "ENV ADD VM_IMG ccin2p3" in said
    assert said[-3:] == ["ENV DEL VM_IMG", "ENV DEL VM_MEM_MIB", "RESULT STATE CORRECT"]


@pytest.mark.parametrize(
    ("text", "mib"),
    [("2g", 2048), ("2G", 2048), ("512m", 512), ("1.5G", 1536), ("2147483648", 2048), ("x", None)],
)
def test_memory_is_binary(text: str, mib: int | None) -> None:
    assert memory_mib(text) == mib


def test_the_value_of_a_sensor_stays_below_what_execd_can_hold() -> None:
    value = images_value(image_id(str(number)) for number in range(1000))
    assert len(value) <= VALUE_MAX_BYTES
    assert held_in(f"   hl:vm_images={value}\n") == {image_id(str(n)) for n in range(81)}
    assert values(None) == {"vm_ready": "0", IMAGES: "+"}


def test_a_sensor_tells_what_is_here_and_draws_the_jobs_of_what_was_withdrawn() -> None:
    image = {"identifier": UUID, "version": "1.0", "state": "ready", "active": True}
    coming = image | {"version": "2.0", "state": "pulling", "active": False}
    status = {"report": {"images": [image, coming]}, "leasable": True, "withdrawn": ["gone"]}
    assert held_in(f"{IMAGES}={values(status)[IMAGES]}") == {
        image_id(UUID),
        image_id(f"{UUID}@1.0"),
        image_id("gone"),
    }
    del status["withdrawn"]
    assert values(status)["vm_ready"] == "1"


def test_a_fault_of_a_node_is_not_the_jobs() -> None:
    hook = GridEngineHook()
    assert hook.exit_status(None) == 0
    assert hook.exit_status(NoSpace("full")) == 99
    assert hook.exit_status(Revoked("denied")) == 100
