// `dougong inspect`: everything that config.json and the headers of the weight files say, checked against the architecture
// but without reading a weight.
#include <fmt/core.h>

#include <algorithm>
#include <map>

#include "app/commands.h"
#include "app/model_options.h"
#include "app/terminal.h"
#include "backends/dry/dry.h"
#include "base/json.h"
#include "io/shape_text.h"
#include "model/weight_store.h"
#include "quant/formats.h"
#include "quant/panel.h"

namespace dg {
namespace {

// 671,026,419,200
std::string grouped(int64_t value) {
  std::string digits = std::to_string(value);
  for (auto at = static_cast<int64_t>(digits.size()) - 3; at > 0; at -= 3) digits.insert(static_cast<size_t>(at), ",");
  return digits;
}

std::string scaled(int64_t value, const char* unit) {
  constexpr const char* kPrefixes[] = {"", "k", "M", "G", "T"};
  auto x = static_cast<double>(value);
  size_t prefix = 0;
  while (x >= 999.5 && prefix + 1 < std::size(kPrefixes)) x /= 1000, prefix++;
  return prefix == 0 ? fmt::format("{} {}", value, unit) : fmt::format("{:.3g} {}{}", x, kPrefixes[prefix], unit);
}

std::string parameters_text(int64_t value) {
  auto x = static_cast<double>(value);
  if (x >= 1e9) return fmt::format("{:.4g} B", x / 1e9);
  return fmt::format("{:.4g} M", x / 1e6);
}

struct Report {
  const ModelConfig& config;
  const TensorIndex& index;
  const WeightStore& store;
  const CacheLayout& cache;
  Dtype cache_dtype;
  int64_t active, mtp_modules;
  std::string path;

  int64_t parameters() const {
    int64_t sum = store.vector_total().parameters;
    for (int c = 0; c < kWeightClassCount; c++) sum += store.total(static_cast<WeightClass>(c)).parameters;
    return sum;
  }
  std::map<std::string, int64_t> formats() const { return {store.bytes_by_format().begin(), store.bytes_by_format().end()}; }
  std::vector<std::pair<std::string, WeightStore::ClassTotal>> classes() const {
    std::vector<std::pair<std::string, WeightStore::ClassTotal>> out;
    for (int c = 0; c < kWeightClassCount; c++)
      if (store.total(static_cast<WeightClass>(c)).count > 0)
        out.emplace_back(weight_class_name(static_cast<WeightClass>(c)), store.total(static_cast<WeightClass>(c)));
    out.emplace_back("vectors", store.vector_total());
    return out;
  }
};

std::string file_name(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

void print_json(const Report& r, bool tensors) {
  Json out = {{"model", r.path},
              {"architecture", r.config.architecture},
              {"model_type", r.config.model_type},
              {"parameters", r.parameters()},
              {"active_parameters", r.active},
              {"layers", r.config.layers},
              {"hidden_size", r.config.hidden},
              {"vocab_size", r.config.vocab},
              {"max_position", r.config.max_position},
              {"checkpoint_bytes", r.index.total_bytes()},
              {"files", r.index.file_count()},
              {"loaded_bytes", r.store.bytes()}};
  Json formats = Json::object(), classes = Json::object(), parts = Json::array();
  for (auto& [name, bytes] : r.formats()) formats[name] = bytes;
  for (auto& [name, total] : r.classes())
    classes[name] = {{"tensors", total.count}, {"parameters", total.parameters}, {"bytes", total.bytes}};
  for (const CacheLayout::Part& part : r.cache.parts()) parts.push_back({{"name", part.name}, {"width", part.width}});
  out["formats"] = std::move(formats);
  out["classes"] = std::move(classes);
  out["kv_bytes_per_token"] = r.cache.bytes_per_token(r.cache_dtype);
  out["kv_parts"] = std::move(parts);
  out["mtp_modules"] = r.mtp_modules;
  if (tensors) {
    Json list = Json::array();
    for (const TensorInfo& t : r.index.tensors())
      list.push_back({{"name", t.name},
                      {"dtype", dtype_name(t.dtype)},
                      {"shape", t.shape},
                      {"bytes", t.bytes},
                      {"file", file_name(r.index.file(t.file).path())}});
    out["tensors"] = std::move(list);
  }
  print_output(json_line(out));
}

std::string attention_text(const ModelConfig& c) {
  if (c.mla.kv_lora > 0)
    return fmt::format("MLA, {} heads, latent {} + rope {}, q_lora {}", c.heads, c.mla.kv_lora, c.mla.rope,
                       c.mla.q_lora > 0 ? std::to_string(c.mla.q_lora) : "none");
  return fmt::format("{}, {} heads of {}, {} key/value heads", c.kv_heads < c.heads ? "GQA" : "MHA", c.heads, c.head_dim, c.kv_heads);
}

void print_text(const Report& r, bool tensors) {
  const ModelConfig& c = r.config;
  std::string out;
  auto row = [&](std::string_view name, const std::string& value) { out += fmt::format("{:<18}{}\n", name, value); };
  row("model", r.path);
  row("architecture", c.architecture);
  row("parameters", fmt::format("{} ({}); {} ({}) read for each token", grouped(r.parameters()), parameters_text(r.parameters()),
                                grouped(r.active), parameters_text(r.active)));
  row("layers", fmt::format("{}{}", c.layers, r.mtp_modules > 0 ? fmt::format(" + {} multi-token prediction", r.mtp_modules) : ""));
  row("hidden size", std::to_string(c.hidden));
  row("attention", attention_text(c));
  if (c.moe.experts > 0)
    row("experts", fmt::format("{} of {} for each token, {} shared, first {} layers dense", c.moe.top_k, c.moe.experts, c.moe.shared,
                               c.moe.first_dense));
  row("vocabulary", grouped(c.vocab));
  row("context", fmt::format("{} tokens", grouped(c.max_position)));
  row("checkpoint", fmt::format("{} in {} file{}, {} tensors", scaled(static_cast<int64_t>(r.index.total_bytes()), "B"),
                                r.index.file_count(), r.index.file_count() == 1 ? "" : "s", r.index.tensors().size()));
  row("loaded", scaled(r.store.bytes(), "B"));
  for (auto& [name, bytes] : r.formats()) row("  " + name, scaled(bytes, "B"));
  row("KV cache", fmt::format("{} for each token ({}); {} for {} tokens", scaled(r.cache.bytes_per_token(r.cache_dtype), "B"),
                              dtype_name(r.cache_dtype), scaled(r.cache.bytes_per_token(r.cache_dtype) * c.max_position, "B"),
                              grouped(c.max_position)));
  out += fmt::format("\n{:<18}{:>9}{:>20}{:>14}\n", "class", "tensors", "parameters", "bytes");
  for (auto& [name, total] : r.classes())
    out += fmt::format("{:<18}{:>9}{:>20}{:>14}\n", name, total.count, grouped(total.parameters), scaled(total.bytes, "B"));
  if (tensors) {
    out += "\n";
    for (const TensorInfo& t : r.index.tensors())
      out += fmt::format("{:<64} {:<8} {:<20} {:>12}  {}\n", t.name, dtype_name(t.dtype), shape_text(t.shape), t.bytes,
                         file_name(r.index.file(t.file).path()));
  }
  print_output(out);
}

}  // namespace

Result<int> run_inspect(const Options& options) {
  DG_ASSIGN(std::string name, model_argument(options));
  OpenOptions open = open_options(options);
  DG_ASSIGN(std::string path, resolve_model(name));
  DG_ASSIGN(WeightPolicy policy, weight_policy(open));
  DG_ASSIGN(Dtype cache_dtype, kv_cache_dtype(open));
  DG_ASSIGN(ModelConfig config, read_model_config(path));
  DG_ASSIGN(TensorIndex index, TensorIndex::open(path));
  DryBackend backend(panel_bytes);
  WeightStore store(backend, &index, policy);
  DG_ASSIGN(std::unique_ptr<Model> model, make_model(config, store));
  DG_TRY(store.status());
  CacheLayout cache;
  model->register_cache(cache);
  Report report{config, index, store, cache, cache_dtype, model->active_parameters(), model->mtp_modules(), path};
  if (options.flag("json")) print_json(report, options.flag("tensors"));
  else print_text(report, options.flag("tensors"));
  return 0;
}

}  // namespace dg
