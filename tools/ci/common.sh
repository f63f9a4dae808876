# Sourced by the scripts of this folder: works from the repository's root, and knows how many jobs to run.
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
jobs=${JOBS:-$(nproc)}

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# counts PASSED FAILED SKIPPED: the closing line; also handed to .ci/run through the file $DOUGONG_COUNTS.
counts() {
  [ -z "${DOUGONG_COUNTS:-}" ] || echo "$1 $2 $3" >>"$DOUGONG_COUNTS"
  echo "$1 passed, $2 failed, $3 skipped"
}
