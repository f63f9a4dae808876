#!/usr/bin/env python3
"""What the GPU's best known libraries reach on the same machine, in the same run as `tools/gpu-test bench`: PyTorch's matrix products
(cuBLASLt), its attention (flash, cuDNN) and transformers' generate() with a model of random weights of a published shape.

  bench/gpu/peers.py [--config bench/model/shapes/r1-distill-qwen-7b] [--only matmul,attention,generate] [--compile]

Prints a JSON line per figure: medians over runs timed with CUDA events. Needs PyTorch and transformers (the GPU machine's), nothing of
Dougong. Not part of the product.
"""
import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F


def emit(**row):
    print(json.dumps(row), flush=True)


def timed(fn, runs=10, warm=3):
    """Median milliseconds of fn()."""
    for _ in range(warm):
        fn()
    times = []
    for _ in range(runs):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        fn()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def matmul():
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    emit(what="matmul", type="bf16", m=n, n=n, k=n, tflops=2 * n**3 / timed(lambda: a @ b.t()) / 1e9)
    try:
        x, w = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
        one = torch.ones((), device="cuda")
        ms = timed(lambda: torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16))
        emit(what="matmul", type="fp8", m=n, n=n, k=n, tflops=2 * n**3 / ms / 1e9)
    except Exception as error:  # a private function of PyTorch
        emit(what="matmul", type="fp8", error=str(error)[:200])
    del a, b
    # Products of the 7B model, weights cold: copies of more than L2 in turns.
    for rows in (1, 16, 64, 512, 4096, 8192):
        for out, k in ((4608, 3584), (3584, 3584), (2 * 18944, 3584), (3584, 18944)):
            copies = max(1, min(16, int(400e6 / (out * k * 2))))
            weights = [torch.randn(out, k, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
            x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
            graph, y = torch.cuda.CUDAGraph(), [None]
            for w in weights:
                y[0] = x @ w.t()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                for w in weights:
                    y[0] = x @ w.t()
            ms = timed(graph.replay) / copies
            emit(what="product", type="bf16", rows=rows, out=out, k=k, us=ms * 1e3, gbps=out * k * 2 / ms / 1e6,
                 tflops=2 * rows * out * k / ms / 1e9)
            del weights, graph, y


def attention():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    shapes = [("gqa 28/4x128", 28, 4, 128, 128), ("mla 128x192/128", 128, 128, 192, 128), ("mla 16x192/128", 16, 16, 192, 128)]
    for name, heads, kv_heads, dim, v_dim in shapes:
        for batch, tokens in ((1, 4096), (1, 8192), (8, 4096)):
            if batch * heads * tokens > 1 << 22:
                continue
            q = torch.randn(batch, heads, tokens, dim, device="cuda", dtype=torch.bfloat16)
            k = torch.randn(batch, kv_heads, tokens, dim, device="cuda", dtype=torch.bfloat16)
            v = torch.randn(batch, kv_heads, tokens, v_dim, device="cuda", dtype=torch.bfloat16)
            flops = batch * heads * tokens * tokens * (dim + v_dim)  # causal: half of all pairs
            for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
                row = dict(what="attention", shape=name, batch=batch, tokens=tokens, backend=backend.name.lower())
                try:
                    with sdpa_kernel(backend):
                        ms = timed(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads))
                    emit(**row, ms=ms, tflops=flops / ms / 1e9)
                except Exception as error:  # this backend has no way for this shape
                    emit(**row, error=str(error).splitlines()[0][:160])


def generate(path, compiled):
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM
    config = AutoConfig.from_pretrained(path)
    begin = time.time()
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    emit(what="generate", note=f"transformers {transformers.__version__}, torch {torch.__version__}, made in {time.time() - begin:.1f} s")
    ids = torch.randint(100, 100000, (1, 64), device="cuda")

    def run(tokens, **options):
        torch.cuda.synchronize()
        begin = time.time()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                       pad_token_id=0, **options)
        torch.cuda.synchronize()
        return time.time() - begin

    ways = {"sdpa, dynamic cache": {}, "sdpa, static cache": {"cache_implementation": "static", "disable_compile": True}}
    if compiled:  # transformers compiles the step itself for a static cache
        ways["sdpa, static cache, compiled"] = {"cache_implementation": "static"}
    for name, options in ways.items():
        try:
            run(16, **options), run(80, **options)
            rates = []
            for _ in range(3):
                short, long = run(16, **options), run(80, **options)
                rates.append(64 / (long - short))
            emit(what="generate", way=name, streams=1, tokens_per_s=statistics.median(rates), low=min(rates), high=max(rates))
        except Exception as error:
            emit(what="generate", way=name, error=str(error).splitlines()[0][:200])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="bench/model/shapes/r1-distill-qwen-7b")
    parser.add_argument("--only", default="matmul,attention,generate")
    parser.add_argument("--compile", action="store_true", help="also transformers with a compiled step (a minute more)")
    flags = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("peers.py: no GPU that PyTorch can use")
    for part in flags.only.split(","):
        torch.cuda.empty_cache()
        {"matmul": matmul, "attention": attention, "generate": lambda: generate(flags.config, flags.compile)}[part]()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
