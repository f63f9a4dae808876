#!/usr/bin/env bash
# CMake's compiler launcher for llama.cpp: `compile.sh COMPILER ARGUMENTS`. GCC 12 drops the stores that fill AMX tile configurations
# (its intrinsics declare too small operands), and llama.cpp then ends with an illegal instruction: its two AMX files are compiled with
# clang++-19 where that is installed (tools/setup --all). Clang has no OpenMP there; those files use it only to spread repacking at
# load over threads, so a header with the declarations does.
set -euo pipefail
compiler=$1
shift
case " $* " in
  *"/ggml-cpu/amx/"*) ;;
  *) exec "$compiler" "$@" ;;
esac
if [ "$("$compiler" -dumpversion)" != 12 ] || ! command -v clang++-19 >/dev/null; then exec "$compiler" "$@"; fi
include=$PWD/omp-declarations
mkdir -p "$include"
printf 'extern "C" {\nint omp_get_num_threads(void);\nint omp_get_thread_num(void);\nint omp_get_max_threads(void);\n}\n' >"$include/omp.h"
arguments=()
for argument in "$@"; do
  case "$argument" in
    -fopenmp | -W*) ;;
    *) arguments+=("$argument") ;;
  esac
done
exec clang++-19 "${arguments[@]}" -w "-I$include"
