#include "device/machine.h"

#include <fmt/core.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/file.h"
#include "base/json.h"
#include "quant/panel.h"

namespace dg {
namespace {

constexpr int kCacheVersion = 1;  // of the file's meaning: other versions are measured again
constexpr size_t kMaxCacheEntries = 16, kMaxCacheBytes = size_t{4} << 20;

Json measured_json(const Measured& m) { return {{"median", m.median}, {"low", m.low}, {"high", m.high}}; }

// Reading members of a file that somebody may have edited: anything unexpected makes the whole entry void.
struct Reader {
  bool ok = true;
  const Json* find(const Json& json, const char* name) {
    if (json.is_object())
      if (auto it = json.find(name); it != json.end()) return &*it;
    ok = false;
    return nullptr;
  }
  double number(const Json& json, const char* name) {
    const Json* value = find(json, name);
    if (!value || !value->is_number()) return ok = false, 0.0;
    double number = value->get<double>();
    if (!std::isfinite(number) || number < 0) return ok = false, 0.0;
    return number;
  }
  int integer(const Json& json, const char* name) {
    double value = number(json, name);
    if (value > 1e6) ok = false;
    return ok ? static_cast<int>(value) : 0;
  }
  std::string text(const Json& json, const char* name) {
    const Json* value = find(json, name);
    if (!value || !value->is_string()) return ok = false, "";
    return value->get<std::string>();
  }
  Measured measurement(const Json& json, const char* name) {
    const Json* value = find(json, name);
    if (!value) return {};
    return {number(*value, "median"), number(*value, "low"), number(*value, "high")};
  }
  template <class F>
  void each(const Json& json, const char* name, F f) {
    const Json* list = find(json, name);
    if (!list || !list->is_array()) {
      ok = false;
      return;
    }
    for (const Json& item : *list) f(item);
  }
};

}  // namespace

Measured measured(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  size_t n = values.size();
  double median = n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
  return {median, values.front(), values.back()};
}

const char* math_type_name(MathType type) {
  return type == MathType::kInt8 ? "int8" : type == MathType::kBf16 ? "bf16" : type == MathType::kFp8 ? "fp8" : "f32";
}

MathType math_type_of(const Format& format) {
  switch (panel_kind(format)) {
    case PanelKind::kNone: return MathType::kF32;
    case PanelKind::kBf16:
    case PanelKind::kFp8: return MathType::kBf16;
    default: return MathType::kInt8;
  }
}

double Roofline::seconds(double bytes, double operations, MathType type) const {
  double peak = operations_per_s(type);
  double memory_s = bytes_per_s > 0 ? bytes / bytes_per_s : 0;
  return std::max(memory_s, peak > 0 ? operations / peak : 0);
}

double MachineLimits::operations_per_s(std::string_view isa, MathType type) const {
  double best = 0;
  for (const InstructionPeak& peak : peaks)
    if (peak.isa == isa && !peak.from_l2 && (peak.type == type || peak.type == MathType::kF32)) best = std::max(best, peak.all.median);
  return best;
}

Roofline MachineLimits::roofline(std::string_view isa) const {
  const bool fp8 = std::any_of(peaks.begin(), peaks.end(), [&](const auto& p) { return p.isa == isa && p.type == MathType::kFp8; });
  return {read_bytes_per_s(), operations_per_s(isa, MathType::kF32), operations_per_s(isa, MathType::kBf16),
          operations_per_s(isa, MathType::kInt8), fp8 ? operations_per_s(isa, MathType::kFp8) : 0};
}

std::string MachineLimits::summary(std::string_view isa) const {
  Roofline r = roofline(isa);
  if (isa == "cuda")
    return fmt::format("read {:.0f} GB/s, bf16 {:.0f} TFLOP/s, fp8 {:.0f} ({})", r.bytes_per_s * 1e-9, r.bf16 * 1e-12, r.fp8 * 1e-12, cpu);
  return fmt::format("read {:.1f} GB/s; {}: int8 {:.2f} TOP/s, bf16 {:.2f}, f32 {:.2f} TFLOP/s ({} thread{} of {})", r.bytes_per_s * 1e-9,
                     isa, r.int8 * 1e-12, r.bf16 * 1e-12, r.f32 * 1e-12, threads, threads == 1 ? "" : "s", cpu);
}

Json machine_json(const MachineLimits& limits) {
  Json read = Json::array(), nodes = Json::array(), peaks = Json::array();
  for (const ReadBandwidth& r : limits.read) read.push_back({{"threads", r.threads}, {"bytes_per_s", measured_json(r.bytes_per_s)}});
  for (const NodeBandwidth& n : limits.nodes)
    nodes.push_back(
        {{"cpu_node", n.cpu_node}, {"memory_node", n.memory_node}, {"threads", n.threads}, {"bytes_per_s", measured_json(n.bytes_per_s)}});
  for (const InstructionPeak& p : limits.peaks)
    peaks.push_back({{"isa", p.isa},
                     {"type", math_type_name(p.type)},
                     {"operands", p.from_l2 ? "l2" : "registers"},
                     {"instruction", p.instruction},
                     {"one_thread_ops_per_s", measured_json(p.one)},
                     {"all_threads_ops_per_s", measured_json(p.all)}});
  return {{"version", kCacheVersion},
          {"cpu", limits.cpu},
          {"topology", limits.topology},
          {"threads", limits.threads},
          {"read_bandwidth", std::move(read)},
          {"node_bandwidth", std::move(nodes)},
          {"copy_bytes_per_s", measured_json(limits.copy_bytes_per_s)},
          {"peaks", std::move(peaks)}};
}

std::optional<MachineLimits> machine_from_json(const Json& json) {
  Reader in;
  MachineLimits limits;
  if (in.integer(json, "version") != kCacheVersion) return std::nullopt;
  limits.cpu = in.text(json, "cpu");
  limits.topology = in.text(json, "topology");
  limits.threads = in.integer(json, "threads");
  limits.copy_bytes_per_s = in.measurement(json, "copy_bytes_per_s");
  in.each(json, "read_bandwidth", [&](const Json& item) {
    limits.read.push_back({in.integer(item, "threads"), in.measurement(item, "bytes_per_s")});
  });
  in.each(json, "node_bandwidth", [&](const Json& item) {
    limits.nodes.push_back(
        {in.integer(item, "cpu_node"), in.integer(item, "memory_node"), in.integer(item, "threads"), in.measurement(item, "bytes_per_s")});
  });
  in.each(json, "peaks", [&](const Json& item) {
    InstructionPeak peak;
    peak.isa = in.text(item, "isa");
    peak.instruction = in.text(item, "instruction");
    std::string type = in.text(item, "type"), operands = in.text(item, "operands");
    if ((type != "f32" && type != "bf16" && type != "int8" && type != "fp8") || (operands != "l2" && operands != "registers"))
      in.ok = false;
    peak.type = type == "int8" ? MathType::kInt8 : type == "bf16" ? MathType::kBf16 : type == "fp8" ? MathType::kFp8 : MathType::kF32;
    peak.from_l2 = operands == "l2";
    peak.one = in.measurement(item, "one_thread_ops_per_s");
    peak.all = in.measurement(item, "all_threads_ops_per_s");
    limits.peaks.push_back(std::move(peak));
  });
  if (!in.ok || limits.threads < 1 || limits.read_bytes_per_s() <= 0 || limits.peaks.empty()) return std::nullopt;
  return limits;
}

std::string cpu_model_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string line, implementer, part;
  auto value = [&](std::string_view key) -> std::string {
    size_t colon = line.find(':');
    if (!line.starts_with(key) || colon == std::string::npos) return "";
    size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  };
  for (int i = 0; i < 200 && std::getline(file, line); i++) {
    for (std::string_view key : {"model name", "Model Name", "uarch"})
      if (std::string name = value(key); !name.empty()) return name;
    if (implementer.empty()) implementer = value("CPU implementer");  // ARM gives numbers only
    if (part.empty()) part = value("CPU part");
  }
  utsname system{};
  std::string machine = ::uname(&system) == 0 ? system.machine : "unknown processor";
  return implementer.empty() ? machine : fmt::format("{} implementer {} part {}", machine, implementer, part);
}

std::string machine_cache_path() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache == '/') return std::string(cache) + "/dougong/machine.json";
  if (const char* home = std::getenv("HOME"); home && *home == '/') return std::string(home) + "/.cache/dougong/machine.json";
  return "";
}

namespace {
// The entries of the file that can be understood.
std::vector<MachineLimits> cached_machines(const std::string& path) {
  std::vector<MachineLimits> machines;
  auto json = read_json_file(path, {.max_bytes = kMaxCacheBytes});
  if (!json.ok() || !json->is_object() || !json->contains("machines") || !(*json)["machines"].is_array()) return machines;
  for (const Json& item : (*json)["machines"])
    if (std::optional<MachineLimits> limits = machine_from_json(item)) machines.push_back(std::move(*limits));
  return machines;
}
}  // namespace

std::optional<MachineLimits> load_machine_limits(const std::string& path, const std::string& cpu, int threads) {
  if (path.empty() || !file_exists(path)) return std::nullopt;
  for (MachineLimits& limits : cached_machines(path))
    if (limits.cpu == cpu && limits.threads == threads) return std::move(limits);
  return std::nullopt;
}

Result<void> store_machine_limits(const std::string& path, const MachineLimits& limits) {
  if (path.empty()) return io_error("machine.json: no place for it: set HOME or XDG_CACHE_HOME");
  std::vector<MachineLimits> machines;
  if (file_exists(path)) machines = cached_machines(path);
  std::erase_if(machines, [&](const MachineLimits& m) { return m.cpu == limits.cpu && m.threads == limits.threads; });
  machines.insert(machines.begin(), limits);
  if (machines.size() > kMaxCacheEntries) machines.resize(kMaxCacheEntries);
  Json list = Json::array();
  for (const MachineLimits& machine : machines) list.push_back(machine_json(machine));
  std::error_code failed;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), failed);
  // Another process may read it right now: it sees the old file or the new one.
  std::string temporary = fmt::format("{}.{}", path, ::getpid());
  DG_TRY(write_file(temporary, Json{{"machines", std::move(list)}}.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"));
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    std::remove(temporary.c_str());
    return io_error(fmt::format("{}: cannot be replaced; is the folder writable?", path));
  }
  return {};
}

}  // namespace dg
