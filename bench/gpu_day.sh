#!/usr/bin/env bash
# Everything that has to be measured on an NVIDIA GPU, in stages: tests on the card, memcheck, meta-parameters, kernels,
# engines, agreement, one report. Changes no setting of the card.
#
#   bench/gpu_day.sh OUT             run the stages that fit into the next 8 minutes; call again to go on
#   bench/gpu_day.sh OUT --dry-run   take every step with tiny shapes on a CPU: no figure means anything
#
# Each finished stage leaves OUT/NAME.done and is not run again; a failed one leaves OUT/NAME.log and is tried again.
# Exit status: 0 all done, 3 stages left (call again), 1 a stage failed. GPU_DAY_BUDGET_S changes the 480 seconds.
set -u
cd "$(dirname "$0")/.."
OUT=${1:?usage: bench/gpu_day.sh OUT [--dry-run]}
DRY=${2:-}
BUDGET_S=${GPU_DAY_BUDGET_S:-480}
PYTHON=${PYTHON:-python}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
gridserve() { "$PYTHON" -m serving.cli "$@"; }
failed=0 left=0

# stage NAME SECONDS COMMAND...: SECONDS is the most it may take, and what must be left of the budget for it to begin.
stage() {
  local name=$1 limit_s=$2
  shift 2
  [ -e "$OUT/$name.done" ] && return
  if [ "$SECONDS" -gt 0 ] && [ $((SECONDS + limit_s)) -gt "$BUDGET_S" ]; then
    left=$((left + 1))
    return
  fi
  local began=$SECONDS
  if ( "$@" ) >"$OUT/$name.log" 2>&1 & child=$!; watch "$child" "$limit_s"; then
    echo "$name: done in $((SECONDS - began)) s"
    touch "$OUT/$name.done"
  else
    echo "$name: failed after $((SECONDS - began)) s, see $OUT/$name.log" >&2
    failed=$((failed + 1))
  fi
}

# Wait for a child at most so many seconds; end it with all it started after that.
watch() {
  local child=$1 until=$((SECONDS + $2))
  while kill -0 "$child" 2>/dev/null; do
    if [ "$SECONDS" -ge "$until" ]; then
      pkill -TERM -P "$child" 2>/dev/null
      kill -TERM "$child" 2>/dev/null
      wait "$child"
      return 124
    fi
    sleep 0.2
  done
  wait "$child"
}

environment() {
  "$PYTHON" - "$OUT/environment.json" <<'PYTHON'
import json, platform, subprocess, sys
import torch, triton
cuda = torch.cuda.is_available()
query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
try:
    smi = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
except (OSError, subprocess.CalledProcessError):
    smi = None
found = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__,
         "cuda": torch.version.cuda, "device": torch.cuda.get_device_name(0) if cuda else None, "nvidia_smi": smi}
json.dump(found, open(sys.argv[1], "w"), indent=1)
PYTHON
}

sanitize() {
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed: not run"; return 0; }
  TRITON_INTERPRET=0 compute-sanitizer --tool "$1" --error-exitcode 1 \
    "$PYTHON" -m pytest -q -x -p no:cacheprovider tests/kernels/gpu/checks/check_step_inputs.py \
    tests/kernels/gpu/checks/check_steps.py
}

kernels() {
  local table=()
  [ -e "$OUT/table.json" ] && table=(--table "$OUT/table.json")
  gridserve bench kernels "${table[@]}" --json "$OUT/kernels.json" --markdown "$OUT/kernels.md"
}

engine() { # SHAPE [OPTION...]
  local shape=$1
  shift
  gridserve bench engine --device cuda --shapes "$shape" --json "$OUT/engine-$shape.json" \
    --markdown "$OUT/engine-$shape.md" "$@"
}

agreement() { # SHAPE [OPTION...]
  local shape=$1
  shift
  gridserve bench agreement --device cuda --shapes "$shape" --json "$OUT/agreement-$shape.json" \
    --markdown "$OUT/agreement-$shape.md" "$@"
}

formats() { # What the dtypes of weights and cache and deterministic mode bring or cost.
  gridserve bench engine --device cuda --shapes llama-3.2-1b --json "$OUT/formats.json" --markdown "$OUT/formats.md" \
    --systems gridserve gridserve-int8-weights gridserve-fp8-kv gridserve-int8-kv gridserve-deterministic "$@"
}

planning() { # What planning a step ahead brings, and guessing tokens instead.
  gridserve bench engine --device cuda --shapes llama-3.2-1b --json "$OUT/planning.json" --markdown "$OUT/planning.md" \
    --systems gridserve gridserve-no-overlap gridserve-ngram "$@"
}

ranks() { # Two GPUs for one model, where there are two.
  gridserve bench engine --device cuda --shapes llama-3.1-8b --json "$OUT/ranks.json" --markdown "$OUT/ranks.md" \
    --systems gridserve gridserve-no-overlap vllm --tensor-parallel 2 "$@"
}

report() {
  "$PYTHON" - "$OUT" "$DRY" <<'PYTHON'
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
parts = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json")) if path.stem != "report"}
(out / "report.json").write_text(json.dumps(parts, indent=1) + "\n")
lines = ["# Measurements on a GPU" if not sys.argv[2] else "# Dry run on a CPU: nothing was measured", ""]
environment = parts.get("environment", {})
lines += [f"- {name}: {value}" for name, value in environment.items()] + [""]
for path in sorted(out.glob("*.md")):
    if path.stem != "report":
        lines += [f"## {path.stem}", "", path.read_text().replace("\n# ", "\n### ").removeprefix("# Kernels\n"), ""]
(out / "report.md").write_text("\n".join(lines))
PYTHON
}

stage environment 60 environment
if [ "$DRY" = --dry-run ]; then
  stage kernels 240 kernels
  stage engine 240 engine llama-3.2-1b --dry-run
  stage formats 240 formats --dry-run
  stage planning 240 planning --dry-run
  stage ranks 240 ranks --dry-run
  stage agreement 120 agreement llama-3.2-1b --dry-run
else
  stage tests 420 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider tests/kernels/gpu
  stage memcheck 300 sanitize memcheck
  stage racecheck 300 sanitize racecheck
  stage sweep 420 gridserve bench kernels --sweep "$OUT/table.json"
  stage kernels 420 kernels
  for shape in qwen3-0.6b llama-3.2-1b llama-3.1-8b; do
    stage "engine-$shape" 420 engine "$shape"
    stage "agreement-$shape" 180 agreement "$shape"
  done
  stage formats 460 formats
  stage planning 400 planning
  [ "$(nvidia-smi --list-gpus | wc -l)" -ge 2 ] && stage ranks 460 ranks
fi
rm -f "$OUT/report.done"
stage report 30 report
[ "$failed" -gt 0 ] && exit 1
[ "$left" -gt 0 ] && { echo "$left stages left: call again"; exit 3; }
echo "all done: $OUT/report.md"
