#!/bin/bash
# The rows decode8k and load of bench/peers for V2-Lite on a machine without node (the lent ones): 2 threads each, on the same two cores.
#   bench/peers/long.sh FOLDER     FOLDER holds dougong, bench_model, llama-batched-bench and llama-server
# llama.cpp computes the prompt with all cores (two would take seven minutes) and decodes with two; flash attention, no repacking (it
# aborts on MLA otherwise), weights in huge pages. JSON lines of both programs on standard output.
set -u
bin=$1 file=/tmp/dougong-v2-lite.gguf cores=${CORES:-4,6} rounds=${ROUNDS:-2} all=${THREADS:-$(nproc)}
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
[ -f $file ] || "$bin/dougong" synth bench/peers/shapes/deepseek-v2-lite $file --format gguf --quantization q4_0 --seed 1 >/dev/null || exit 1
peer="-fa on -ub 512 -b 2048 --load-mode none --no-repack"
now() { date +%s.%N; }
since() { echo "$(now) $1" | awk '{printf "%.2f", $1 - $2}'; }

cat $file >/dev/null
for round in $(seq "$rounds"); do
  taskset -c "$cores" "$bin/bench_model" $file --backend cpu --threads 2 --decode 1x8192 --tokens 32 --rounds 1 --chunk 512 --json
  "$bin/llama-batched-bench" -m $file -t 2 -tb "$all" $peer -c 8320 -npp 8192 -ntg 32 -npl 1 --output-format jsonl 2>/dev/null | grep '^{'
done

# From starting the process to the first token over HTTP, file in the page cache.
load() {
  local name=$1 port=$2 path=$3 body=$4 begin
  shift 4
  begin=$(now)
  taskset -c "$cores" "$@" >/tmp/load.log 2>&1 &
  local server=$!
  until curl -sf "localhost:$port/health" >/dev/null; do
    kill -0 $server 2>/dev/null || { echo "$name ended: $(tail -1 /tmp/load.log)"; return; }
    sleep 0.02
  done
  curl -sf "localhost:$port$path" -H 'content-type: application/json' -d "$body" >/dev/null || echo "$name: no answer"
  echo "{\"row\": \"load\", \"program\": \"$name\", \"seconds\": $(since "$begin")}"
  kill $server
  wait $server 2>/dev/null
}
for round in 1 2 3; do
  load dougong 18441 /v1/completions '{"prompt": [300, 400, 500], "max_tokens": 1}' \
    "$bin/dougong" serve $file --backend cpu --threads 2 --port 18441 --max-num-seqs 1 --max-model-len 512 --no-warm-up
  load llama.cpp 18442 /completion '{"prompt": [300, 400, 500], "n_predict": 1}' \
    "$bin/llama-server" -m $file -t 2 -tb 2 $peer -c 512 -np 1 --port 18442 --cache-ram 0 --fit off --no-warmup
done
