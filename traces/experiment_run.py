"""Run an experiment: every cell in a process of its own pool, checked, kept, and skipped when it is there already."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import msgspec

from traces.experiment import Cell, Experiment, cells, fingerprint, grid_of, workload_of
from traces.experiment_checks import check_outcome
from traces.results_io import write_run
from traces.simulate import SimulationOutcome, simulate
from traces.simulate_directives import Directives, learn
from traces.simulate_settings import SimulationSettings
from traces.workload import Workload

CELL_FILE, TIMELINE_FILE = "cell.json", "timeline.parquet"
Row = Mapping[str, Any]
_DROPPED = ("formulas", "missing", "device")


def run_experiment(
    experiment: Experiment,
    out: Path,
    data: Path | None = None,
    *,
    jobs: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """All rows, in the order of the grid. Cells whose files are there with the same fingerprint are not run again.

    Raises `ValueError` naming the cell whose run does not pass the checks, or cannot be made.
    """
    wanted = list(cells(experiment))
    todo = [cell for cell in wanted if _kept(out, cell, fingerprint(experiment, cell, data)) is None]
    done = len(wanted) - len(todo)
    on_progress(done, len(wanted))
    workers = min(jobs or os.cpu_count() or 1, max(len(todo), 1))
    if workers == 1:
        for cell in todo:
            _run_kept(experiment, cell, out, data)
            done += 1
            on_progress(done, len(wanted))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            running: dict[Future[None], Cell] = {
                pool.submit(_run_kept, experiment, cell, out, data): cell for cell in _longest_first(experiment, todo)
            }
            try:
                for future in as_completed(running):
                    future.result()
                    done += 1
                    on_progress(done, len(wanted))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    rows = []
    for cell in wanted:
        row = _kept(out, cell, fingerprint(experiment, cell, data))
        assert row is not None
        rows.append(row)
    return rows


def run_cell(experiment: Experiment, cell: Cell, data: Path | None = None) -> SimulationOutcome:
    """One run of the grid."""
    policy = next(policy for policy in experiment.policies if policy.name == cell.policy)
    source = experiment.trace_named(cell.trace)
    variant = next(variant for variant in experiment.all_variants if variant.name == cell.variant)
    settings = experiment.settings_of(variant, source)
    zone = next((zone for zone in experiment.zones if zone.name == cell.zone), None)
    grid = grid_of(zone, data) if zone is not None else None
    workload = workload_of(source, cell.seed, variant.load, experiment.load_jitter_s, data)
    directing = None
    if policy.directives is not None:
        training = workload_of(source, experiment.training_seed, 1.0, 0.0, data)
        if source.split_rows:
            training = _rows(training, 0)
        knowledge = learn(training, settings.make_twin())
        embodied = settings.embodied_g_per_s or 0.0
        directing = Directives(knowledge, policy.directives, grid, seed=cell.seed, embodied_g_per_s=embodied)
    if source.split_rows:
        workload = _rows(workload, 1)
    return simulate(workload, policy, settings, grid=grid, directing=directing, seed=cell.seed)


def _rows(workload: Workload, parity: int) -> Workload:
    """Only prompts judged in even (training) or odd (evaluation) rows."""
    kind = "odd" if parity else "even"
    return workload.where(lambda r: r.judged_row is None or r.judged_row % 2 == parity, f"judged rows {kind}")


def _run_kept(experiment: Experiment, cell: Cell, out: Path, data: Path | None) -> None:
    folder = out / "runs" / cell.key
    started_s, cpu_s = time.perf_counter(), time.process_time()
    try:
        outcome = run_cell(experiment, cell, data)
        check_outcome(outcome)
    except ValueError as error:
        raise ValueError(f"{cell.key}: {error}") from None
    write_run(outcome.result, folder)
    outcome.timeline.write(folder / TIMELINE_FILE)
    row = row_of(cell, outcome, experiment)
    row |= {
        "fingerprint": fingerprint(experiment, cell, data),
        "wall_s": time.perf_counter() - started_s,
        "cpu_s": time.process_time() - cpu_s,
    }
    scratch = folder / f".{CELL_FILE}.part"
    scratch.write_bytes(msgspec.json.format(msgspec.json.encode(row), indent=1))
    os.replace(scratch, folder / CELL_FILE)


def row_of(cell: Cell, outcome: SimulationOutcome, experiment: Experiment) -> dict[str, Any]:
    """The cell, all figures of `RunResult.summary`, those of the device (`device_...`), and the simulation's own."""
    summary = outcome.result.summary()
    device = summary["device"] or {}
    row: dict[str, Any] = {
        "experiment": experiment.name,
        "policy": cell.policy,
        "trace": cell.trace,
        "variant": cell.variant,
        "zone": cell.zone,
        "seed": cell.seed,
        "trace_used": outcome.result.info.trace,
        "trace_obtained": outcome.result.info.trace_obtained,
        "output_lengths": outcome.result.info.output_lengths,
    }
    row |= {name: value for name, value in summary.items() if name not in _DROPPED}
    row |= {f"device_{name}": value for name, value in device.items()}
    row |= outcome.figures
    grams = device.get("co2e_g")
    completed = summary["completed"]
    row["co2e_g_per_request"] = grams / completed if grams is not None and completed else None
    row["goodput_per_w"] = _per(summary["request_goodput"], device.get("average_power_w"))
    return row


def _per(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def _kept(out: Path, cell: Cell, wanted: str) -> Row | None:
    path = out / "runs" / cell.key / CELL_FILE
    if not path.is_file():
        return None
    row: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    return row if row["fingerprint"] == wanted else None


def _longest_first(experiment: Experiment, todo: list[Cell]) -> list[Cell]:
    """Heavier loads first, so that the last minutes are not one process alone."""
    weight = {
        variant.name: variant.load * _servers(experiment.settings_of(variant)) for variant in experiment.all_variants
    }
    return sorted(todo, key=lambda cell: -weight[cell.variant])


def _servers(settings: SimulationSettings) -> int:
    return settings.servers
