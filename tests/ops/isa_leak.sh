#!/usr/bin/env bash
# isa_leak.sh NM dg_cpu_<isa>=<object>...: each kernel object may define exactly one symbol that other files can see, its
# table, and nothing weak or unique (COMDAT): the linker could keep the AVX-512 copy of a shared inline function for the
# portable path, and the program would crash on older processors. Prints TAP.
set -u
nm=$1
shift
echo "1..$#"
failed=0
number=0
for argument in "$@"; do
  number=$((number + 1))
  isa=${argument%%=*}
  isa=${isa#dg_cpu_}
  object=${argument#*=}
  # Upper-case types are global definitions, w/v/u weak and unique; U is an undefined reference. Profiling runtimes
  # (gcov) add names of their own to every object of a coverage build.
  visible=$("$nm" "$object" 2>&1 | awk 'NF == 3 && $2 ~ /^[A-TV-Zuvw]$/ && $3 !~ /^__(gcov|llvm)_/ { print $2 " " $3 }')
  if [ "$visible" = "D _ZN2dg$((8 + ${#isa}))kernels_${isa}E" ]; then
    echo "ok $number - kernels for $isa export their table alone"
  else
    echo "not ok $number - kernels for $isa must define only the table kernels_$isa; nm shows:"
    printf '%s\n' "$visible" | sed 's/^/# /'
    failed=1
  fi
done
exit $failed
