import numpy as np
import pytest
import torch

from pipeline.training.resident import fits_on_gpu, place_rows, take_rows


def test_rows_may_take_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 4000))
    assert fits_on_gpu(500)
    assert not fits_on_gpu(501)


def test_rows_that_do_not_fit_stay_in_host_memory_without_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 4000))
    x = np.zeros((501, 1), np.uint8)
    rows = place_rows(x, "cuda")
    assert rows.device.type == "cpu"
    assert np.shares_memory(rows.numpy(), x)


def test_a_batch_is_where_its_numbers_are() -> None:
    rows = torch.arange(12).reshape(6, 2)
    batch = take_rows(rows, torch.tensor([4, 0]))
    assert batch.tolist() == [[8, 9], [0, 1]]
