"""Reading image lists: what is tolerated, what is refused, and that every fault is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.trust.fields import format_time, parse_time
from distrib.trust.imagelist import (
    ImageListInvalid,
    parse_image_list,
    render_image_list,
    version_key,
)

from .conftest import IMAGE_ID, LIST_ID, World, codes


def faults(content: bytes) -> list[str]:
    with pytest.raises(ImageListInvalid) as refused:
        parse_image_list(content)
    return codes(refused.value.found)


def edited(world: World, edit: Callable[[dict[str, Any]], Any]) -> bytes:
    document = json.loads(world.content())
    edit(document["hv:imagelist"])
    return json.dumps(document).encode()


def first_image(document: dict[str, Any]) -> dict[str, Any]:
    image: dict[str, Any] = document["hv:images"][0]["hv:image"]
    return image


def test_a_list_is_written_and_read_back(world: World) -> None:
    image_list = world.image_list()
    content = render_image_list(image_list)
    assert parse_image_list(content) == image_list
    assert content == json.dumps(json.loads(content), indent=4, sort_keys=True).encode() + b"\n"


def test_the_bare_form_of_2011_is_read(world: World) -> None:
    bare = json.dumps(json.loads(world.content())["hv:imagelist"]).encode()
    assert parse_image_list(bare) == world.image_list()


def test_sizes_are_numbers_or_texts(world: World) -> None:
    content = edited(world, lambda doc: first_image(doc).update({"hv:size": "67108864"}))
    assert parse_image_list(content) == world.image_list()


@pytest.mark.parametrize(
    "size", [0, -1, 1.5, 1e6, True, "", "1e6", "1 GB", "-1", "٣", 2**63, "9" * 30, [], {}]
)
def test_other_sizes_are_refused(world: World, size: object) -> None:
    content = edited(world, lambda doc: first_image(doc).update({"hv:size": size}))
    assert faults(content) == ["field-invalid"]


def test_unknown_keys_are_kept(world: World) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["ad:vo"] = "some.vo"
        first_image(document)["ad:mpuri"] = {"any": ["thing", 1, None]}

    parsed = parse_image_list(edited(world, edit))
    assert parsed.extra == {"ad:vo": "some.vo"}
    assert parsed.images[0].extra == {"ad:mpuri": {"any": ["thing", 1, None]}}
    assert parse_image_list(render_image_list(parsed)) == parsed


def test_identifiers_are_uuids_in_any_case(world: World) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["dc:identifier"] = LIST_ID.upper()
        first_image(document)["dc:identifier"] = IMAGE_ID.upper()

    assert parse_image_list(edited(world, edit)) == world.image_list()


@pytest.mark.parametrize("identifier", ["x", "", 7, LIST_ID + "0", "../../etc/passwd", LIST_ID[1:]])
def test_other_identifiers_are_refused(world: World, identifier: object) -> None:
    content = edited(world, lambda doc: first_image(doc).update({"dc:identifier": identifier}))
    assert faults(content) == ["uuid-invalid"]


@pytest.mark.parametrize(
    "time",
    ["2026-03-01", "2026-03-01T12:00:00", "2026-03-01T12:00:00+01:00", "2026-13-01T12:00:00Z", 7],
)
def test_other_times_are_refused(world: World, time: object) -> None:
    content = edited(world, lambda doc: doc.update({"dc:date:created": time}))
    assert faults(content) == ["field-invalid"]


def test_expiry_before_creation_is_refused(world: World) -> None:
    content = edited(world, lambda doc: doc.update({"dc:date:expires": doc["dc:date:created"]}))
    assert faults(content) == ["field-invalid"]


def test_all_faults_are_told_at_once(world: World) -> None:
    def edit(document: dict[str, Any]) -> None:
        del document["hv:version"]
        document["dc:identifier"] = "no"
        document["dc:date:expires"] = "never"
        del document["hv:endorser"]["hv:x509"]["hv:ca"]
        del first_image(document)["sl:checksum:sha512"]
        first_image(document)["hv:uri"] = "http://a\u0000b"

    with pytest.raises(ImageListInvalid) as refused:
        parse_image_list(edited(world, edit))
    told = [str(reason) for reason in refused.value.found]
    assert len(told) == 6
    assert codes(refused.value.found) == ["field-invalid", "field-missing", "uuid-invalid"]
    assert refused.value.as_dict()["reasons"] == [r.as_dict() for r in refused.value.found]


@pytest.mark.parametrize("key", ["hv:images", "hv:endorser", "dc:identifier", "dc:date:expires"])
def test_what_trust_stands_on_must_be_there(world: World, key: str) -> None:
    assert "field-missing" in faults(edited(world, lambda doc: doc.pop(key)))


@pytest.mark.parametrize(
    "key", ["dc:title", "dc:description", "hv:hypervisor", "sl:comments", "sl:osversion"]
)
def test_texts_that_only_describe_may_be_absent(world: World, key: str) -> None:
    assert parse_image_list(edited(world, lambda doc: first_image(doc).pop(key)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe{}",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b'"' + b'\\"' * 200_000,
        b"1" * 5000,
    ],
    ids=lambda content: repr(content[:20]),
)
def test_what_is_no_unambiguous_json_is_refused(content: bytes) -> None:
    assert set(faults(content)) <= {"message-malformed", "field-invalid", "field-missing"}


def test_too_large_is_refused_before_it_is_parsed() -> None:
    assert faults(b" " * (8 * 1024 * 1024 + 1)) == ["too-large"]


def test_an_empty_list_retires_a_subscription(world: World) -> None:
    assert parse_image_list(render_image_list(replace(world.image_list(), images=()))).images == ()


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_bytes_crash_the_reader(content: bytes) -> None:
    with pytest.raises(ImageListInvalid):
        parse_image_list(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    key=st.sampled_from(
        ["hv:images", "hv:endorser", "dc:identifier", "hv:version", "dc:date:created", "dc:title"]
    ),
    value=JSON,
)
def test_no_value_crashes_the_reader(world: World, key: str, value: object) -> None:
    content = edited(world, lambda doc: doc.update({key: value}))
    try:
        parsed = parse_image_list(content)
    except ImageListInvalid:
        return
    assert parse_image_list(render_image_list(parsed)) == parsed


def test_versions_are_compared_by_their_numbers() -> None:
    ordered = ["0.0.0", "1", "1.0", "1.0.0", "1.2", "1.9", "1.10", "1.10-1", "1.10-2", "2", "2.a"]
    assert sorted(set(ordered), key=version_key) == ordered
    assert version_key("1-2,3/4.05") == version_key("1.2.3.4.5")


@given(st.lists(st.text(max_size=12), max_size=4))
def test_any_versions_can_be_compared(versions: list[str]) -> None:
    assert len(sorted(versions, key=version_key)) == len(versions)


@given(st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.just(UTC)))
def test_times_are_written_and_read_back(time: datetime) -> None:
    assert parse_time(format_time(time)) == time.replace(microsecond=0)
