// One result from the samples of both sides, and the markdown table of results.
import { describe } from './programs.mjs';
import { median } from './settings.mjs';

// Issue 4's targets for 2 threads, and the figures of the best peer there: some of ik_llama.cpp, which npm does not have.
const targets = {
  'prefill qwen2-1.5b q8_0': { ratio: 5, share: 0.33, yardstick: 223 },
  'prefill qwen2-1.5b q4_0': { ratio: 5, share: 0.3, yardstick: 211 },
  'prefill qwen2-1.5b bf16': { ratio: 9, share: 0.3, yardstick: 63 },
  'prefill deepseek-v2-lite q4_0': { ratio: 6, share: 0.17, yardstick: 75 },
  'decode1 qwen2-1.5b q8_0': { ratio: 1, share: 0.94, yardstick: 16.1 },
  'decode1 qwen2-1.5b q4_0': { ratio: 1.12, share: 0.92, yardstick: 24.7 },
  'decode1 qwen2-1.5b bf16': { ratio: 1, share: 0.95, yardstick: 9.4 },
  'decode1 deepseek-v2-lite q4_0': { ratio: 1.2, share: 0.88, yardstick: 13.9 },
  'decode16 qwen2-1.5b q8_0': { ratio: 1.6, share: 0.85, yardstick: 141 },
  'decode16 qwen2-1.5b q4_0': { ratio: 2.7, share: 0.75, yardstick: 125 },
  'decode16 qwen2-1.5b bf16': { ratio: 2.5, share: 0.8, yardstick: 44 },
  'decode16 deepseek-v2-lite q4_0': { ratio: 1.7, share: 0.82, yardstick: 30.5 },
  'decode8k qwen2-1.5b q8_0': { ratio: 1.5, share: 0.75 },
  'decode8k deepseek-v2-lite q4_0': { ratio: 1.5, share: 0.75 },
  'server qwen2-1.5b q8_0': { ratio: 3, yardstick: 27 },
  'server TTFT qwen2-1.5b q8_0': { ours: 2, yardstick: 7.6 },
  'load qwen2-1.5b q8_0': { ratio: 2, share: 0.6, yardstick: 2.9 },
  'load deepseek-v2-lite q4_0': { ratio: 2, share: 0.6, yardstick: 16 },
};

const spread = (samples) => (samples.length ? { median: median(samples), low: Math.min(...samples), high: Math.max(...samples),
  samples } : null);

// `share`: {of, per} a rate times `per` is the share of the limit `of`; {of, seconds} the limit is reached in so many seconds.
export function summary({ row, model, format, unit, ours, peer, share, failed, settings, tried, lowerIsBetter = false, interleaved = true,
  bytes, quick }) {
  const result = { row, model, format, unit, lower_is_better: lowerIsBetter, interleaved, ours: spread(ours), peer: spread(peer),
    peer_settings: settings ?? null, peer_failed: failed ?? null,
    peer_tried: tried, bytes };
  // Round by round, so that what slows both sides cancels out.
  const pairs = Math.min(ours.length, peer.length);
  result.ratio = spread(Array.from({ length: pairs }, (_, i) => (lowerIsBetter ? peer[i] / ours[i] : ours[i] / peer[i])));
  const of = (s) => (!s || !share ? null : share.seconds ? share.seconds / s.median : share.per * s.median);
  if (share) result.share = { of: share.of, ours: of(result.ours), peer: of(result.peer) };
  const target = quick ? null : targets[`${row} ${model} ${format}`];
  if (target) {
    result.target = target;
    // The figure of the issue, where it is better than what this peer reached: ik_llama.cpp, or a quieter machine.
    if (target.yardstick && result.ours)
      result.ratio_to_yardstick = lowerIsBetter ? target.yardstick / result.ours.median : result.ours.median / target.yardstick;
  }
  return result;
}

const digits = (x) => (x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x.toFixed(2));
const range = (s, suffix = '') => (s ? `${digits(s.median)}${suffix} (${digits(s.low)} - ${digits(s.high)})` : '-');
const percent = (x) => (x === null || x === undefined ? '-' : `${(100 * x).toFixed(x < 0.1 ? 1 : 0)} %`);

export function markdown(results) {
  const titles = ['work', 'model', 'Dougong', 'llama.cpp', 'ratio', 'target', 'of the machine: Dougong, llama.cpp (target)',
    'yardstick of the issue: Dougong against it', 'best settings of llama.cpp'];
  const line = (cells) => `| ${cells.join(' | ')} |`;
  const lines = [line(titles), `|${'---|'.repeat(titles.length)}`];
  for (const r of results) {
    const t = r.target ?? {};
    const goal = t.ratio ? `>= ${t.ratio}x` : t.ours ? `<= ${t.ours} ${r.unit}` : '-';
    const share = r.share
      ? `${percent(r.share.ours)}, ${percent(r.share.peer)} of ${r.share.of}${t.share ? ` (>= ${percent(t.share)})` : ''}` : '-';
    const yardstick = t.yardstick ? `${t.yardstick} ${r.unit}${r.ratio_to_yardstick ? `: ${digits(r.ratio_to_yardstick)}x` : ''}` : '-';
    const settings = [r.peer_settings ? describe(r.peer_settings) : 'none runs', r.peer_tried?.some((x) => x.failed && x.settings.repack)
      ? 'repack fails' : '',
      r.peer_failed ? `failed: ${r.peer_failed.replaceAll('|', '/').slice(0, 120)}` : '', r.interleaved
        ? '' : 'one side after the other (memory)'].filter((x) => x).join('; ');
    const side = (s) => (s ? `${range(s)} ${r.unit}` : '-');
    lines.push(line([r.row, `${r.model} ${r.format}`, side(r.ours), side(r.peer), range(r.ratio, 'x'), goal, share, yardstick, settings]));
  }
  return lines.join('\n');
}
