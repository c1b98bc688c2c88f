#!/usr/bin/env bash
# Builds the TensorRT plans of exported models, inside NVIDIA's container, on the GPU that will serve them.
# Not verified on hardware. How it is started: deploy/README.md.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: build_tensorrt.sh [--cache FOLDER] MODEL_FOLDER...

  MODEL_FOLDER   written by: skillserve export WEIGHTS --layout padded --runtime tensorrt
  --cache        built plans and TensorRT's timings, kept between runs [default: engines, beside the model folders' parent]

Environment: PYTHON, the interpreter that has NVIDIA's `tensorrt` [python3]; pip's own PIP_NO_INDEX and PIP_FIND_LINKS
where there is no network.
TEXT
}

# Like the errors of skillserve: subject, got, wanted, next command.
die() {
  local code=$1
  shift
  printf 'build_tensorrt: %s\n' "$*" >&2
  exit "$code"
}

# Wheels of the Python module, where NVIDIA's containers keep them if it is not installed.
readonly WHEELS=(/opt/tensorrt/python /usr/src/tensorrt/python /workspace/tensorrt/python)

source_folder=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
cache=''
folders=()

while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --cache)
      (($# >= 2)) || die 2 'option --cache: got nothing behind it; wanted a folder. See --help.'
      cache=$2
      shift 2
      ;;
    -*) die 2 "option $1: got an unknown one; wanted --cache. See --help." ;;
    *)
      folders+=("$1")
      shift
      ;;
  esac
done

((${#folders[@]})) || die 2 'model folders: got none; wanted at least one. See --help.'
for folder in "${folders[@]}"; do
  for file in export.json profiles.json config.pbtxt; do
    [[ -f $folder/$file ]] || die 2 "model folder \`$folder\`: got no $file; wanted an export for TensorRT." \
      'Write one: skillserve export WEIGHTS --layout padded --runtime tensorrt'
  done
done
[[ -n $cache ]] || cache=$(dirname -- "$(dirname -- "$(realpath -- "${folders[0]}")")")/engines
command -v "$python" >/dev/null || die 3 "Python \`$python\`: got no such program; wanted 3.11 or later. Set PYTHON."

has_tensorrt() { "$1" -c 'import tensorrt' 2>/dev/null; }

# An environment of its own, on top of the container's packages, so that nothing of the image is changed.
scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT
"$python" -m venv --system-site-packages "$scratch/venv" || die 3 "virtual environment: got an error of" \
  "\`$python -m venv\`; wanted one to install into. Install it: apt-get install python3-venv"
run=$scratch/venv/bin/python

if ! has_tensorrt "$run"; then
  tag=$("$run" -c 'import sys; print(f"cp{sys.version_info.major}{sys.version_info.minor}")')
  for folder in "${WHEELS[@]}"; do
    for wheel in "$folder"/tensorrt-*"-$tag-"*.whl; do
      [[ -f $wheel ]] && "$run" -m pip install --quiet --no-index --no-deps "$wheel"
    done
  done
fi
has_tensorrt "$run" || die 3 "TensorRT: got no Python module that loads, for \`$python\`; wanted the container's own." \
  'Run this in nvcr.io/nvidia/tensorrt of the same release as your Triton: see deploy/README.md.'

# A plan is read by the version that built it: beside a Triton, that is the one which Triton loads.
version=$("$run" -c 'import tensorrt; print(tensorrt.__version__)')
if [[ -d /opt/tritonserver ]]; then
  library=$(ldconfig -p | awk '/libnvinfer\.so\./ { print $NF; exit }')
  serves=$(basename -- "$(realpath -- "${library:-libnvinfer.so.unknown}")" | sed 's/^libnvinfer\.so\.//')
  [[ $serves == unknown || $version == "$serves"* ]] || die 4 "TensorRT: got $version in Python; wanted $serves," \
    'which Triton loads here. Build in the TensorRT container of the same release: see deploy/README.md.'
fi

if ! "$run" -c 'import skillserve_export.plan.cli' 2>/dev/null; then
  "$run" -m pip install --quiet "$source_folder" || die 3 "skillserve: got an error of pip; wanted its base packages." \
    'Where there is no network, set PIP_NO_INDEX and PIP_FIND_LINKS to a folder of wheels.'
fi

printf 'build_tensorrt: TensorRT %s, cache %s\n' "$version" "$cache" >&2
for folder in "${folders[@]}"; do
  "$run" -m skillserve plan "$folder" --cache "$cache"
done
