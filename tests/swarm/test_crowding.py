"""Which connections of one address are too many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from distrib.swarm.crowding import SPARE, Held, share_percent, surplus

HERE, THERE = "10.0.0.1", "10.0.0.2"


def test_of_one_address_those_that_work_stay_and_the_newest() -> None:
    old = [Held((HERE, port), since_s=float(port)) for port in range(100)]
    working = [Held((HERE, 200 + n), since_s=0.0, moved_bytes=1 + n) for n in range(3)]
    newcomer = Held((HERE, 300), since_s=1000.0)
    others = [Held((THERE, port), since_s=0.0) for port in range(8)]
    cut = surplus([*old, *working, newcomer, *others], most=8)
    assert cut == old[:-4]


@given(
    st.lists(
        st.builds(
            Held,
            st.tuples(st.sampled_from([HERE, THERE]), st.integers(1, 500)),
            st.floats(0, 100),
            st.integers(0, 5),
        ),
        max_size=100,
        unique_by=lambda held: held.peer,
    ),
    st.integers(1, 20),
)
def test_every_address_keeps_its_number(held: list[Held], most: int) -> None:
    left = set(held) - set(surplus(held, most))
    for address in (HERE, THERE):
        had = [one for one in held if one.peer[0] == address]
        assert sum(one.peer[0] == address for one in left) == min(len(had), most)


def test_an_address_that_had_too_many_is_let_in_while_half_of_the_spare_is_left() -> None:
    for connections in (1, 200, 2000):
        let_in = (connections + SPARE) * 100 // share_percent(connections)
        assert connections + 0.48 * SPARE <= let_in <= connections + 0.5 * SPARE
