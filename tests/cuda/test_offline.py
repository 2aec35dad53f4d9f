"""Every kernel, in every variant, compiles for the architectures it is for, with no GPU; none
spills.

A file's variants take turns on the seven architectures; `--nightly` compiles each for all.
"""

from __future__ import annotations

import itertools
import struct

import pytest

from tinytensor.cuda import kernels, matmul, offline

FILES = sorted(path.name for path in kernels.folder().glob("*.cu"))
PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 119 registers, used 1 barriers, 8320 bytes smem
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 14 registers, used 0 barriers
"""


def is_whole(cubin):
    """Whether no byte is missing of an ELF file, at whose end its program headers are."""
    (offset,) = struct.unpack_from("<Q", cubin, 32)
    size, count = struct.unpack_from("<HH", cubin, 54)
    return cubin.startswith(b"\x7fELF") and len(cubin) == offset + size * count


def check(name, thin):
    spilling = []
    for path, defines, architectures in offline.jobs(thin):
        for architecture in architectures if path.name == name else ():
            cubin, log = kernels.compile_for(path, architecture, defines)
            assert is_whole(cubin)
            assert "Performance Loss" not in log  # wgmma made to wait, setmaxnreg ignored
            figures = offline.usage(log)
            declared = kernels.signatures(path.read_text(encoding="utf-8"), defines)
            assert sorted(use.kernel for use in figures) == sorted(declared)
            spilling += [
                (use, architecture, dict(defines))
                for use in figures
                if use.spilled and offline.accepted(use, defines, architecture) is None
            ]
    assert not spilling


@pytest.mark.cuda
@pytest.mark.parametrize("name", FILES)
def test_compiles_and_does_not_spill(name):
    check(name, thin=True)


@pytest.mark.cuda
@pytest.mark.nightly
@pytest.mark.parametrize("name", FILES)
def test_every_variant_for_every_architecture(name):
    check(name, thin=False)


def ptx(path, architecture, defines):
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(path.read_text(encoding="utf-8"), path.name, [], [])
    target = f"--gpu-architecture={architecture}"  # compute_…: PTX and no machine code
    nvrtc.compileProgram(program, [target, *kernels.options(defines)])
    text = nvrtc.getPTX(program)
    nvrtc.destroyProgram(program)
    return text.decode() if isinstance(text, bytes) else text


@pytest.mark.cuda
@pytest.mark.parametrize("defines", matmul.VARIANTS["matmul_wgmma.cu"], ids=str)
def test_the_product_on_hopper_is_made_of_its_instructions(defines):
    given = dict(defines)
    text = ptx(kernels.folder() / "matmul_wgmma.cu", "compute_90a", defines)
    tall = 2 if given["TURNS"] else 1  # wgmma of 64 rows, for each 16 of 64 of k
    shape = f"m64n{given['TILE_N']}k16.f32.bf16.bf16"
    assert text.count(f"wgmma.mma_async.sync.aligned.{shape}") == 4 * tall
    along_k = [not given["TRANSPOSE_A"], given["TRANSPOSE_B"]]
    boxes = [
        1 if k else size // 64 for k, size in zip(along_k, (128, given["TILE_N"]), strict=True)
    ]
    copy = "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
    assert text.count(copy) == sum(boxes)
    for word in (
        *("wgmma.fence", "wgmma.commit_group", "wgmma.wait_group", "setmaxnreg.inc"),
        *("setmaxnreg.dec", "mbarrier.try_wait.parity", "mbarrier.arrive.expect_tx"),
    ):
        assert word in text
    assert "mma.sync" not in text


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["elementwise.cu", "adamw.cu", "sgd.cu", "norm.cu"])
def test_subnormal_numbers_are_kept(name):
    """CuPy's own `-ftz=true` would show in every instruction."""
    assert ".ftz" not in ptx(kernels.folder() / name, "compute_90a", ())


@pytest.mark.cuda
@pytest.mark.parametrize("architecture", ["sm_90", "sm_100", "sm_120"])
def test_other_architectures_have_no_wgmma(architecture):
    with pytest.raises(RuntimeError, match=r"wgmma\.cuh needs --gpu-architecture=sm_90a"):
        kernels.compile_for(kernels.folder() / "matmul_wgmma.cu", architecture)


@pytest.mark.cuda
def test_what_does_not_compile_is_told_with_the_log(tmp_path):
    path = tmp_path / "wrong.cu"
    path.write_text('extern "C" __global__ void f(float* y) { y[0] = nothing; }')
    with pytest.raises(RuntimeError, match=r"(?s)wrong.cu.*does not compile for sm_80.*nothing"):
        kernels.compile_for(path, "sm_80")


@pytest.mark.cuda
def test_a_planted_spill_is_seen(tmp_path):
    path = tmp_path / "spills.cu"
    path.write_text(
        'extern "C" __global__ void __launch_bounds__(1024, 2) f(float* y, const float* x) {\n'
        "  float r[64];\n#pragma unroll\n  for (int i = 0; i < 64; i++) r[i] = x[i * 1024];\n"
        "  __syncthreads();\n"
        "#pragma unroll\n  for (int i = 0; i < 64; i++) y[i * 1024] = r[i] * r[63 - i];\n}"
    )
    assert offline.usage(kernels.compile_for(path, "sm_90a")[1])[0].spilled > 0


def test_the_log_is_understood():
    assert offline.usage(PTXAS) == [
        offline.Usage("first", 119, 8320, 16, 20),
        offline.Usage("second", 14, 0, 0, 0),
    ]


def test_variants_are_of_files_and_macros_that_exist():
    assert set(offline.VARIANTS) <= set(FILES)
    for name in FILES:
        source = "".join(p.read_text(encoding="utf-8") for p in kernels.folder().glob("*.cuh"))
        source += (kernels.folder() / name).read_text(encoding="utf-8")
        for macro in itertools.chain(*(dict(v) for v in offline.variants(kernels.folder() / name))):
            assert f"#ifndef {macro}" in source or f"#define {macro}" in source


def test_accepted_spills_are_of_kernels_that_exist_and_no_larger():
    for spill in offline.ACCEPTED_SPILLS:
        assert spill.kernel in kernels.source_of()
        assert set(spill.architectures) <= set(offline.ARCHITECTURES)
        assert spill.reason
        use = offline.Usage(spill.kernel, 255, 0, 0, spill.most)
        defines = tuple(spill.macros.items())
        assert offline.accepted(use, defines, spill.architectures[0]) == spill.reason
        assert offline.accepted(use._replace(spilled=spill.most + 1), defines, "sm_90a") is None


def test_a_source_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        offline.main(["absent.cu"])
    assert "no source is called absent.cu; there are adamw.cu" in capsys.readouterr().err
