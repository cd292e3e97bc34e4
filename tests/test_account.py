"""The account of a program for a TPU, by a text such as its compiler writes."""

from benchmarks.absent import chip
from benchmarks.account import account, cells

PROGRAM = """HloModule jit_f

%fused (p: bf16[8,8]) -> bf16[8,8] {
  %p = bf16[8,8]{1,0} parameter(0)
  ROOT %c = bf16[8,8]{1,0} convolution(%p, %p), dim_labels=bf_io->bf
}

%moved (p: bf16[8,8]) -> bf16[8,8] {
  %p = bf16[8,8]{1,0} parameter(0)
  ROOT %t = bf16[8,8]{0,1} transpose(%p), dimensions={1,0}
}

%body (p: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {
  %p = (s32[], bf16[8,8]{1,0}) parameter(0)
  ROOT %f = bf16[8,8]{1,0} fusion(%p), calls=%fused, backend_config={"estimated_cycles":"10"}
}

%condition (p: (s32[], bf16[8,8])) -> pred[] {
  %p = (s32[], bf16[8,8]{1,0}) parameter(0)
  %n = s32[] constant(7)
  ROOT %l = pred[] compare(%p, %n), direction=LT
}

ENTRY %main (x: bf16[8,8]) -> f32[4] {
  %x = bf16[8,8]{1,0} parameter(0)
  %w = (s32[], bf16[8,8]{1,0}) while(%x), condition=%condition, body=%body
  %m = bf16[8,8]{0,1} fusion(%x), calls=%moved, backend_config={"estimated_cycles":"20"}
  %u = bf16[8,8]{0,1} copy(%x), backend_config={"estimated_cycles":"18446744073709551615"}
  %v = bf16[8,8]{0,1} copy(%x), backend_config={"estimated_cycles":"18446744073709551614"}
  %r = (f32[4]{0}, f32[2]{0}) all-reduce(%m, %m), replica_groups={{0,1}}
  %g = (f32[4]{0}, f32[8]{0}) all-gather-start(%m), dimensions={0}
  ROOT %d = f32[8]{0} all-gather-done(%g), backend_config={"estimated_cycles":"10"}
}
"""


def test_cycles_are_counted_by_kind_and_as_often_as_a_loop_runs():
    found = account(PROGRAM)
    assert found.total == 100
    assert found.cycles["products"] == 70
    # What the compiler cannot tell, minus one or two, is nothing.
    assert found.cycles["moves"] == 20
    assert found.share("collectives") == 0.1
    assert found.largest[0][0] == 70


def test_collectives_are_told_with_what_they_give():
    assert account(PROGRAM).collectives == {"all-reduce": (1, 24), "all-gather": (1, 32)}


def test_cells_are_of_chips_that_are_known():
    seconds = account(PROGRAM).total / chip("TPU v5 lite").clock
    assert cells(account(PROGRAM), "TPU v5 lite", seconds / 2).split(" | ")[1] == "50%"
    assert set(cells(account(PROGRAM), "NVIDIA H200", 1.0)) == {" ", "|"}
    assert chip("TPU v5 lite") != chip("TPU v5")
