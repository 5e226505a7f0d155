"""Many endpoints at once come to what one by one would."""

from __future__ import annotations

import random
from contextlib import suppress
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core import claiming, keys
from mesh.core.errors import RequestError
from mesh.core.importing import EndpointSpec, fresh
from mesh.core.ops import Op, Put
from tests.mesh.core.core_world import SECOND_NS, World

Said = tuple[list[Op], list[tuple[int, str]]]


def said(world: World, specs: list[EndpointSpec]) -> Said:
    writer = world.writers["a1"]
    last = writer._author.clock.last
    ops, errors = writer.add_endpoints(specs, now_ns=world.now_ns)
    writer._author.clock.last = last
    return ops, [(index, f"{type(error).__name__} {error}") for index, error in errors]


def one_by_one(world: World, specs: list[EndpointSpec]) -> Said:
    with mock.patch.object(claiming, "fresh", lambda _author, _specs: {}):
        return said(world, specs)


def random_spec(rng: random.Random) -> EndpointSpec:
    return EndpointSpec(
        vpc=rng.choice(["red", "red", "red", "blue", "none", ""]),
        ip=rng.choice(
            [f"10.0.{rng.choice((1, 2, 3, 200))}.{rng.randint(0, 6)}"] * 9
            + ["10.0.1.255", "10.9.0.1", "::1", "x", "127.0.0.1", "10.0.1.05"]
        ),
        mac=rng.choice([None, None, None, "02:00:00:00:00:01", "02-x"]),
        name=rng.choice([None, None, "pod", "Pod"]),
        host=rng.choice([None, None, None, "192.0.2.1", "host"]),
        labels=rng.choice([{}, {}, {"app": "web"}, {"": "\n"}]),
    )


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 1 << 32))
def test_in_bulk_the_same_is_written_and_the_same_refused(seed: int) -> None:
    rng = random.Random(seed)
    world = World("a1", "a2", "b1", admins=("a1",))
    world.red()
    if rng.random() < 0.5:
        world.everywhere("b1", "add_vpc", "blue", 8, ["10.0.0.0/16"])
        world.everywhere("b1", "add_subnet", "s", "blue", "10.0.1.0/24", ["b"], restrict=True)
    for _ in range(rng.randint(0, 12)):
        name, ip = (
            rng.choice(("a1", "a2", "b1")),
            f"10.0.{rng.choice((1, 200))}.{rng.randint(2, 6)}",
        )
        with suppress(RequestError):
            match rng.randint(0, 3):
                case 0:
                    world.everywhere(name, "move_endpoint", "red", ip)
                case 1:
                    world.everywhere(name, "remove_endpoint", "red", ip)
                case _:
                    world.everywhere(name, "add_endpoint", "red", ip)
        world.now_ns += SECOND_NS
    if rng.random() < 0.3:
        world.everywhere("a1", "set_vpc", "red", sites=["b"])
    specs = [random_spec(rng) for _ in range(rng.randint(0, 25))]
    assert said(world, specs) == one_by_one(world, specs)


def test_what_is_plainly_new_is_found_so_and_nothing_else() -> None:
    world = World("a1", "b1", admins=("a1",))
    red = world.red()
    world.everywhere("b1", "add_endpoint", "red", "10.0.200.9")
    world.everywhere("a1", "add_endpoint", "red", "10.0.200.8")
    world.everywhere("b1", "add_endpoint", "red", "10.0.200.7")
    world.everywhere("a1", "remove_endpoint", "red", "10.0.200.7")  # an eviction
    world.tend("b1")
    newer = Put(red, keys.ENDPOINT + keys.addr_of("10.0.200.6"), b"\x81\x00\x09")
    world.carry_out("a1", [newer])
    world.sync()
    ips = [f"10.0.200.{end}" for end in range(0, 12)]
    found = fresh(world.writers["a1"]._author, [EndpointSpec("red", ip) for ip in ips])
    assert [ips[index] for index in found] == [f"10.0.200.{end}" for end in (2, 3, 4, 5, 10, 11)]
