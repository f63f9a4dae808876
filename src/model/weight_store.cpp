#include "model/weight_store.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>

#include "model/weight_store_items.h"
#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"

namespace dg {

namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// What a matrix brings along that this program has no use for: static activation scales, cache scales, shapes of packed data.
bool is_side_tensor(std::string_view name) {
  for (std::string_view suffix : {".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".k_scale", ".v_scale",
                                  ".q_scale", ".prob_scale", ".weight_shape"})
    if (name.ends_with(suffix)) return true;
  return false;
}

}  // namespace

const char* weight_class_name(WeightClass c) {
  static constexpr const char* kNames[] = {"embedding", "head", "attention", "mlp", "experts", "shared experts", "router"};
  return kNames[static_cast<int>(c)];
}

WeightStore::WeightStore(Backend& backend, const TensorIndex* index, WeightPolicy policy, const Format* assumed)
    : backend_(backend), index_(index), policy_(policy), assumed_(assumed ? assumed : &kBf16) {}
WeightStore::~WeightStore() = default;

std::string WeightStore::where(const TensorInfo& info) const {
  return fmt::format("{}: tensor {}", index_->file(info.file).path(), info.name);
}

std::string WeightStore::where(const Item& item) const {
  return item.source ? where(*item.source->tensors()[0]) : fmt::format("tensor {}", item.name);
}

void WeightStore::fail(Error error) {
  if (!error_) error_ = std::make_unique<Error>(std::move(error));
}

bool WeightStore::has(const std::string& name) const { return !index_ || has_weight_source(*index_, name); }

Result<void> WeightStore::settle(Item& item) const {
  const WeightClass c = item.weight_class;
  const bool ends = c == WeightClass::kEmbedding || c == WeightClass::kHead;
  const bool act_order = item.source && item.source->permuted();
  item.format = item.source_format;
  if (policy_.float32) item.format = &kF32;
  else if (ends && policy_.head) item.format = policy_.head;
  else if (policy_.linear && !ends && c != WeightClass::kRouter) item.format = policy_.linear;
  // Who reads single rows knows no order of columns. f16 holds what such a checkpoint's own runtime computes with.
  if (act_order && item.as_rows && item.format == item.source_format) item.format = &kF16;
  if (item.format != item.source_format && !item.format->encode)
    return input_error(fmt::format("{}: weight format {} can only be read, not written; choose another", item.name, item.format->name));
  if (!backend_.supports(*item.format))
    return input_error(fmt::format("{}: backend {} has no kernel for weight format {}", item.name, backend_.name(), item.format->name));
  item.keeps_columns = act_order && item.format == item.source_format;
  const int64_t prepared = item.as_product ? backend_.prepared_bytes(*item.format, item.out, item.in) : 0;
  item.prepared = prepared > 0;
  item.data_bytes = item.prepared ? prepared : item.format->data_bytes(item.out, item.in);
  item.scale_bytes = item.prepared ? 0 : item.format->scale_bytes(item.out, item.in);
  return {};
}

void WeightStore::count(const Item& item, int sign) {
  const int64_t bytes = item.data_bytes + item.scale_bytes + item.columns_bytes();
  bytes_ += sign * (aligned(item.data_bytes) + aligned(item.scale_bytes) + aligned(item.columns_bytes()));
  if (!item.constant.empty()) return;
  ClassTotal& total = totals_[item.is_vector ? static_cast<size_t>(kWeightClassCount) : static_cast<size_t>(item.weight_class)];
  total.parameters += sign * item.out * item.in;
  total.bytes += sign * bytes;
  total.count += sign;
  int64_t& by_format = bytes_by_format_[item.format->name];
  by_format += sign * bytes;
  if (by_format == 0) bytes_by_format_.erase(item.format->name);
}

const Format& WeightStore::planned_format(WeightClass c) const {
  const bool quantised = c != WeightClass::kEmbedding && c != WeightClass::kHead && c != WeightClass::kRouter;
  return quantised ? *assumed_ : kBf16;
}

WeightCuts WeightStore::cuts(const std::string& name, int64_t out, int64_t in, WeightClass weight_class) const {
  if (!index_) return cuts_of(planned_format(weight_class));
  auto source = find_weight_source(*index_, quantization_, name, out, in);
  return source.ok() ? (*source)->cuts() : WeightCuts{};
}

void WeightStore::matrix(Weight* to, const std::string& name, int64_t out, int64_t in, WeightClass weight_class, WeightUse use,
                         const WeightPart& part) {
  const auto known = by_name_.find(name);
  if (known != by_name_.end() && items_[known->second].out == part.local_out(out) && items_[known->second].in == part.local_in(in)) {
    Item& item = items_[known->second];
    CHECK(item.part.first_row == part.first_row && item.part.first_column == part.first_column) << name;
    item.weights.push_back(to);
    count(item, -1);
    (use == WeightUse::kRows ? item.as_rows : item.as_product) = true;
    Result<void> settled = settle(item);
    if (!settled.ok()) fail(settled.error());
    count(item, +1);
    return;
  }
  // Another part of what is there already (a head tied to the embedding) is kept beside it.
  CHECK(known == by_name_.end() || !part.whole(out, in)) << name;
  Item item;
  item.name = name;
  item.part = part;
  item.out = part.local_out(out);
  item.in = part.local_in(in);
  item.weight_class = weight_class;
  (use == WeightUse::kRows ? item.as_rows : item.as_product) = true;
  item.weights.push_back(to);
  if (index_) {
    auto source = find_weight_source(*index_, quantization_, name, out, in);
    if (!source.ok()) return fail(source.error());
    const std::string origin = where(*(*source)->tensors()[0]);
    auto kept = part_of_source(std::move(*source), part, origin);
    if (!kept.ok()) return fail(kept.error());
    item.source = std::move(*kept);
    item.source_format = &item.source->format();
  } else {
    const Format& format = planned_format(weight_class);
    auto kept = part_format(format, cuts_of(format), part, fmt::format("tensor {}", name));
    if (!kept.ok()) return fail(kept.error());
    item.source_format = *kept;
  }
  Result<void> settled = settle(item);
  if (!settled.ok()) return fail(settled.error());
  count(item, +1);
  by_name_.emplace(name, items_.size());
  items_.push_back(std::move(item));
}

void WeightStore::alike(const std::string& first, const std::string& second, bool columns) {
  const auto a = by_name_.find(first), b = by_name_.find(second);
  if (a == by_name_.end() || b == by_name_.end()) return;  // a problem that fail() knows
  const Item &x = items_[a->second], &y = items_[b->second];
  if (x.format != y.format || x.keeps_columns != y.keeps_columns)
    return fail(input_error(fmt::format(
        "{}: weight format {}{} differs from that of {}: {}{}; the experts of a layer need one: convert with --quantization", where(y),
        y.format->name, y.keeps_columns ? " in act order" : "", first, x.format->name, x.keeps_columns ? " in act order" : "")));
  if (columns && x.keeps_columns) same_columns_.emplace_back(a->second, b->second);
}

Result<void> WeightStore::check_columns() const {
  for (const auto& [a, b] : same_columns_) {
    const Item &x = items_[a], &y = items_[b];
    if (std::memcmp(place(x.columns_offset), place(y.columns_offset), static_cast<size_t>(x.columns_bytes())) != 0)
      return input_error(fmt::format(
          "{}: its columns are in another act order than those of {}; the experts of a layer need one: convert with --quantization",
          where(y), x.name));
  }
  return {};
}

void WeightStore::vector(Tensor* to, const std::string& name, int64_t size, int64_t first, int64_t elements) {
  Item item;
  item.name = name;
  item.out = 1;
  item.part = WeightPart::of_columns(first, elements < 0 ? size : elements);
  item.in = item.part.columns;
  item.is_vector = true;
  item.source_format = item.format = &kF32;
  item.data_bytes = item.in * 4;
  item.tensors.push_back(to);
  if (index_) {
    auto source = find_vector_source(*index_, name, size);
    if (!source.ok()) return fail(source.error());
    auto kept = part_of_source(std::move(*source), item.part, name);
    if (!kept.ok()) return fail(kept.error());
    item.source = std::move(*kept);
    item.source_format = &item.source->format();
  }
  count(item, +1);
  by_name_.emplace(name, items_.size());
  items_.push_back(std::move(item));
}

void WeightStore::constant(Tensor* to, std::vector<float> values) {
  Item item;
  item.name = "(constant)";
  item.out = 1;
  item.in = static_cast<int64_t>(values.size());
  item.is_vector = true;
  item.format = &kF32;
  item.data_bytes = item.in * 4;
  item.tensors.push_back(to);
  item.constant = std::move(values);
  count(item, +1);
  items_.push_back(std::move(item));
}

// GPTQ exporters give every matrix a bias, zero where the model has none. A bias that does something must be declared.
bool WeightStore::is_zero_bias(const TensorInfo& info) const {
  constexpr std::string_view kSuffix = ".bias";
  if (quantization_.method != QuantConfig::Method::kGptq || !info.name.ends_with(kSuffix)) return false;
  if (!index_->find(info.name.substr(0, info.name.size() - kSuffix.size()) + ".qweight") || info.bytes > (1 << 24)) return false;
  std::vector<std::byte> data(info.bytes);
  if (!index_->file(info.file).read_into(info.offset, data).ok()) return false;
  return std::all_of(data.begin(), data.end(), [](std::byte b) { return b == std::byte{0}; });
}

bool WeightStore::belongs(const TensorInfo& info) const {
  std::string_view name = info.name;
  if (by_name_.count(info.name) || ignored_.count(info.name)) return true;
  if (name.find("rotary_emb.inv_freq") != std::string_view::npos) return true;  // old Llama checkpoints carry it
  if (quantization_.method != QuantConfig::Method::kNone && is_side_tensor(name)) return true;
  for (size_t dot = name.find('.'); !ignored_prefixes_.empty() && dot != std::string_view::npos; dot = name.find('.', dot + 1))
    if (ignored_prefixes_.count(std::string(name.substr(0, dot + 1)))) return true;
  return is_zero_bias(info);
}

Result<void> WeightStore::status() const {
  if (error_) return *error_;
  if (!index_) return {};
  std::unordered_set<const TensorInfo*> used;
  for (const Item& item : items_)
    if (item.source) used.insert(item.source->tensors().begin(), item.source->tensors().end());
  const TensorInfo* extra = nullptr;
  int64_t count = 0;
  for (const TensorInfo& info : index_->tensors()) {
    if (used.count(&info) || belongs(info)) continue;
    if (!extra) extra = &info;
    count++;
  }
  if (!extra) return {};
  return input_error(fmt::format("{}: {} {} does not belong to this architecture{}", index_->file(extra->file).path(), "unexpected tensor",
                                 extra->name, count > 1 ? fmt::format(" ({} more like it)", count - 1) : std::string()));
}

std::vector<WeightStore::Declared> WeightStore::declared() const {
  std::vector<Declared> all;
  for (const Item& item : items_)
    if (item.constant.empty()) all.push_back({item.name, item.out, item.in, item.is_vector, item.format, item.prepared});
  return all;
}

Result<void> WeightStore::allocate() {
  DG_TRY(status());
  int64_t offset = 0;
  auto take = [&](int64_t bytes) {
    int64_t at = offset;
    offset += aligned(bytes);
    return at;
  };
  for (Item& item : items_) {
    item.data_offset = take(item.data_bytes);
    item.scale_offset = take(item.scale_bytes);
    item.columns_offset = take(item.columns_bytes());
  }
  CHECK(offset == bytes_);
  DG_ASSIGN(memory_, backend_.allocate(static_cast<size_t>(std::max<int64_t>(bytes_, 64)), "weights"));
  return {};
}

void WeightStore::bind() {
  for (Item& item : items_) {
    Weight weight;
    weight.format = item.format;
    weight.data = place(item.data_offset);
    weight.scales = item.scale_bytes > 0 ? place(item.scale_offset) : nullptr;
    weight.out = item.out;
    weight.in = item.in;
    weight.columns = item.keeps_columns ? reinterpret_cast<const int32_t*>(place(item.columns_offset)) : nullptr;
    weight.prepared = item.prepared;
    for (Weight* w : item.weights) *w = weight;
    for (Tensor* t : item.tensors) *t = Tensor::of(place(item.data_offset), Dtype::kF32, {item.in});
  }
}

Result<void> WeightStore::bind_dry() {
  DG_TRY(allocate());
  bind();
  return {};
}

}  // namespace dg
