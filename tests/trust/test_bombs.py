"""Small things that want to become large: refused in under a second and in small memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHILD = """
import json, resource, sys, time
from datetime import UTC, datetime
from distrib.trust import mime
from distrib.trust.directory import load_trust_directory
from distrib.trust.marketplace import EntryExpectation, verify_entry
from distrib.trust.verify import Expectation, verify

MIB = 1024 * 1024

def smime(content, signature=b"AAAA"):
    return mime.join_signed(content, signature, boundary="part", micalg="sha-512")

def nested_mime(levels):
    head = 'Content-Type: multipart/signed; protocol="application/pkcs7-signature"; boundary="b%d"'
    return "".join((head + "\\n\\n--b%d\\n") % (n, n) for n in range(levels)).encode()

entities = "".join(
    f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "laugh"}">' for n in range(20)
)
CASES = {
    "a list of 50 MB": smime(b'{"a": "' + b"x" * 50_000_000 + b'"}'),
    "a list of 11 MB": smime(b'{"a": "' + b"x" * 11_000_000 + b'"}'),
    "100 000 brackets": smime(b"[" * 100_000 + b"]" * 100_000),
    "100 000 objects": smime(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "millions of values": smime(b"[" + b"[]," * 2_700_000 + b"[]]"),
    "millions of texts": smime(b"[" + b'""' * 4_000_000 + b"]"),
    "a number of 100 000 digits": smime(b'{"hv:imagelist": {"hv:size": ' + b"9" * 100_000 + b"}}"),
    "MIME in MIME in MIME": nested_mime(100_000),
    "millions of parts": smime(b"--part\\n" * 1_500_000),
    "millions of headers": b"A: b\\n" * 2_000_000 + b"\\n",
    "a long boundary": nested_mime(1).replace(b"b0", b"b" * 10_000_000),
    "a signature nested deep": smime(b"{}", b"\\x30\\x80" * 300_000),
    "a signature of millions of sets": smime(b"{}", b"\\x31\\x00" * 3_000_000),
    "billion laughs": f"<!DOCTYPE a [{entities}]><a>&e19;</a>".encode(),
    "an external entity": b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
    "an external DTD": b'<!DOCTYPE a SYSTEM "http://192.0.2.1/a.dtd"><a/>',
    "XML nested deep": b"<a>" * 80_000,
    "XML of millions of elements": b"<a>" + b"<b/>" * 2_900_000 + b"</a>",
    "XML of many attributes": b"<a " + b" ".join(b'b%d="1"' % n for n in range(20_000)) + b"/>",
    "XML of many namespaces": b"<a " + b" ".join(b'xmlns:b%d="u"' % n for n in range(9000)) + b"/>",
}
trust = load_trust_directory(sys.argv[1])
now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (2048 * MIB, 2048 * MIB))
told = {}
for name, content in CASES.items():
    start = time.process_time()
    as_list = verify(content, trust=trust, expectation=Expectation(), now=now)
    middle = time.process_time()
    as_entry = verify_entry(content, trust=trust, expectation=EntryExpectation(), now=now)
    end = time.process_time()
    told[name] = {
        "accepted": as_list.accepted or as_entry.accepted,
        "codes": sorted({r.code.value for r in (*as_list.reasons, *as_entry.reasons)}),
        "seconds": [middle - start, end - middle],
    }
after_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"cases": told, "grown_mib": (after_kib - before_kib) / 1024}))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, object]:
    trust = ROOT / "tests" / "data" / "imagelists" / "trust"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(trust)], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_each_is_refused_within_a_second(told: dict[str, object]) -> None:
    cases = told["cases"]
    assert isinstance(cases, dict)
    assert len(cases) == 20
    for name, case in cases.items():
        assert not case["accepted"], name
        assert set(case["codes"]) & {"too-large", "message-malformed"}, name
        assert max(case["seconds"]) < 1, name


def test_all_together_take_little_memory(told: dict[str, object]) -> None:
    """Two copies of the largest message that is read at all, and some."""
    grown = told["grown_mib"]
    assert isinstance(grown, float)
    assert grown < 64
