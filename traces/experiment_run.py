"""Run an experiment: every cell in a process of its own pool, checked, kept, and skipped when it is there already."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import msgspec

from traces.experiment import Cell, Experiment, cells, fingerprint, grid_of, workload_of
from traces.experiment_checks import check_outcome
from traces.results_io import write_run
from traces.simulate import SimulationOutcome, simulate
from traces.simulate_directives import Directives, learn
from traces.simulate_regrade import follows_grid, under_grid
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
    groups = _groups(experiment, todo)
    workers = min(jobs or os.cpu_count() or 1, max(len(groups), 1))
    if workers == 1:
        for group in groups:
            _run_kept(experiment, group, out, data)
            done += len(group)
            on_progress(done, len(wanted))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            running: dict[Future[None], Sequence[Cell]] = {
                pool.submit(_run_kept, experiment, group, out, data): group
                for group in _longest_first(experiment, groups)
            }
            try:
                for future in as_completed(running):
                    future.result()
                    done += len(running[future])
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


def _groups(experiment: Experiment, todo: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that one run answers: zones differ in grams alone, unless the policy follows the grid."""
    following = {policy.name for policy in experiment.policies if follows_grid(policy)}
    groups: dict[tuple[str | int | None, ...], list[Cell]] = {}
    for cell in todo:
        zone = cell.zone if cell.policy in following else None
        groups.setdefault((cell.policy, cell.trace, cell.variant, cell.seed, zone), []).append(cell)
    return list(groups.values())


def _run_kept(experiment: Experiment, group: Sequence[Cell], out: Path, data: Path | None) -> None:
    """Simulate the first cell and price its run for the zones of the others."""
    started_s, cpu_s = time.perf_counter(), time.process_time()
    try:
        outcome = run_cell(experiment, group[0], data)
        for cell in group:
            if cell is not group[0]:
                outcome = _for_zone(experiment, cell, outcome, data)
            check_outcome(outcome)
            now_s, now_cpu_s = time.perf_counter(), time.process_time()
            cost = {"wall_s": now_s - started_s, "cpu_s": now_cpu_s - cpu_s}
            started_s, cpu_s = now_s, now_cpu_s
            _keep(experiment, cell, outcome, out / "runs" / cell.key, data, cost)
    except ValueError as error:
        raise ValueError(f"{group[0].key}: {error}") from None


def _for_zone(experiment: Experiment, cell: Cell, outcome: SimulationOutcome, data: Path | None) -> SimulationOutcome:
    zone = next(zone for zone in experiment.zones if zone.name == cell.zone)
    variant = next(variant for variant in experiment.all_variants if variant.name == cell.variant)
    settings = experiment.settings_of(variant, experiment.trace_named(cell.trace))
    return under_grid(outcome, grid_of(zone, data), settings.pue)


def _keep(
    experiment: Experiment,
    cell: Cell,
    outcome: SimulationOutcome,
    folder: Path,
    data: Path | None,
    cost: Mapping[str, float],
) -> None:
    write_run(outcome.result, folder)
    outcome.timeline.write(folder / TIMELINE_FILE)
    row = {**row_of(cell, outcome, experiment), "fingerprint": fingerprint(experiment, cell, data), **cost}
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


def _longest_first(experiment: Experiment, groups: Sequence[Sequence[Cell]]) -> list[Sequence[Cell]]:
    """Heavier loads first, so that the last minutes are not one process alone."""
    weight = {
        variant.name: variant.load * experiment.settings_of(variant).servers for variant in experiment.all_variants
    }
    return sorted(groups, key=lambda group: -weight[group[0].variant])
