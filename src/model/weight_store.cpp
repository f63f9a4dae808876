#include "model/weight_store.h"

#include <fmt/core.h>

#include "model/weight_store_items.h"
#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/fp8_block.h"

namespace dg {

namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

std::string shape_text(std::initializer_list<int64_t> shape) {
  std::string text = "[";
  for (int64_t d : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(d);
  return text + "]";
}
std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (int64_t d : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(d);
  return text + "]";
}

const Format* published_format(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32: return &kF32;
    case Dtype::kF16: return &kF16;
    case Dtype::kBf16: return &kBf16;
    case Dtype::kF8E4m3: return &kFp8BlockFormat;
    default: return nullptr;
  }
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

void WeightStore::fail(Error error) {
  if (!error_) error_ = std::make_unique<Error>(std::move(error));
}

bool WeightStore::has(const std::string& name) const { return !index_ || index_->find(name); }

void WeightStore::matrix(Weight* to, const std::string& name, int64_t out, int64_t in, WeightClass weight_class) {
  if (auto known = by_name_.find(name); known != by_name_.end()) {
    Item& item = items_[known->second];
    CHECK(item.out == out && item.in == in) << name;
    item.weights.push_back(to);
    return;
  }
  Item item;
  item.name = name;
  item.out = out;
  item.in = in;
  item.weights.push_back(to);
  item.source_format = assumed_;
  bool quantised_class =
      weight_class != WeightClass::kEmbedding && weight_class != WeightClass::kHead && weight_class != WeightClass::kRouter;
  if (!index_ && !quantised_class) item.source_format = &kBf16;
  if (index_) {
    item.source = index_->find(name);
    if (!item.source) {
      fail(input_error(fmt::format("{}: tensor {} is missing: expected shape {}", index_->file(0).path(), name, shape_text({out, in}))));
      return;
    }
    if (item.source->shape != std::vector<int64_t>{out, in})
      return fail(input_error(fmt::format("{}: expected shape {} from config.json, found {}", where(*item.source), shape_text({out, in}),
                                          shape_text(item.source->shape))));
    item.source_format = published_format(item.source->dtype);
    if (!item.source_format)
      return fail(input_error(
          fmt::format("{}: expected dtype F32, F16, BF16 or F8_E4M3, found {}", where(*item.source), dtype_name(item.source->dtype))));
    if (item.source->dtype == Dtype::kF8E4m3) {
      std::string scale_name = name + "_scale_inv";
      item.scale = index_->find(scale_name);
      std::vector<int64_t> expected{kFp8BlockFormat.scale_row_count(out), kFp8BlockFormat.scale_col_count(in)};
      if (!item.scale)
        return fail(input_error(fmt::format("{}: dtype F8_E4M3 needs tensor {} of shape {}, which is missing", where(*item.source),
                                            scale_name, shape_text(expected))));
      if (item.scale->dtype != Dtype::kF32)
        return fail(input_error(fmt::format("{}: expected dtype F32, found {}", where(*item.scale), dtype_name(item.scale->dtype))));
      if (item.scale->shape != expected)
        return fail(input_error(fmt::format("{}: expected shape {} (128 x 128 blocks of {}), found {}", where(*item.scale),
                                            shape_text(expected), shape_text({out, in}), shape_text(item.scale->shape))));
    }
  }
  item.format = item.source_format;
  if (policy_.float32) item.format = &kF32;
  else if (policy_.linear && quantised_class) item.format = policy_.linear;
  if (!backend_.supports(*item.format))
    return fail(input_error(fmt::format("{}: backend {} has no kernel for weight format {}", name, backend_.name(), item.format->name)));
  item.data_offset = bytes_;
  bytes_ += aligned(item.format->data_bytes(out, in));
  item.scale_offset = bytes_;
  bytes_ += aligned(item.format->scale_bytes(out, in));
  ClassTotal& total = totals_[static_cast<size_t>(weight_class)];
  total.parameters += out * in;
  total.bytes += item.format->total_bytes(out, in);
  total.count++;
  bytes_by_format_[item.format->name] += item.format->total_bytes(out, in);
  by_name_.emplace(name, items_.size());
  items_.push_back(std::move(item));
}

void WeightStore::vector(Tensor* to, const std::string& name, int64_t size) {
  Item item;
  item.name = name;
  item.out = 1;
  item.in = size;
  item.format = &kF32;
  item.tensors.push_back(to);
  if (index_) {
    item.source = index_->find(name);
    if (!item.source)
      return fail(
          input_error(fmt::format("{}: tensor {} is missing: expected shape {}", index_->file(0).path(), name, shape_text({size}))));
    if (item.source->shape != std::vector<int64_t>{size})
      return fail(input_error(fmt::format("{}: expected shape {} from config.json, found {}", where(*item.source), shape_text({size}),
                                          shape_text(item.source->shape))));
    item.source_format = published_format(item.source->dtype);
    if (!item.source_format || item.source_format == &kFp8BlockFormat)
      return fail(
          input_error(fmt::format("{}: expected dtype F32, F16 or BF16, found {}", where(*item.source), dtype_name(item.source->dtype))));
  }
  item.data_offset = bytes_;
  bytes_ += aligned(size * 4);
  ClassTotal& total = totals_[kWeightClassCount];
  total.parameters += size;
  total.bytes += size * 4;
  total.count++;
  bytes_by_format_["f32"] += size * 4;
  by_name_.emplace(name, items_.size());
  items_.push_back(std::move(item));
}

void WeightStore::constant(Tensor* to, std::vector<float> values) {
  Item item;
  item.name = "(constant)";
  item.out = 1;
  item.in = static_cast<int64_t>(values.size());
  item.format = &kF32;
  item.tensors.push_back(to);
  item.constant = std::move(values);
  item.data_offset = bytes_;
  bytes_ += aligned(item.in * 4);
  items_.push_back(std::move(item));
}

Result<void> WeightStore::status() const {
  if (error_) return *error_;
  if (!index_) return {};
  const TensorInfo* extra = nullptr;
  int64_t count = 0;
  for (const TensorInfo& info : index_->tensors()) {
    if (by_name_.count(info.name) || ignored_.count(info.name)) continue;
    std::string_view name = info.name;
    constexpr std::string_view kScale = "_scale_inv";
    if (name.size() > kScale.size() && name.substr(name.size() - kScale.size()) == kScale) {
      auto owner = by_name_.find(std::string(name.substr(0, name.size() - kScale.size())));
      if (owner != by_name_.end() && items_[owner->second].scale) continue;
    }
    bool skip = name.find("rotary_emb.inv_freq") != std::string_view::npos;  // old Llama checkpoints carry it
    for (const std::string& prefix : ignored_prefixes_) skip = skip || name.substr(0, prefix.size()) == prefix;
    if (skip) continue;
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
    if (item.constant.empty()) all.push_back({item.name, item.out, item.in, !item.tensors.empty(), item.format});
  return all;
}

Result<void> WeightStore::allocate() {
  DG_TRY(status());
  DG_ASSIGN(memory_, backend_.allocate(static_cast<size_t>(std::max<int64_t>(bytes_, 64)), "weights"));
  return {};
}

void WeightStore::bind() {
  auto* base = static_cast<std::byte*>(memory_->data());
  for (Item& item : items_) {
    for (Weight* w : item.weights)
      *w = {item.format, base + item.data_offset, item.format->scale_type == ScaleType::kNone ? nullptr : base + item.scale_offset,
            item.out, item.in};
    for (Tensor* t : item.tensors) *t = Tensor::of(base + item.data_offset, Dtype::kF32, {item.in});
  }
}

Result<void> WeightStore::bind_dry() {
  DG_TRY(allocate());
  bind();
  return {};
}

}  // namespace dg
