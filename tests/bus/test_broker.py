"""The broker as a child: what it keeps, how it ends, and what clients do when it is gone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from distrib.bus.broker import Broker, BrokerSettings, find_mosquitto
from distrib.bus.mqtt import BusSettings, Publication, client_tls
from distrib.child import ChildFailed
from distrib.errors import ConfigInvalid, ExitStatus, ToolMissing

LIMIT_S = 10.0
PRESENCE = "distrib/v1/node/wn001/presence"
REPORT = "distrib/v1/node/wn001/report"
DESIRED = "distrib/v1/node/wn001/desired"


async def connected(*buses: Any) -> None:
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*(bus.connected.wait() for bus in buses))


async def test_retained_messages_survive_a_restart_of_the_broker(
    broker_settings: BrokerSettings, tmp_path: Path, make_bus: Any, inbox: Any
) -> None:
    async with Broker(broker_settings, tmp_path).running():
        writer, node = make_bus("controller"), make_bus("wn001")
        async with writer.running(), node.running():
            await connected(writer, node)
            writer.retain(DESIRED, b"orders")
            node.retain(REPORT, b"held")
    async with Broker(broker_settings, tmp_path).running():
        heard, reader = inbox(), make_bus("controller")
        reader.subscribe("distrib/v1/node/#", heard)
        async with reader.running():
            await heard.until(lambda got: len(got) >= 2)
    assert dict(heard.received) == {DESIRED: b"orders", REPORT: b"held"}


async def test_a_client_reconnects_and_subscribes_again(
    broker_settings: BrokerSettings, tmp_path: Path, make_bus: Any, inbox: Any
) -> None:
    # With a session it does not matter which of the two is back first.
    reader, writer = make_bus("controller", session_expiry_s=60), make_bus("wn001")
    heard = inbox()
    reader.subscribe("distrib/v1/node/+/event", heard)
    async with reader.running(), writer.running():
        async with Broker(broker_settings, tmp_path).running():
            await connected(reader, writer)
            writer.send("distrib/v1/node/wn001/event", b"1")
            await heard.until(lambda got: len(got) == 1)
        # What is said while the broker is away waits, and goes out in order; of what is retained
        # only the newest does.
        for payload in (b"2", b"3"):
            writer.send("distrib/v1/node/wn001/event", payload)
            writer.retain(REPORT, payload)
        reports = inbox()
        reader.subscribe(REPORT, reports)
        async with Broker(broker_settings, tmp_path).running():
            await heard.until(lambda got: got[-1][1] == b"3")
            assert await reports.one() == (REPORT, b"3")
    # QoS 1 is at least once: what the broker had no receipt for when it stopped comes again.
    assert list(dict.fromkeys(payload for _, payload in heard.received)) == [b"1", b"2", b"3"]


async def test_what_is_said_while_a_client_with_a_session_is_away_waits_for_it(
    broker: Broker, make_bus: Any, inbox: Any
) -> None:
    """And without one it is lost: that is why the controller has one."""
    topic, writer = "distrib/v1/node/wn001/event", make_bus("wn001")
    async with writer.running():
        for session_expiry_s, expected in ((60, [b"away", b"here"]), (0, [b"here"])):
            before, after = (
                make_bus("controller", session_expiry_s=session_expiry_s) for _ in range(2)
            )
            heard = inbox()
            for reader in (before, after):
                reader.subscribe("distrib/v1/node/+/event", heard)
            async with before.running():
                await connected(before, writer)
            writer.send(topic, b"away")
            async with asyncio.timeout(LIMIT_S):
                await writer._idle.wait()
            async with after.running():
                await connected(after)
                writer.send(topic, b"here")
                await heard.until(lambda got: got[-1:] == [(topic, b"here")])
            assert [payload for _, payload in heard.received] == expected


async def test_the_broker_is_started_again_when_it_dies(
    broker: Broker, make_bus: Any, inbox: Any
) -> None:
    heard, reader = inbox(), make_bus("controller")
    reader.subscribe("distrib/v1/controller/sync", heard)
    async with reader.running():
        await connected(reader)
        assert broker.child.pid is not None
        os.kill(broker.child.pid, signal.SIGKILL)
        reader.send("distrib/v1/controller/sync", b"again")
        await heard.one()
    assert broker.child.starts == 2


async def test_the_last_will_of_a_killed_client_is_delivered(
    broker: Broker, make_bus: Any, inbox: Any, port: int, tmp_path: Path
) -> None:
    settings = make_bus("wn001")._settings
    program = tmp_path / "node.py"
    program.write_text(
        f"""
import asyncio, sys
from distrib.bus.mqtt import Bus, BusSettings, Publication
async def main():
    settings = BusSettings.model_validate_json({settings.model_dump_json()!r})
    bus = Bus(settings, client_id="wn001", will=Publication({PRESENCE!r}, b"gone", 1, True))
    async with bus.running():
        bus.retain({PRESENCE!r}, b"here")
        await asyncio.Event().wait()
asyncio.run(main())
"""
    )
    heard, reader = inbox(), make_bus("controller")
    reader.subscribe(PRESENCE, heard)
    async with reader.running():
        process = await asyncio.create_subprocess_exec(sys.executable, str(program))
        try:
            await heard.until(lambda got: (PRESENCE, b"here") in got)
        finally:
            process.kill()
            await process.wait()
        await heard.until(lambda got: (PRESENCE, b"gone") in got)


async def test_a_client_that_says_goodbye_leaves_no_will(
    broker: Broker, make_bus: Any, inbox: Any
) -> None:
    heard, reader = inbox(), make_bus("controller")
    reader.subscribe("distrib/v1/#", heard)
    async with reader.running():
        await connected(reader)
        node = make_bus("wn001", will=Publication(PRESENCE, b"gone", 1, retain=True))
        async with node.running():
            await connected(node)
            node.retain(PRESENCE, b"bye")
        reader.send("distrib/v1/controller/sync", b"end")
        await heard.until(lambda got: got[-1:] == [("distrib/v1/controller/sync", b"end")])
    assert [payload for _, payload in heard.received] == [b"bye", b"end"]


async def test_a_client_that_comes_back_takes_the_place_of_its_dead_connection(
    broker: Broker, make_bus: Any, inbox: Any
) -> None:
    """After a cut without a FIN the will of the old connection must not come after the new one."""
    heard, reader = inbox(), make_bus("controller")
    reader.subscribe(PRESENCE, heard)
    will = Publication(PRESENCE, b"gone", 1, retain=True)
    old, new = make_bus("wn001", will=will), make_bus("wn001", will=will)
    async with reader.running():
        async with old.running():
            await connected(old)
            # The old connection cannot come back: it is as dead as its host.
            old._settings = old._settings.model_copy(update={"port": 1})
            async with new.running():
                await connected(new)
                new.retain(PRESENCE, b"here")
                await heard.until(lambda got: got[-1:] == [(PRESENCE, b"here")])
        assert [payload for _, payload in heard.received] == [b"gone", b"here"]


async def test_a_handler_that_fails_does_not_cut_the_connection(
    broker: Broker, make_bus: Any, inbox: Any
) -> None:
    def fails(_topic: str, _payload: bytes) -> None:
        raise RuntimeError("a bug")

    heard, reader, writer = inbox(), make_bus("controller"), make_bus("wn001")
    reader.subscribe("distrib/v1/node/+/event", fails)
    reader.subscribe("distrib/v1/node/wn001/event", heard)
    async with reader.running(), writer.running():
        await connected(reader, writer)
        writer.send("distrib/v1/node/wn001/event", b"1")
        writer.send("distrib/v1/node/wn001/event", b"2")
        await heard.until(lambda got: [payload for _, payload in got][-1:] == [b"2"])
        assert reader.connected.is_set()


async def test_more_retained_messages_than_mosquitto_queues_by_itself_all_arrive(
    broker: Broker, make_bus: Any, inbox: Any
) -> None:
    writer = make_bus("controller")
    async with writer.running():
        await connected(writer)
        for number in range(1500):
            writer.retain(f"distrib/v1/node/n{number}/desired", b"x")
        async with asyncio.timeout(LIMIT_S):
            await writer._idle.wait()
    heard, reader = inbox(), make_bus("controller")
    reader.subscribe("distrib/v1/node/+/desired", heard)
    async with reader.running():
        await heard.until(lambda got: len(got) == 1500)


async def test_a_packet_over_the_limit_ends_the_connection(
    broker: Broker, make_bus: Any, inbox: Any
) -> None:
    heard, reader = inbox(), make_bus("controller")
    reader.subscribe("distrib/v1/node/+/event", heard)
    settings: BusSettings = make_bus("wn001")._settings
    async with reader.running():
        await connected(reader)
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client(
                settings.host, settings.port, tls_context=client_tls(settings), timeout=1
            ) as hostile:
                await hostile.publish("distrib/v1/node/wn001/event", b"x" * (2 << 20), qos=1)
        node = make_bus("wn001")
        async with node.running():
            node.send("distrib/v1/node/wn001/event", b"good")
            assert (await heard.one())[1] == b"good"


async def test_a_port_that_is_taken_is_said_at_once(
    broker: Broker, broker_settings: BrokerSettings, tmp_path: Path
) -> None:
    with pytest.raises(ChildFailed, match="in use"):
        async with Broker(broker_settings, tmp_path / "second").running():
            pass


async def test_a_missing_certificate_is_named(
    broker_settings: BrokerSettings, tmp_path: Path
) -> None:
    settings = broker_settings.model_copy(update={"cert": tmp_path / "none.pem"})
    with pytest.raises(ConfigInvalid, match=r"broker\.cert"):
        async with Broker(settings, tmp_path / "state").running():
            pass


def test_without_mosquitto_the_line_that_installs_it_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("distrib.bus.broker._SBIN", ())
    with pytest.raises(ToolMissing) as missing:
        find_mosquitto()
    assert missing.value.exit_status is ExitStatus.USAGE
    assert "apt-get install mosquitto" in missing.value.hint


async def test_the_broker_does_not_outlive_a_parent_that_is_killed(
    broker_settings: BrokerSettings, tmp_path: Path
) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        f"""
import asyncio, json, pathlib
from distrib.bus.broker import Broker, BrokerSettings
async def main():
    settings = BrokerSettings.model_validate_json({broker_settings.model_dump_json()!r})
    broker = Broker(settings, pathlib.Path({str(tmp_path / "state")!r}))
    async with broker.running():
        print(json.dumps(broker.child.pid), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(program), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        while not (line := await parent.stdout.readline()).strip().isdigit():
            assert line, "the parent ended"
        descriptor = os.pidfd_open(json.loads(line))
        parent.kill()
        await parent.wait()
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, gone.set)
        await gone.wait()
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)
