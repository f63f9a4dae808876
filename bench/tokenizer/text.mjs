// A deterministic mixed text: English prose, Chinese prose, code, numbers and markup, in paragraphs. Word frequencies fall
// off as in real text (rank^-1), with a long tail of rare and invented words so that piece caches do not see everything.
const english = `the of and to in a is that for it as was with be by on not he i this are or his from at which but have an had they you were their one all we can
her has there been if more when will would who so no out up into them than only its time some could these two may then do first any my now such like our over man
even most made after also did many before must through back years where much your way well down should because each just those people how too little state good very
make world still own see men work long get here between both life being under never day same another know while last might us great old year off come since against
right came take used himself few house use place during high without again home around small however found mrs part school thought went say once general upon war
every don't does got united left number course until always away something fact though water less public put think almost hand enough far took head yet government
system better set told nothing night end why called didn't eyes find going look asked later knew point next program city business give group toward young days let room
president side social given present several order national possible rather second face per among form important often things looked early white case john become large
big need four within felt along children saw best church ever least power development light thing seemed family interest want members mind country area others done
tokenizer inference latency throughput attention quantization gradient parameter deployment accelerator bandwidth scheduler speculative hierarchical reproducibility
internationalization misunderstanding characteristics electromagnetic straightforward responsibilities authentication observability infrastructure`.split(/\s+/);
const chinese = `我们 的 是 在 了 和 有 不 人 这 中 大 为 上 个 国 他 以 要 时 来 用 们 生 到 作 地 于 出 就 分 对 成 会 可 主 发 年 动 同 工 也 能 下 过 子 说 产 种 面 而 方 后 多 定
行 学 法 所 民 得 经 人工智能 模型 推理 部署 服务器 国产芯片 政务 金融 数据 安全 系统 性能 内存 带宽 吞吐量 延迟 调度 并行 专家 注意力 机制 量化 精度 训练 语言 处理 计算 能力 研究 发展 技术
应用 企业 客户 需求 解决方案 因此 但是 如果 那么 例如 可以 需要 通过 进行 以及 由于 根据 问题 结果 方法 分析 实现 支持 提供 提高 优化 测试 标准 规范 管理 平台 网络 开源 社区 深度求索 千里之行始于足下`.split(/\s+/);
const identifiers = 'i j n index value result size_t token buffer request config weight_bytes kv_cache self data std::vector<int> auto const return nullptr foo_bar getUserName HTTPServer MAX_SIZE x1 tmp'.split(' ');

export function mixedText(bytes) {
  let state = 88172645463325252n;
  const random = () => {
    state ^= (state << 13n) & 0xffffffffffffffffn;
    state ^= state >> 7n;
    state ^= (state << 17n) & 0xffffffffffffffffn;
    return Number(state >> 11n) / 2 ** 53;
  };
  const below = (n) => Math.floor(random() * n);
  const zipf = (list) => list[Math.min(list.length - 1, Math.floor(Math.exp(random() * Math.log(list.length + 1))) - 1)];
  const syllables = 'ka ro men ti sa lo ver in tra mo pel qui zan dor el fi gu sho ste bri'.split(' ');
  const invented = () => Array.from({ length: 2 + below(3) }, () => syllables[below(syllables.length)]).join('');
  const word = () => {
    const w = random() < 0.06 ? invented() : zipf(english);
    return random() < 0.08 ? w[0].toUpperCase() + w.slice(1) : w;
  };
  const number = () => [String(below(100)), String(below(1e9)), (random() * 1000).toFixed(below(5)), `20${10 + below(20)}-0${1 + below(9)}-1${below(10)}`, `${below(256)}.${below(256)}.0.1`][below(5)];
  const prose = () => Array.from({ length: 4 + below(5) }, () => {
    const parts = Array.from({ length: 5 + below(18) }, () => (random() < 0.03 ? number() : word()));
    return parts.join(random() < 0.1 ? ', ' : ' ') + ['.', '.', '.', '?', '!', ';'][below(6)];
  }).join(' ');
  const hanzi = () => String.fromCodePoint(0x4e00 + below(6000));
  const chineseProse = () => Array.from({ length: 3 + below(5) }, () =>
    Array.from({ length: 6 + below(20) }, () => (random() < 0.05 ? number() : random() < 0.12 ? hanzi() : random() < 0.03 ? ` ${word()} ` : zipf(chinese))).join('') + '。，！？；'[below(5)]).join('');
  const id = () => (random() < 0.3 ? invented() : identifiers[below(identifiers.length)]);
  const code = () => Array.from({ length: 4 + below(12) }, () => {
    const indent = '    '.repeat(below(4));
    return indent + [
      () => `for (int ${id()} = 0; ${id()} < ${number()}; ${id()}++) {`, () => `${id()}.${id()}(${id()}, "${word()} ${word()}");`, () => `if ${id()} != ${id()}:`,
      () => `// ${word()} ${word()} ${word()}`, () => `return ${id()}[${below(64)}] + ${id()} * 0x${below(65536).toString(16)};`, () => `{"${id()}": ${number()}, "${id()}": [${below(9)}, ${below(99)}, null]}`,
      () => `}`, () => `\tlet ${id()} = ${id()} => ${id()} ?? '${word()}';`,
    ][below(8)]();
  }).join('\n');
  const table = () => Array.from({ length: 3 + below(6) }, () => `| ${word()} | ${number()} | ${number()} | ${zipf(chinese)} |`).join('\n');
  const makers = [prose, prose, prose, chineseProse, chineseProse, code, code, table];
  const out = [];
  let size = 0;
  while (size < bytes) {
    const paragraph = makers[below(makers.length)]() + (random() < 0.2 ? '\r\n' : '\n\n');
    size += Buffer.byteLength(paragraph);
    out.push(paragraph);
  }
  return out.join('');
}
