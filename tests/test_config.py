"""Settings: file, environment, flags; and what is refused, in one line that says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.settings import AgentSettings
from distrib.config import Settings
from distrib.controller_settings import ControllerSettings
from distrib.errors import ConfigInvalid
from distrib.seeder import SeederSettings

NODE = {"DISTRIB_AGENT_NODE": "wn1"}


def test_flags_are_stronger_than_the_environment_and_that_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('node = "file"\n[swarm]\nport = 1\ndevice_port = 2\nlink_bps = 3\n')
    settings = AgentSettings.load(
        file=file,
        environ={"DISTRIB_AGENT_SWARM__PORT": "11", "DISTRIB_AGENT_SWARM__DEVICE_PORT": "12"},
        flags={"swarm.port": 111},
    )
    swarm = settings.swarm
    assert (settings.node, swarm.port, swarm.device_port, swarm.link_bps) == ("file", 111, 12, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('nod = "wn1"\n', "unknown key nod"),
        ("[swarm]\nprot = 1\n", "unknown key swarm.prot"),
        ("[swarm]\nport = 99999\n", "swarm.port = 99999"),
        ('[cache]\nstore = "tape"\n', "cache.store = 'tape'"),
        ("[cache]\nlow_watermark = 2\n", "cache.low_watermark = 2"),
        ("swarm = 3\n", "swarm = 3"),
        ("[swarm\n", "agent.toml"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(
    tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(ConfigInvalid) as refused:
        AgentSettings.load(file=file, environ=NODE)
    assert says in refused.value.message
    assert str(file) in refused.value.message
    assert refused.value.hint
    assert "\n" not in refused.value.message


def test_unknown_variables_and_flags_are_refused_too() -> None:
    with pytest.raises(ConfigInvalid, match="DISTRIB_AGENT_SWARM__PROT"):
        AgentSettings.load(environ=NODE | {"DISTRIB_AGENT_SWARM__PROT": "1"})
    with pytest.raises(ConfigInvalid, match=r"flags: unknown key swarm\.prot"):
        AgentSettings.load(environ=NODE, flags={"swarm.prot": 1})
    with pytest.raises(ConfigInvalid, match="node is not set"):
        AgentSettings.load(environ={})


@pytest.mark.parametrize("model", [AgentSettings, ControllerSettings, SeederSettings])
def test_what_is_dumped_can_be_read_again(tmp_path: Path, model: type[Settings]) -> None:
    environ = NODE if model is AgentSettings else {}
    settings = model.load(environ=environ)
    dumped = tmp_path / "dumped.toml"
    dumped.write_text(settings.as_toml())
    assert model.load(file=dumped, environ={}) == settings


def test_tables_can_be_written_behind_what_was_dumped(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    for name in ("glance", "opennebula"):
        dumped = ControllerSettings.load(file=file if file.exists() else None, environ={}).as_toml()
        file.write_text(
            f'{dumped}\n[[events.handlers]]\nname = "{name}"\ncommand = ["/bin/true"]\n'
        )
    settings = ControllerSettings.load(file=file, environ={})
    assert [handler.name for handler in settings.events.handlers] == ["glance", "opennebula"]


def test_paths_mean_the_same_wherever_they_are_read() -> None:
    settings = AgentSettings.load(environ=NODE, flags={"cache.directory": "cache"})
    assert settings.cache.directory == Path.cwd() / "cache"
