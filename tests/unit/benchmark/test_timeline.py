"""The split of a step, on traces made by hand: what each moment counts for, and that all of them add up."""

import json
from pathlib import Path

import pytest

from mtlrec.benchmark.timeline import STAGES, STEP, Event, read_trace, split_steps

MAIN, HELPER, AUTOGRAD = 1, 2, 3


def stages_ms(events: list[Event]) -> dict[str, float]:
    """Those that are not zero; times of events are in microseconds, so 1000 of them are 1.0 here."""
    split = split_steps(events)
    assert set(split.stages) == set(STAGES)
    assert sum(split.stages.values()) == pytest.approx(sum(e.end - e.start for e in events if e.name == STEP) / 1e6)
    return {stage: round(1e3 * s, 6) for stage, s in split.stages.items() if abs(s) > 1e-12}


def main(name: str, start: float, end: float) -> Event:
    return Event(name, MAIN, start, end)


STEP_ON_CPU = [
    main(STEP, 0, 10_000),
    main("mtlrec::data_wait", 100, 600),
    main("## copy_batch_to_gpu 1 ##", 700, 800),
    main("## start_sparse_data_dist 1 ##", 800, 1500),
    main("## all2all_data:kjt splits ##", 900, 1100),
    main("## forward 1 ##", 2000, 5000),
    main("[lookup]_[model.sparse_arch.collections.bags]_[table_wise]", 2100, 2600),
    main("## PooledEmbeddingsAwaitable wait() ##", 2700, 3000),
    main("aten::addmm", 3000, 4000),
    main("mtlrec::loss", 4000, 4800),
    main("mtlrec::sum_over_ranks", 4100, 4400),
    main("## backward 1 ##", 5000, 9000),
    main("autograd::engine::evaluate_function: AddmmBackward0", 5100, 6000),
    main("torch::autograd::CppNode<SplitLookupFunction_rowwise_adagrad_Op>", 6500, 8000),
    main("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 8000, 8100),
    main("aten::as_strided", 8900, 8950),  # what DDP does after it has waited
    main("## optimizer 1 ##", 9000, 9500),
    Event("aten::cat", HELPER, 0, 10_000),
]


def test_the_main_thread_by_stage() -> None:
    assert stages_ms(STEP_ON_CPU) == pytest.approx(
        {
            "data wait": 0.5,
            "host to device": 0.1,
            "sparse forward": 0.5 + 0.5,
            "all-to-all": 0.2 + 0.3,
            "dense forward": 3.0 - 0.5 - 0.3 - 0.8,
            "loss": 0.5,
            "backward": 1.6,  # with the gaps between autograd's nodes
            "sparse update": 1.5,
            "all-reduce": 0.3 + 0.9,  # of the loss, and what is left of backward after its last node
            "dense optimizer": 0.5,
            "other": 0.1 + 0.1 + 0.5 + 0.5,
        }
    )


def test_events_outside_a_step_count_nowhere() -> None:
    around = [main("aten::add", -500, -100), main("## forward 2 ##", 10_500, 12_000)]
    assert stages_ms(STEP_ON_CPU + around) == stages_ms(STEP_ON_CPU)


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=STEP):
        split_steps(STEP_ON_CPU[1:])


def launch(thread: int, start: float, correlation: int) -> Event:
    return Event("cudaLaunchKernel", thread, start, start + 10, correlation=correlation)


def kernel(name: str, start: float, end: float, correlation: int = 0) -> Event:
    return Event(name, 7, start, end, on_gpu=True, correlation=correlation)


def test_a_gpu_is_charged_for_what_nothing_hides() -> None:
    events = [
        main(STEP, 0, 1000),
        main("mtlrec::data_wait", 0, 100),
        main("## forward 1 ##", 100, 300),
        launch(MAIN, 110, 1),
        main("## backward 1 ##", 300, 420),
        main("aten::ones_like", 300, 305),
        Event("autograd::engine::evaluate_function: AddmmBackward0", AUTOGRAD, 300, 400),
        launch(AUTOGRAD, 310, 2),
        launch(AUTOGRAD, 330, 3),
        Event("torch::autograd::CppNode<SplitLookupFunction_x>", AUTOGRAD, 350, 390),
        launch(AUTOGRAD, 360, 4),
        kernel("gemm", 150, 400, 1),  # forward's
        kernel("Memcpy HtoD (Pinned -> Device)", 120, 200, 9),  # seen before the product starts
        kernel("gemm", 420, 600, 2),
        kernel("ncclDevKernel_AllReduce_Sum_f32", 500, 700, 3),  # hidden for the first half
        kernel("split_embedding_backward", 700, 900, 4),
    ]
    assert stages_ms(events) == pytest.approx(
        {
            "data wait": 0.1,
            "host to device": 0.03,
            "dense forward": 0.02 + 0.25,  # idle until the copy, the main thread being in forward; then the product
            "backward": 0.2,
            "all-reduce": 0.1,
            "sparse update": 0.2,
            "other": 0.1,
        }
    )


def test_a_chrome_trace_is_read(tmp_path: Path) -> None:
    one = {"ph": "X", "cat": "cpu_op", "name": STEP, "tid": 5, "ts": 2.5, "dur": 4.0}
    gpu = one | {"cat": "kernel", "name": "gemm", "tid": 7, "args": {"correlation": 3}}
    sent = {"Input Dims": [[8], [3, 4], []], "Input type": ["long int", "long int", ""]}
    collective = one | {"name": "c10d::alltoall_base_", "ts": 3.0, "dur": 1.0, "args": sent}
    listed = {"Input Dims": [[[5], [2, 2]], []], "Input type": ["TensorList", ""]}
    reduced = one | {"name": "c10d::allreduce_", "ts": 5.0, "dur": 1.0, "args": listed}
    others = [{"ph": "s", "cat": "ac2g"}, one | {"cat": "python_function"}, {"ph": "X", "name": "no category"}]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": [one, gpu, collective, reduced, *others]}))
    events = read_trace(tmp_path / "trace.json")
    assert events == [
        Event(STEP, 5, 2.5, 6.5),
        Event("gemm", 7, 2.5, 6.5, on_gpu=True, correlation=3),
        Event("c10d::alltoall_base_", 5, 3.0, 4.0, handed_over=12 * 8),
        Event("c10d::allreduce_", 5, 5.0, 6.0, handed_over=9 * 4),
    ]
    assert split_steps(events).handed_over == {"alltoall": 96, "allreduce": 36}
