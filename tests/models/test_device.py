"""Devices and numbers: chosen once, and what this machine does not have is said before torch does."""

import pytest
import torch

from persyn_hf.errors import ConfigError
from persyn_hf.models import device as devices


@pytest.fixture
def gpus(monkeypatch):
    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


def test_the_default_is_cuda_where_there_is_one(gpus):
    gpus(0)
    assert devices.choose_device(None) == torch.device("cpu")
    gpus(2)
    assert devices.choose_device(None) == torch.device("cuda")
    assert devices.choose_device("cuda:1") == torch.device("cuda:1")
    assert devices.choose_device("cpu") == torch.device("cpu")


def test_mps_is_chosen_only_by_name(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.choose_device(None) == torch.device("cpu")
    assert devices.choose_device("mps") == torch.device("mps")
    assert [one.device for one in devices.list_accelerators()] == ["mps"]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cuda:-2"])
def test_a_device_that_torch_does_not_know(name):
    with pytest.raises(ConfigError, match=f"`device` must be a name such as .* got '{name}'"):
        devices.choose_device(name)


def test_a_gpu_that_is_not_there(gpus):
    gpus(0)
    with pytest.raises(ConfigError, match="`device` is 'cuda', but this process sees 0 CUDA GPUs"):
        devices.choose_device("cuda")
    gpus(2)
    with pytest.raises(ConfigError, match="`device` is 'cuda:2', but this process sees 2 CUDA GPUs"):
        devices.choose_device("cuda:2")


def test_a_worker_takes_the_gpu_of_its_rank(gpus):
    gpus(2)
    assert [devices.worker_device(None, rank) for rank in (None, 0, 1, 2)] == [None, "cuda:0", "cuda:1", "cuda:0"]
    assert devices.worker_device("cpu", 1) == "cpu"
    gpus(0)
    assert devices.worker_device(None, 1) is None
    with pytest.raises(ConfigError, match="`rank` must be a worker's number, got 'x'"):
        devices.worker_device(None, "x")


def test_dtypes_by_name():
    assert devices.dtype_named("bfloat16") is torch.bfloat16
    for wrong in ("int8", "auto", "half", "float"):
        with pytest.raises(ConfigError, match=f"must be one of float64, float32, bfloat16, float16, got '{wrong}'"):
            devices.dtype_named(wrong)


def test_accelerators_are_named_with_their_memory(gpus, monkeypatch):
    gpus(1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (3 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    assert devices.list_accelerators() == [devices.Accelerator("cuda:0", "Card 0, 3 of 8 GiB free, bfloat16")]


def test_training_in_bfloat16_needs_a_gpu_that_can(gpus, monkeypatch):
    gpus(0)
    assert devices.trains_in_bfloat16() is False
    gpus(1)
    for can in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda can=can: can)
        assert devices.trains_in_bfloat16() is can
