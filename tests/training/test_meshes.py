"""Meshes of devices that are not here: slices of TPUs, and machines with GPUs."""

from dataclasses import dataclass

import pytest

from osdhuman_jax.config import ConfigError
from osdhuman_jax.training import sharding


@dataclass(frozen=True)
class Chip:
    """A device that is not here, as JAX tells of it."""

    platform: str
    device_kind: str
    id: int
    slice_index: int
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0
    process_index: int = 0


def chips(side: int, slices: int) -> list[Chip]:
    """Slices of v6e, each a square."""
    places = [(x, y, 0) for y in range(side) for x in range(side)]
    numbered = enumerate((index, place) for index in range(slices) for place in places)
    return [Chip("tpu", "TPU v6 lite", i, index, place) for i, (index, place) in numbered]


def gpus(machines: int) -> list[Chip]:
    return [Chip("gpu", "NVIDIA H100 80GB HBM3", i, i // 8) for i in range(8 * machines)]


@pytest.mark.parametrize(
    ("devices", "asked", "shape"),
    [
        (chips(2, 1), (-1, 1), {"data": 4, "fsdp": 1}),
        (chips(4, 1), (-1, 2), {"data": 8, "fsdp": 2}),  # half of an axis of the torus
        (chips(4, 2), (-1, 2), {"slice": 2, "data": 8, "fsdp": 2}),
        (chips(2, 2), (2, -1), {"slice": 2, "data": 1, "fsdp": 4}),
        (gpus(2), (-1, 8), {"data": 2, "fsdp": 8}),  # JAX takes machines for slices, XLA does not
    ],
    ids=["one slice", "split axis", "two slices", "weights within slices", "two machines"],
)
def test_a_mesh_follows_how_devices_are_joined(devices, asked, shape):
    mesh = sharding.make_mesh(*asked, devices)
    assert dict(mesh.shape) == shape
    found = mesh.devices.reshape(-1, *mesh.devices.shape[-2:]) if "slice" in shape else None
    assert found is None or all(len({c.slice_index for c in x.flat}) == 1 for x in found)
    assert {chip.id for chip in mesh.devices.flat} == set(range(len(devices)))


def test_a_mesh_that_would_split_weights_between_slices_is_refused():
    with pytest.raises(ConfigError, match=r"data=1, fsdp=8 would split weights over 2 slices"):
        sharding.make_mesh(1, 8, chips(2, 2))
    with pytest.raises(ConfigError, match="do not fit how the devices are joined: Number of"):
        sharding.make_mesh(6, 1, chips(2, 2)[:6])


def test_slices_are_counted_of_tpus_alone():
    @dataclass(frozen=True)
    class Lone:
        platform: str = "tpu"

    assert sharding.slices_of([Lone(), Lone()]) == sharding.slices_of(chips(2, 1)) == 1
    assert (sharding.slices_of(chips(2, 3)), sharding.slices_of(gpus(2))) == (3, 1)
