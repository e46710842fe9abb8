#!/usr/bin/env bash
# The one command for a machine with a GPU: builds, tests, measures and checks, in order of value, within a time limit.
set -u

readonly STAGES="facts build resources goldens quick_tests calibration tune bench_conv bench_model bench_train \
bench_memory tests memcheck racecheck synccheck initcheck ncu dtypes autotune"
# What tells most of a kernel that never ran: is it right, and how fast is it?
readonly FIRST="facts build resources goldens quick_tests bench_conv bench_model"

usage() {
  cat <<'TEXT'
usage: scripts/gpu_session.sh [options] OUT [SECONDS]

  scripts/gpu_session.sh --first out           a first run of 600 s on a bare machine
  scripts/gpu_session.sh --later out 600       what is not done yet, with the build that is there

Builds vggfast with CUDA, tests it on this machine's GPU, and measures it, in at most SECONDS (default 600). Stages run in order of
value, each within its share of the time; one that fails or runs out of time stops none of the others, but where the
build fails, those that need it are skipped. It may be cut off at any moment. Nothing is installed or downloaded, and
the GPU's settings stay as they are.

OUT gets few files, for machines that hand back few:
  summary.txt     each stage's state, seconds and exit code, and what they come to in ten lines: built, right, fastest,
                  where it loses; written anew before and after each stage
  session.log     the output of all stages as it comes
  stages.tar.gz   each stage's log (NAME.log), exit code (NAME.code) and results, among them tuned.h, for
                  csrc/cuda/conv/sm90/fprop; written anew after each stage
  goldens-CARD.json, conv-CARD.json, model-CARD.json, train-CARD.json, memory-CARD.json   as they grow; CARD is h100,
                  h200 or what the GPU is called
The same lies unpacked in build/gpu-session. Weights and references are kept in build/gpu-cache for the next session.

  --first         only facts, build, resources, goldens, quick_tests, bench_conv and bench_model
  --later         leave out what went well in build/gpu-session, where that is of the same sources, and keep their build;
                  on another machine, bring the folder build/ and vggfast/_C*.so along
  --dry-run       print the plan and end
  --stages NAMES  only these, in the order of the plan (default: all)
  --archs LIST    architectures to build for (default 90a)
  --commit ID     what result files call the sources, where their history did not travel along
  PYTHON          variable: the Python that has torch (default python3)

Exit code: 0 when all stages went well, 1 when one did not, 2 for wrong arguments or a machine without a GPU.
TEXT
}

# Largest share of the time, in per cent. They add up to more than 100: what a stage leaves is for those after it.
share() {
  case "$1" in
    facts | resources) echo 5 ;;
    build) echo 40 ;;
    goldens | memcheck | racecheck | synccheck | initcheck) echo 12 ;;
    calibration) echo 10 ;;
    quick_tests) echo 25 ;;
    bench_conv | bench_model | tests) echo 35 ;;
    bench_train | ncu) echo 30 ;;
    tune) echo 25 ;;
    bench_memory) echo 20 ;;
    dtypes | autotune) echo 50 ;;
  esac
}

describe() {
  case "$1" in
    facts) echo "GPU, driver, compilers, versions, commit" ;;
    build) echo "setup.py build_ext --inplace with VGGFAST_CUDA=on for $ARCHS" ;;
    resources) echo "registers, shared memory, stack of the built kernels; serialised products; what stands between them" ;;
    quick_tests) echo "pytest -m cuda: ops on channels_last in bf16 and fp32, and tests/sim/test_hopper.py, tests/cuda" ;;
    goldens) echo "what the hardware does, dumped for the simulator" ;;
    calibration) echo "compute-sanitizer's tools on a product of torch's: what they say of code that is right" ;;
    bench_conv) echo "layers in bf16 beside cuDNN, eager, torch.compile, JAX" ;;
    bench_model) echo "VGG-16 forward in bf16, batches 64, 1, 128, 256, in groups that fit into memory" ;;
    tune) echo "every tile of the Hopper kernels, layer by layer; the table of the fastest" ;;
    tests) echo "pytest -m cuda: all" ;;
    memcheck | racecheck | synccheck | initcheck) echo "compute-sanitizer --tool $1 on a few tests" ;;
    bench_train) echo "training and perceptual steps in bf16, batches 64 and 128" ;;
    bench_memory) echo "peak memory, bf16, batch 64" ;;
    ncu) echo "Nsight Compute on our kernels for three layers" ;;
    dtypes) echo "layers in fp16, tf32, fp32; VGG-16 in fp16 and tf32" ;;
    autotune) echo "torch.compile's max-autotune, layers and VGG-16" ;;
  esac
}

fail() {
  printf 'gpu_session: %s\n' "$1" >&2
  exit 2
}

# ---- running them ---------------------------------------------------------------------------------------------------

keep_results() {
  local name
  for name in {goldens,conv,model,train,memory}-"$CARD".json; do
    if [ "$WORK/results/$name" -nt "$OUT/$name" ]; then
      cp "$WORK/results/$name" "$WORK/copy" && mv "$WORK/copy" "$OUT/$name"
    fi
  done
  return 0
}

pack() {
  keep_results
  tar -czf "$WORK.tar.gz" -C "$WORK" . && mv "$WORK.tar.gz" "$OUT/stages.tar.gz"
}

summarise() { # STATE OF THE SESSION
  {
    printf 'gpu_session, commit %s, architectures %s, %s\n' "$COMMIT" "$ARCHS" "$1"
    printf '%s of %s s used\n\n' "$((SECONDS - began))" "$LIMIT"
    printf '%-14s %-22s %8s  %s\n' stage state seconds "last line"
    cat "$WORK/states" 2>/dev/null
    python scripts/gpu_verdict.py "$WORK" "$CARD"
  } >"$WORK/summary" && mv "$WORK/summary" "$OUT/summary.txt"
}

state_of() { # EXIT CODE, LIMIT
  case "$1" in
    0) echo ok ;;
    124 | 137) echo "out of time ($2 s)" ;;
    *) echo "failed ($1)" ;;
  esac
}

record() { # STAGE, STATE, SECONDS
  local last=""
  [ -f "$WORK/$1.log" ] && last=$(grep -v '^[[:space:]]*$' "$WORK/$1.log" | tail -n 1 | cut -c 1-110)
  printf '%-14s %-22s %8s  %s\n' "$1" "$2" "$3" "$last" >>"$WORK/states"
  printf '== %s: %s, %s s\n' "$1" "$2" "$3" | tee -a "$OUT/session.log"
}

cap_of() { # STAGE
  local cap=$((LIMIT * $(share "$1") / 100))
  echo $((cap < SHORTEST ? SHORTEST : cap))
}

run_stage() { # STAGE
  local stage="$1" left cap limit start code
  # What is left is for all; what a stage may take of it is a share of the whole.
  left=$((LIMIT - (SECONDS - began) - RESERVE))
  cap=$(cap_of "$stage")
  limit=$((cap < left ? cap : left))
  if [ "$limit" -lt "$LEAST" ]; then
    record "$stage" "skipped: no time" 0
    return 1
  fi
  if [ "$built" = no ] && [ "$stage" != facts ] && [ "$stage" != goldens ]; then
    record "$stage" "skipped: no build" 0
    return 1
  fi
  printf '\n== %s, at most %s s: %s\n' "$stage" "$limit" "$(describe "$stage")" | tee -a "$OUT/session.log"
  summarise "now: $stage"
  start=$SECONDS
  STAGE_SECONDS="$limit" timeout --kill-after=5 "$limit" bash "$SELF" --run-stage "$stage" \
    > >(tee "$WORK/$stage.log" | tee -a "$OUT/session.log") 2>&1 &
  worker=$!
  while kill -0 "$worker" 2>/dev/null; do
    keep_results
    sleep "$POLL"
  done
  wait "$worker"
  code=$?
  sleep 0.1 # for the log's last lines
  echo "$code" >"$WORK/$stage.code"
  record "$stage" "$(state_of "$code" "$limit")" "$((SECONDS - start))"
  return "$code"
}

stop() { # by a signal
  [ -z "$worker" ] || kill "$worker" 2>/dev/null # timeout hands it on to all of the stage
  summarise "ended by a signal"
  pack
  exit 1
}

plan() {
  local stage
  printf 'Stages, in at most %s s, results in %s:\n' "$LIMIT" "$OUT"
  for stage in $CHOSEN; do
    printf '  %-12s at most %5s s  %s\n' "$stage" "$(cap_of "$stage")" "$(describe "$stage")"
  done
}

main() {
  local dry=no commit="" requested="$STAGES" stage
  ARCHS=90a LATER=no
  while [ $# -gt 0 ]; do
    case "$1" in
      --help | -h) usage && exit 0 ;;
      --dry-run) dry=yes ;;
      --first) requested="$FIRST" ;;
      --later) LATER=yes ;;
      --stages | --archs | --commit)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case "$1" in
          --stages) requested="$2" ;;
          --archs) ARCHS="$2" ;;
          --commit) commit="$2" ;;
        esac
        shift
        ;;
      -*) fail "option must be one of --first, --later, --dry-run, --stages, --archs, --commit, --help, got '$1'" ;;
      *) break ;;
    esac
    shift
  done
  [ $# -eq 1 ] || [ $# -eq 2 ] || fail "arguments must be OUT and SECONDS, got $# of them (--help says more)"
  OUT="$1" LIMIT="${2:-600}"
  [[ "$LIMIT" =~ ^[1-9][0-9]*$ ]] && [ "$LIMIT" -ge 60 ] || fail "SECONDS must be a whole number of at least 60, got '$2'"
  for stage in $requested; do
    [[ " $STAGES " == *" $stage "* ]] || fail "--stages must be among $STAGES, got '$stage'"
  done
  CHOSEN=""
  for stage in $STAGES; do
    [[ " $requested " == *" $stage "* ]] && CHOSEN="$CHOSEN $stage"
  done
  [ -n "$CHOSEN" ] || fail "--stages must be at least one of $STAGES, got '$requested'"
  plan
  [ "$dry" = no ] || exit 0
  session "$commit"
}

# What result files call a GPU of that name: h100 of "NVIDIA H100 80GB HBM3". benchmarks/gpu/choice.py has it too.
card() { PYTHONPATH="$ROOT/benchmarks" python -c 'import sys; from gpu.choice import card; print(card(sys.argv[1]))' "$1"; }

session() { # COMMIT, IF SAID
  local stage failures=0
  nvidia-smi >/dev/null 2>&1 || fail "no GPU: nvidia-smi is missing or fails here"
  mkdir -p "$OUT" || fail "OUT must be a folder that can be written, got '$OUT'"
  OUT=$(cd "$OUT" && pwd)
  cd "$ROOT" || exit 2
  COMMIT="${1:-$(git describe --always --dirty 2>/dev/null || echo unknown)}"
  CARD=$(card "$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)")
  local of
  of="$COMMIT $CARD $(sources)"
  if [ "$LATER" = no ] || [ "$(cat "$WORK/of" 2>/dev/null)" != "$of" ]; then rm -rf "$WORK"; fi
  mkdir -p "$WORK/results"
  echo "$of" >"$WORK/of"
  : >"$WORK/states"
  : >"$OUT/session.log"
  export ROOT WORK ARCHS CARD LATER VGGFAST_COMMIT="$COMMIT" PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  built=yes worker=""
  trap stop INT TERM
  for stage in $CHOSEN; do
    if [ "$stage" != facts ] && [ "$stage" != build ] && [ "$(cat "$WORK/$stage.code" 2>/dev/null)" = 0 ]; then
      record "$stage" "ok, before" 0
      continue
    fi
    if ! run_stage "$stage"; then
      failures=$((failures + 1))
      [ "$stage" = build ] && built=no
    fi
    summarise "running"
    pack
  done
  summarise "done"
  pack
  cat "$OUT/summary.txt"
  [ "$failures" -eq 0 ]
}

SELF=$(readlink -f "${BASH_SOURCE[0]}")
source "$(dirname "$SELF")/gpu_stages.sh"
if [ "${1:-}" = --run-stage ]; then # of ourselves: the variables come with the environment
  cd "$ROOT" || exit 2
  "stage_$2"
  exit
fi
ROOT=$(dirname "$(dirname "$SELF")")
WORK="$ROOT/build/gpu-session"
RESERVE=5   # seconds kept for packing
LEAST=8     # a stage with less left is not started
SHORTEST=20 # no stage's share is shorter
POLL=1      # seconds between looks at results
began=$SECONDS
main "$@"
