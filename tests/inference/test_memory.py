"""Amounts of memory: as people write them, as machines and containers state them."""

import jax
import pytest

from osdhuman_jax.inference import memory
from osdhuman_jax.inference.memory import budget, host_memory, is_exhausted, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *[("1", 1), ("4GiB", 2**32), ("4G", 2**32), ("4gb", 2**32), (" 800 MiB ", 800 * 2**20)],
        *[("1.5K", 1536), ("2e9", 2 * 10**9), ("0.5T", 2**39), ("512kB", 2**19), ("7B", 7)],
    ],
)
def test_amounts(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "0", "0.2", "-1G", "4GiBs", "4 G i B", "1e", "GiB"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ValueError, match="is no amount of memory; write for example 4GiB"):
        parse_bytes(text)


def machine(monkeypatch, pages: int) -> None:
    """A host with so many pages of 4 KiB."""
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}
    monkeypatch.setattr(memory.os, "sysconf", sizes.__getitem__)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, 2**32),
        ({"memory.max": "max\n"}, 2**32),
        ({"memory.max": f"{2**31}\n"}, 2**31),
        ({"memory/memory.limit_in_bytes": f"{2**30}\n"}, 2**30),
        ({"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, 2**32),
    ],
)
def test_a_container_lowers_the_hosts_memory(tmp_path, monkeypatch, files, limit):
    machine(monkeypatch, 2**20)
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host_memory() == limit
    assert budget() == limit // 2


@pytest.mark.parametrize(
    ("statistics", "share"), [({"bytes_limit": 1000}, 900), ({}, 2**31), (None, 2**31)]
)
def test_a_device_gives_most_of_its_own(monkeypatch, statistics, share):
    class Device:
        """A GPU, as far as is asked."""

        platform = "gpu"

        def memory_stats(self) -> object:
            return statistics

    monkeypatch.setattr(memory, "host_memory", lambda: 2**32)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert budget() == share


def test_a_want_of_memory_is_told_from_other_errors():
    assert is_exhausted(MemoryError())
    assert is_exhausted(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"))
    assert not is_exhausted(jax.errors.JaxRuntimeError("INTERNAL: no"))
