"""What `continuous_batching.py` takes for granted of transformers; a failure says what to read again there."""

import asyncio
import inspect
import re
from pathlib import Path

import pytest
from transformers.generation import continuous_batching as library
from transformers.generation.continuous_batching.continuous_api import BackgroundThreadStatus, OutputRouter
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestState, RequestStatus

from hfchat.serving.engines.continuous_batching import FairScheduler, PerRequestSampler, Router, ThreadStatus
from hfchat.serving.engines.engine import Sampling
from hfchat.serving.engines.sampler import Draws
from hfchat.serving.engines.transformers_engine import TransformersEngine
from tests.serving.engines.test_transformers_engine import run

SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in Path(library.__file__).parent.glob("*.py"))


def test_a_running_manager_uses_each_part_that_is_put_into_it(tiny_model, tiny_tokenizer):
    engine = TransformersEngine(tiny_model, tiny_tokenizer)

    async def work():
        manager = engine._manager
        inside = manager.batch_processor
        assert inside.output_router is manager.output_router is engine._router
        assert inside.background_thread_status is manager.background_thread_status
        assert isinstance(manager.background_thread_status, ThreadStatus)
        assert inside.logit_processor is manager.logit_processor
        assert isinstance(inside.logit_processor, PerRequestSampler)
        assert isinstance(inside.scheduler, FairScheduler)
        assert not inside.use_async_batching

    run(engine, work)


def test_the_sampler_has_all_that_is_asked_of_a_list_of_processors():
    asked = set(re.findall(r"\blogits?_processors?\.(\w+)", SOURCES))
    assert {"tensors_required", "fill_defaults", "prepare_tensor_args", "do_processing", "check_kwargs"} <= asked
    missing = {name for name in asked if not hasattr(PerRequestSampler, name)}
    assert missing == set()


def test_the_router_takes_over_every_way_out():
    public = {name for name, _ in inspect.getmembers(OutputRouter, inspect.isfunction) if not name.startswith("_")}
    assert public == {"deliver", "deliver_batch", "fail_and_deliver"}
    assert list(inspect.signature(OutputRouter.deliver_batch).parameters) == ["self", "outputs"]
    delivered = []
    router = Router(cancel=lambda request: None, crashed=lambda manager: None)
    router.loop = asyncio.new_event_loop()
    router.streams["one"] = delivered.append
    router.fail_and_deliver(RequestState("one", [1, 2]), RuntimeError("broken"))
    router.loop.call_soon(router.loop.stop)
    router.loop.run_forever()
    router.loop.close()
    (output,) = delivered
    assert isinstance(output, GenerationOutput)
    assert (output.error, output.generated_tokens, output.is_finished()) == ("broken", [], True)


@pytest.mark.parametrize("error", [None, RuntimeError("broken")])
def test_the_status_is_told_of_every_end_of_the_thread(error):
    crashes = []
    status = ThreadStatus(lambda: crashes.append(status.fatal_error))
    assert status.can_accept_new_requests() is None
    if error is not None:
        status.record_fatal_error(error)
    status.mark_as_stopped()
    assert crashes == ([error] if error else [])
    assert status.can_accept_new_requests() is not None
    assert "mark_as_stopped" in inspect.getsource(library.ContinuousBatchingManager)
    assert isinstance(status, BackgroundThreadStatus)


def test_a_request_that_is_set_back_has_its_answer_behind_its_prompt():
    draws = Draws(Sampling(max_tokens=10, seed=1), prompt_tokens=2)
    state = RequestState("one", [1, 2], max_new_tokens=10, logit_processor_kwargs={"draws": draws})
    state.status = RequestStatus.DECODING
    state.generated_tokens += [3, 4]
    again = state.create_equivalent_initial_request()
    assert (again.initial_tokens, again.generated_tokens) == ([1, 2, 3, 4], [])
    assert again.logit_processor_kwargs["draws"] is draws
    assert RequestStatus.PREFILLING < RequestStatus.DECODING < RequestStatus.FINISHED
