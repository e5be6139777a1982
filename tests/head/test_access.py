"""Who may call what, and how a refusal looks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from distrib.api.app import create_app
from distrib.api.bearer import keep_token_file
from distrib.db.models import Role, Token
from tests.head.stories import Head, serve


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The documented error body."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code
    return error


CHANGES = [
    (Role.OPERATOR, "PUT", "/nodes/wn001", {"address": "127.0.0.2"}),
    (Role.OPERATOR, "DELETE", "/nodes/wn001", None),
    (Role.OPERATOR, "POST", "/rollouts", {"image": "x", "nodes": "all"}),
    (Role.OPERATOR, "POST", "/rollouts/r-1/abort", {}),
    (Role.OPERATOR, "PUT", "/aliases/x", {"identifier": "y"}),
    (Role.ADMIN, "POST", "/endorsers", {"dn": "/CN=x", "ca": "/CN=y"}),
    (Role.ADMIN, "DELETE", "/endorsers/1", None),
    (Role.ADMIN, "POST", "/images", {"list": "", "size_bytes": 1}),
    (Role.ADMIN, "PUT", "/images/x/content", None),
    (Role.ADMIN, "POST", "/images/x/approve", {}),
    (Role.ADMIN, "POST", "/images/x/deny", {"reason": "y"}),
    (Role.ADMIN, "GET", "/tokens", None),
    (Role.ADMIN, "POST", "/tokens", {"name": "x", "role": "viewer"}),
    (Role.ADMIN, "DELETE", "/tokens/1", None),
]


def test_each_role_may_what_is_its_own(served: Head) -> None:
    below = {Role.OPERATOR: Role.VIEWER, Role.ADMIN: Role.OPERATOR}
    with served.http() as http:
        for wanted, method, path, body in CHANGES:
            less = {"Authorization": f"Bearer {served.token(below[wanted])}"}
            answer = http.request(method, path, json=body, headers=less)
            assert refused(answer, 403, "forbidden")["exit"] == 9
            enough = {"Authorization": f"Bearer {served.token(wanted)}"}
            answer = http.request(method, path, json=body, headers=enough)
            assert answer.status_code not in {401, 403}


def test_every_call_is_in_the_table_of_roles(served: Head) -> None:
    """A new route without a role would be open to anybody."""
    paths = create_app(served.services).openapi()["paths"]
    with served.http("no such token") as http:
        for path, methods in paths.items():
            for method in methods:
                answer = http.request(
                    method, f"{served.url}{path}".replace("{", "").replace("}", "")
                )
                is_open = path in {"/api/v1/health", "/api/v1/site-list"}
                assert (answer.status_code != 401) == is_open, (method, path)


def test_a_token_must_be_known_and_in_time(served: Head) -> None:
    lifetime = timedelta(hours=1)
    short = served.token(Role.VIEWER, lifetime=lifetime)
    with served.http(short) as http:
        assert http.get("/images").status_code == 200
        served.clock.ahead = lifetime
        assert "expired" in refused(http.get("/images"), 401, "unauthenticated")["message"]
        refused(
            http.get("/images", headers={"Authorization": "Basic eDp5"}), 401, "unauthenticated"
        )
        assert http.get("/health", headers={"Authorization": ""}).json()["status"] == "ok"


def test_a_token_is_shown_once_and_revoked_for_good(served: Head) -> None:
    with served.http() as http:
        made = http.post("/tokens", json={"name": "ops", "role": "viewer"}).json()
        listed = http.get("/tokens").json()["tokens"]
        assert [row["name"] for row in listed] == ["admin", "ops"]
        assert made["token"] not in http.get("/tokens").text + http.get("/audit").text
        refused(http.post("/tokens", json={"name": "ops", "role": "admin"}), 409, "conflict")
        with served.http(made["token"]) as other:
            assert other.get("/nodes").status_code == 200
            assert http.delete(f"/tokens/{made['id']}").status_code == 200
            refused(other.get("/nodes"), 401, "unauthenticated")
    with served.database.reading() as session:
        stored = session.query(Token).one()
    assert made["token"] not in {str(value) for value in vars(stored).values()}


def test_a_new_site_gets_its_first_token_in_a_file(served: Head, tmp_path: Path) -> None:
    file = tmp_path / "secrets" / "admin.token"

    def keep() -> str:
        keep_token_file(served.database, file, name="first", role=Role.ADMIN, now=served.clock())
        return file.read_text().strip()

    secret = keep()
    assert file.stat().st_mode & 0o777 == 0o600
    with served.http(secret) as http:
        assert http.get("/tokens").status_code == 200
        assert keep() == secret
        file.unlink()
        assert keep() != secret
        refused(http.get("/tokens"), 401, "unauthenticated")


def test_bad_requests_are_told_what_is_wrong(served: Head) -> None:
    with served.http() as http:
        error = refused(http.put("/nodes/wn001", json={"address": "wn001"}), 422, "usage")
        assert "no IP address" in error["message"]
        refused(http.put("/nodes/seeder", json={"address": "127.0.0.2"}), 422, "usage")
        refused(http.put("/nodes/wn001", json={"address": "::1", "rak": "R1"}), 422, "usage")
        refused(http.put("/nodes/wn001", json={"address": "::1", "rack": "a b"}), 422, "usage")
        slow = {"address": "::1", "labels": {"link_mbit": "fast"}}
        refused(http.put("/nodes/wn001", json=slow), 422, "usage")
        refused(http.post("/endorsers", json={"dn": "nobody", "ca": "/CN=x"}), 422, "usage")
        refused(http.post("/images", json={"list": "%%", "size_bytes": 1}), 422, "usage")
        refused(http.get("/nowhere"), 404, "not-found")
        refused(http.get("/nodes/wn404"), 404, "not-found")
        refused(http.post("/rollouts", content=b"{" * 300_000), 413, "body-too-large")
        endless = iter([b" " * 100_000] * 5)
        refused(http.post("/rollouts", content=endless), 413, "body-too-large")


def test_the_inventory_can_be_written_and_read(served: Head) -> None:
    entry = {"address": "192.0.2.7", "rack": "R1", "labels": {"gpu": "no"}}
    with served.http(served.token(Role.OPERATOR)) as http:
        assert http.put("/nodes/wn001", json=entry).json()["name"] == "wn001"
        shown = http.get("/nodes/wn001").json()
        assert {key: shown[key] for key in entry} == entry
        assert shown["online"] is False
        assert [row["name"] for row in http.get("/nodes").json()["nodes"]] == ["wn001"]
        assert http.delete("/nodes/wn001").json() == {"forgotten": "wn001"}
        refused(http.delete("/nodes/wn001"), 404, "not-found")
        first = http.get("/audit", params={"limit": 1}).json()["audit"]
        assert (first[0]["action"], first[0]["actor"]) == ("node-added", "operator")
        older = http.get("/audit", params={"before": first[0]["id"]}).json()["audit"]
        assert all(row["id"] < first[0]["id"] for row in older)


def test_a_bug_is_an_answer_without_a_traceback(
    head: Head, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    async def broken(_name: str) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(head.rollouts, "show", broken)
    with serve(head), head.http() as http:
        answer = http.get("/rollouts/r-1")
        assert "secret" not in answer.text
        assert refused(answer, 500, "bug")["exit"] == 1
    assert [line["path"] for line in logged if line["event"] == "api-failed"] == [
        "/api/v1/rollouts/r-1"
    ]
