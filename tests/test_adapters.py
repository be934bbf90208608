import pytest
import torch

from hfchat.adapters import round_stochastically

DTYPES = [torch.bfloat16, torch.float16]


def rounded(weight, dtype, seed=0):
    return round_stochastically(weight, dtype, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_lost_to_rounding_is_kept_on_average(dtype):
    one, after = torch.tensor(1.0), torch.tensor(1.0) + torch.finfo(dtype).eps
    weight = (one + (after - one) * 0.2).repeat(100_000)
    assert torch.equal(weight.to(dtype).float(), one.expand(100_000)), "the nearest is always 1"
    result = rounded(weight, dtype).float()
    assert set(result.tolist()) == {one.item(), after.item()}
    assert (result == after).float().mean() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(rounded(-weight, dtype), -rounded(weight, dtype)), "towards zero and away from it alike"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_that_the_dtype_has_stays(dtype):
    weight = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.0**-9, 448.0, torch.inf, -torch.inf, torch.nan]).to(dtype)
    result = rounded(weight.float(), dtype)
    assert result.dtype == dtype
    torch.testing.assert_close(result, weight, rtol=0, atol=0, equal_nan=True)


def test_the_seed_decides():
    weight = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rounded(weight, torch.bfloat16), rounded(weight, torch.bfloat16))
    assert not torch.equal(rounded(weight, torch.bfloat16), rounded(weight, torch.bfloat16, seed=1))


def test_what_is_stored_in_float32_is_not_rounded():
    weight = torch.rand(10)
    assert torch.equal(rounded(weight, torch.float32), weight)
