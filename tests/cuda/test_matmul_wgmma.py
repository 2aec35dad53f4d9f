"""The product by wgmma and the tensor-memory accelerator, in the simulator: against float64 in
every form, and mistakes planted in its pipeline, each of which the simulator names.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cuda.kernel_cases import examples, launched, normal, seeds, wide
from tests.cuda.test_matmul import check
from tinytensor.backend import bfloat16
from tinytensor.cuda import kernels, matmul, simulator
from tinytensor.cuda.matmul import product
from tinytensor.cuda.tensor_map import TensorMap
from tinytensor.cuda.tiles import TURNS, WIDE, Tile, plan_wgmma

pytestmark = pytest.mark.compiler

FLOAT32 = np.dtype(np.float32)
# Both schedules; slots that are used many times over, and slots that are used seldom.
TILES = [WIDE, TURNS, Tile(128, 128, 2), Tile(128, 128, 2, turns=True)]
FORMS = [(False, False), (False, True), (True, False), (True, True)]
sizes = st.sampled_from([1, 2, 7, 8, 63, 64, 65, 120, 127, 128, 129, 200, 256, 257, 300])


def wgmma(a, b, **how):
    return product(a, b, kernel="matmul_wgmma", **how)


def stored(seed, rows, columns, transpose=False, batch=()):
    """A random (…, rows, columns) matrix whose rows in memory begin at multiples of 16 bytes.

    Between them is NaN: an element outside the matrix would spoil the result.
    """
    rows, columns = (columns, rows) if transpose else (rows, columns)
    room = np.full((*batch, rows, -(-columns // 8) * 8), np.nan, bfloat16)
    room[..., :columns] = normal(seed, *batch, rows, columns, dtype=bfloat16)
    view = room[..., :columns]
    return view.swapaxes(-1, -2) if transpose else view


@pytest.mark.parametrize(("transpose_a", "transpose_b"), FORMS)
@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t.n}x{t.stages}{'turns' * t.turns}")
@examples
@given(m=sizes, n=sizes, k=sizes, parts=st.sampled_from([1, 1, 3]), seed=seeds)
def test_every_form(tile, transpose_a, transpose_b, m, n, k, parts, seed):
    a, b = stored(seed, m, k, transpose_a), stored(seed + 1, k, n, transpose_b)
    check(wgmma(a, b, tile=tile, parts=parts, seed=seed), a, b)


@pytest.mark.parametrize("tile", [WIDE, TURNS], ids=["halves", "turns"])
@examples
@given(
    m=sizes,
    n=sizes,
    parts=st.sampled_from([1, 2]),
    dtype=st.sampled_from([FLOAT32, bfloat16]),
    extras=st.sampled_from([(1, 0, 0), (1, 1, 1), (0, 1, 0), (0, 0, 1)]),
    seed=seeds,
)
def test_epilogues(tile, m, n, parts, dtype, extras, seed):
    biased, gelu, saved = extras
    a, b = stored(seed, m, 136), stored(seed + 1, 136, n)
    bias = normal(seed + 2, n, dtype=bfloat16) if biased else None
    before = np.full((m, n), np.nan, dtype) if saved else None
    how = {"tile": tile, "parts": parts, "dtype": dtype, "seed": seed}
    y = wgmma(a, b, bias=bias, gelu=gelu, before=before, **how)
    addend = wide(bias) if biased else 0.0
    if saved:
        check(before, a, b, addend=addend, extra=2.0**-22)
    if not gelu:
        check(y, a, b, addend=addend, extra=2.0**-22)
        return
    x = wide(a) @ wide(b) + addend
    exact = 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    rounding = 2.0**-8 if dtype == bfloat16 else 0.0
    # |GELU'| < 1.13: the error of the sum, and that of the float32 formula.
    slack = 1.13 * 140 * 2.0**-24 * (abs(wide(a)) @ abs(wide(b)) + abs(addend)) + 1e-5
    assert (abs(wide(y) - exact) <= 1.01 * slack + rounding * (abs(exact) + slack)).all()


@pytest.mark.parametrize("tile", [WIDE, TURNS], ids=["halves", "turns"])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), FORMS)
def test_batches_that_broadcast_and_lie_apart(tile, transpose_a, transpose_b):
    a = stored(0, 70, 72, transpose_a, (2, 3))
    run = [
        (a, stored(1, 72, 136, transpose_b, (2, 3))),
        (a, stored(2, 72, 40, transpose_b)),
        (a[:1], stored(3, 72, 40, transpose_b, (2, 1))),
        (a[:, :1], stored(4, 72, 40, transpose_b, (3,))),
        (stored(5, 9, 72, transpose_a, (2, 2, 3))[::1, :, ::2], stored(6, 72, 40, transpose_b)),
    ]
    for left, right in run:
        check(wgmma(left, right, tile=tile), left, right)
    joint = normal(7, 2, 40, 3, 2, 64, dtype=bfloat16)  # B, T, (q, k, v), H, D
    q, k, v = (joint[:, :, i].swapaxes(1, 2) for i in range(3))
    check(wgmma(q, k.swapaxes(-1, -2), tile=tile), q, k.swapaxes(-1, -2))
    check(wgmma(q.swapaxes(-1, -2), v, tile=tile), q.swapaxes(-1, -2), v)


def test_adds_to_what_is_there_and_leaves_the_rest_alone():
    a, b = stored(0, 130, 72), stored(1, 72, 20)
    whole = np.full((130, 40), 7, np.float32)
    wgmma(a, b, out=whole[:, 8:28], accumulate=True)
    check(whole[:, 8:28], a, b, addend=7.0, extra=2.0**-20)
    assert (whole[:, :8] == 7).all() and (whole[:, 28:] == 7).all()


def test_not_finite_values_stay_where_they_belong():
    a, b = stored(0, 200, 130), stored(1, 130, 66)
    a[3, 5], a[150, 129] = np.nan, np.inf
    bad = ~np.isfinite(wide(wgmma(a, b)))
    assert bad[3].all() and bad[150].all()
    bad[[3, 150]] = False
    assert not bad.any()


@pytest.mark.parametrize("tile", [WIDE, TURNS], ids=["halves", "turns"])
def test_the_result_does_not_depend_on_the_order_of_threads(tile):
    a, b = stored(0, 300, 200), stored(1, 200, 300)
    first = wgmma(a, b, tile=tile, dtype=FLOAT32, seed=0)
    for seed in range(1, 4):
        np.testing.assert_array_equal(wgmma(a, b, tile=tile, dtype=FLOAT32, seed=seed), first)


# --- which kernel --------------------------------------------------------------------------------


def test_large_products_take_wgmma_and_others_do_not(monkeypatch):
    names = launched(monkeypatch)
    a, b = stored(0, 130, 72), stored(1, 72, 136)
    product(a, b)
    product(a[:100], b)  # fewer rows than a tile
    product(a[:, :7].copy(), b[:7])  # rows of 14 bytes
    product(a.astype(FLOAT32), b.astype(FLOAT32))
    assert names == ["matmul_wgmma", "matmul_mma", "matmul_mma", "matmul_plain"]


REFUSED = {
    "float32": (lambda a, b: (a.astype(FLOAT32), b.astype(FLOAT32)), "bfloat16, not float32"),
    "rows": (lambda a, b: (a[:, :65].copy(), b[:65]), "a: .* 130 bytes apart; a multiple of 16"),
    "columns": (lambda a, b: (a, b[:, :5].copy()), "b: .* 10 bytes apart"),
    "begin": (lambda a, b: (a[:, 1:], b[1:]), "a: it begins at address 0x[0-9a-f]+, which is no"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_copy_engine_cannot_read_is_a_sentence(case):
    change, sentence = REFUSED[case]
    a, b = change(stored(0, 130, 72), stored(1, 72, 136))
    with pytest.raises(ValueError, match=f"matmul_wgmma: .*{sentence}.*; matmul_mma takes it"):
        wgmma(a, b)
    check(product(a, b), a, b)


def test_other_devices_and_names_are_told(monkeypatch):
    a, b = stored(0, 130, 72), stored(1, 72, 136)
    older = matmul.limits(np)._replace(hopper=False)
    monkeypatch.setattr(matmul, "limits", lambda xp: older)
    with pytest.raises(ValueError, match=r"compute capability 9\.0 \(H100, H200\)"):
        wgmma(a, b)
    names = launched(monkeypatch)
    product(a, b)
    assert names == ["matmul_mma"]
    with pytest.raises(ValueError, match="no kernel 'matmul_fast'; there are matmul_wgmma"):
        product(a, b, kernel="matmul_fast")


def test_the_plan_fills_the_device():
    many = plan_wgmma(16_384, 3072, 768, 1, 2, 132)
    assert many == (WIDE, 1)
    assert plan_wgmma(16_384, 3072, 768, 1, 2, 132, gelu=True) == (TURNS, 1)  # behind the products
    tile, parts = plan_wgmma(768, 2304, 16_384, 1, 2, 132)  # a weight's gradient: few tiles, long
    assert parts > 1
    assert 768 // tile.m * (2304 // tile.n) * parts >= 0.8 * 132
    assert plan_wgmma(16_384, 768, 64, 1, 4, 132)[0] == TURNS  # one step: storing takes the time


# --- planted mistakes ----------------------------------------------------------------------------

FULL = "mbarrier_wait(full + use % STAGES, use / STAGES % 2);"
EMPTY = "mbarrier_wait(empty + use % STAGES, use / STAGES % 2 ^ 1);"
EXPECT = "mbarrier_arrive_expect_tx(arrived, SLOT);"
FREE = "if (step > 0 && lane == 0) mbarrier_arrive(empty + (use - 1) % STAGES);"
RACE, DEADLOCK = "race: a wgmma reads|race: a tensor copy writes", "deadlock: waits for the end"
WRONG = None  # the simulator finds nothing to say, and the result is wrong
PLANTED = {
    "no wait for the bytes": (FULL, "", RACE),
    "wrong phase of full": (FULL, FULL.replace("% 2", "% 2 ^ 1"), RACE),
    "no wait for an empty slot": (EMPTY, "", "more threads arrive"),
    "wrong phase of empty": (EMPTY, EMPTY.replace(" ^ 1", ""), DEADLOCK),
    "no bytes announced": (EXPECT, "mbarrier_arrive(arrived);", RACE),
    "too few bytes": (EXPECT, EXPECT.replace("SLOT", "SLOT / 2"), r"too few bytes .*expect_tx"),
    "too many bytes": (EXPECT, EXPECT.replace("SLOT", "SLOT + 16"), f"{DEADLOCK}.* lacks"),
    "no arrival": (FREE, "", f"{DEADLOCK}.*lacks [48] of [48] arrivals"),
    "an arrival too early": (FREE, FREE.replace("(use - 1)", "use"), DEADLOCK),
    "an arrival by one warp": (FREE, FREE.replace("lane == 0", "threadIdx.x % 128 == 0"), DEADLOCK),
    "wait for too few groups": ("wgmma_wait_group<1>();", "wgmma_wait_group<2>();", RACE),
    "no wait for the sums": ("wgmma_wait_group<0>();", "", RACE),
    "no fence": ("wgmma_fence();", "", "a wgmma without wgmma_fence"),
    "no fence of the barriers": (" fence_mbarrier_init();", "", "before fence_mbarrier_init"),
    "no barrier after them": ("    __syncthreads();", "", "not set up by mbarrier_init|no barrier"),
    "16 of k too far apart": ("step * 32", "step * 64", WRONG),
    "k within MN-major": ("step * 2048", "step * 1024", WRONG),
    "rows in groups of four": ("16, 1024)", "16, 512)", WRONG),
    "64 columns too near": ("BOX, 1024)", "1024, 1024)", WRONG),
    "a box too far": ("slot + i * BOX, map", "slot + (i + 1) * BOX, map", "race|two tensor copies"),
    "k and rows exchanged": ("(slot, map, k, first,", "(slot, map, first, k,", WRONG),
    "the wrong majorness": ("TRANSPOSE_A, !TRANSPOSE_B>", "TRANSPOSE_A, TRANSPOSE_B>", WRONG),
    "the first sum not cleared": ("step > 0 || inside > 0", "true", WRONG),
    "lines read too early": ("    __syncwarp();\n    if (WHAT", "    if (WHAT", WRONG),
    "lines written too early": ("__syncwarp();  // all have read", "// all have read", WRONG),
    "lines swizzled on one side": ("(place ^ (8 * j * SIZE))", "(place + 8 * j * SIZE)", WRONG),
    "turns not taken": ("if (TURNS) mbarrier_wait", "if (false) mbarrier_wait", RACE),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_faults_planted_in_the_pipeline_are_caught(fault, monkeypatch):
    right, wrong, sentence = PLANTED[fault]
    plant(monkeypatch, lambda source: replaced(source, right, wrong))
    # A along k, B along n; two slots, so that each is used again soon; tiles in turns.
    how = {"tile": Tile(128, 128, 2, turns=True), "dtype": FLOAT32}
    a, b = stored(0, 300, 400), stored(1, 400, 136)
    for seed in range(2):
        if sentence:
            with pytest.raises(simulator.SimulationError, match=rf"({sentence}).*matmul_wgmma\.cu"):
                wgmma(a, b, seed=seed, **how)
            continue
        try:
            c = wgmma(a, b, seed=seed, **how)
        except simulator.SimulationError:
            continue  # found to read what it may not
        with pytest.raises(AssertionError):
            check(c, a, b)


@pytest.mark.parametrize("width", [16, 32, 64])
def test_a_swizzle_other_than_the_descriptor_says_is_caught(width, monkeypatch):
    right = TensorMap.simulated

    def simulated(self):
        made = right(self)
        made.swizzle_bytes = width
        return made

    monkeypatch.setattr(TensorMap, "simulated", simulated)
    a, b = stored(0, 130, 72), stored(1, 72, 136)
    with pytest.raises(AssertionError):
        check(wgmma(a, b, dtype=FLOAT32), a, b)


def replaced(source, right, wrong):
    assert right in source
    return source.replace(right, wrong)


def plant(monkeypatch, change):
    planted = change((kernels.folder() / "matmul_wgmma.cu").read_text(encoding="utf-8"))
    real_launch = simulator.launch

    def launch(source, name, *rest, **options):
        real_launch(planted if name == "matmul_wgmma" else source, name, *rest, **options)

    monkeypatch.setattr(simulator, "launch", launch)
