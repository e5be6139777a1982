"""The pages under docs/formats say what the code does: their examples are read by the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from agent.cache.records import VolumeRecord
from distrib import errors
from distrib.bus import messages
from distrib.bus.messages import NodeReason
from distrib.bus.schema import MESSAGE_MAX_BYTES, decode, encode
from distrib.errors import DistribError, ExitStatus, MessageInvalid
from distrib.trust.imagelist import parse_image_list, render_image_list
from distrib.trust.reasons import ReasonCode

FORMATS = Path(__file__).parents[1] / "docs" / "formats"


def examples(page: str) -> list[str]:
    return re.findall(r"```json\n(.*?)```", (FORMATS / page).read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize(
    ("number", "model"),
    list(
        enumerate(
            (
                messages.FarmMap,
                messages.Presence,
                messages.Desired,
                messages.Orders,
                messages.Report,
                messages.Request,
                messages.Event,
                messages.SeederPresence,
            )
        )
    ),
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_messages_are_read_and_written_as_their_page_shows(
    number: int, model: type[BaseModel]
) -> None:
    example = examples("messages.md")[number]
    message = decode(model, example.encode(), what="example")
    assert decode(model, encode(message), what="again") == message
    assert set(json.loads(example)) <= set(model.model_fields)


def test_a_volume_record_is_what_its_page_shows() -> None:
    (example,) = examples("state.md")
    assert set(json.loads(example)) <= {*VolumeRecord.__dataclass_fields__}


def test_an_image_list_is_what_its_page_shows() -> None:
    (example,) = examples("image-list.md")
    image_list = parse_image_list(example.encode())
    assert json.loads(render_image_list(image_list)) == json.loads(example)


def test_every_error_code_and_reason_is_on_the_page_of_errors() -> None:
    page = (FORMATS / "errors.md").read_text("utf-8")
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, DistribError)
    ]
    codes = {one.code for one in classes} | {*NodeReason} | {*ReasonCode}
    assert [code for code in sorted(codes) if f"`{code}`" not in page] == []


def test_every_exit_status_is_on_its_page() -> None:
    page = (FORMATS / "exit-codes.md").read_text("utf-8")
    assert [s for s in ExitStatus if f"| {int(s)} |" not in page] == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"v": 2, "node": "wn001", "online": true}',
        b'{"node": "UPPER", "online": true}',
        b'{"node": "wn001", "online": "perhaps"}',
        b"[" * 200_000,
        b" " * (MESSAGE_MAX_BYTES + 1),
        b'{"node": "wn001", "online": true, "sent_at": "2026-03-01T12:00:00"}',
    ],
)
def test_what_is_no_message_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(MessageInvalid) as caught:
        decode(messages.Presence, data, what="node/wn001/presence")
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith("node/wn001/presence: ")


def test_a_newer_sender_may_say_more() -> None:
    data = b'{"v": 1, "node": "wn001", "online": true, "mood": "good"}'
    assert decode(messages.Presence, data, what="presence").online
