"""`python -m tinytensor doctor`: machines with everything, with nothing, and with what is
broken.
"""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from tinytensor import __main__, backend, doctor

AVX512 = "avx512f avx512bw avx512dq avx512vl avx2 fma"


def on_machine(monkeypatch, *, driver=None, wheels=(), cupy=None):
    """A machine with this driver, these CuPy wheels and this CuPy (an exception: it fails)."""

    def load():
        if isinstance(cupy, Exception):
            raise cupy
        return cupy

    real, absent = doctor.importlib.util.find_spec, {"cupy": cupy, "nvidia": None}
    monkeypatch.setattr(doctor, "driver_version", lambda: driver)
    monkeypatch.setattr(backend, "cupy_wheels", lambda: list(wheels))
    monkeypatch.setattr(backend, "cupy", load)
    monkeypatch.setattr(backend, "nccl", no_nccl)
    monkeypatch.setattr(
        doctor.importlib.util,
        "find_spec",
        lambda name: absent.get(name) if name in absent else real(name),
    )


def stand_in(*, version="14.2.0", runtime=13000, devices=1, capability="90", nvrtc=(13, 0)):
    """As much of CuPy as the doctor asks."""

    def fail(*_):
        raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    def broken():
        raise RuntimeError("libnvrtc.so.13: cannot open shared object file")

    class Device:
        compute_capability = capability

        def __init__(self, number): ...
        def __enter__(self):
            return self

        def __exit__(self, *error): ...

    calls = types.SimpleNamespace(
        runtimeGetVersion=lambda: runtime,
        getDeviceCount=(lambda: devices) if devices else fail,
        getDeviceProperties=lambda number: {"name": b"NVIDIA H200"},
        memGetInfo=lambda: (100 * 2**30, 140 * 2**30),
    )
    cuda = types.SimpleNamespace(
        runtime=calls,
        Device=Device,
        nvrtc=types.SimpleNamespace(getVersion=(lambda: nvrtc) if nvrtc else broken),
    )
    return types.SimpleNamespace(__version__=version, cuda=cuda)


def no_nccl():
    raise ImportError("libnccl.so.2: cannot open shared object file")


def findings():
    return {found.subject: found for found in doctor.examine()}


def test_this_machine(capsys):
    assert doctor.main() in (0, 1)
    printed = capsys.readouterr().out
    for subject in ("Python", "BLAS", "threads", "C++ compiler", "CuPy", "MPI", "device"):
        assert subject in printed


def test_a_machine_with_nothing(monkeypatch, tmp_path, capsys):
    on_machine(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(doctor, "version_of", lambda name: None)
    monkeypatch.setattr(doctor.threadpoolctl, "threadpool_info", list)
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    assert "install g++" in printed
    assert "there is no device 'cuda'" in printed
    assert "pip install 'tinytensor-gpt[mpi]'" in printed
    assert "'auto' is 'cpu'" in printed


def test_a_driver_without_cupy_is_told_which_wheel(monkeypatch):
    for driver, extra in ((12080, "cuda12"), (13010, "cuda13")):
        on_machine(monkeypatch, driver=driver)
        found = findings()
        assert found["CuPy"].state == doctor.MISSING
        assert found["CuPy"].remedy == f"pip install 'tinytensor-gpt[{extra}]'"
        assert doctor.dotted(driver) in found["NVIDIA driver"].text


def test_a_machine_with_a_gpu(monkeypatch):
    on_machine(monkeypatch, driver=13010, wheels=["cupy-cuda13x"], cupy=stand_in())
    found = findings()
    assert {f.state for f in found.values()} <= {doctor.GOOD, doctor.MISSING}
    assert "NVIDIA H200, compute capability 9.0, 100.0 of 140.0 GiB free" in found["GPU 0"].text
    assert "bfloat16 and TF32" in found["GPU 0"].text
    assert found["NVRTC"].text == "13.0"
    assert found["NCCL"].state == doctor.MISSING
    assert "cu13" in found["NCCL"].remedy


@pytest.mark.parametrize(
    ("machine", "subject", "text", "remedy"),
    [
        (
            {"wheels": ["cupy-cuda12x", "cupy-cuda13x"], "driver": 12080},
            "CuPy",
            "2 wheels are installed and shadow one another: cupy-cuda12x, cupy-cuda13x",
            "pip uninstall -y cupy-cuda12x cupy-cuda13x && pip install 'tinytensor-gpt[cuda12]'",
        ),
        (
            {"wheels": ["cupy-cuda13x"], "driver": 12080, "cupy": stand_in()},
            "CUDA",
            "the driver is too old: it is for CUDA 12.8, and the wheel for 13.0",
            "cuda12",
        ),
        (
            {"wheels": ["cupy-cuda13x"], "cupy": RuntimeError("libcudart.so.13 is missing")},
            "CuPy",
            "cannot be imported: libcudart",
            "pip uninstall -y cupy-cuda13x",
        ),
        (
            {"wheels": ["cupy-cuda12x"], "cupy": stand_in(version="13.4.0")},
            "CuPy",
            "no bfloat16",
            ">=14",
        ),
        ({"wheels": ["cupy-cuda13x"], "cupy": stand_in(nvrtc=None)}, "NVRTC", "libnvrtc", "[ctk]"),
        (
            {"wheels": ["cupy-cuda13x"], "driver": 13000, "cupy": stand_in(devices=0)},
            "GPU",
            "NoDevice",
            "nvidia-smi",
        ),
        (
            {"wheels": ["cupy-cuda13x"], "driver": 13000, "cupy": stand_in(capability="61")},
            "GPU 0",
            "compute capability 6.1",
            "7.5 and later",
        ),
    ],
)
def test_what_is_broken_is_named_with_what_mends_it(monkeypatch, machine, subject, text, remedy):
    on_machine(monkeypatch, **machine)
    found = findings()[subject]
    assert found.state == doctor.BROKEN
    assert text in found.text
    assert remedy in found.remedy
    assert doctor.main() == 1


def test_an_old_gpu_falls_back(monkeypatch):
    on_machine(monkeypatch, driver=13000, wheels=["cupy-cuda13x"], cupy=stand_in(capability="75"))
    assert "no bfloat16 or TF32 tensor cores" in findings()["GPU 0"].text


@pytest.mark.parametrize(
    ("flags", "kernels", "setting", "remedy"),
    [
        ("avx2 fma avx", "Haswell", None, ""),
        (AVX512, "SkylakeX", "SkylakeX", ""),
        (AVX512, "Haswell", "Haswell", "unset OPENBLAS_CORETYPE"),
        (AVX512, "Prescott", None, "OPENBLAS_CORETYPE=SkylakeX"),
        ("", "neoversen1", None, ""),
    ],
)
def test_blas_kernels_below_the_cpu_are_pointed_out(monkeypatch, flags, kernels, setting, remedy):
    library = {
        "user_api": "blas",
        "internal_api": "openblas",
        "version": "0.3.30",
        "num_threads": 1,
        "architecture": kernels,
    }
    monkeypatch.setattr(doctor.threadpoolctl, "threadpool_info", lambda: [library])
    monkeypatch.setattr(doctor, "cpu_flags", lambda: set(flags.split()))
    if setting:
        monkeypatch.setenv("OPENBLAS_CORETYPE", setting)
    else:
        monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    (found,) = doctor.blas()
    assert remedy in found.remedy
    assert bool(remedy) == bool(found.remedy)
    assert kernels in found.text


def test_fewer_threads_than_cores_are_pointed_out(monkeypatch):
    monkeypatch.setattr(doctor, "cores", lambda: 8)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    (found,) = doctor.threads()
    assert "unset OPENBLAS_NUM_THREADS, or set it to 8" in found.remedy


def test_a_probe_that_fails_is_a_finding(monkeypatch):
    def probe():
        raise OSError("no such thing")
        yield

    monkeypatch.setattr(doctor, "PROBES", (probe,))
    (found,) = doctor.examine()
    assert found.state == doctor.BROKEN
    assert "no such thing" in found.text


def test_commands(capsys):
    assert __main__.main([]) == 0
    assert "python -m tinytensor doctor" in capsys.readouterr().out
    assert __main__.main(["surgeon"]) == 2
    assert "there is no command 'surgeon'" in capsys.readouterr().err


def test_the_command_runs():
    command = [sys.executable, "-m", "tinytensor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "doctor" in done.stdout


def test_the_marks_are_explained_where_there_are_any():
    good = doctor.Finding("BLAS", doctor.GOOD, "fine")
    missing = doctor.Finding("MPI", doctor.MISSING, "not there", "pip install it")
    assert doctor.report([good]) == "  BLAS  fine"
    lines = doctor.report([good, missing]).splitlines()
    assert lines[1:3] == ["- MPI   not there", "        → pip install it"]
    assert lines[-1].startswith("-  is not there")
    broken = doctor.report([good, missing._replace(state=doctor.BROKEN)])
    assert broken.splitlines()[-1] == "!  cannot work as it is"


def test_the_report_can_be_cut_off():
    command = f"{sys.executable} -m tinytensor doctor | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().startswith("Python")
    assert done.stderr == ""
