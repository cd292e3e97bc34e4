"""Which pictures a cluster's workers are handed, and what their deaths mean."""

from pathlib import Path

from osdhuman_jax.inference.jobs import Job
from osdhuman_jax.inference.portions import LARGE, Schedule

SIZES = [(90, 90), (200, 90), (100, 100), (LARGE, 2), (90, 200)] * 30


def jobs(sizes: list[tuple[int, int]]) -> list[Job]:
    return [Job(Path(f"/in/{i}.png"), Path(f"{i:03}.png"), size) for i, size in enumerate(sizes)]


def test_portions_are_of_one_size_and_shrink_and_the_largest_come_alone():
    found = jobs(SIZES)
    schedule = Schedule(found, workers=1, batch=2)
    portions = []
    while portion := schedule.take(idle=True):
        portions.append(portion)
    handed_out = [job for p in portions for job in p.jobs]
    assert len(handed_out) == len(found) and set(handed_out) == set(found)
    large = [p for p in portions if p.alone]
    assert portions[-len(large) :] == large
    assert [p.jobs[0].size for p in large] == [(LARGE, 2)] * 30
    lengths = [len(p.jobs) for p in portions if not p.alone]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] == 18 and lengths[-1] <= 4
    assert {len({job.size[1] > 128 for job in p.jobs}) for p in portions[:3]} == {1}
    assert len(schedule) == 0


def test_a_worker_that_is_busy_gets_nothing_that_must_be_alone():
    schedule = Schedule(jobs([(LARGE, 2)]), workers=1, batch=1)
    assert schedule.take(idle=False) is None
    assert schedule.take(idle=True) == (jobs([(LARGE, 2)]), True)


def test_what_a_worker_died_over_comes_last_and_alone_and_is_given_up_the_second_time():
    found = jobs([(90, 90)] * 4)
    schedule = Schedule(found, workers=1, batch=2)
    first = schedule.take(idle=True)
    assert first == (found[:2], False) and schedule.lost(first.jobs) == []
    assert schedule.take(idle=True) == (found[2:], False)
    assert schedule.take(idle=False) is None
    assert schedule.take(idle=True) == ([found[0]], True)
    assert schedule.lost([found[0]]) == [found[0]]
    assert schedule.take(idle=True) == ([found[1]], True)
    assert schedule.take(idle=True) is None
