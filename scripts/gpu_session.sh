#!/usr/bin/env bash
# The one command for a machine with a GPU: builds, tests, measures and checks, in order of value, within a time limit.
set -u

readonly STAGES="facts build resources quick_tests goldens bench_conv bench_model tune tests memcheck racecheck \
synccheck initcheck bench_train bench_memory ncu dtypes autotune"
readonly TOP_RESULTS="goldens.json conv-cuda.json model-cuda.json train-cuda.json memory-cuda.json"

usage() {
  cat <<'TEXT'
usage: scripts/gpu_session.sh [--dry-run] [--stages "NAME ..."] [--archs LIST] [--commit ID] OUT SECONDS

Builds vggfast with CUDA, tests it on this machine's GPU, and measures it, in at most SECONDS. Stages run in order of
value, each within its share of the time; one that fails or runs out of time stops none of the others, but where the
build fails, those that need it are skipped. It may be cut off at any moment. Nothing is installed or downloaded, and
the GPU's settings stay as they are.

OUT gets few files, for machines that hand back few:
  summary.txt     each stage's state, seconds and exit code; written anew before and after each
  session.log     the output of all stages as it comes
  stages.tar.gz   each stage's log (NAME.log), exit code (NAME.code) and results, among them tuned.h, for
                  csrc/cuda/conv/sm90/fprop; written anew after each stage
  goldens.json, conv-cuda.json, model-cuda.json, train-cuda.json, memory-cuda.json   as they grow
The same lies unpacked in build/gpu-session. Weights and references are kept in build/gpu-cache for the next session.

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
    quick_tests | goldens | memcheck | racecheck | synccheck | initcheck) echo 12 ;;
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
    resources) echo "registers, shared memory, stack of the built kernels; serialised products" ;;
    quick_tests) echo "pytest -m cuda: ops on channels_last in bf16 and fp32, and tests/sim/test_hopper.py, tests/cuda" ;;
    goldens) echo "what the hardware does, dumped for the simulator" ;;
    bench_conv) echo "layers in bf16 beside cuDNN, eager, torch.compile, JAX" ;;
    bench_model) echo "VGG-16 forward in bf16, batches 64, 1, 256, 128" ;;
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

# ---- the stages; each runs in a process of its own, in the root of the tree ----------------------------------------

python() { "${PYTHON:-python3}" -u "$@"; }

bench() { # NAME OF THE COMMAND, RESULT FILE, FURTHER OPTIONS
  local name="$1" file="$2"
  shift 2
  local cache=()
  [ "$name" = bench_conv ] || cache=(--cache "$ROOT/build/gpu-cache")
  python "benchmarks/$name.py" --device cuda --out "$WORK/results/$file" "${cache[@]+"${cache[@]}"}" "$@"
}

# Of what went wrong, the last exit code counts.
all_of() {
  local code=0 command
  for command in "$@"; do
    printf '\n== %s\n' "$command"
    eval "$command" || code=$?
  done
  return "$code"
}

stage_facts() {
  printf 'commit: %s\n' "${VGGFAST_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}"
  nvidia-smi
  nvidia-smi -q -d CLOCK,POWER,TEMPERATURE,PERFORMANCE,ECC
  nvcc --version
  "${CXX:-c++}" --version
  command -v ncu compute-sanitizer cuobjdump cu++filt c++filt cmake ninja
  uname -a
  head -n 30 /proc/cpuinfo
  python - <<'PYTHON_END'
import importlib.metadata as m, sys, torch
print("python", sys.version)
for name in ("torch", "triton", "jax", "jaxlib", "numpy", "pybind11", "pytest", "pytest-xdist", "rich"):
    try:
        print(name, m.version(name))
    except m.PackageNotFoundError:
        print(name, "not installed")
print("cuda", torch.version.cuda, "cudnn", torch.backends.cudnn.version())
print(torch.cuda.get_device_properties(0))
PYTHON_END
}

stage_build() {
  VGGFAST_CUDA=on VGGFAST_CUDA_ARCHS="$ARCHS" python setup.py build_ext --inplace &&
    python -c 'from vggfast import _native; print(dict(_native.load().build_info()))'
}

stage_resources() {
  local library
  library=$(find build -path 'build/temp*' -name 'libvggfast_core.a' -print | head -n 1)
  python scripts/kernel_resources.py --object "$library" --log "$WORK/build.log"
}

stage_quick_tests() {
  python -m pytest --cuda -q -p no:cacheprovider -m "cuda and not slow" --maxfail 40 tests/ops/test_reference.py \
    tests/sim/test_hopper.py tests/cuda/test_cuda.py tests/cuda/test_engine.py \
    -k "test_cuda or test_hopper or (channels_last and (bfloat16 or float32))"
}

stage_goldens() {
  local arch="${ARCHS%%;*}" code
  nvcc -std=c++20 -O2 -Icsrc -Icsrc/include "-gencode=arch=compute_$arch,code=sm_$arch" -o "$WORK/dump_goldens" \
    csrc/tests/cuda/dump_goldens.cu && "$WORK/dump_goldens" >"$WORK/results/goldens.json"
  code=$?
  rm -f "$WORK/dump_goldens"
  wc "$WORK/results/goldens.json"
  return "$code"
}

stage_bench_conv() { bench bench_conv conv-cuda.json --without "torch.compile autotune"; }

stage_bench_model() {
  bench bench_model model-cuda.json --batches 64 1 256 128 --without torch-compile-autotune
}

stage_tune() {
  local start=25 # seconds that Python takes to begin, and to end
  python benchmarks/tune.py --seconds "$((STAGE_SECONDS - start))" --out "$WORK/results/tune-cuda.json" \
    --table "$WORK/results/tuned.h"
}

stage_tests() {
  local workers=()
  if python -c 'import xdist' 2>/dev/null; then workers=(-n 4); fi
  python -m pytest --cuda -q -p no:cacheprovider -m cuda --maxfail 100 "${workers[@]+"${workers[@]}"}"
}

sanitize() { # TOOL, AND MORE OF ITS OPTIONS
  local tool="$1"
  shift
  # Without torch's caching, each tensor is an allocation of its own, whose ends the tool knows.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
    --report-api-errors no "$@" "${PYTHON:-python3}" -m pytest --cuda -q -x -p no:cacheprovider \
    -m "cuda and not slow" tests/ops/test_reference.py tests/sim/test_hopper.py \
    -k "test_every_tile and odd or channels_last and (bfloat16 or float32-auto) and (33 or 257 or max_pool or sum_pool or 0.0001)"
}

readonly OURS="kernel_substring=vggfast"

stage_memcheck() { sanitize memcheck --kernel-name "$OURS"; }

stage_racecheck() { sanitize racecheck --kernel-name "$OURS"; }

stage_synccheck() { sanitize synccheck --kernel-name "$OURS"; }

stage_initcheck() { sanitize initcheck; } # of all kernels: torch's write what ours read

stage_bench_train() {
  bench bench_train train-cuda.json --batches 64 128 --without torch-compile-autotune
}

stage_bench_memory() {
  bench bench_memory memory-cuda.json --batches 64 --without torch-compile-autotune
}

stage_ncu() {
  local report="$WORK/results/ncu" code
  PYTHONPATH="$ROOT/benchmarks:$PYTHONPATH" ncu --set full --clock-control none --force-overwrite --export "$report" \
    --kernel-name-base demangled --kernel-name regex:vggfast --launch-count 40 "${PYTHON:-python3}" -m gpu.once
  code=$?
  if grep -q ERR_NVGPUCTRPERM "$WORK/ncu.log"; then
    echo "skipped: this user may not read the GPU's counters"
    return 0
  fi
  [ -f "$report.ncu-rep" ] && ncu --import "$report.ncu-rep" --page details --csv >"$report.csv"
  # The details say what is needed; a large report would not fit with the rest.
  [ -f "$report.ncu-rep" ] && [ "$(wc -c <"$report.ncu-rep")" -gt 6000000 ] && rm "$report.ncu-rep"
  return "$code"
}

stage_dtypes() {
  local conv='bench bench_conv' few='--rounds 5 --without torch.compile jax --dtype'
  local model='bench bench_model' small='--batches 64 --rounds 5 --without torch-compile-autotune jax --dtype'
  all_of "$conv conv-cuda-fp16.json $few fp16" "$model model-cuda-fp16.json $small fp16" \
    "$conv conv-cuda-tf32.json $few tf32" "$model model-cuda-tf32.json $small tf32" \
    "$conv conv-cuda-fp32.json $few fp32"
}

stage_autotune() {
  all_of \
    "bench bench_model model-cuda-autotune.json --batches 64 1 --engines vggfast torch-compile torch-compile-autotune" \
    "bench bench_conv conv-cuda-autotune.json --passes fprop --no-kernel-names --without cuDNN eager jax apex"
}

# ---- running them ---------------------------------------------------------------------------------------------------

keep_results() {
  local name
  for name in $TOP_RESULTS; do
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
  ARCHS=90a
  while [ $# -gt 0 ]; do
    case "$1" in
      --help | -h) usage && exit 0 ;;
      --dry-run) dry=yes ;;
      --stages | --archs | --commit)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case "$1" in
          --stages) requested="$2" ;;
          --archs) ARCHS="$2" ;;
          --commit) commit="$2" ;;
        esac
        shift
        ;;
      -*) fail "option must be one of --dry-run, --stages, --archs, --commit, --help, got '$1'" ;;
      *) break ;;
    esac
    shift
  done
  [ $# -eq 2 ] || fail "arguments must be OUT and SECONDS, got $# of them (--help says more)"
  OUT="$1" LIMIT="$2"
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

session() { # COMMIT, IF SAID
  local stage failures=0
  nvidia-smi >/dev/null 2>&1 || fail "no GPU: nvidia-smi is missing or fails here"
  mkdir -p "$OUT" || fail "OUT must be a folder that can be written, got '$OUT'"
  OUT=$(cd "$OUT" && pwd)
  cd "$ROOT" || exit 2
  COMMIT="${1:-$(git describe --always --dirty 2>/dev/null || echo unknown)}"
  rm -rf "$WORK"
  mkdir -p "$WORK/results"
  : >"$OUT/session.log"
  export ROOT WORK ARCHS VGGFAST_COMMIT="$COMMIT" PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
  built=yes worker=""
  trap stop INT TERM
  for stage in $CHOSEN; do
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
