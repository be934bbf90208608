import pytest

pytest.importorskip("xllamacpp", reason="hfchat[llamacpp] is not installed")

from hfchat.engines.llamacpp_server import _parameters

SETTINGS = {"model": "model.gguf", "slots": 3, "context": 256, "adapters": []}


@pytest.mark.parametrize(("asked", "threads"), [("2", 2), ("", -1), ("many", -1)])
def test_it_takes_as_many_threads_as_openmp_may(asked, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    parameters = _parameters(8123, "key", SETTINGS)
    assert parameters.cpuparams.n_threads == parameters.cpuparams_batch.n_threads == threads
    assert parameters.n_ctx == 3 * 256
