"""What ends a rank has the code of its cause: real exception types with the words that torch, NCCL and CUDA say."""

from __future__ import annotations

import errno
import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import SafetensorError

from conf.errors import BadData, DeviceFailure, OutOfMemory, Requeue
from train.process.causes import causes_named, named

ACCELERATOR = getattr(torch, "AcceleratorError", RuntimeError)
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, "


def accelerator(text: str) -> RuntimeError:
    """CUDA's error as torch raises it; its constructor asks for a code."""
    try:
        return ACCELERATOR(text, 1)  # type: ignore[no-any-return]
    except TypeError:
        return ACCELERATOR(text)  # type: ignore[no-any-return]


CAUSES: list[tuple[BaseException, int | None]] = [
    # memory, whoever says it
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.1 GiB"), 71),
    (torch.cuda.OutOfMemoryError("HIP out of memory."), 71),
    (MemoryError(), 71),
    (MemoryError("Unable to allocate 3.1 GiB for an array with shape (1,)"), 71),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), 71),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes."), 71),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 71),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), 71),
    (accelerator("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), 71),
    (dist.DistBackendError(NCCL + "unhandled cuda error: Cuda failure 2 'out of memory'"), 71),
    (RuntimeError("[1] is setting up NCCL communicator and ... ncclSystemError: Failed to allocate 4096 bytes"), 71),
    # a device or node by itself
    (accelerator("CUDA error: uncorrectable ECC error encountered"), 76),
    (accelerator("CUDA error: unspecified launch failure"), 76),
    (accelerator("CUDA error: an illegal instruction was encountered"), 76),
    (accelerator("CUDA error: hardware stack error"), 76),
    (accelerator("CUDA error: the launch timed out and was terminated"), 76),
    (RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"), 76),
    (RuntimeError("No CUDA-capable device is detected"), 76),
    (RuntimeError("Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost. Reboot the system"), 76),
    (dist.DistBackendError(NCCL + "unhandled cuda error: Cuda failure 214 'uncorrectable ECC error encountered'"), 76),
    (RuntimeError("CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error; Xid 74"), 76),
    # a lost peer
    (dist.DistBackendError(NCCL + "remote process exited or there was a network error, NCCL version 2.27.5"), 76),
    (dist.DistBackendError("NCCL communicator was aborted on rank 3."), 76),
    (
        dist.DistBackendError(
            "[Rank 2] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9) ran for 600000"
        ),
        76,
    ),
    (
        dist.DistNetworkError(
            "The client socket has timed out after 600000ms while trying to connect to (10.0.0.1, 1)"
        ),
        76,
    ),
    (dist.DistStoreError("Socket Timeout"), 76),
    (dist.DistError("something new of torch.distributed"), 76),
    (RuntimeError("[pair.cc:534] Connection closed by peer [127.0.1.1]:34543"), 76),
    (RuntimeError("[pair.cc:525] Read error [10.1.0.2]:53082: No route to host"), 76),
    (RuntimeError("Application timeout caused pair closure"), 76),
    (RuntimeError("Timed out waiting 600000ms for recv operation to complete"), 76),
    (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 76),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 76),
    (OSError(errno.EHOSTUNREACH, "No route to host"), 76),
    (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), 76),
    # disks
    (OSError(errno.EIO, "Input/output error", "/data/train.bin"), 74),
    (OSError(errno.ENOSPC, "No space left on device"), 74),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), 74),
    (OSError(errno.ESTALE, "Stale file handle"), 74),
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), 74),
    (SafetensorError("Error while deserializing: I/O error: Input/output error (os error 5)"), 74),
    (SafetensorError("I/O error: Cannot allocate memory (os error 12)"), 71),
    (PermissionError(errno.EACCES, "Permission denied", "/data"), 77),
    (SafetensorError("I/O error: Permission denied (os error 13)"), 77),
    (FileExistsError(errno.EEXIST, "File exists", "/run/exit"), 73),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/run/logs/x"), 73),
    # our own keep their code, and defects have none
    (BadData("row 3"), 65),
    (Requeue("stopped"), 75),
    (accelerator("CUDA error: an illegal memory access was encountered"), None),
    (accelerator("CUDA error: device-side assert triggered"), None),
    (RuntimeError("The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 0"), None),
    (ValueError("a row says: CUDA out of memory, connection reset"), None),
    (KeyError("nccl error"), None),
    (SafetensorError("Error while deserializing header: HeaderTooLarge"), None),
]


@pytest.mark.parametrize(("error", "code"), CAUSES, ids=lambda each: str(each)[:50])
def test_every_failure_has_the_code_of_its_cause(error: BaseException, code: int | None) -> None:
    found = named(error)
    assert (found.code if found else None) == code


def test_there_are_forty_real_failures_and_devices_are_told_from_peers() -> None:
    failures = [error for error, code in CAUSES if code in (71, 74, 76, 77)]
    assert len(failures) >= 40
    own = [str(error) for error, _ in CAUSES if isinstance(named(error), DeviceFailure)]
    assert len(own) == 10
    assert not any("peer]" in text or "aborted" in text for text in own)


def test_the_first_line_says_what_it_was() -> None:
    found = named(dist.DistNetworkError("cannot connect to (10.0.0.1, 29500)\nException raised from ..."))
    assert "lost contact with another rank (cannot connect to (10.0.0.1, 29500))" in str(found)


def test_a_name_replaces_what_has_one_and_nothing_else() -> None:
    full, own, defect = accelerator("CUDA error: out of memory"), BadData("row 3"), ZeroDivisionError("a defect")
    said = r"with CUDA_VISIBLE_DEVICES= before it.*CUDA error: out of memory"
    with pytest.raises(OutOfMemory, match=said) as caught, causes_named():
        raise full
    assert caught.value.__cause__ is full
    for error in (own, defect):
        with pytest.raises(type(error)) as same, causes_named():
            raise error
        assert same.value is error


RUN = SimpleNamespace(run_dir="x", cluster=SimpleNamespace(nodes=1, gpus_per_node=1))


@pytest.mark.parametrize(
    ("command", "asked", "answer", "works"),
    [
        ("evaluate", "asked_for", (RUN, None), "train.checkpoint.reopen.reopen"),
        ("export", "asked_for", (RUN, None, True), "train.export.folder.export"),
        ("chat", "own_keys_from_argv", {"model": "x"}, "train.chat.speaker.open_speaker"),
        ("verify", "config_from_argv", (RUN, {}), "train.verify.__main__.verify"),
    ],
)
def test_commands_of_one_process_end_in_a_sentence_too(
    command: str, asked: str, answer: Any, works: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = importlib.import_module(f"train.{command}.__main__")
    monkeypatch.setattr(module, asked, lambda *_, **__: answer)
    monkeypatch.setattr(module, "settle", lambda cfg, **_: cfg, raising=False)

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(works, full)
    with pytest.raises(OutOfMemory, match=r"^out of memory: use a device with more memory"):
        module.main()
