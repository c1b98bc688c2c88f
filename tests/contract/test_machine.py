"""Cores and memory are counted as a container has them, from files as the kernel writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skillserve.machine import memory_bytes, num_cores, num_gpus, threads_for_all_cores

ALLOWED = 16
PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(ALLOWED)))
    monkeypatch.setattr(os, "cpu_count", lambda: ALLOWED)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


V1_GROUPS = "9:name=systemd:/\n4:memory:/a\n3:cpu,cpuacct:/kubepods/pod\n2:cpuset:/\n0::/"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        pytest.param({}, ALLOWED, id="no control groups"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2, id="v2"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, ALLOWED, id="v2, no bound"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "299999 100000"}, 2, id="v2, a fraction"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "20000 100000"}, 1, id="v2, less than one"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "9900000 100000"}, ALLOWED, id="v2, more"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/system.slice/job",
                "sys/fs/cgroup/system.slice/cpu.max": "300000 100000",
                "sys/fs/cgroup/system.slice/job/cpu.max": "800000 100000",
            },
            3,
            id="v2, a group above is tighter",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/name/outside", "sys/fs/cgroup/cpu.max": "400000 100000"},
            4,
            id="v2, the group has another name in its container",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1_GROUPS,
                "sys/fs/cgroup/cpu,cpuacct/kubepods/pod/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/kubepods/pod/cpu.cfs_period_us": "50000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            5,
            id="v1",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1_GROUPS,
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            ALLOWED,
            id="v1, no bound",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1_GROUPS,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "600000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            6,
            id="v1, by the link",
        ),
    ],
)
def test_cores_are_those_that_the_control_group_gives_time_on(
    tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    root = write(tmp_path, files)
    assert num_cores(root) == cores
    assert threads_for_all_cores(root) == (cores if cores < ALLOWED else 0)


def test_a_process_that_may_run_on_few_cores_has_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    root = write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "800000 100000"})
    assert (num_cores(root), threads_for_all_cores(root)) == (2, 2)


@pytest.mark.parametrize(
    ("quota", "threads"),
    [
        pytest.param("max", 0, id="ONNX Runtime counts physical cores itself"),
        pytest.param("1200000", 8, id="not more than it would take"),
        pytest.param("500000", 5, id="fewer than physical cores"),
    ],
)
def test_two_threads_of_a_core_count_once(tmp_path: Path, quota: str, threads: int) -> None:
    siblings = {
        f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list": f"{number % 8},{number % 8 + 8}"
        for number in range(ALLOWED)
    }
    root = write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": f"{quota} 100000", **siblings})
    assert threads_for_all_cores(root) == threads


def test_onnx_runtime_has_no_more_threads_than_it_may_run() -> None:
    """The real one, in a process that is bound to one core: its own count is that of the machine."""
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import onnx, onnxruntime
from skillserve.machine import threads_for_all_cores
value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
identity = onnx.helper.make_node("Identity", ["x"], ["y"])
graph = onnx.helper.make_graph([identity], "g", [value], [onnx.helper.make_tensor_value_info("y", 1, [1])])
model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads_for_all_cores()
before = len(os.listdir("/proc/self/task"))
session = onnxruntime.InferenceSession(model.SerializeToString(), options)
print(len(os.listdir("/proc/self/task")) - before)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["0"]


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        pytest.param({}, PHYSICAL, id="no control groups"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "4096000"}, 4_096_000, id="v2"),
        pytest.param({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"}, PHYSICAL, id="v2, no bound"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/pod/container",
                "sys/fs/cgroup/pod/memory.max": "8192000",
                "sys/fs/cgroup/pod/container/memory.max": "max",
            },
            8_192_000,
            id="v2, a group above bounds it",
        ),
        pytest.param(
            {"proc/self/cgroup": V1_GROUPS, "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "12288000"},
            12_288_000,
            id="v1",
        ),
        pytest.param(
            {"proc/self/cgroup": V1_GROUPS, "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712"},
            PHYSICAL,
            id="v1, no bound",
        ),
    ],
)
def test_memory_is_what_the_control_group_allows(tmp_path: Path, files: dict[str, str], wanted: int) -> None:
    assert memory_bytes(write(tmp_path, files)) == wanted


@pytest.mark.parametrize(
    ("named", "gpus"),
    [
        *((None, 3), ("", 0), ("-1", 0), ("NoDevFiles", 0), ("1", 1), ("0, 2", 2), ("0,-1,2", 1), ("GPU-8f,GPU-9a", 2)),
        *(("7", 0), ("3", 0), ("0,3,1", 1), ("2,1,0", 3)),
    ],
)
def test_gpus_are_those_that_are_there_and_visible(tmp_path: Path, named: str | None, gpus: int) -> None:
    write(tmp_path, dict.fromkeys(("dev/nvidia0", "dev/nvidia1", "dev/nvidia2", "dev/nvidiactl", "dev/nvidia-uvm"), ""))
    assert num_gpus(tmp_path, {} if named is None else {"CUDA_VISIBLE_DEVICES": named}) == gpus
    assert num_gpus(tmp_path / "elsewhere", {}) == 0
