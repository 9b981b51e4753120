"""Does an artifact say what its checkpoint says, how large is it, how fast, and what does it make of malformed rows?

    mtlrec synth feed --output data/feed --rows 400000
    python benchmarks/serve.py --feed data/feed --census data/census-income --kuairand data/kuairand \
        --output benchmarks/results/serve.json

Trains a recipe of each data set that is given (`--work` keeps runs and artifacts, and what is there is taken), exports
it as float32 and as int8, and measures:

    parity     the largest difference of any valid row between compiled and eager; AUC of int8 tables less that of
               float32, on valid and test; by how much `evaluate --artifact` differs from `evaluate RUN`
    sizes      bytes of int8 artifacts over those of float32, of the feed's job as it is, with tables of millions of
               rows, and with those in 32 columns
    latency    ms of 500 candidates in turns in one process: the model in eager mode, the compiled ones, and the
               predictor from raw columns; medians of blocks, and their p99 (of p99s the median over blocks)
    malformed  batches of rows of which some are malformed (hypothesis draws them): each has to have a reason, and the
               good rows beside it their own scores
"""

import argparse
import itertools
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import report
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtlrec.checkpoints.folder import Checkpoints
from mtlrec.compat.quiet import quiet_libraries
from mtlrec.config.file import job_of
from mtlrec.data.features.row_errors import RawRowErrors
from mtlrec.errors import DataError
from mtlrec.models.build import build_task_losses
from mtlrec.serving import Predictor
from mtlrec.serving.export import whole_model
from mtlrec.serving.sample import inputs_of

RECIPES = {"feed": "feed", "census": "census", "kuairand": "kuairand"}
CANDIDATES, REQUESTS = 500, 20
OF_ITEM = ("item_id", "category", "duration_s")
"""The feed's columns that candidates differ in; the others are the user's."""
LARGE = ("tables.user.rows=2000000", "tables.item.rows=500000")
WIDE = tuple(f"tables.{name}.dim=32" for name in ("user", "item", "category", "segment", "device", "hour"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in RECIPES:
        parser.add_argument(f"--{name}", type=Path, help="where `mtlrec synth` or `prepare` wrote the data")
    parser.add_argument("--work", type=Path, help="where runs and artifacts stay")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=500, help="of each block")
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument("--output", type=Path, help="the file to write")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, options.work or Path(folder))
    hardware = f"{report.processor()}, {torch.get_num_threads()} threads"
    command = shlex.join(["python", "benchmarks/serve.py", *sys.argv[1:]])
    if options.output:
        report.write({"command": command, "hardware": hardware, **found}, options.output)
    print(json.dumps(found, indent=1) if options.json else "\n".join([hardware, "", *tables(found)]))


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    roots = {name: getattr(options, name) for name in RECIPES if getattr(options, name)}
    found: dict[str, Any] = {"parity": {name: parity(name, root, work) for name, root in roots.items()}}
    if options.feed:
        found["sizes"] = {
            "feed": sizes(options.feed, work, "feed"),
            "feed, 2.5 million rows": sizes(options.feed, work, "large", LARGE),
            "feed, 2.5 million rows of 32 columns": sizes(options.feed, work, "wide", LARGE + WIDE),
        }
        found["latency"] = latency(options, work)
        found["malformed"] = malformed(options, work)
    return found


def mtlrec(*words: str | Path) -> Any:
    """The command's JSON."""
    command = [sys.executable, "-m", "mtlrec", *map(str, words), "--json"]
    print(shlex.join(command[2:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def trained(name: str, recipe: str, root: Path, work: Path, overrides: tuple[str, ...] = ()) -> Path:
    run = work / f"run_{name}"
    if not (run / "final.json").exists():
        words = [word for override in (f"data.root={root}", *overrides) for word in ("--set", override)]
        metrics = mtlrec("train", recipe, "-o", run, "--overwrite", *words)
        (run / "final.json").write_text(json.dumps(metrics))
    return run


def artifact(name: str, run: Path, work: Path, quantize: str) -> tuple[Path, dict[str, Any]]:
    """The folder and the report."""
    out = work / f"artifact_{name}_{quantize}"
    if not out.exists():
        mtlrec("export", run, "--output", out, "--quantize", quantize)
    return out, json.loads((out / "parity.json").read_text())


def parity(name: str, root: Path, work: Path) -> dict[str, Any]:
    run = trained(name, RECIPES[name], root, work)
    of_run = mtlrec("evaluate", run, "--split", "test")["test"]
    found: dict[str, Any] = {"recipe": RECIPES[name]}
    for quantize in ("none", "int8"):
        folder, report = artifact(name, run, work, quantize)
        of_artifact = mtlrec("evaluate", "--artifact", folder, "--split", "test")["test"]
        valid = {
            task: after - before for task, m in report["metrics"].items() for before, after in [m.get("auc", (0, 0))]
        }
        test = {task: of_artifact[task]["auc"] - m["auc"] for task, m in of_run.items() if "auc" in m}
        found[quantize] = {
            "compiled_to_eager": max(report["differences"].values()),
            "auc_change": max(map(abs, [*valid.values(), *test.values()])),
            "auc_change_valid": valid,
            "auc_change_test": test,
        }
        if quantize == "none":
            apart = [abs(of_artifact[t][m] - v) for t, of in of_run.items() for m, v in of.items() if v is not None]
            found[quantize]["evaluate_to_run"] = max(apart)
    return found


def sizes(root: Path, work: Path, name: str, overrides: tuple[str, ...] = ()) -> dict[str, float]:
    """Rows that no training has touched take as much room as others: one step is enough for the large ones."""
    run = trained(name, RECIPES["feed"], root, work, (*overrides, "train.max_steps=1") if overrides else ())
    size = {}
    for quantize in ("none", "int8", "fp16"):
        folder, _ = artifact(name, run, work, quantize)
        size[quantize] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "fp32_mb": round(size["none"] / 1e6, 2),
        "int8_mb": round(size["int8"] / 1e6, 2),
        "int8_to_fp32": round(size["int8"] / size["none"], 4),
        "fp16_to_fp32": round(size["fp16"] / size["none"], 4),
    }


def latency(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    run = trained("feed", RECIPES["feed"], options.feed, work)
    predictors = {kind: Predictor(artifact("feed", run, work, kind)[0]) for kind in ("none", "int8")}
    job = job_of(run)
    model = whole_model(job, Checkpoints(run).named("last")).model
    columns = predictors["none"].columns
    table = pa.concat_tables([pq.read_table(file) for file in sorted((options.feed / "test").glob("*.parquet"))])
    requests = [table.slice(start, CANDIDATES) for start in range(0, REQUESTS * CANDIDATES, CANDIDATES)]
    batches = [columns.batch(columns.converted(one, RawRowErrors(len(one)))) for one in requests]
    tensors = [inputs_of(columns, one.select(columns.features.columns), torch.device("cpu")) for one in requests]
    users = [{n: one[n][0].as_py() for n in columns.features.columns if n not in OF_ITEM} for one in requests]
    items = [{n: one[n].combine_chunks() for n in OF_ITEM} for one in requests]
    lists = [{n: one[n].to_pylist() for n in OF_ITEM} for one in requests]
    losses = build_task_losses(job)
    fp32, int8 = predictors["none"], predictors["int8"]
    calls: dict[str, Callable[[int], Any]] = {
        "eager": lambda i: losses.predictions(model(batches[i].dense, batches[i].sparse)),
        "compiled": lambda i: fp32.function(*tensors[i]),
        "compiled, int8": lambda i: int8.function(*tensors[i]),
        "predictor, user once, Arrow": lambda i: fp32.predict(items[i], shared=users[i]),
        "predictor, user once, lists": lambda i: fp32.predict(lists[i], shared=users[i]),
        "predictor, whole table": lambda i: fp32.predict(requests[i]),
    }
    with torch.no_grad():
        took = timed(calls, options.blocks, options.rounds)
    found: dict[str, Any] = {
        name: {
            "p50_ms": round(statistics.median(float(np.median(block)) for block in blocks), 3),
            "p99_ms": round(statistics.median(float(np.quantile(block, 0.99)) for block in blocks), 3),
        }
        for name, blocks in took.items()
    }
    for name in ("compiled", "compiled, int8"):
        ratios = [
            float(np.quantile(ours, 0.99) / np.quantile(eager, 0.99))
            for ours, eager in zip(took[name], took["eager"], strict=True)
        ]
        found[name] |= {
            "p99_to_eager": round(statistics.median(ratios), 3),
            "p99_to_eager_blocks": np.round(ratios, 3).tolist(),
        }
    return found


def timed(calls: dict[str, Callable[[int], Any]], blocks: int, rounds: int) -> dict[str, list[list[float]]]:
    """ms by call, by block."""
    took: dict[str, list[list[float]]] = {name: [] for name in calls}
    for block in range(blocks + 1):  # the first warms up
        of_block: dict[str, list[float]] = {name: [] for name in calls}
        for index in itertools.islice(itertools.cycle(range(REQUESTS)), rounds):
            for name, call in calls.items():
                started = time.perf_counter()
                call(index)
                of_block[name].append(1e3 * (time.perf_counter() - started))
        if block:
            for name, times in of_block.items():
                took[name].append(times)
    return took


NO_VALUE = st.text(max_size=5) | st.binary(max_size=3) | st.lists(st.text(), min_size=1, max_size=3) | st.just({"a": 1})
NO_DENSE = NO_VALUE | st.just([]) | st.just(float("inf")) | st.floats(max_value=-1e-3) | st.integers(max_value=-1)
NO_ID = (
    NO_VALUE | st.booleans() | st.floats(allow_nan=False) | st.integers(min_value=10_000) | st.integers(max_value=-1)
)
NO_IDS = (
    st.text(max_size=5)
    | st.floats(allow_nan=False)
    | st.lists(st.integers(min_value=10_000) | st.integers(max_value=-1) | st.none(), min_size=1, max_size=4)
    | st.lists(st.text(max_size=3) | st.lists(st.integers(), max_size=2), min_size=1, max_size=3)
)


def malformed(options: argparse.Namespace, work: Path) -> dict[str, int]:
    """Raises AssertionError, with the smallest example that hypothesis finds, where one is neither scored nor told."""
    predictor = Predictor(artifact("feed", trained("feed", RECIPES["feed"], options.feed, work), work, "none")[0])
    features = predictor.columns.features
    bad = {one.source: NO_DENSE for one in features.dense} | {
        one.source: NO_IDS if one.max_length else NO_ID for one in features.sparse
    }
    table = pq.read_table(min((options.feed / "test").glob("*.parquet"))).select(list(bad)).slice(0, 50)
    rows = table.to_pylist()
    expected = predictor.predict(table).predictions
    wrong_row = st.sampled_from(sorted(bad)).flatmap(lambda name: st.tuples(st.just(name), bad[name]))
    batch = st.lists(st.tuples(st.integers(0, len(rows) - 1), st.none() | wrong_row), min_size=1, max_size=5)
    counts = {"inputs": 0, "malformed_rows": 0, "good_rows_beside_them": 0, "refused_as_a_whole": 0}

    @settings(max_examples=options.malformed, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(batch, wrong_row, st.sampled_from(["rows", "rows", "rows", "rows", "missing", "uneven", "no_mapping"]))
    def check(drawn: list[tuple[int, Any]], one: tuple[str, Any], structure: str) -> None:
        drawn = [*drawn, (0, one)]
        given_ = [rows[index] | ({} if wrong is None else {wrong[0]: wrong[1]}) for index, wrong in drawn]
        columns: Any = {name: [row[name] for row in given_] for name in bad}
        counts["inputs"] += 1
        if structure in ("uneven", "no_mapping"):
            columns = given_ if structure == "no_mapping" else columns | {one[0]: []}
            assert refused(predictor, columns).startswith("rows: ")
            counts["refused_as_a_whole"] += 1
            return
        if structure == "missing":
            del columns[one[0]]
        found = predictor.predict(columns)
        for row, (index, wrong) in enumerate(drawn):
            if wrong is not None or structure == "missing":
                counts["malformed_rows"] += 1
                assert len(found.errors[row]) > 10
                assert all(np.isnan(values[row]) for values in found.predictions.values())
            else:
                counts["good_rows_beside_them"] += 1
                assert row not in found.errors
                for task, values in found.predictions.items():
                    np.testing.assert_allclose(values[row], expected[task][index], rtol=1e-4)

    check()
    return counts


def refused(predictor: Predictor, columns: Any) -> str:
    """Why, or nothing where they were taken."""
    try:
        predictor.predict(columns)
    except DataError as error:
        return str(error)
    return ""


def tables(found: dict[str, Any]) -> list[str]:
    lines = ["| data | compiled to eager | int8's AUC change | evaluate to run |", "|---|--:|--:|--:|"]
    for name, of in found["parity"].items():
        fp32, int8 = of["none"], of["int8"]
        lines.append(
            f"| {name} | {max(fp32['compiled_to_eager'], int8['compiled_to_eager']):.1e} "
            f"| {int8['auc_change']:.1e} | {fp32['evaluate_to_run']:.1e} |"
        )
    lines += ["", "| artifact | float32, MB | int8, MB | int8 / float32 | float16 / float32 |", "|---|--:|--:|--:|--:|"]
    for name, of in found.get("sizes", {}).items():
        sizes_ = f"{of['fp32_mb']} | {of['int8_mb']} | {of['int8_to_fp32']:.1%} | {of['fp16_to_fp32']:.1%}"
        lines.append(f"| {name} | {sizes_} |")
    lines += ["", f"| {CANDIDATES} candidates | p50, ms | p99, ms | p99 / eager's |", "|---|--:|--:|--:|"]
    for name, of in found.get("latency", {}).items():
        lines.append(f"| {name} | {of['p50_ms']:.2f} | {of['p99_ms']:.2f} | {of.get('p99_to_eager', '')} |")
    return [*lines, "", f"malformed: {found.get('malformed')}"]


if __name__ == "__main__":
    main()
