#!/usr/bin/env bash
# The stages of gpu_session.sh, which sources this file: each runs in a process of its own, in the root of the tree.

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
  command -v ncu compute-sanitizer cuobjdump nvdisasm cu++filt c++filt cmake ninja
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

# Of all that the module is built from.
sources() { (echo "$ARCHS" && find csrc cmake CMakeLists.txt setup.py -type f -print0 | sort -z | xargs -0 cat) | sha256sum; }

stage_build() {
  local stamp="$ROOT/build/gpu-sources" loads="from vggfast import _native; print(dict(_native.load().build_info()))"
  if [ "$LATER" = yes ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(sources)" ] && python -c "$loads"; then
    echo "kept: built before of the same sources"
    return 0
  fi
  VGGFAST_CUDA=on VGGFAST_CUDA_ARCHS="$ARCHS" python setup.py build_ext --inplace && python -c "$loads" && sources >"$stamp"
}

stage_resources() {
  local library
  library=$(find build -path 'build/temp*' -name 'libvggfast_core.a' -print | head -n 1)
  local loops="echo left out: no kernels with such loops in a build for $ARCHS"
  if [[ "$ARCHS" == *90a* ]]; then loops="python scripts/stage_loops.py --build '$(dirname "$library")'"; fi
  all_of "python scripts/kernel_resources.py --object '$library' --log '$WORK/build.log'" "$loops"
}

stage_quick_tests() {
  python -m pytest --cuda -q -p no:cacheprovider -m "cuda and not slow" --maxfail 100 tests/ops/test_reference.py \
    tests/sim/test_hopper.py tests/cuda/test_cuda.py tests/cuda/test_engine.py \
    -k "test_cuda or test_hopper or (channels_last and (bfloat16 or float32))"
}

stage_goldens() {
  local arch="${ARCHS%%;*}" code
  nvcc -std=c++20 -O2 -Icsrc -Icsrc/include "-gencode=arch=compute_$arch,code=sm_$arch" -o "$WORK/dump_goldens" \
    csrc/tests/cuda/dump_goldens.cu && "$WORK/dump_goldens" >"$WORK/results/goldens-$CARD.json"
  code=$?
  rm -f "$WORK/dump_goldens"
  wc "$WORK/results/goldens-$CARD.json"
  return "$code"
}

stage_bench_conv() { bench bench_conv "conv-$CARD.json" --without "torch.compile autotune"; }

stage_bench_model() {
  bench bench_model "model-$CARD.json" --batches 64 1 128 256 --without torch-compile-autotune
}

stage_tune() {
  local start=25 # seconds that Python takes to begin, and to end
  python benchmarks/tune.py --seconds "$((STAGE_SECONDS - start))" --out "$WORK/results/tune-$CARD.json" \
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

# cuBLAS multiplies by wgmma, TMA and mbarriers as our kernels do: a tool that complains of it says little of ours.
stage_calibration() {
  local tool product="import torch; a = torch.ones(1024, 1024, device='cuda', dtype=torch.bfloat16); print((a @ a).sum())"
  for tool in memcheck racecheck synccheck initcheck; do
    compute-sanitizer --tool "$tool" --print-limit 3 "${PYTHON:-python3}" -c "$product" >"$WORK/results/$tool-of-torch.log" 2>&1
    printf '%s: exit %s; %s\n' "$tool" "$?" "$(grep 'SUMMARY' "$WORK/results/$tool-of-torch.log" | tail -n 1)"
  done
}

stage_memcheck() { sanitize memcheck --kernel-name "$OURS"; }

stage_racecheck() { sanitize racecheck --kernel-name "$OURS"; }

stage_synccheck() { sanitize synccheck --kernel-name "$OURS"; }

stage_initcheck() { sanitize initcheck; } # of all kernels: torch's write what ours read

stage_bench_train() {
  bench bench_train "train-$CARD.json" --batches 64 128 --without torch-compile-autotune
}

stage_bench_memory() {
  bench bench_memory "memory-$CARD.json" --batches 64 --without torch-compile-autotune
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
  all_of "$conv conv-$CARD-fp16.json $few fp16" "$model model-$CARD-fp16.json $small fp16" \
    "$conv conv-$CARD-tf32.json $few tf32" "$model model-$CARD-tf32.json $small tf32" \
    "$conv conv-$CARD-fp32.json $few fp32"
}

stage_autotune() {
  all_of \
    "bench bench_model model-$CARD-autotune.json --batches 64 1 --engines vggfast torch-compile torch-compile-autotune" \
    "bench bench_conv conv-$CARD-autotune.json --passes fprop --no-kernel-names --without cuDNN eager jax apex"
}
